"""What to change in a run before it is tried again."""

from __future__ import annotations

from dataclasses import asdict

from segskd.config import make_recipe, merged, named
from segskd.distill.training.trainer import Progress
from segskd.errors import UserError
from segskd.runs import Run
from segskd.subset_file import read_subset_names


def halve_batch(run: Run) -> int:
    """Halves the batch of a run that ran out of memory, and returns the new one.

    Finished phases stay; the phase in which it failed begins anew, from the weights of the last checkpoint.
    Raises UserError while a worker is at it, and when a batch is one image already.
    """
    if run.is_alive():
        raise UserError(f"run {run.name} is running: stop it first")
    with run.working():  # so that no worker begins in the middle
        return _halve(run)


def _halve(run: Run) -> int:
    recipe = run.recipe
    chosen, asked = read_subset_names(run), recipe.optimisation.batch
    batch = min(asked, len(chosen[0])) if chosen else asked
    if batch < 2:
        raise UserError(f"a batch is one image already: take a smaller {named('data.size')}", "data.size")
    state = run.load_state()
    if state is not None:
        done = {name: state["progress"][name] for name in ("phase", "phases")}
        run.save_state(state | {"progress": asdict(Progress(**done)), "inside": {}, "best_weights": {}})
    halved = batch // 2
    changed = merged(recipe.model_dump(mode="json"), {"optimisation": {"batch": halved}})
    run.write_recipe(make_recipe(changed))
    run.event("warning", message=f"memory ran out: the batch is {halved} from here on, and was {batch}")
    return halved
