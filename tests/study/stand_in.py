"""A program in place of `python -m segskd` for a study's cells: it trains nothing and does what it is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Takes the words of `python -m segskd distill` and `resume`; control.json beside it says what comes of each cell.
STAND_IN = """
import json, os, pathlib, shutil, signal, sys, time
here = pathlib.Path(__file__).parent
run = pathlib.Path(sys.argv[-1])
with open(here / "started.txt", "a") as started:
    print(sys.argv[1], run.name, file=started)
control = json.loads((here / "control.json").read_text())
deaf = run.name in control["deaf"]
signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else lambda *_: sys.exit(130))
if sys.argv[1] == "distill":
    shutil.copy(sys.argv[sys.argv.index("--recipe") + 1], run / "recipe.yaml")
if run.name in control["fail"]:
    print("working on it\\nsegskd: no luck today", file=sys.stderr)
    sys.exit(2)
if run.name in control["kill"]:
    signal.raise_signal(signal.SIGKILL)
(run / "events.jsonl").touch()
(run / "gpu.txt").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "any"))
deadline = time.monotonic() + 300
while run.name in control["block"]:
    time.sleep(0.02)
    if time.monotonic() > deadline:
        sys.exit("nobody stopped it")
miou = control["miou"].get(run.name, 0.3)
result = {"miou": miou, "teacher_miou": 0.6, "percent_of_teacher": 100 * miou / 0.6, "seconds": 4.0, "device": "none"}
result["image_passes"] = 132
(run / "result.json").write_text(json.dumps(result))
"""


class StandIn:
    """Says what comes of each cell, and knows which were started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "stand_in.py").write_text(STAND_IN)
        self.plan()

    def plan(self, **control: Any) -> None:
        """`fail`, `kill`, `block` and `deaf` (to SIGTERM) name cells; `miou` gives their figures (0.3)."""
        content = {"fail": [], "kill": [], "block": [], "deaf": [], "miou": {}} | control
        (self.folder / "control.json").write_text(json.dumps(content))

    def started(self) -> list[str]:
        """COMMAND CELL of each process that was started, in order."""
        path = self.folder / "started.txt"
        return path.read_text().splitlines() if path.exists() else []
