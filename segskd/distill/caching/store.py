"""The feature store: features of frozen stages, kept for every sample so that no frozen stage runs twice."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

from segskd.config import Size
from segskd.data.samples import Samples
from segskd.distill.caching.contents import DATA, IMAGE_KEY, MASK_KEY, Key, Keys, feature_key, read_of
from segskd.distill.caching.rows import EightBitRows, Parts, Rows, UnchangedRows, in_memory, on_disk
from segskd.models.stages import StagedNetwork

Kind = Literal["memory", "disk", "recompute"]
Values = Mapping[Key, Tensor]
Read = TypeVar("Read")


class Batch:
    """Tensors of some samples by key.

    Fabric converts tensors in dicts and lists to fp32. It leaves an object of this class as it is.
    """

    def __init__(self, tensors: Values) -> None:
        self.tensors = dict(tensors)
        self.counted: float | None = None
        """Labelled pixels to divide the loss's sum by; None for the number in this batch."""

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def features(self, network: str) -> dict[str, Tensor]:
        """One network's features by stage name, with the image as "image"."""
        return {key.name: value for key, value in self.tensors.items() if key.network == network or key == IMAGE_KEY}

    @property
    def mask(self) -> Tensor:
        return self.tensors[MASK_KEY]


@dataclass(frozen=True)
class FeatureComputer:
    """Computes features: networks by name, in eval mode, without gradients, in one precision."""

    by_name: Mapping[str, StagedNetwork]
    size: Size
    device: torch.device
    dtype: torch.dtype
    autocast: Callable[[], AbstractContextManager[object]]

    def compute(self, known: Values, wanted: Keys) -> dict[Key, Tensor]:
        """The wanted tensors. Only the stages between them and the known tensors run."""
        values = dict(known)
        with torch.no_grad(), self.autocast():
            for key in sorted(wanted):
                self._reach(key, values)
        return {key: values[key] for key in wanted}

    def _reach(self, key: Key, values: dict[Key, Tensor]) -> Tensor:
        if key in values:
            return values[key]
        assert key.network != DATA
        network = self.by_name[key.network]
        names = network.sources(network.index(key.name))
        sources = {name: self._reach(feature_key(key.network, name), values) for name in names}
        for name, feature in network.stages[key.name].features(sources, self.size).items():
            values.setdefault(Key(key.network, name), feature)
        return values[key]


