"""`python -m segskd`."""

from segskd.cli import program

program()
