"""Serves the page, as `segskd ui` does: python app.py [--host --port --auth --data --runs --open]."""

import sys

from segskd.cli import main

if __name__ == "__main__":
    sys.exit(main(["ui", *sys.argv[1:]]))