class FeatureStore:
    """Tensors of one set of samples, which it holds from phase to phase."""

    def __init__(
        self,
        samples: Samples,
        computer: FeatureComputer,
        kind: Kind,
        folder: Path,
        chunk: int,
        bits: int | None = None,
    ) -> None:
        """Computes `chunk` samples at once; keeps features in 8 `bits` a value, by default in their own precision."""
        self.samples = samples
        self.kind = kind
        self.reads_ahead = True
        self._computer = computer
        self._folder = folder
        self._chunk = chunk
        self._bits = bits
        self._wanted: Keys = frozenset()
        self._rows: dict[Key, Rows] = {}

    def advance(self, wanted: Keys, progress: Callable[[int, int], None] | None = None) -> None:
        """Holds `wanted` from now on: missing tensors are computed once for every sample, others are dropped.

        The student's stages before the wanted features must have their final weights.
        """
        self._wanted = wanted
        if self.kind == "recompute":
            return
        missing = wanted - self._rows.keys()
        if missing:
            self._fill(frozenset(missing), progress)
        for key in self._rows.keys() - wanted:
            del self._rows[key]
            self._file(key).unlink(missing_ok=True)

    def batch(self, numbers: Tensor, keys: Keys | None = None) -> Batch:
        """Tensors of the samples with these numbers, int64 (N,), on the networks' device: all held ones, or `keys`."""
        wanted = self._wanted if keys is None else keys
        return self._batch_of(self._read(numbers, wanted), wanted)

    def stream(self, numbers: Iterable[Tensor], keys: Keys | None = None) -> Iterator[Batch]:
        """A batch for each of `numbers`; see `batch`. The next batch is read while the current one is in use."""
        wanted = self._wanted if keys is None else keys
        in_place = self.kind == "memory" and self._computer.device.type == "cpu"
        for _, rows in self._read_ahead(numbers, lambda part: self._read(part, wanted), not in_place):
            yield self._batch_of(rows, wanted)

    def _read(self, numbers: Tensor, wanted: Keys) -> Mapping[Key, Parts]:
        """Reads what the samples' wanted tensors are made of: from memory, disk or the images' files."""
        if self.kind == "recompute":
            return {key: (value,) for key, value in self._load(numbers.tolist()).items()}
        return {key: self._parts(key, numbers) for key in sorted(wanted)}

    def _batch_of(self, read: Mapping[Key, Parts], wanted: Keys) -> Batch:
        if self.kind == "recompute":
            return Batch(self._computer.compute({key: value for key, (value,) in read.items()}, wanted))
        return Batch({key: self._on_device(key, parts) for key, parts in read.items()})

    def batches(self, keys: Keys | None = None) -> Iterator[Batch]:
        """All samples in order; see `batch`."""
        for start in range(0, len(self.samples), self._chunk):
            yield self.batch(torch.arange(start, min(start + self._chunk, len(self.samples))), keys)

    @property
    def bytes(self) -> int:
        """Bytes of the held tensors."""
        return sum(rows.bytes for rows in self._rows.values())

    def close(self) -> None:
        """Drops all tensors and deletes their files."""
        self.advance(frozenset())
        shutil.rmtree(self._folder, ignore_errors=True)

    def _fill(self, missing: Keys, progress: Callable[[int, int], None] | None) -> None:
        """Computes `missing` in chunks that are always the same, so that a resumed run gets the same bits."""
        computed: dict[Key, Rows] = {}
        done = 0
        known = frozenset(self._rows) | {IMAGE_KEY, MASK_KEY}
        stored = read_of(known, missing, self._computer.by_name) & self._rows.keys()
        for numbers, loaded in self._chunks(missing):
            given = {key: self._on_device(key, self._parts(key, numbers)) for key in sorted(stored)}
            for key, value in self._computer.compute(given | loaded, missing).items():
                rows = _channels_last(value)
                if key not in computed:
                    computed[key] = self._new_rows(key, (len(self.samples), *rows.shape[1:]), rows.dtype)
                computed[key].write(numbers, rows)
            done += len(numbers)
            if progress:
                progress(done, len(self.samples))
        self._rows |= computed

    def _chunks(self, missing: Keys) -> Iterator[tuple[Tensor, dict[Key, Tensor]]]:
        """Numbers of samples, all views of an image together, with what is loaded of them from files."""
        chunks = self.samples.image_by_image(self._chunk)
        if not self._reads_files(missing):
            return ((numbers, {}) for numbers in chunks)
        return self._read_ahead(chunks, lambda numbers: self._load(numbers.tolist()), True)

    def _read_ahead(
        self, parts: Iterable[Tensor], read: Callable[[Tensor], Read], worthwhile: bool
    ) -> Iterator[tuple[Tensor, Read]]:
        """Each part with what is read of it; ahead of its use if `reads_ahead` and `worthwhile` say so."""
        if not self.reads_ahead or not worthwhile:
            yield from ((numbers, read(numbers)) for numbers in parts)
            return
        with ThreadPoolExecutor(1) as reader:
            pending: deque[tuple[Tensor, Future[Read]]] = deque()
            for numbers in parts:
                pending.append((numbers, reader.submit(read, numbers)))
                if len(pending) > 1:
                    now, result = pending.popleft()
                    yield now, result.result()
            yield from ((now, result.result()) for now, result in pending)

    def _reads_files(self, missing: Keys) -> bool:
        return not self._rows or any(key.network == DATA for key in missing)

    def _load(self, numbers: Sequence[int]) -> dict[Key, Tensor]:
        images, masks = self.samples.load(numbers)
        device = self._computer.device
        pixels = images.to(device, self._computer.dtype).to(memory_format=torch.channels_last)
        return {IMAGE_KEY: pixels, MASK_KEY: masks.to(device)}

    def _parts(self, key: Key, numbers: Tensor) -> Parts:
        """The stored parts of these samples; for a GPU in pinned memory, from which copies run beside computation."""

        def take(stored: Tensor) -> Tensor:
            if self._computer.device.type != "cuda":
                return stored.index_select(0, numbers)
            rows = torch.empty((len(numbers), *stored.shape[1:]), dtype=stored.dtype, pin_memory=True)
            return torch.index_select(stored, 0, numbers, out=rows)

        return self._rows[key].read(take)

    def _on_device(self, key: Key, parts: Parts) -> Tensor:
        """Rows on the device, (N, c, h, w) in channels-last memory without a copy."""
        moved = tuple(part.to(self._computer.device, non_blocking=True) for part in parts)
        rows = self._rows[key].decoded(moved)
        return rows.permute(0, 3, 1, 2) if rows.dim() == 4 else rows

    def _new_rows(self, key: Key, shape: tuple[int, ...], dtype: torch.dtype) -> Rows:
        allocate = in_memory if self.kind == "memory" else partial(on_disk, self._file(key))
        return (EightBitRows if self._bits and key.network != DATA else UnchangedRows)(allocate, shape, dtype)

    def _file(self, key: Key) -> Path:
        return self._folder / f"{key.network}-{key.name}.bin"


def _channels_last(value: Tensor) -> Tensor:
    """(N, c, h, w) as (N, h, w, c), the order of the values in channels-last memory."""
    return value.permute(0, 2, 3, 1) if value.dim() == 4 else value
