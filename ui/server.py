"""The server of the page, which `segskd ui` and `python app.py` start."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException

from segskd.cli.ui_command import PageFlags
from segskd.errors import UserError
from segskd.folders import data_folder, runs_folder

LOCAL = ("127.0.0.1", "localhost", "::1")
FIRST_PORT = 7860
TRIED_PORTS = 100
TAKEN = (errno.EADDRINUSE, errno.EACCES)
UPLOAD_LIMIT = "2gb"


def serve(flags: PageFlags) -> None:
    """Serves until SIGINT or SIGTERM. Raises UserError for wrong flags."""
    auth = read_auth(flags.auth) if flags.auth else None
    if flags.host not in LOCAL and auth is None:
        raise UserError(
            f"--host {flags.host} lets other machines in: name who may come in, with --auth FILE (lines NAME:PASSWORD)"
        )
    runs, data = _folders(flags)
    port = choose_port(flags.host, flags.port)
    _prepare_environment(flags.host)
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    print("SegSKD is starting …", flush=True)
    from .app import build
    from .context import Context
    from .jobs import Jobs

    os.environ |= {"SEGSKD_RUNS": str(runs), "SEGSKD_DATA": str(data)}
    jobs = Jobs(runs, data)
    jobs.start()
    blocks = build(Context(data, runs, jobs)).queue(default_concurrency_limit=8)
    try:
        blocks.launch(server_name=_in_address(flags.host), server_port=port, auth=auth, **_launch(flags))
        logging.getLogger("uvicorn.error").addFilter(is_fault)
        print(f"SegSKD is open at http://{_in_address(flags.host)}:{port}", flush=True)
        over.wait()
    finally:
        jobs.close()
        blocks.close()


def is_fault(record: logging.LogRecord) -> bool:
    """Whether a log record of the web server reports a fault.

    When a page is closed while it waits for an answer, Gradio logs a "not found". That is no fault.
    """
    error = record.exc_info[1] if record.exc_info else None
    cause = error.__cause__ if isinstance(error, RuntimeError) else None
    return not (isinstance(cause, HTTPException) and cause.status_code == 404 and "already started" in str(error))


def _folders(flags: PageFlags) -> tuple[Path, Path]:
    """The folders of runs and of datasets, which need not exist yet."""
    runs = flags.runs.expanduser().resolve() if flags.runs else runs_folder()
    data = data_folder(flags.data)
    for option, folder in (("--runs", runs), ("--data", data)):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{option} {folder} is not a folder: name another one")
    return runs, data


def _launch(flags: PageFlags) -> dict[str, Any]:
    """Arguments of Gradio's `launch`. Nothing of the page may come from another host."""
    from .app import HEAD, theme
    from .components import ASSETS

    return {
        "theme": theme(),
        "css_paths": sorted(ASSETS.glob("*.css")),
        "head": HEAD,
        "share": False,
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "footer_links": [],
        "max_file_size": UPLOAD_LIMIT,
        "inbrowser": flags.open,
        "show_error": True,
        "quiet": True,
        "prevent_thread_lock": True,
    }


def read_auth(path: Path) -> list[tuple[str, str]]:
    """The (name, password) pairs of a file with a line NAME:PASSWORD each; '#' begins a comment."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read {path}: {getattr(error, 'strerror', None) or 'it is not text'}") from error
    pairs: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, password = line.strip().partition(":")
        if not (name and colon and password):
            raise UserError(f"{path}, line {number}: write NAME:PASSWORD")
        if name in pairs:
            raise UserError(f"{path}, line {number}: {name} has a password already")
        pairs[name] = password
    if not pairs:
        raise UserError(f"{path} has no names: write a line NAME:PASSWORD for each person who may use the page")
    return list(pairs.items())


def choose_port(host: str, asked: int | None) -> int:
    """The given port, else the first free one from FIRST_PORT on.

    Raises UserError if it is taken, or if the host is not an address of this machine.
    """
    if asked is not None and not 1 <= asked <= 65535:
        raise UserError(f"--port {asked}: name one between 1 and 65535")
    for port in [asked] if asked is not None else range(FIRST_PORT, FIRST_PORT + TRIED_PORTS):
        try:
            _bind(host, port)
        except OSError as error:
            reason = error.strerror or error
            if error.errno not in TAKEN:
                raise UserError(f"--host {host} is not an address of this machine: {reason}") from error
            if asked is not None:
                raise UserError(f"--port {asked} on {host} can't be taken: {reason}; name another one") from error
        else:
            return port
    raise UserError(f"no free port between {FIRST_PORT} and {FIRST_PORT + TRIED_PORTS - 1}: name one with --port")


def _bind(host: str, port: int) -> None:
    """Listens for a moment. Raises the system's OSError if that fails."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def _in_address(host: str) -> str:
    """A host as addresses write it, IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def _prepare_environment(host: str) -> None:
    """Keeps Gradio from sending anything to other machines. Called before Gradio is imported."""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join(dict.fromkeys([*hosts, *LOCAL, host]))
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
