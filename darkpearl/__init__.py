"""DarkPearl: orders, stock and payments as sagas inside PostgreSQL."""

__version__ = "0.2.0"
