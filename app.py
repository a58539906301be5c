"""Starts the browser interface: python app.py [--host --port --auth --data --runs]."""

from ui.server import main

if __name__ == "__main__":
    raise SystemExit(main())
