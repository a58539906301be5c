"""Packages that can be called: `segskd.distill(…)` runs the function, `segskd.distill.running` is a module.

Python puts an imported package into its parent under its own name, in place of anything else of that name. So the
packages distill, evaluate and export are made callable, each as the function of its name in segskd.api.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that hands calls on to the function of its name in segskd.api."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._function()(*arguments, **named)

    @property
    def __signature__(self) -> inspect.Signature:
        """What editors and notebooks show."""
        return inspect.signature(self._function())

    def _function(self) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(import_module("segskd.api"), self.__name__.rpartition(".")[2])
        return function


def make_callable(package: str) -> None:
    """Lets the package of that full name, which is just being imported, be called."""
    sys.modules[package].__class__ = CallablePackage
