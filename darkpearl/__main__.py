"""`python -m darkpearl` is the command `darkpearl`."""

from darkpearl.cli.main import main

main()
