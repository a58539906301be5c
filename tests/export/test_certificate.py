"""What is compared, counted and timed, and what lies beyond a limit."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch

from segskd.data.cards import load_card
from segskd.data.dataset import Pair, list_pairs
from segskd.data.pixels import read_image
from segskd.errors import UserError
from segskd.evaluate.predictor import Predictor
from segskd.export import reopen as processes
from segskd.export.certificate import Difference, _Count, compare, evenly, failures, other_sizes
from segskd.export.formats import ExportLimits, Spec
from segskd.export.reopen import ReopeningProcess
from segskd.export.timing import _after_a_pause, _latency
from segskd.models.build import load
from segskd.runs import Run

pytestmark = pytest.mark.slow

SIZE = (50, 90)


def pairs(run: Run) -> list[Pair]:
    return list_pairs(load_card(run.recipe.data.card), Path(str(run.recipe.data.folder)), "val")


def test_differences_are_counted(run: Run, unpacked: Callable[[Spec], Path]) -> None:
    """Against a network whose last bias is moved by 0.75: every logit of that class differs by just that."""
    folder = unpacked(Spec())
    model, card = smp.from_pretrained(folder).eval(), load_card(run.recipe.data.card)
    with torch.no_grad():
        model.segmentation_head[0].bias[1] += 0.75
    before, moved = (Predictor(one, card, SIZE) for one in (load(run.model_folder), model))
    views = [torch.stack([p.view.image_only(read_image(pair.image, p.card)) for pair in pairs(run)]) for p in (
        Predictor(model, card, size) for size in (SIZE, *other_sizes(SIZE))
    )]  # fmt: skip
    expected = 0
    for size, images in zip((SIZE, *other_sizes(SIZE)), views, strict=True):
        one, other = (Predictor(p.model, card, size).logits(images).argmax(1) for p in (before, moved))
        expected += int((one != other).sum())
    heard: list[tuple[int, int]] = []
    with ReopeningProcess(folder) as reopened:
        found = compare(reopened, moved, pairs(run), False, report=lambda done, total: heard.append((done, total)))
    assert heard == [(n, 12) for n in range(1, 13)]
    assert expected > 0
    assert found.differing == pytest.approx(expected, abs=3)
    assert found.largest == pytest.approx(0.75, abs=1e-4)
    assert found.mean == pytest.approx(0.25, abs=1e-4)  # one class of three
    assert found.before != found.after


def test_what_lies_beyond_the_limits() -> None:
    found = Difference(
        images=4, sizes=(SIZE,), pixels=1000, differing=20, largest=0.5, mean=0.1, scale=10.0, before=0.61, after=0.6
    )
    assert failures(found, 0.3, ExportLimits(0.98, 0.05, 1.1, 0.3)) == []
    assert failures(found, 0.31, ExportLimits(0.99, 0.04, 0.9, 0.3)) == [
        "2 % of 1000 pixels differ from the checkpoint's (at most 1 %)",
        "a logit differs by 0.05 of the largest (at most 0.04)",
        "1.00 points of mIoU are lost (at most 0.9)",
        "it weighs 0.31 of the network in float (at most 0.3)",
    ]
    assert failures(found, 5.0, ExportLimits(0.9)) == []
    broken = _Count()
    broken.add(torch.ones(1, 2, 1, 2), torch.tensor([[[[1.0, 1.0]], [[1.0, float("nan")]]]]))
    worst = replace(found, largest=broken.largest, mean=broken.total / broken.logits)
    assert json.loads(json.dumps(asdict(worst), allow_nan=False))["scale"] == 10.0
    assert failures(worst, 0.1, ExportLimits(0.9)) == ["it returns logits that are not finite numbers"]


def test_ratios_are_those_of_each_turn() -> None:
    """Student, teacher and export in four turns; the last one fell into a busy moment."""
    found = _latency([[0.2, 0.4, 0.1], [0.2, 0.6, 0.1], [0.2, 0.8, 0.1], [2.0, 5.0, 1.0]], (64, 96), True)
    assert (found.student_ms, found.teacher_ms, found.export_ms, found.repeats) == (200, 700, 100, 4)
    assert found.than_student == pytest.approx((2, 2, 2))
    assert found.than_teacher is not None
    assert found.than_teacher[1] == pytest.approx(5.5)  # of 4, 6, 8, 5
    alone = _latency([[0.2, 0.1], [0.4, 0.1]], (64, 96), False)
    assert (alone.teacher_ms, alone.than_teacher) == (None, None)


def test_each_turn_counts_a_network_at_work() -> None:
    """The last of three calls, after a pause."""
    seconds = iter([0.9, 0.5, 0.1, 0.8])
    begun = time.monotonic()
    assert _after_a_pause(lambda: next(seconds)) == 0.1
    assert time.monotonic() - begun >= 0.05


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (f"import os\nos.kill(os.getpid(), {int(signal.SIGKILL)})", "the process ended with status -9"),
        ("raise ValueError('no such operator')", "no such operator"),
    ],
)
def test_a_file_that_its_runtime_refuses(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    silent = tmp_path / "reload.py"
    silent.write_text(program)
    monkeypatch.setattr(processes, "PROGRAM", silent)
    checkpoint = Predictor(load(run.model_folder), load_card(run.recipe.data.card), SIZE)
    with (
        ReopeningProcess(tmp_path) as reopened,
        pytest.raises(UserError, match=f"can't be opened by its own runtime: .*{said}"),
    ):
        compare(reopened, checkpoint, pairs(run), False)


def test_the_seconds_are_those_of_the_network(tmp_path: Path) -> None:
    """A network that sleeps, opened by a predict.py of its own."""
    lines = "import time\ndef network(folder, threads):\n    return lambda image: time.sleep(0.2) or image + 1\n"
    (tmp_path / "predict.py").write_text(lines)
    image: Any = np.arange(12, dtype=np.float32).reshape(1, 3, 2, 2)
    with ReopeningProcess(tmp_path) as reopened:
        answer, seconds = reopened.logits(image)
        time.sleep(0.5)
        again = reopened.logits(image)[1]
    assert np.array_equal(answer, image + 1)
    assert min(seconds, again) >= 0.2
    assert again < 0.5


def test_images_are_spread_over_the_split() -> None:
    many = [Pair(str(n), Path(), Path()) for n in range(100)]
    names = [int(pair.name) for pair in evenly(many, 32)]
    assert (len(set(names)), names[0], names[-1]) == (32, 0, 99)
    assert np.diff(names).max() <= 4
    assert evenly(many[:5], 32) == many[:5]


def test_sizes_of_which_none_was_used_to_export() -> None:
    assert other_sizes((192, 256)) == ((96, 128), (256, 320))
    assert other_sizes((32, 48)) == ((64, 64), (64, 64))
