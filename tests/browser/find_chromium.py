"""A Chromium for the browser tests: the system's, else Playwright's own, else one from the system's packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
INSTALL_SECONDS = 600


def chromium() -> str:
    """The path of a Chromium. Raises RuntimeError naming every way that was tried."""
    tried = []
    for find in (_here, _playwrights, _packaged):
        path, told = find()
        if path:
            return path
        tried.append(told)
    raise RuntimeError(f"the browser tests need Chromium: install it so that `chromium` is found ({'; '.join(tried)})")


def _here() -> tuple[str | None, str]:
    given = os.environ.get("SEGSKD_CHROMIUM")
    found = given or next((path for name in NAMES if (path := shutil.which(name))), None)
    return found, f"none of {', '.join(NAMES)} is on the PATH"


def _playwrights() -> tuple[str | None, str]:
    problem = _tried([sys.executable, "-m", "playwright", "install", "chromium"])
    if problem:
        return None, f"Playwright's own download failed: {problem}"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        return playwright.chromium.executable_path, ""


def _packaged() -> tuple[str | None, str]:
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return None, "the system's packages may not be installed here (apt-get and root are needed)"
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "chromium"]):
        problem = _tried(command)
        if problem:
            return None, f"{' '.join(command)} failed: {problem}"
    return _here()[0], "apt-get installed no chromium"


def _tried(command: list[str]) -> str:
    """The last line of what went wrong, "" when nothing did."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {INSTALL_SECONDS} s"
    lines = done.stdout.strip().splitlines() or [f"status {done.returncode}"]
    return "" if done.returncode == 0 else lines[-1]
