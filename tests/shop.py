"""The words that tests of the database use: a shop on one connection, and what is done in it."""

import json
import os
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import AsyncConnection, sql

APPROVED = {"outcome": "approved", "gateway": "mock", "reference": "ch_1"}
DECLINED = {"outcome": "declined", "gateway": "mock", "code": "card_declined"}
UNKNOWN = {"outcome": "unknown", "message": "no answer"}
PENDING = {"outcome": "pending", "gateway": "mock", "reference": "ch_1", "deadline_seconds": 600}

COMPENSATED = ["step_compensated release_stock", "saga_compensated"]
"""The last events of an order that had stock and was cancelled."""
EFFECTS = {"fulfill_order": "fulfill", "release_stock": "release"}
"""Steps that are nothing but an effect, and what move_goods() does for them."""
LONG = 4000
"""Seconds after which every backoff and every lease is over."""

CELL = int(os.environ.get("DARKPEARL_TEST_CELL") or 1)
KEY = f"@{CELL}" if CELL > 1 else ""
"""What names the cell in keys at the gateway."""
FIRST_NUMBER = CELL * 10**12 + 1 if CELL > 1 else 1
"""Of the first order of a cell."""

PLACE_MANY = """
    with placed as (
        insert into orders (warehouse_id) select %s from generate_series(1, %s)
        returning id, warehouse_id
    )
    insert into order_items (order_id, warehouse_id, product_id, quantity)
    select id, warehouse_id, %s, 1 from placed
    returning order_id
"""
"""Place so many orders of a warehouse, each for one unit of a product; their ids."""

Row = dict[str, Any]


def of_cell(key: str) -> str:
    """A key at the gateway, of a call that this cell makes: its name is followed by the cell's."""
    return re.sub(r"^([0-9a-f-]{36}:[a-z_]+)(?=$|:[0-9]+$)", rf"\1{KEY}", key)


