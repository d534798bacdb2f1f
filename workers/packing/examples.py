"""`--example`: what a network is called with while it is exported.

    1,28,28            one example of this shape, float32, drawn from a normal distribution
    128:int64          the same of another type; integers are drawn from 0 and 1
    batch.npy          an array (B, …) of examples; of .npz and .safetensors every array, in the file's order

The batch is added to shapes, and is in files already. An export needs two examples or more: with one, the batch
would become a constant of the graph.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from workers.packing.mistakes import Mistake, explaining

SHAPE = re.compile(r"(?P<sizes>\d+(?:,\d+)*),?(?::(?P<dtype>\w+))?")
DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
}
SUFFIXES = (".npy", ".npz", ".safetensors")
EXPECTED = (
    "expected the shape of one example without its batch (1,28,28 or 128:int64), or a file .npy/.npz/.safetensors"
)


def example_inputs(given: Sequence[str], batch: int) -> tuple[Tensor, ...]:
    """The tensors (batch, …) that `given` describes, drawn by a fixed seed. Raises `Mistake`."""
    if not given:
        raise Mistake(f"--example is missing; {EXPECTED}")
    generator = torch.Generator().manual_seed(0)
    return tuple(tensor for text in given for tensor in tensors_of(text, batch, generator))


def tensors_of(text: str, batch: int, generator: torch.Generator) -> list[Tensor]:
    """The tensors of one `--example`."""
    if text.endswith(SUFFIXES):
        return [resized(tensor, batch, text) for tensor in read_arrays(Path(text))]
    match = SHAPE.fullmatch(text.replace(" ", ""))
    if match is None:
        raise Mistake(f"--example {text!r} is not understood; {EXPECTED}")
    if (dtype := DTYPES.get(match["dtype"] or "float32")) is None:
        raise Mistake(f"--example {text!r}: there is no type {match['dtype']}; there are {', '.join(DTYPES)}")
    sizes = [int(size) for size in match["sizes"].split(",")]
    if 0 in sizes:
        raise Mistake(f"--example {text!r} has a dimension of size 0; {EXPECTED}")
    return [drawn((batch, *sizes), dtype, generator)]


def drawn(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Numbers of a type: normal ones, or zeros and ones."""
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def read_arrays(path: Path) -> list[Tensor]:
    """The arrays of a file, in its order."""
    if not path.exists():
        raise Mistake(f"--example {path}: there is no such file")
    with explaining(f"--example {path} cannot be read"):
        if path.suffix == ".safetensors":
            return list(safetensors.torch.load_file(path).values())
        content = np.load(path, allow_pickle=False)
        arrays = [content] if path.suffix == ".npy" else [content[name] for name in content.files]
        return [torch.from_numpy(array) for array in arrays]


def resized(tensor: Tensor, batch: int, text: str) -> Tensor:
    """`batch` examples out of those that a file holds, repeated where they are too few."""
    if tensor.dim() == 0 or len(tensor) == 0:
        raise Mistake(f"--example {text} holds no examples; expected arrays (B, …) with B at least 1")
    return torch.cat([tensor] * -(-batch // len(tensor)))[:batch]
