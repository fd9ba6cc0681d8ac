"""Where the requests of each route go, when several cells divide the warehouses."""

from uuid import UUID

from litestar.routes import HTTPRoute

from darkpearl.api.app import create_app
from darkpearl.api.routing import routed_by
from darkpearl.config import Settings

ROUTES = """
    catalogue  GET /adjustment-reasons
    home       POST /adjustment-reasons
    home       DELETE /adjustment-reasons/{code:str}
    catalogue  GET /adjustment-reasons/{code:str}
    here       GET /events
    here       POST /imports/inventory
    here       POST /imports/movements
    here       POST /imports/orders
    home       POST /imports/products
    list       GET /inventory
    body       POST /inventory
    list       GET /inventory/reorder-suggestions
    id         DELETE /inventory/{inventory_id:uuid}
    id         GET /inventory/{inventory_id:uuid}
    id         PATCH /inventory/{inventory_id:uuid}
    id         PUT /inventory/{inventory_id:uuid}
    list       GET /orders
    body       POST /orders
    id         GET /orders/groups/{group_id:uuid}
    body       POST /orders/quote
    list       GET /orders/to-ship
    id         DELETE /orders/{order_id:uuid}
    id         GET /orders/{order_id:uuid}
    id         PATCH /orders/{order_id:uuid}
    id         POST /orders/{order_id:uuid}/cancellations
    id         GET /orders/{order_id:uuid}/events
    id         POST /orders/{order_id:uuid}/manual-payments
    id         DELETE /orders/{order_id:uuid}/payment
    id         POST /orders/{order_id:uuid}/payment
    id         GET /orders/{order_id:uuid}/refunds
    id         POST /orders/{order_id:uuid}/refunds
    id         GET /orders/{order_id:uuid}/refunds/{refund_id:uuid}
    id         POST /orders/{order_id:uuid}/returns
    id         GET /orders/{order_id:uuid}/shipments
    id         POST /orders/{order_id:uuid}/shipments
    id         GET /orders/{order_id:uuid}/shipments/{shipment_id:uuid}
    here       POST /payments/webhooks/{gateway:str}
    catalogue  GET /products
    home       POST /products
    home       DELETE /products/{product_id:uuid}
    catalogue  GET /products/{product_id:uuid}
    home       PATCH /products/{product_id:uuid}
    home       PUT /products/{product_id:uuid}
    list       GET /sagas
    id         GET /sagas/{saga_id:uuid}
    id         GET /sagas/{saga_id:uuid}/events
    id         POST /sagas/{saga_id:uuid}/signals
    list       GET /stock-movements
    body       POST /stock-movements
    list       GET /stock-movements/{movement_id:int}
    list       GET /transfers
    id         DELETE /transfers/{transfer_id:uuid}
    id         GET /transfers/{transfer_id:uuid}
    catalogue  GET /warehouses
    home       POST /warehouses
    home       DELETE /warehouses/{warehouse_id:uuid}
    catalogue  GET /warehouses/{warehouse_id:uuid}
    home       PATCH /warehouses/{warehouse_id:uuid}
    home       PUT /warehouses/{warehouse_id:uuid}
    home       GET /webhook-endpoints
    home       POST /webhook-endpoints
    home       DELETE /webhook-endpoints/{endpoint_id:uuid}
    home       GET /webhook-endpoints/{endpoint_id:uuid}
    home       PATCH /webhook-endpoints/{endpoint_id:uuid}
    home       POST /webhook-endpoints/{endpoint_id:uuid}/replay
    home       POST /webhook-endpoints/{endpoint_id:uuid}/secret
"""
"""By what each goes to a cell: `here` goes to none, unless its handler does it itself."""
OF_THE_PROCESS = ("/health", "/metrics", "/monitor", "/problems", "/schema")


def test_every_route_goes_to_a_cell_by_what_it_is_for() -> None:
    """A route that is added has to stand here, so that somebody has thought of where it goes."""
    found = set()
    for route in create_app(Settings(), "postgresql://").routes:
        if not isinstance(route, HTTPRoute) or route.path == "/":
            continue
        if route.path.startswith(OF_THE_PROCESS):
            continue
        has_id = any(each.type is UUID for each in route.path_parameters.values())
        for handler in route.route_handlers:
            by = routed_by(handler, has_id=has_id)
            found |= {
                f"{by} {method} {route.path}"
                for method in handler.http_methods - {"HEAD", "OPTIONS"}
            }
    assert found == {" ".join(line.split()) for line in ROUTES.strip().splitlines()}
