"""A finished run of a small network, and its exports; each is timed a few times only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from segskd.export import timing
from segskd.export.certificate import Package, find_package
from segskd.export.formats import Spec
from segskd.export.package import package
from segskd.runs import Run


@pytest.fixture(scope="session")
def run(recipe: Callable[..., Any], once: Callable[..., Path]) -> Run:
    """At a size that is padded, with a teacher to compare with; large enough that INT8 weighs a quarter of it."""
    from segskd.distill.running.session import start

    changes = {
        "student": "unet:resnet10",
        "data": {"size": "50x90"},
        "subset": {"count": 4},
        "optimisation": {"epochs": 4, "lr": 1e-2},
    }
    return Run.open(
        once("exported-runs", lambda folder: start(recipe(**changes, method="supervised"), folder / "small")) / "small"
    )


@pytest.fixture(scope="session")
def narrow_run(run: Run) -> Run:
    """The same student with half its channels."""
    from segskd.distill.running.pruning import plan_pruned
    from segskd.distill.running.session import train_pruned

    with FileLock(run.path.parent.with_name("narrow-run.lock")):
        return train_pruned(*plan_pruned(run, 0.5, 1))


@pytest.fixture(scope="session")
def packed(run: Run) -> Callable[[Spec], Package]:
    """The run's export of a kind, made once."""

    def get(spec: Spec) -> Package:
        with FileLock(run.path.parent.with_name(f"{spec.name}.lock")), pytest.MonkeyPatch.context() as patch:
            patch.setattr(timing, "REPEATS", 5)
            return find_package(run, spec) or package(run, spec)

    return get


@pytest.fixture(scope="session")
def unpacked(packed: Callable[[Spec], Package], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Spec], Path]:
    """Its folder, out of the zip."""
    import zipfile

    def get(spec: Spec) -> Path:
        folder = tmp_path_factory.mktemp("unpacked")
        with zipfile.ZipFile(packed(spec).path) as archive:
            archive.extractall(folder)
        (inner,) = folder.iterdir()
        return inner

    return get
