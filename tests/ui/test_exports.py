"""Exports as the page knows them: what counts as one, who may begin one, and what went wrong in words."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segskd import supervisor
from segskd.errors import UserError
from segskd.export.certificate import Certificate
from segskd.export.formats import Spec
from segskd.runs import Run
from ui.context import Context
from ui.state import exports as module
from ui.state.exports import Exports, as_dict, exported

Make = Callable[..., Run]
CERTIFICATE = Certificate(
    file="small.zip",
    format="safetensors",
    precision="float32",
    input="float32",
    run="small",
    network="unet:resnet10",
    bytes=7,
    sha256="ab" * 32,
    model_bytes=6,
    float_bytes=5,
    images=4,
    sizes=((64, 96),),
    pixels=24576,
    pixels_differing=0,
    share_differing=0.0,
    max_logit_difference=0.0,
    mean_logit_difference=0.0,
    largest_logit=9.0,
    miou_before=0.5,
    miou_after=0.5,
    latency={"export_ms": 2.0},
    quantization=None,
    limits={"agreement": 1.0},
    failures=(),
    versions={"torch": "2"},
)
PLAIN = Spec()
PATIENCE = 300.0


@pytest.fixture
def run(make_run: Make, finish: Make) -> Run:
    return finish(make_run("small"))


def prove(run: Run, content: bytes = b"package", **changes: Any) -> None:
    """Writes a package of seven bytes and its certificate with the changes that are named."""
    certificate = {**CERTIFICATE.as_dict(), **changes}
    run.write("exports/safetensors/small.zip", content)
    run.write_json("exports/safetensors/certificate.json", certificate)


def test_an_export_that_proved_itself(run: Run) -> None:
    assert exported(run, PLAIN) is None
    prove(run)
    found = exported(run, PLAIN)
    assert found is not None
    assert found.path == run.path / "exports" / "safetensors" / "small.zip"
    assert found.certificate == CERTIFICATE
    shown = as_dict(found)
    assert (shown["file"], shown["bytes"]) == ("small.zip", 7)
    assert json.loads(json.dumps(shown))["certificate"]["pixels"] == 24576


@pytest.mark.parametrize(
    "changes",
    [
        {"failures": ["1 % of 24576 pixels differ"]},
        {"file": "other.zip"},
        {"file": "../../result.json"},
        {"bytes": 8},
        {"pixels": "many"},
        {"max_logit_difference": None},
        {"sizes": 64},
        {"sha256": 5},
        {"versions": ["torch"]},
        {"more": 1},
    ],
)
def test_a_certificate_that_proves_less_is_none(run: Run, changes: dict[str, Any]) -> None:
    prove(run, **changes)
    assert exported(run, PLAIN) is None


def test_a_file_outside_its_folder_is_never_handed_out(run: Run) -> None:
    (run.path / "exports" / "secret").parent.mkdir(parents=True)
    (run.path / "exports" / "secret").write_bytes(b"1234567")
    prove(run, file="../secret")
    assert exported(run, PLAIN) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"small.zip"', '{"file": "small.zip"}'])
def test_a_certificate_that_is_half_written_is_none(run: Run, text: str) -> None:
    prove(run)
    (run.path / "exports" / "safetensors" / "certificate.json").write_text(text)
    assert exported(run, PLAIN) is None


def test_a_package_that_is_gone_cut_or_a_folder(run: Run) -> None:
    prove(run)
    package = run.path / "exports" / "safetensors" / "small.zip"
    package.write_bytes(b"pack")
    assert exported(run, PLAIN) is None
    package.unlink()
    assert exported(run, PLAIN) is None
    package.mkdir()
    certificate = {**CERTIFICATE.as_dict(), "bytes": package.stat().st_size}
    run.write_json("exports/safetensors/certificate.json", certificate)
    assert exported(run, PLAIN) is None


# -- making one ---------------------------------------------------------------------------------------


@pytest.fixture
def exports(context: Context) -> Exports:
    return Exports(context.runs, context.data)


@pytest.fixture
def instead(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[list[str]]]:
    """Another program in the command's place; what was to be started and where."""

    def put(program: str) -> list[list[str]]:
        asked: list[list[str]] = []
        real = subprocess.Popen

        def begin(command: list[str], **arguments: Any) -> Any:
            asked.append([*command[1:], arguments["env"]["SEGSKD_RUNS"], arguments["env"]["SEGSKD_DATA"]])
            return real([sys.executable, "-c", program], **arguments)

        monkeypatch.setattr(subprocess, "Popen", begin)
        monkeypatch.setattr(supervisor, "LISTEN_SECONDS", 0.05)
        return asked

    return put


