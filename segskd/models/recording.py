"""What a module does to tensors, found by watching it: the modules and functions it calls, and what goes into each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Value(NamedTuple):
    """A tensor that the recorded module was given, or that one of its calls gave."""

    number: int


FOREIGN = Value(-1)
"""A tensor from elsewhere: a parameter or a buffer that the module holds itself."""


@dataclass(frozen=True)
class Call:
    """One call: of the submodule at a path, or of a function. Its arguments hold values in place of tensors."""

    target: str | Callable[..., Any]
    args: Any
    kwargs: Any
    result: Value

    @property
    def inputs(self) -> set[Value]:
        """The values among its arguments."""
        return set(values_in((self.args, self.kwargs)))


@dataclass
class Recording:
    """The calls that a module made, outermost ones only, with the shapes of all values."""

    calls: list[Call] = field(default_factory=list)
    given: Any = None
    result: Any = None
    output: Any = None
    """What the module gave back, as it is; `result` has values in place of its tensors."""
    shapes: dict[Value, tuple[int, ...]] = field(default_factory=dict)
    overwritten: set[Value] = field(default_factory=set)
    """Values that a later call has changed, whose own result is another tensor."""

    def needed(self, wanted: Sequence[Value]) -> set[Value]:
        """All values that the wanted ones are made of, themselves included."""
        needed = set(wanted)
        for call in reversed(self.calls):
            if call.result in needed:
                needed |= call.inputs
        return needed


def record(module: nn.Module, *given: Any) -> Recording:
    """What the module does with what it is given: tensors, or nested sequences of them; those on "meta" cost nothing.

    Submodules that give more than one tensor are looked into. The module is called without gradients.
    """
    opened = {""}
    while True:
        watch = _Watch()
        with torch.no_grad(), _hooked(module, watch, opened), watch:
            watch.recording.given = _mapped(given, watch.new)
            result = module(*given)
        if not watch.opaque:
            return watch.finish(result)
        opened |= watch.opaque


def values_in(content: Any) -> Iterator[Value]:
    """The values in nested sequences and mappings."""
    if isinstance(content, Value):
        yield content
    elif isinstance(content, (tuple, list)):
        for part in content:
            yield from values_in(part)
    elif isinstance(content, Mapping):
        yield from values_in(list(content.values()))


def _mapped(content: Any, change: Callable[[Tensor], Any]) -> Any:
    """Nested sequences and mappings with every tensor changed."""
    if isinstance(content, Tensor):
        return change(content)
    if isinstance(content, (tuple, list)):
        return [_mapped(part, change) for part in content]
    if isinstance(content, Mapping):
        return {key: _mapped(part, change) for key, part in content.items()}
    return content


class _Watch(TorchFunctionMode):
    """Sees every function that is called on tensors, and is told of modules; keeps the outermost calls."""

    def __init__(self) -> None:
        super().__init__()
        self.recording = Recording()
        self.depth = 0
        self.opaque: set[str] = set()
        self._values: dict[int, Value] = {}
        self._versions: dict[Value, tuple[Tensor, int]] = {}  # also keeps the tensors, so that no id comes twice

    def new(self, tensor: Tensor) -> Value:
        """The next value, which this tensor stands for from now on."""
        value = Value(len(self.recording.shapes))
        self.recording.shapes[value] = tuple(tensor.shape)
        self._values[id(tensor)] = value
        self._versions[value] = (tensor, tensor._version)
        return value

    def note(self, target: str | Callable[..., Any], args: Any, kwargs: Any, result: Tensor) -> None:
        """Keeps a call."""
        inputs = _mapped(args, self._known), _mapped(kwargs, self._known)
        self.recording.calls.append(Call(target, *inputs, self.new(result)))

    def finish(self, result: Any) -> Recording:
        """The recording, with what the module gave back."""
        self.recording.output, self.recording.result = result, _mapped(result, self._known)
        current = set(self._values.values())
        for value, (tensor, version) in self._versions.items():
            if value in current and tensor._version != version:
                self.recording.overwritten.add(value)
        return self.recording

    def _known(self, tensor: Tensor) -> Value:
        return self._values.get(id(tensor), FOREIGN)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls the function and keeps the call if no module is at work and a tensor comes of it."""
        result = func(*args, **(kwargs or {}))
        if self.depth == 0 and isinstance(result, Tensor):
            self.note(func, args, kwargs or {}, result)
        return result


@contextmanager
def _hooked(module: nn.Module, watch: _Watch, opened: set[str]) -> Iterator[None]:
    """Tells the watch of every call of a submodule but the opened ones."""

    def enter(_: nn.Module, args: Any) -> None:
        watch.depth += 1

    def leave(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            watch.depth -= 1
            if watch.depth == 0 and isinstance(result, Tensor):
                watch.note(path, args, kwargs, result)
            elif watch.depth == 0:
                watch.opaque.add(path)

        return hook

    with ExitStack() as hooks:
        for path, part in module.named_modules():
            if path not in opened:
                hooks.enter_context(part.register_forward_pre_hook(enter))
                hooks.enter_context(part.register_forward_hook(leave(path), with_kwargs=True))
        yield
