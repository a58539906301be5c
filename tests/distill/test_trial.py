"""A trial foretells a real run to the millisecond where every operation takes a time that is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segskd.data.samples import Samples
from segskd.distill.caching.store import FeatureComputer
from segskd.distill.planning import phase
from segskd.distill.running import prepare as preparing
from segskd.distill.running import session, trial
from segskd.distill.running.prepare import prepare
from segskd.distill.running.session import start
from segskd.distill.running.trial import run_trial
from segskd.distill.training import trainer
from segskd.distill.training.graft_scores import GraftScorer
from segskd.distill.training.module import PhaseModule
from segskd.errors import UserError
from segskd.evaluate.predictor import Predictor
from segskd.runs import Run

pytestmark = pytest.mark.slow

LOAD_SECONDS = {0: 0.004, 1: 0.006, 2: 0.01}
TENSOR_SECONDS, FORWARD_SECONDS, SCORE_SECONDS, DRAW_SECONDS, SAVE_SECONDS = 0.001, 0.02, 0.003, 0.07, 0.3


class Clock:
    """Stands still unless something is done that takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def costs(self, patch: pytest.MonkeyPatch, owner: Any, name: str, cost: Callable[..., float]) -> None:
        """From now on each call of `owner.name` takes the seconds that `cost` gives for its arguments."""
        self.instead(patch, owner, name, cost, getattr(owner, name))

    def instead(
        self, patch: pytest.MonkeyPatch, owner: Any, name: str, cost: Callable[..., float], real: Callable[..., Any]
    ) -> None:
        """The same, and it does `real`."""

        def costly(*arguments: Any, **named: Any) -> Any:
            self.now += cost(*arguments, **named)
            return real(*arguments, **named)

        patch.setattr(owner, name, costly)


def load_cost(samples: Samples, numbers: Iterable[int]) -> float:
    return sum(LOAD_SECONDS[min(number // samples.images, 2)] for number in numbers)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(preparing, "check_memory", lambda *_: None)
    for module in (trial, trainer):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock, monotonic=clock, process_time=clock))
        clock.instead(monkeypatch, module, "save", lambda *_: SAVE_SECONDS, lambda *_: None)
    # No part of what is foretold, and slow.
    monkeypatch.setattr(Run, "save_state", lambda *_: None)
    monkeypatch.setattr(session, "latencies", lambda networks, *_: [0.0] * len(networks))
    monkeypatch.setattr(session, "cost", lambda *_: {})
    clock.costs(monkeypatch, Samples, "load", load_cost)
    clock.costs(
        monkeypatch,
        FeatureComputer,
        "compute",
        lambda _, known, wanted: TENSOR_SECONDS * len(wanted) * len(next(iter(known.values()))),
    )
    clock.costs(monkeypatch, PhaseModule, "forward", lambda _, batch: FORWARD_SECONDS * len(batch))
    clock.costs(
        monkeypatch,
        GraftScorer,
        "score",
        lambda _, __, store, draw=True: SCORE_SECONDS * len(store.samples) + DRAW_SECONDS * draw,
    )
    return clock


@pytest.mark.parametrize(
    ("changes", "image_seconds"),
    [
        ({}, 0.02),
        ({"select": "best", "store": {"kind": "recompute"}}, 1.0),  # a slow machine tries few images
        ({"select": "best", "select_on": "val", "method": "supervised", "optimisation": {"epochs": 2}}, 0.02),
    ],
)
def test_what_is_foretold_comes_true(
    recipe: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
    changes: dict[str, Any],
    image_seconds: float,
) -> None:
    """Five images in batches of at most four are steps of 3 and 2; three epochs see the three views in turn."""
    clock.costs(monkeypatch, Predictor, "logits", lambda _, images: image_seconds * len(images))
    if changes:
        monkeypatch.setattr(GraftScorer, "_draw", lambda *_: None)
    given = {"subset": {"count": 5}, "data": {"views": 3}, "optimisation": {"epochs": 3}, "threads": 1}
    made = recipe(**{**given, **changes}, checkpoint_seconds=1e9)
    foretold = run_trial(prepare(made, tmp_path / "run"), tmp_path / "scratch")
    assert not (tmp_path / "run").exists()
    result = start(made, tmp_path / "run")
    assert foretold.phases == pytest.approx({p["phase"]: p["seconds"] for p in result["phases"]}, abs=0.01)
    assert foretold.evaluations == pytest.approx(2 * 4 * image_seconds)
    assert foretold.seconds == pytest.approx(foretold.evaluations + result["seconds"], abs=0.05)
    if not changes:
        previews = sum(file.stat().st_size for file in (tmp_path / "run" / "previews").rglob("*.png"))
        assert foretold.preview_bytes == pytest.approx(previews, rel=0.2)


def test_a_loss_that_is_no_number_is_found_before_the_run(
    recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phase, "feature_loss", lambda student, teacher: student.sum() * float("nan"))
    with pytest.raises(UserError, match=r"the loss of encoder\.0 became nan: use a smaller --lr"):
        run_trial(prepare(recipe(), tmp_path / "run"), tmp_path / "scratch")
