"""A payment service that misbehaves on purpose, with honest books: see docs/gateway.md."""
