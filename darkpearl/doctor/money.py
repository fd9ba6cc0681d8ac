"""The money: the gateway, what it has told, and what is owed."""

import asyncio
from datetime import UTC, datetime, timedelta

from darkpearl.config import ConfigError
from darkpearl.doctor.check import Check, Patient, Verdict, ago, fail, ok, people, warn

GATEWAY_SECONDS = 4.0
QUIET_SECONDS = 600.0
"""After so long a payment that waits for a webhook should have had one."""
RECONCILED_DAYS = 7
_RECONCILE = "darkpearl payments reconcile"


async def gateway(patient: Patient) -> Verdict:
    """The gateway answers."""
    try:
        asked = patient.make_gateway()
    except ConfigError as error:
        return fail(str(error), "Correct the setting that it names: darkpearl settings.")
    try:
        if asked.name == "mock":
            if patient.in_production:
                return fail("it is the mock: nobody is charged", "Set DARKPEARL_GATEWAY.")
            return ok("the mock, which moves no money")
        try:
            async with asyncio.timeout(GATEWAY_SECONDS):
                await anext(asked.payments(datetime.now(UTC) - timedelta(minutes=1)), None)
        except TimeoutError:
            said = f"no answer within {GATEWAY_SECONDS:g} s"
        except Exception as error:  # noqa: BLE001 - whatever its library says
            said = " ".join(str(error).split())[:200] or type(error).__name__
        else:
            return ok(f"{asked.name} answers")
        return fail(
            f"{asked.name} doesn't answer: {said}",
            "Look at its own status page, and at its address and keys here. Orders wait meanwhile.",
        )
    finally:
        await asked.close()


async def pause(patient: Patient) -> Verdict:
    """Nobody holds the calls back."""
    found = await patient.rows(
        """
        select max(t.paused_until) as until, l.actor, l.reason
        from step_settings as t
        left join lateral (
            select a.actor, a.reason from action_log as a
            where a.action = 'pause_external_steps' order by a.id desc limit 1
        ) as l on true
        where t.paused_until > clock()
        group by l.actor, l.reason
        """
    )
    for each in found:
        why = f" ({each['reason']})" if each["reason"] else ""
        return warn(
            f"until {each['until'].astimezone(UTC):%Y-%m-%d %H:%M} UTC,"
            f" by {each['actor'] or 'somebody'}{why}",
            "darkpearl gateway resume --reason …",
        )
    return ok("none")


async def webhook_secret(patient: Patient) -> Verdict:
    """What the gateway tells by webhook is believed, and comes."""
    name = patient.make_gateway().name
    waiting = await patient.row(
        """
        select
            count(*) as payments,
            extract(epoch from clock() - min(p.updated_at))::float8 as seconds,
            exists (
                select from gateway_events as e
                where e.gateway = %s and e.received_at >= min(p.updated_at)
            ) as any_came
        from payments as p
        where p.status = 'pending' and p.gateway = %s
        """,
        *(name, name),
    )
    if name == "mock":
        return ok("the mock sends none")
    if not patient.has_webhook_secret:
        return warn(
            f"DARKPEARL_WEBHOOK_SECRET is not set: what {name} tells is refused",
            "Set it, for every API, to the secret that the gateway signs with.",
        )
    if waiting["payments"] and waiting["seconds"] > QUIET_SECONDS and not waiting["any_came"]:
        return fail(
            f"{waiting['payments']} payments wait for a webhook, the oldest for"
            f" {ago(waiting['seconds'])}, and none has come",
            "Where the APIs log 401 for /webhooks, DARKPEARL_WEBHOOK_SECRET is wrong; else see at"
            " the gateway where it sends to.",
        )
    return ok(f"{waiting['payments']} payments wait for one")


async def unmatched(patient: Patient) -> Verdict:
    """What gateways have told belongs to something."""
    found = await patient.rows(
        "select gateway, count(*) as events from gateway_events where disposition = 'unmatched'"
        " group by 1 order by 2 desc"
    )
    if found:
        told = [f"{each['events']} of {each['gateway']}" for each in found]
        return warn(
            people(told),
            "darkpearl gateway events; look at the gateway's books; darkpearl gateway ack.",
        )
    return ok("none")


async def failed_refunds(patient: Patient) -> Verdict:
    """Nobody waits for money that didn't reach them."""
    found = await patient.row("select count(*) as refunds from failed_refunds")
    if found["refunds"]:
        return fail(
            f"{found['refunds']} came to nothing after they were paid out",
            "select * from failed_refunds; refund again, or by other means and record it with"
            " record_manual_refund().",
        )
    return ok("none")


async def disputes(patient: Patient) -> Verdict:
    """No payer's bank wants money back."""
    found = await patient.row(
        "select count(*) as open from disputed_payments where status = 'open'"
    )
    if found["open"]:
        return warn(f"{found['open']} open", "Answer them at the gateway: disputed_payments.")
    return ok("none")


async def webhook_endpoints(patient: Patient) -> Verdict:
    """What is sent to others comes through."""
    troubled = await patient.rows(
        "select url, off_because, failing_since, last_error from webhook_overview"
        " where off_because is not null or failing_since is not null or given_up > 0 order by id"
    )
    if troubled:
        told = [f"{each['url']}: {each['off_because'] or each['last_error']}" for each in troubled]
        return warn(people(told, 1), "darkpearl webhooks list; darkpearl webhooks enable.")
    return ok("all")


async def reconciliation(patient: Patient) -> Verdict:
    """Our books and the gateway's were compared not long ago, and agree."""
    if patient.make_gateway().name == "mock":
        return ok("the mock keeps no books")
    found = await patient.rows(
        """
        select extract(epoch from clock() - at)::float8 as seconds,
            (detail ->> 'differences')::bigint as differences
        from action_log where action = 'record_upkeep' and subject = 'reconciliation'
        order by id desc limit 1
        """
    )
    if not found:
        return warn("never made", _RECONCILE)
    (last,) = found
    if last["differences"]:
        return fail(
            f"{last['differences']} differences {ago(last['seconds'])} ago",
            f"{_RECONCILE}; docs/operations.md says what each means.",
        )
    if last["seconds"] > RECONCILED_DAYS * 86_400:
        return warn(f"{ago(last['seconds'])} ago", _RECONCILE)
    return ok(f"no difference {ago(last['seconds'])} ago")


CHECKS: tuple[Check, ...] = (
    *(gateway, pause, webhook_secret, unmatched, failed_refunds, disputes, webhook_endpoints),
    reconciliation,
)
