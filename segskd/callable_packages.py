"""Packages that can be called: `segskd.distill(…)` runs a function, and `segskd.distill.running` is a module.

When Python imports a package, the package replaces anything of its name in its parent. So a function segskd.distill
would not last. Instead the packages distill, evaluate and export can be called: a call runs the function of the
package's name in segskd.api.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package whose calls run the function of its name in segskd.api."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._function()(*arguments, **named)

    @property
    def __signature__(self) -> inspect.Signature:
        """The function's own, which editors and notebooks show."""
        return inspect.signature(self._function())

    def _function(self) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(import_module("segskd.api"), self.__name__.rpartition(".")[2])
        return function


def make_callable(package: str) -> None:
    """Makes the package of that full name, which is being imported, callable."""
    sys.modules[package].__class__ = CallablePackage
