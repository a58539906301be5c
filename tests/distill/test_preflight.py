"""Pre-flight: counts that are checked one by one, and plain words for what doesn't fit."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segskd import cli
from segskd.config import dump_recipe
from segskd.distill.caching import budget
from segskd.distill.running import preflight
from segskd.distill.running.preflight import LIBRARIES, MemoryForecast
from segskd.distill.running.preflight import preflight as fly
from segskd.distill.running.prepare import prepare
from segskd.distill.running.trial import Trial
from segskd.distill.training import networks
from segskd.distill.training.job import Job
from segskd.distill.training.networks import MetaNetworks, step_bytes
from segskd.errors import UserError

KEYS = (
    "seconds phases memory_bytes free_memory disk_bytes free_disk batch largest_batch store store_bytes views "
    "images epochs fits template device precision problem"
)
GIB = 2**30
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial whose figures are known, in no time."""
    monkeypatch.setattr(preflight, "run_trial", lambda *_: Trial({"encoder.0": 2.0, "head": 3.5}, 1.25, 1000))


def plain_step_bytes(on_meta: MetaNetworks, _: object, batch: int) -> int:
    """Steps as if each pixel of a batch took a thousand bytes: 6,144,000 an image of 64x96."""
    return 5_000_000 + 1000 * batch * on_meta.size[0] * on_meta.size[1]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives the machine as much free memory and disk as a test says; steps are plain."""
    for module in (networks, preflight):
        monkeypatch.setattr(module, "step_bytes", plain_step_bytes)

    def give(memory: int = 64 * GIB, disk: int = 64 * GIB) -> None:
        monkeypatch.setattr(networks, "free_device_memory", lambda _: memory)
        monkeypatch.setattr(preflight, "free_device_memory", lambda _: memory)
        monkeypatch.setattr(budget, "free_memory", lambda: memory)
        monkeypatch.setattr(networks, "free_memory", lambda: memory)
        monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(disk, 0, disk))

    return give


@pytest.fixture(scope="module")
def small_job(recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Job:
    return prepare(recipe(), tmp_path_factory.mktemp("none"))


@pytest.mark.usefixtures("tried")
def test_what_a_run_will_take(recipe: Callable[..., Any], tmp_path: Path, machine: Callable[..., None]) -> None:
    machine()
    found = fly(recipe(subset={"count": 10}), tmp_path / "run")
    assert list(found.as_dict()) == KEYS.split()
    json.dumps(found.as_dict())
    assert found.seconds == 1.25 + 2.0 + 3.5
    assert found.phases == [{"phase": "encoder.0", "seconds": 2.0}, {"phase": "head", "seconds": 3.5}]
    assert (found.images, found.views, found.epochs, found.batch, found.store) == (10, 2, 2, 4, "memory")
    assert (found.fits, found.problem, found.largest_batch) == (True, None, 10)
    assert found.free_memory == 64 * GIB + LIBRARIES
    # the two networks have 0.448 and 0.716 M values
    assert found.store_bytes is not None
    networks = found.memory_bytes - LIBRARIES - found.store_bytes - 5_000_000 - 4 * 6_144_000
    assert networks == pytest.approx(4 * (0.448e6 + 0.716e6), rel=0.01)
    assert not (tmp_path / "run").exists()


def test_memory_is_the_networks_and_the_largest_step(small_job: Job) -> None:
    needs = MemoryForecast(small_job)
    steps = {n: max(step_bytes(small_job.on_meta, p, n) for p in small_job.phases) for n in (4, 12)}
    assert needs.bytes(12) - needs.bytes(4) == steps[12] - steps[4]
    weights = sum(
        t.numel() * t.element_size()
        for network in (small_job.student, small_job.teacher)
        if network
        for t in network.model.state_dict().values()
    )
    assert needs.bytes(4) == LIBRARIES + weights + small_job.plan.store.bytes + steps[4]


def test_the_largest_batch_is_the_last_that_fits(small_job: Job) -> None:
    needs = MemoryForecast(small_job)
    assert needs.largest_batch(needs.bytes(7)) == 7
    assert needs.largest_batch(needs.bytes(7) - 1) == 6
    assert needs.largest_batch(needs.bytes(1) - 1) == 0


def test_disk_is_the_student_and_the_state_twice(small_job: Job, recipe: Callable[..., Any], tmp_path: Path) -> None:
    student = sum(t.numel() * t.element_size() for t in small_job.student.model.state_dict().values())
    moved = [[p.numel() for n in phase.trained for p in small_job.student.stages[n].parameters()] for phase in
             small_job.phases]  # fmt: skip
    assert not list(small_job.networks.adapters.parameters())
    assert preflight._disk_bytes(small_job) == 3 * student + 2 * 2 * 4 * max(map(sum, moved))
    stored = prepare(recipe(store={"kind": "disk"}), tmp_path)
    assert preflight._disk_bytes(stored) == preflight._disk_bytes(small_job) + stored.plan.store.bytes


@pytest.mark.usefixtures("tried")
def test_a_batch_that_does_not_fit_and_the_one_that_does(
    recipe: Callable[..., Any], tmp_path: Path, machine: Callable[..., None], small_job: Job
) -> None:
    machine()
    machine(memory=MemoryForecast(small_job).bytes(4) - LIBRARIES - 1)  # the step and the store fit, the networks don't
    found = fly(recipe(store={"budget_gib": 1}), tmp_path)
    assert (found.fits, found.largest_batch, found.seconds, found.phases) == (False, 3, None, [])
    assert found.problem is not None
    assert found.problem.endswith("take --batch 3, or a smaller --store-budget")


def test_what_a_run_would_refuse_is_an_answer(
    recipe: Callable[..., Any], tmp_path: Path, machine: Callable[..., None]
) -> None:
    machine(memory=8 * GIB)
    found = fly(recipe(data={"size": "16000x16000"}, store={"bits": 8}), tmp_path)
    assert (found.fits, found.largest_batch, found.images, found.store) == (False, 0, None, None)
    assert "make --size, --batch or --store-budget smaller" in str(found.problem)
    assert found.memory_bytes > found.free_memory == 8 * GIB + LIBRARIES


def test_a_store_that_is_too_large_is_an_answer_with_the_batch_that_would_fit(
    recipe: Callable[..., Any], tmp_path: Path, machine: Callable[..., None]
) -> None:
    machine(memory=GIB)
    found = fly(recipe(data={"views": 1000}, store={"kind": "memory", "bits": 8}), tmp_path)
    assert (found.fits, found.images, found.store) == (False, 12, None)
    assert found.largest_batch > 0
    assert "the feature store needs" in str(found.problem)


@pytest.mark.usefixtures("tried")
def test_a_full_disk(recipe: Callable[..., Any], tmp_path: Path, machine: Callable[..., None]) -> None:
    machine(disk=10**6)
    found = fly(recipe(store={"kind": "disk"}), tmp_path)
    assert not found.fits
    assert "free some space there, or take fewer --views or --store recompute" in str(found.problem)


def test_other_errors_stay_errors(recipe: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model at"):
        fly(recipe(teacher=str(tmp_path / "nothing")), tmp_path / "run")


@pytest.mark.usefixtures("tried")
def test_the_command(
    recipe: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine()
    monkeypatch.setenv("SEGSKD_RUNS", str(tmp_path / "runs"))
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe()))
    assert cli.main(["preflight", "--recipe", str(tmp_path / "recipe.yaml"), "--count", "6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (list(found), found["images"], found["seconds"]) == (KEYS.split(), 6, 6.75)
    assert not (tmp_path / "runs").exists()