class Shop:
    """A superuser's connection, and what people and programs do through it."""

    def __init__(self, connection: AsyncConnection[Row]) -> None:
        self.connection = connection
        self.audited = True  # a test that leaves a contradiction behind on purpose says False
        self.lisbon = uuid4()
        self.rotterdam = uuid4()
        self.products: list[UUID] = []
        self.turned_seconds = 0.0
        self.claimed = 0
        self.stale: list[tuple[UUID, str]] = []

    async def rows(self, query: str, *parameters: Any) -> list[Row]:
        """Every row of a query."""
        cursor = await self.connection.execute(query.encode(), parameters or None)
        return await cursor.fetchall() if cursor.description else []

    async def row(self, query: str, *parameters: Any) -> Row:
        """The only row of a query."""
        (row,) = await self.rows(query, *parameters)
        return row

    async def value(self, query: str, *parameters: Any) -> Any:
        """The only value of a query."""
        (value,) = (await self.row(query, *parameters)).values()
        return value

    async def values(self, query: str, *parameters: Any) -> list[Any]:
        """The first column of a query."""
        return [next(iter(row.values())) for row in await self.rows(query, *parameters)]

    run = rows

    @asynccontextmanager
    async def acting_as(self, role: str) -> AsyncIterator[None]:
        """What is done inside is done by a role."""
        await self.connection.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
        try:
            yield
        finally:
            await self.connection.execute("reset role")

    @asynccontextmanager
    async def unguarded(self) -> AsyncIterator[None]:
        """What is done inside meets no trigger and no foreign key, as after a broken restore."""
        self.audited = False
        await self.connection.execute("set session_replication_role = replica")
        try:
            yield
        finally:
            await self.connection.execute("reset session_replication_role")

    async def number_alike(self) -> None:
        """Give movements of Rotterdam numbers of Lisbon's, as those have that came from a cell."""
        async with self.unguarded():
            await self.run(
                "with theirs as (delete from stock_movements where warehouse_id = %s returning *),"
                " numbered as (select t.*, row_number() over (order by id) as n from theirs as t),"
                " ours as (select m.id as number, row_number() over (order by id) as n"
                " from stock_movements as m where m.warehouse_id = %s)"
                " insert into stock_movements overriding system value"
                " select o.number, t.correlation_id, t.warehouse_id, t.product_id, t.movement_type,"
                " t.quantity, t.available_after, t.reserved_after, t.reference_type,"
                " t.reference_id, t.notes, t.actor, t.created_at"
                " from numbered as t inner join ours as o using (n)",
                *(self.rotterdam, self.lisbon),
            )
        self.audited = True

    async def product(self, price: str = "10", *, on_hand: int = 0, **columns: Any) -> UUID:
        """A new product, with units of it in Lisbon."""
        columns = {"sku": str(uuid4()), "name": "Pearl", "unit_price": price, **columns}
        product = await self.value(
            f"insert into products ({', '.join(columns)})"
            f" values ({', '.join(['%s'] * len(columns))}) returning id",
            *columns.values(),
        )
        self.products.append(product)
        if on_hand:
            await self.receive(product, on_hand)
        return product

    async def shelves(self, count: int) -> None:
        """So many products more, each with an empty shelf in Lisbon."""
        async with self.unguarded():
            await self.run(
                "insert into products (sku, name) select n, n from generate_series(1, %s) as n",
                count,
            )
            await self.run(
                "insert into inventory (product_id, warehouse_id) select id, %s from products"
                " on conflict do nothing",
                self.lisbon,
            )

    async def receive(self, product: UUID, quantity: int, warehouse: UUID | None = None) -> None:
        """Goods arrive."""
        await self.run(
            "select receive_stock(%s, %s, %s)", warehouse or self.lisbon, product, quantity
        )

    async def stock(self, product: UUID, warehouse: UUID | None = None) -> tuple[int, int]:
        """Units on the shelf, and those of them that are reserved."""
        row = await self.row(
            "select quantity_available, quantity_reserved from inventory"
            " where product_id = %s and warehouse_id = %s",
            product,
            warehouse or self.lisbon,
        )
        return row["quantity_available"], row["quantity_reserved"]

    async def order(
        self, *lines: tuple[UUID, int], warehouse: UUID | None = None, **arguments: Any
    ) -> UUID:
        """Place an order; its id."""
        items = [{"product_id": str(product), "quantity": count} for product, count in lines]
        arguments = {
            "p_warehouse_id": warehouse or self.lisbon,
            "p_items": json.dumps(items),
            **arguments,
        }
        named = ", ".join(f"{name} => %s" for name in arguments)
        return await self.value(f"select id from place_order({named})", *arguments.values())

    async def capture_at_fulfilment(self) -> None:
        """From now on Lisbon's orders are authorised first, and captured before the goods leave."""
        await self.run(
            "update warehouses set capture_method = 'at_fulfilment' where id = %s", self.lisbon
        )

    async def give_up_after(self, seconds: float, step: str | None = None) -> None:
        """From now on a step, or every one, is tried for so long; 0: once."""
        await self.run(
            "update step_settings set give_up_seconds = %s, stuck_seconds = %s"
            " where step_name = coalesce(%s, step_name)",
            *(seconds, seconds, step),
        )

    async def lease(self, saga: UUID) -> Row:
        """What an answer to the present request of a saga has to name."""
        return {"saga_id": saga, "lease_token": (await self.saga(saga))["lease_token"]}

    async def ask_again(self) -> list[Row]:
        """Every backoff and every lease is over, and the listener claims; its requests."""
        await self.turn_clock(LONG)
        return await self.advance()

    async def told(self, key: str, answer: Row, event: str | None = None) -> str:
        """The gateway tells by webhook what became of a call of this cell; the disposition."""
        async with self.acting_as("service_role"):
            return await self.value(
                "select record_gateway_event('mock', %s, %s, %s)",
                event or str(uuid4()),
                key and of_cell(key),
                json.dumps(answer),
            )

    async def refund(self, order: UUID, amount: Any = None, refund: UUID | None = None) -> Row:
        """An application gives money back."""
        async with self.acting_as("darkpearl_app"):
            return await self.row(
                "select * from refund_order(%s, %s, 'a scratch', %s)",
                order,
                amount,
                refund or uuid4(),
            )

    async def take_back(
        self, order: UUID, *lines: tuple[UUID, int], return_id: UUID | None = None
    ) -> list[tuple[UUID, int]]:
        """An application takes goods back, all when no lines are named; what moved."""
        items = [{"product_id": str(product), "quantity": count} for product, count in lines]
        async with self.acting_as("darkpearl_app"):
            rows = await self.rows(
                "select product_id, quantity from return_items(%s, %s, 'unopened', %s)",
                order,
                json.dumps(items) if items else None,
                return_id or uuid4(),
            )
        return [(row["product_id"], row["quantity"]) for row in rows]

    async def cancel(self, order: UUID) -> str:
        """An application cancels an order; the status that the order has for now."""
        async with self.acting_as("darkpearl_app"):
            return await self.value("select status from cancel_order(%s, 'changed my mind')", order)

    async def order_status(self, order: UUID) -> str:
        """The status of an order."""
        return await self.value("select status from orders where id = %s", order)

    async def statuses(self) -> dict[str, int]:
        """How many orders have which status."""
        rows = await self.rows("select status::text, count(*) from orders group by 1")
        return {row["status"]: row["count"] for row in rows}

    async def saga(self, saga: UUID) -> Row:
        """Where a saga stands."""
        return await self.row("select * from sagas where id = %s", saga)

    async def payment(self, order: UUID) -> Row:
        """The payment of an order."""
        return await self.row("select * from payments where order_id = %s", order)

    async def events(self, saga: UUID) -> list[str]:
        """The history of a saga, each event as its type and, if it has one, its step."""
        return await self.values(
            "select concat_ws(' ', event_type, step_name) from saga_events"
            " where saga_id = %s order by id",
            saga,
        )

    async def event(self, saga: UUID, event_type: str) -> Row:
        """The only event of a type of a saga."""
        return await self.row(
            "select * from saga_events where saga_id = %s and event_type = %s", saga, event_type
        )

    async def advance(self, limit: int = 500, warehouses: list[UUID] | None = None) -> list[Row]:
        """The listener claims; the requests it has to make. `claimed` says how many sagas moved."""
        async with self.acting_as("darkpearl_listener"):
            rows = await self.rows("select * from advance(%s, %s)", limit, warehouses)
        self.claimed = sum(row["claimed"] for row in rows)
        return [request for row in rows for request in row["requests"] or []]

    async def settle(
        self, requests: Iterable[Row], answer: Any, warehouses: list[UUID] | None = None
    ) -> list[Row]:
        """The listener brings one answer to each request; the requests that follow.

        `stale` has the sagas whose answer was refused, with the error code.
        """
        answers = [
            {"saga_id": each["saga_id"], "lease_token": each["lease_token"], "answer": answer}
            for each in requests
        ]
        rows = await self.bring(answers, warehouses)
        self.stale = [
            (row["saga_id"], row["error_code"]) for row in rows if row["error_code"] == "DP009"
        ]
        return [request for row in rows for request in row["requests"] or []]

    async def bring(self, answers: list[Row], warehouses: list[UUID] | None = None) -> list[Row]:
        """The listener brings answers, word for word; the rows that come back."""
        async with self.acting_as("darkpearl_listener"):
            return await self.rows(
                "select * from settle(%s, %s)", json.dumps(answers, default=str), warehouses
            )

    async def fulfilled(self, *lines: tuple[UUID, int]) -> UUID:
        """An order that went all the way."""
        order = await self.order(*lines)
        await self.settle(await self.advance(), APPROVED)
        assert await self.order_status(order) == "fulfilled"
        return order

    async def poison(self, step: str, *sagas: UUID, sqlstate: str = "22012") -> None:
        """Make the function of a step raise when it is given one of these sagas."""
        function = "move_goods" if step in EFFECTS else step
        arguments = await self.value("select pg_get_function_arguments(%s::regproc)", function)
        names = ", ".join(each.split()[0] for each in arguments.split(", "))
        bad = ", ".join(f"'{saga}'" for saga in sagas)
        if step in EFFECTS:
            result, sound = "void", "perform"
            given = f"""exists (
                select from unnest(p_saga_ids, p_effects) as e (saga_id, effect)
                where e.saga_id = any(array[{bad}]::uuid[]) and e.effect = '{EFFECTS[step]}'
            )"""
        else:
            result, sound = "outcome_group[]", "return"
            given = f"p_saga_ids && array[{bad}]::uuid[]"
        await self.run(
            f"""
            alter function {function} rename to sound_{function};
            create function {function}({arguments}) returns {result} language plpgsql
            security definer set search_path = darkpearl as $$
            begin
                if {given} then
                    raise exception 'poison' using errcode = '{sqlstate}';
                end if;
                {sound} sound_{function}({names});
            end $$;
            """
        )

    async def cure(self, step: str) -> None:
        """Take the poison away again."""
        function = "move_goods" if step in EFFECTS else step
        await self.run(
            f"drop function {function}; alter function sound_{function} rename to {function}"
        )

    async def turn_clock(self, seconds: float) -> None:
        """Move the database's clock on by so many seconds; it goes on from there."""
        self.turned_seconds += seconds
        await self.run(
            "create or replace function clock() returns timestamptz language sql volatile parallel"
            f" safe return clock_timestamp() + interval '{self.turned_seconds} seconds'"
        )

    async def stop_clock(self) -> None:
        """The database's clock stands still at this moment, until it is turned."""
        moment = await self.value("select clock()")
        await self.run(
            "create or replace function clock() returns timestamptz language sql volatile parallel"
            f" safe return timestamptz '{moment.isoformat()}'"
        )

    async def audit(self) -> list[Row]:
        """What contradicts the rules, and sagas that stand elsewhere than their events say."""
        return await self.rows("select * from audit") + await self.rows(
            "select id, s.status, s.attempts, e.status as told, e.attempts as told_attempts"
            " from sagas as s full join sagas_from_events as e using (id)"
            " where (s.status, s.attempts) is distinct from (e.status, e.attempts)"
        )

    @contextmanager
    def refused(self, sqlstate: str) -> Iterator["Refusal"]:
        """What is done inside raises the SQLSTATE; one of ours explains itself and says a way out.

        Yields what will hold the error's fields.
        """
        refusal = Refusal()
        with pytest.raises(psycopg.Error) as raised:
            yield refusal
        refusal.message = raised.value.diag.message_primary or ""
        refusal.detail = raised.value.diag.message_detail or ""
        refusal.hint = raised.value.diag.message_hint or ""
        assert raised.value.sqlstate == sqlstate, raised.value
        if sqlstate.startswith("DP"):
            assert refusal.message
            assert refusal.detail
            assert refusal.hint


class Refusal:
    """The fields of an error that was raised."""

    message: str
    detail: str
    hint: str
