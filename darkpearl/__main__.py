"""`python -m darkpearl` is the command `darkpearl`."""

from darkpearl.cli import main

main()
