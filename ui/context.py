"""What every tab gets: where data and runs lie, and the queue of runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segskd.errors import UserError
from segskd.runs import RUN_NAME, Run

from .jobs import Jobs


@dataclass(frozen=True)
class Context:
    """Where datasets and runs lie on this server, and the workers that train."""

    data: Path
    runs: Path
    jobs: Jobs

    def run(self, name: object) -> Run:
        """The run of that name. Raises UserError for anything that is not the name of a run of this server.

        Names come from the page, so a path is refused, however it is written.
        """
        if not isinstance(name, str) or not RUN_NAME.fullmatch(name):
            raise UserError(f"{name!r} is not the name of a run")
        run = self.runs / name
        if not (run / "recipe.yaml").is_file():
            raise UserError(f"this server has no run {name}: it may have been renamed or deleted")
        return Run.open(run)
