"""Where a computation stands that goes through a network for all examples at once: the values still to be used.

They are kept for each batch by itself, in memory up to a bound, and in temporary files beyond it. What comes back
is bit for bit what was put in.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

Values = dict[str, Any]  # tensors, sizes, sequences and dictionaries of them


class Frontier:
    """The live values of every batch; each is taken, carried on and put back in turn."""

    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self.resident: dict[int, Values] = {}
        self.resident_bytes = 0
        self.spilled_bytes = 0
        self.folder = tempfile.TemporaryDirectory(prefix="frontier-")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resident.clear()
        self.folder.cleanup()

    def put(self, batch: int, values: Values) -> None:
        """Keep the values of a batch."""
        size = num_bytes(values)
        if self.resident_bytes + size <= self.memory_bytes:
            self.resident[batch] = values
            self.resident_bytes += size
        else:
            torch.save(values, self.path(batch))
            self.spilled_bytes += size

    def take(self, batch: int) -> Values:
        """The values of a batch, which are then no longer kept; none where none were put."""
        if batch in self.resident:
            values = self.resident.pop(batch)
            self.resident_bytes -= num_bytes(values)
            return values
        path = self.path(batch)
        if not path.exists():
            return {}
        loaded: Values = torch.load(path, weights_only=True)
        path.unlink()
        return loaded

    def path(self, batch: int) -> Path:
        return Path(self.folder.name) / str(batch)


def num_bytes(values: Values) -> int:
    """The memory that the tensors among `values` hold; what several views share counts once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors_in(values)}
    return sum(storage.nbytes() for storage in storages.values())


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors, however deep."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, tuple, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(part)
