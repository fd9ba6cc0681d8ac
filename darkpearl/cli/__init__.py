"""The command line: main.py puts the parts together."""
