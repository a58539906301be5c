"""Pictures of every tab, light and dark, wide and narrow: python tests/browser/screenshots.py [--out DIR].

They show the runs that lie in --runs (checkpoints/) and the datasets in --data (datasets/). Where the demo's runs are
not there yet, the demo is run first, in about two minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from find_chromium import chromium
from playwright.sync_api import Browser, Page, sync_playwright

from segskd.data.cards import data_folder
from segskd.demo import demo_recipes
from segskd.runs import Run, runs_folder
from ui.page import TITLES
from ui.server import choose_port

ROOT = Path(__file__).resolve().parents[2]
TEACHER, STUDENT = (name for name, _ in demo_recipes(None, ROOT))
WIDTHS = {"wide": 1280, "narrow": 390}
SHADES = ("light", "dark")
# What must be there before a tab's picture is worth taking.
READY = {
    "start": "#start .step-card",
    "data": "#data .picker:not([hidden]) img",
    "distill": "#distill-plan-panel .panel *",
    "watch": "#watch .rail-cell",
    "compare": "#compare .compare-view[data-shown]",
    "runs": "#runs .runs-table",
    "export": "#export .card",
}


def main() -> None:
    """Writes OUT/TAB-WIDTH-SHADE.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "screenshots")
    parser.add_argument("--runs", type=Path, default=runs_folder())
    parser.add_argument("--data", type=Path, default=data_folder(None))
    parser.add_argument("--run", default=STUDENT, help="the run that Watch, Compare and Export show")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    _make_demo(arguments.runs, arguments.data)
    with _serving(arguments.runs, arguments.data) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        for size, width in WIDTHS.items():
            for shade in SHADES:
                for tab in TITLES:
                    target = arguments.out / f"{tab}-{size}-{shade}.png"
                    _take(browser, f"{url}/?tab={tab}&run={arguments.run}", tab, width, shade, target)
                    print(target, flush=True)
        browser.close()


def _make_demo(runs: Path, data: Path) -> None:
    if all(Run(runs / name).status() == "finished" for name in (TEACHER, STUDENT)):
        return
    command = [sys.executable, "-m", "segskd", "demo", "--out", str(runs), "--data", str(data)]
    subprocess.run(command, cwd=ROOT, check=True)


@contextmanager
def _serving(runs: Path, data: Path) -> Iterator[str]:
    port = choose_port("127.0.0.1", None)
    command = [sys.executable, "app.py", "--port", str(port), "--runs", str(runs), "--data", str(data)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as server:
        assert server.stdout is not None
        if not any("is open" in line for line in server.stdout):
            raise SystemExit("the server did not start")
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def _take(browser: Browser, url: str, tab: str, width: int, shade: str, target: Path) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if shade == "dark" else "light",
        device_scale_factor=1,
        reduced_motion="reduce",
    )
    page: Page = context.new_page()
    page.goto(url)
    page.locator(READY[tab]).first.wait_for(timeout=120_000)
    for place in ("document.body.scrollHeight", "0"):  # pictures are fetched when they come into sight
        page.evaluate(f"window.scrollTo(0, {place})")
        page.wait_for_timeout(1500)
    page.screenshot(path=target, full_page=True)
    context.close()


if __name__ == "__main__":
    main()
