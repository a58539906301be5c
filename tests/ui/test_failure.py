"""Why a run stands still: every line of the core's is the core's own, so that a change of wording is noticed."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from segskd.config import make_recipe
from segskd.data.cards import load_card
from segskd.data.dataset import Pair, list_pairs, read_mask
from segskd.data.pixels import read_image
from segskd.devices import choose_device, out_of_memory
from segskd.distill.caching.budget import StorePlace
from segskd.distill.caching.contents import IMAGE_KEY
from segskd.distill.caching.store import Batch
from segskd.distill.planning import images
from segskd.distill.planning.images import Subset
from segskd.distill.planning.methods import stagewise
from segskd.distill.planning.phase import Setting
from segskd.distill.running.loading import load_teachers
from segskd.distill.training import networks
from segskd.distill.training.loop import Loop
from segskd.distill.training.networks import MetaNetworks, Networks, check_step_fits
from segskd.distill.training.ranks import Ranks
from segskd.distill.training.trainer import Trainer
from segskd.errors import UserError, full_disk, in_labels
from segskd.events import ErrorEvent, StoppedEvent, WarningEvent, WrittenEvent
from segskd.files import writing
from segskd.models.adapters import Adapters
from segskd.models.build import create
from segskd.models.cut import cut
from segskd.run_progress import RunProgress
from segskd.runs import Run
from ui.context import Context
from ui.jobs import Jobs
from ui.state.failure import diagnose
from ui.state.follow import RunView
from ui.state.watching import Watching

VIEW = RunView(
    name="one",
    state="failed",
    kind="distill",
    dataset="bands",
    student="unet:resnet10",
    method="stagewise",
    progress=RunProgress(),
)


def failed(error: BaseException) -> RunView:
    return heard(ErrorEvent(**vars(ErrorEvent.of(full_disk(error) or error)) | {"time": 1.0}))


def heard(event: WrittenEvent, **changes: Any) -> RunView:
    progress = RunProgress()
    progress.apply(event)
    return replace(VIEW, progress=progress, **changes)


def refused(code: int) -> None:
    with writing(Path("events.jsonl")):
        raise OSError(code, os.strerror(code))


def load_teacher(folder: Path) -> None:
    card = load_card("scenes")
    load_teachers(make_recipe({"data": {"card": "scenes"}, "teacher": str(folder)}), card)


def broken_model(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"broken")
    load_teacher(folder)


def without_weights(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    load_teacher(folder)


def changed_teacher(_folder: Path) -> None:
    trainer = Trainer.__new__(Trainer)
    trainer._teacher_digest = "now"
    trainer.job = SimpleNamespace(recipe=SimpleNamespace(teacher="teachers/big"))
    trainer.run = SimpleNamespace(load_state=lambda: {"format": 1, "teacher_digest": "before"})
    trainer._restore()


def loss_astray(_folder: Path) -> None:
    loop = Loop.__new__(Loop)
    loop._ranks = Ranks(Fabric(accelerator="cpu", devices=1))
    loop.phase = SimpleNamespace(name="head", alone=True)
    loop._by_lr = True
    loop.module, loop._schedule = SimpleNamespace(), SimpleNamespace(last_epoch=0, total_steps=1)
    loop.wrapped = lambda _batch: {"loss": torch.tensor(math.nan), "adversarial": torch.tensor(0.0)}
    loop.step(Batch({IMAGE_KEY: torch.zeros(2, 3, 32, 32)}))


def said_by(act: Callable[[], Any]) -> UserError:
    with pytest.raises(UserError) as caught:
        act()
    return caught.value


@pytest.mark.parametrize(
    ("kind", "act"),
    [
        ("disk", lambda _: refused(errno.ENOSPC)),
        ("disk", lambda _: refused(errno.EROFS)),
        ("teacher", broken_model),
        ("teacher", without_weights),
        ("teacher", load_teacher),
        ("teacher", lambda folder: load_teacher(folder / "gone")),
        ("teacher", changed_teacher),
        ("data", lambda folder: load_card(folder / "gone.yaml")),
        ("data", lambda folder: read_image(folder / "gone.png", load_card("scenes"))),
        ("data", lambda _: images._named([Pair("a", Path("a"), Path("a"))], ["b"])),
        ("loss", loss_astray),
    ],
)
def test_what_the_core_says_is_understood(kind: str, act: Callable[[Path], Any], tmp_path: Path) -> None:
    error = said_by(lambda: act(tmp_path))
    failure = diagnose(failed(error))
    assert failure is not None
    assert (failure.kind, failure.said, failure.halve) == (kind, in_labels(error), False)
    assert failure.retry == (kind != "loss")


def test_data_that_are_gone_or_wrong(card_path: Path, data: Path, tmp_path: Path) -> None:
    card = load_card(card_path)
    (tmp_path / "bands").mkdir()
    wrong = tmp_path / "wrong.png"
    cv2.imwrite(str(wrong), np.full((4, 4), 9, dtype=np.uint8))
    errors = [said_by(lambda: list_pairs(card, tmp_path / "none", "val"))]
    errors += [said_by(lambda: list_pairs(card, tmp_path, "val")), said_by(lambda: read_mask(wrong, card))]
    for error in errors:
        failure = diagnose(failed(error))
        assert failure is not None
        assert failure.kind == "data", error


def test_memory_that_ran_out_offers_half_the_batch() -> None:
    assert out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not out_of_memory(OSError(errno.ENOSPC, "No space left on device"))
    error = out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert error is not None
    failure = diagnose(failed(error))
    assert failure is not None
    assert (failure.kind, failure.retry, failure.halve) == ("memory", True, True)


def test_a_step_that_does_not_fit_offers_half_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    student = cut(create("unet", "resnet10", 3))
    monkeypatch.setattr(networks, "free_device_memory", lambda _device: 1)
    phases = stagewise(Setting(tuple(student.names), 1))[-1:]
    card: Any = SimpleNamespace(ignore_index=255)
    on_meta = MetaNetworks(Networks(student, {}, Adapters(), torch.nn.ModuleDict()), card, (32, 32))
    error = said_by(lambda: check_step_fits(on_meta, phases, 4, 0, torch.device("cpu")))
    failure = diagnose(failed(error))
    assert failure is not None
    assert (failure.kind, failure.halve) == ("memory", True)


def test_a_store_that_does_not_fit_is_not_helped_by_half_the_batch() -> None:
    recipe = SimpleNamespace(device="cpu", optimisation=SimpleNamespace(batch=2))
    subset, store = Subset([], [], []), StorePlace("memory", 2**62)
    error = said_by(lambda: networks.check_memory(recipe, subset, None, [], store, 1))
    failure = diagnose(failed(error))
    assert failure is not None
    assert (failure.kind, failure.halve) == ("memory", False)


def test_a_device_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    failure = diagnose(failed(said_by(lambda: choose_device("cuda"))))
    assert failure is not None
    assert failure.kind == "device"


def test_a_full_disk_is_understood_from_the_system_too() -> None:
    failure = diagnose(failed(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    assert failure is not None
    assert failure.kind == "disk"


def test_what_the_user_can_mend_is_shown_as_it_was_said() -> None:
    failure = diagnose(failed(UserError("turn the lever: it is upside down")))
    assert failure is not None
    assert (failure.kind, failure.said, failure.lines) == ("setting", "turn the lever: it is upside down", ())


def test_anything_else_is_a_mistake_of_ours_and_shows_the_last_lines() -> None:
    log = ["storing", "Traceback (most recent call last):", "  File", "IndexError: 3"]
    failure = diagnose(failed(IndexError(3)), log)
    assert failure is not None
    assert (failure.kind, failure.retry, failure.lines) == ("bug", True, tuple(log[1:]))


def test_a_worker_that_died_without_a_word_was_killed() -> None:
    failure = diagnose(heard(WarningEvent(time=2e9, message="small"), state="interrupted"), ["epoch 3"])
    assert failure is not None
    assert (failure.kind, failure.halve) == ("killed", True)


def test_a_restarted_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.boot_time", lambda: 100.0)
    before, after = (
        diagnose(heard(WarningEvent(time=time, message="small"), state="interrupted")) for time in (99.0, 101.0)
    )
    assert before is not None
    assert after is not None
    assert (before.kind, after.kind) == ("restarted", "killed")


def test_the_log_tells_when_no_event_could_be_written() -> None:
    view = heard(WarningEvent(time=2e9, message="small"), state="interrupted")
    said = diagnose(view, ["segskd: can't write x: No space left on device; free some space, then resume the run"])
    crashed = diagnose(view, ["Traceback (most recent call last):", "ImportError: torch"])
    assert said is not None
    assert crashed is not None
    assert (said.kind, crashed.kind, crashed.said) == ("setting", "bug", "ImportError: torch")
    assert not said.said.startswith("segskd")


@pytest.mark.parametrize("state", ["running", "starting", "waiting", "finished", "paused", "new"])
def test_a_run_that_did_not_fail_has_no_failure(state: Any) -> None:
    assert diagnose(replace(VIEW, state=state)) is None


def test_who_was_stopped_did_not_fail_and_who_never_began_did() -> None:
    assert diagnose(heard(StoppedEvent(time=1.0, phase="head"), state="interrupted")) is None
    failure = diagnose(replace(VIEW, state="new"), [], worker_began=True)
    assert failure is not None
    assert failure.kind == "killed"


def test_damaged_files_are_told_and_not_tried_again() -> None:
    failure = diagnose(replace(VIEW, state="damaged", problem="recipe.yaml is not YAML"))
    assert failure is not None
    assert (failure.kind, failure.said, failure.retry) == ("damaged", "recipe.yaml is not YAML", False)


def test_the_log_of_an_earlier_worker_explains_nothing(tmp_path: Path, data: Path) -> None:
    run = Run.create(tmp_path / "one", make_recipe({"data": {"card": "scenes"}, "teacher": "teachers/big"}))
    log = run.path / "log.txt"
    log.write_text("segskd: no model at teachers/big: name a folder, a run or a hub id\n")
    watching = Watching(Context(data, tmp_path, Jobs(tmp_path, data)))
    assert watching.page({"run": "one"})["failure"] is None
    run.write_json("worker.json", {"pid": 2**22 + 1, "born": log.stat().st_mtime - 1})
    assert watching.page({"run": "one"})["failure"]["kind"] == "setting"
    run.write_json("worker.json", {"pid": 2**22 + 1, "born": log.stat().st_mtime + 1})
    assert watching.page({"run": "one"})["failure"]["kind"] == "killed"
