"""How processes of the core are started beside the page."""

from __future__ import annotations

import os
from pathlib import Path

NICENESS = 10
# Threads that wait for one another sleep, or they would take the cores from the page; yet not at once, for waking
# them some hundred times a step costs a quarter of the training's speed. GOMP is torch's threading on Linux.
PATIENCE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}


def child_environment(runs: Path, data: Path) -> dict[str, str]:
    """What a process finds around it; what the user has set for threads stays."""
    return {**PATIENCE, **os.environ, "SEGSKD_RUNS": str(runs), "SEGSKD_DATA": str(data)}
