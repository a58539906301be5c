"""SegSKD: stagewise knowledge distillation of segmentation networks (arXiv 1911.06786).

The names in `__all__` are the public interface; `segskd.api` documents the functions. They are imported when they are
first used, so `import segskd` loads neither PyTorch nor the browser interface.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Albumentations asks a server for newer releases when it is imported; nothing here may need a network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Threads that wait for one another sleep, so that other processes get the cores: beside a busy process a run is seven
# times as fast. They don't sleep at once, since waking them some hundred times a step costs a quarter of the speed.
# GNU's OpenMP, which PyTorch has on Linux, reads this when it is loaded; SegSKD is imported before PyTorch.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="10000")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from segskd.api import add_dataset as add_dataset
    from segskd.api import compare as compare
    from segskd.api import distill as distill
    from segskd.api import evaluate as evaluate
    from segskd.api import export as export
    from segskd.api import load_predictor as load_predictor
    from segskd.api import predict as predict
    from segskd.api import resume as resume
    from segskd.api import teach as teach
    from segskd.config import Recipe as Recipe
    from segskd.data.cards import load_card as load_card
    from segskd.errors import Stopped as Stopped
    from segskd.errors import UserError as UserError
    from segskd.runs import Run as Run
    from segskd.runs import find_run as find_run
    from segskd.runs import list_runs as list_runs

_PLACES = {
    **dict.fromkeys(("add_dataset", "compare", "load_predictor", "predict", "resume", "teach"), "segskd.api"),
    "Recipe": "segskd.config",
    "load_card": "segskd.data.cards",
    **dict.fromkeys(("Stopped", "UserError"), "segskd.errors"),
    **dict.fromkeys(("Run", "find_run", "list_runs"), "segskd.runs"),
}
_CALLED = ("distill", "evaluate", "export")
"""Packages that are called like the function of their name (see segskd.callable_packages)."""

__all__ = [
    "Recipe",
    "Run",
    "Stopped",
    "UserError",
    "add_dataset",
    "compare",
    "distill",
    "evaluate",
    "export",
    "find_run",
    "list_runs",
    "load_card",
    "load_predictor",
    "predict",
    "resume",
    "teach",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used (PEP 562)."""
    if name in _CALLED:
        return import_module(f"segskd.{name}")
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'segskd' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
