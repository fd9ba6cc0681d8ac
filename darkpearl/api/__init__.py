"""The HTTP API: thin handlers over the tables and functions. It forbids nothing of its own."""