def test_only_a_finished_run_is_exported(exports: Exports, make_run: Make, begin: Make) -> None:
    with pytest.raises(UserError, match="run fresh is new: only a finished run can be exported"):
        exports.start(make_run("fresh"), PLAIN)
    with pytest.raises(UserError, match="run half is interrupted: only a finished run can be exported"):
        exports.start(begin(make_run("half")), PLAIN)
    assert exports.task(Run(Path("half"))) is None


def test_the_command_line_makes_it(
    exports: Exports, run: Run, context: Context, instead: Callable[[str], list[list[str]]]
) -> None:
    asked = instead("import os; assert os.nice(0) >= 10; assert os.getsid(0) == os.getpid()")
    task = exports.start(run, PLAIN)
    assert task.wait(PATIENCE)
    assert (task.state, task.problem) == ("done", None)
    command = ["-m", "segskd", "export", str(run.path), "--format", "safetensors", "--json"]
    assert asked == [[*command, str(context.runs), str(context.data)]]


def test_who_asks_again_joins_and_nobody_moves_the_run(
    exports: Exports, run: Run, tmp_path: Path, instead: Callable[[str], list[list[str]]]
) -> None:
    gate = tmp_path / "gate"
    asked = instead(f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.02)")
    exports.check_idle(run)
    task = exports.start(run, PLAIN)
    assert exports.start(run, PLAIN) is task
    assert exports.task(run) is task
    with pytest.raises(UserError, match="is being exported as safetensors: wait"):
        exports.start(run, Spec("onnx"))
    for looked in (PLAIN, Spec("onnx")):
        told = exports.page_status(run, looked)
        assert told is not None
        assert (told["state"], told["name"]) == ("working", "safetensors")
    with pytest.raises(UserError, match="run small is being exported: wait until that is finished"):
        exports.check_idle(run)
    gate.touch()
    assert task.wait(PATIENCE)
    exports.check_idle(run)
    assert len(asked) == 1
    told = exports.page_status(run, PLAIN)
    assert told is not None
    assert told["state"] == "done"
    assert exports.page_status(run, Spec("onnx")) is None


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        (
            "import sys; print('bar'); print('x\\nsegskd: the card is gone', file=sys.stderr); sys.exit(2)",
            "the card is gone",
        ),
        ("import os; os.kill(os.getpid(), 9)", "the export's process was killed by signal 9: free some memory"),
        ("raise ValueError('<b>')", "an error in SegSKD: RuntimeError: the export ended with status 1"),
        ("import sys; sys.exit(2)", "an error in SegSKD: RuntimeError: the export ended with status 2"),
    ],
)
def test_what_went_wrong_is_told(
    exports: Exports, run: Run, instead: Callable[[str], list[list[str]]], program: str, problem: str
) -> None:
    instead(program)
    task = exports.start(run, PLAIN)
    assert task.wait(PATIENCE)
    assert task.state == "failed"
    assert task.problem is not None
    assert task.problem.startswith(problem)


def test_an_export_without_end_is_ended(
    exports: Exports, run: Run, monkeypatch: pytest.MonkeyPatch, instead: Callable[[str], list[list[str]]]
) -> None:
    instead("import time; time.sleep(600)")
    monkeypatch.setattr(module, "LONGEST_SECONDS", 0.2)
    task = exports.start(run, PLAIN)
    assert task.wait(PATIENCE)
    assert task.problem == "the export took longer than 0 minutes and was ended"
