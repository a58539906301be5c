"""What every tab is given: where things lie, and the jobs."""

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

        Names come from the page: a path, however it is written, is no name.
        """
        if not isinstance(name, str) or not RUN_NAME.fullmatch(name):
            raise UserError(f"{name!r} is not the name of a run")
        run = self.runs / name
        if not (run / "recipe.yaml").is_file():
            raise UserError(f"no run {name} on this server: it was renamed or deleted, or never was")
        return Run.open(run)
