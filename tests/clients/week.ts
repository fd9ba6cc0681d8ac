// The week of test_week.py in TypeScript: its types are generated from docs/openapi.yaml, and it compiles
// under --strict. Prints the feed from the beginning, an event a line.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

declare const process: { env: Record<string, string | undefined> };

type Schemas = components["schemas"];
type Answer<T> = { data?: T; error?: Schemas["ProblemDetails"]; response: Response };

const api = createClient<paths>({
  baseUrl: process.env.API,
  headers: { Authorization: `Bearer ${process.env.TOKEN}` },
});

function told<T>({ data, error, response }: Answer<T>): T {
  if (data === undefined) {
    throw new Error(`${response.status} ${error?.title}: ${error?.detail}`);
  }
  return data;
}

async function order(id: string): Promise<Schemas["OrderDetails"]> {
  return told(await api.GET("/orders/{order_id}", { params: { path: { order_id: id } } }));
}

async function until(id: string, status: Schemas["OrderStatus"]): Promise<void> {
  for (let tries = 0; (await order(id)).status !== status; tries += 1) {
    if (tries > 400) {
      throw new Error(`order ${id} is not ${status}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

// The catalogue by CSV, and goods on the shelves.
const catalogue = "sku,name,unit_price\nPEN,Pen,2.50\nBOOK,Notebook,12\n";
const imported = told(
  await api.POST("/imports/products", {
    body: catalogue,
    bodySerializer: (body) => body,
    headers: { "Content-Type": "text/csv" },
  }),
);
const warehouse = told(
  await api.POST("/warehouses", {
    body: { code: "TS", name: "Typed", fulfilment_method: "on_shipment" },
  }),
);
const received = told(
  await api.POST("/imports/movements", {
    body: {
      rows: ["PEN", "BOOK"].map((sku) => ({
        sku,
        warehouse: warehouse.code,
        movement_type: "receive",
        quantity: 100,
      })),
    },
  }),
);
if (imported.bad + received.bad > 0) {
  throw new Error("some rows are bad");
}

// A quote, and a basket that is held for an hour, with all that an order can say.
const basket: Schemas["CreateOrder"] = {
  warehouse_id: warehouse.id,
  items: [
    { sku: "PEN", quantity: 3 },
    { sku: "BOOK", quantity: 2 },
  ],
  adjustments: [
    { kind: "shipping", label: "Post", amount: 5 },
    { kind: "discount", label: "Spring", amount: "-1.50", item: 1 },
  ],
  reference: "TS-1",
  email: "ann@example.com",
  shipping_address: { name: "Ann", line1: "1 Rua da Rosa", city: "Lisboa", country: "PT" },
  metadata: { channel: "typescript" },
  pay_by: new Date(Date.now() + 3_600_000).toISOString(),
};
const quote = told(await api.POST("/orders/quote", { body: basket }));
if (!quote.fits || quote.total_amount !== 35) {
  throw new Error(`the quote is ${quote.total_amount}`);
}
const placed = told(
  await api.POST("/orders", {
    params: { header: { "Idempotency-Key": "week", Prefer: "wait=5" } },
    body: basket,
  }),
);
const path = { order_id: placed.id };

// A card that is declined, and a second one.
await until(placed.id, "reserved");
for (const [payment_token, status] of [
  ["decline:card_declined", "payment_failed"],
  ["approve", "paid"],
] as const) {
  told(await api.POST("/orders/{order_id}/payment", { params: { path }, body: { payment_token } }));
  await until(placed.id, status);
}

// Two parcels, the rest taken out, one back, and the postage.
const tracking = { carrier: "CTT", number: "PT1", url: "https://ctt.example/PT1" };
for (const items of [[{ sku: "PEN", quantity: 2 }], [{ sku: "BOOK", quantity: 1 }]]) {
  const parcel = told(
    await api.POST("/orders/{order_id}/shipments", { params: { path }, body: { items, tracking } }),
  );
  if (parcel.status !== "shipped") {
    throw new Error(`the parcel is ${parcel.status}`);
  }
}
const rest = told(
  await api.POST("/orders/{order_id}/cancellations", { params: { path }, body: { reason: "late" } }),
);
const returned = told(
  await api.POST("/orders/{order_id}/returns", {
    params: { path },
    body: { items: [{ sku: "PEN", quantity: 1 }], restock: false, refund: {} },
  }),
);
await until(placed.id, "fulfilled");
const refund = told(
  await api.POST("/orders/{order_id}/refunds", { params: { path }, body: { amount: 5 } }),
);
const refunds: (string | undefined)[] = [rest.refund?.id, returned.refund?.id, refund.id];

// The feed from the beginning.
const settled = new Set<string>();
for (let after = "0"; settled.size < refunds.length; ) {
  const part = told(await api.GET("/events", { params: { query: { after, wait: 5 } } }));
  for (const event of part.data) {
    console.log(event.topic, event.order_number);
    if (event.topic === "refund.settled" && event.refund_id !== null) {
      settled.add(event.refund_id);
    }
  }
  if (part.data.length === 0) {
    throw new Error("the feed has ended before the week has");
  }
  after = String(part.next);
}
