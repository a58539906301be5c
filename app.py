"""Serves the page, as `segskd ui` does: python app.py [--host --port --auth --data --runs --open]."""

import sys

from segskd.cli import program

if __name__ == "__main__":
    sys.argv.insert(1, "ui")
    program()
