"""`python -m bitnet_cli` is the command `bitnet`."""

from bitnet_cli.cli import main

main()
