"""Other engines at the same work, each run by a Python of its own; see bench/versus.py."""
