"""From whatever a checkpoint holds to the weights of one network: found, renamed, compared, cast.

Training scripts wrap their weights (`{"epoch": 7, "state_dict": {...}}`), and wrappers of modules
prefix every key (`module.` from DataParallel, `_orig_mod.` from torch.compile, `model.` from
Lightning). Both are undone here; what remains must fit the network key by key, or is listed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from service.contract.errors import InputRejected

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "params", "ema")
PREFIXES = ("module.", "_orig_mod.", "model.")
MAX_NESTING = 4
MAX_LINES = 20
COUNTER = "num_batches_tracked"  # batch norm's counter; checkpoints of torch before 0.4.1 lack it
CAST_TO_FLOAT32 = (torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Found:
    """A state dict, and in words what was done to find it."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]


def find_state(content: Any) -> Found:
    """Return the state dict inside what a checkpoint holds.

    Raises `InputRejected` with code "no_weights" where there is none.
    """
    hit = search(content)
    if hit is None:
        raise InputRejected(
            f"There are no weights where they are looked for: found {describe(content)}, expected a dictionary from "
            f"names to tensors, or one under {', '.join(WRAPPERS)}. Save model.state_dict().",
            code="no_weights",
        )
    tensors, path = hit
    return Found(tensors, (f"weights taken from {' / '.join(path)}",) if path else ())


def search(content: Any, path: tuple[str, ...] = ()) -> tuple[dict[str, Tensor], tuple[str, ...]] | None:
    """The innermost dictionary of tensors under the known wrappers, and the way there."""
    if not isinstance(content, Mapping) or len(path) > MAX_NESTING:
        return None
    for name in WRAPPERS:
        if name in content and (hit := search(content[name], (*path, name))):
            return hit
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    return (tensors, path) if tensors else None


def describe(content: Any) -> str:
    """What something is, for a message."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    keys = ", ".join(repr(str(key)[:60]) for key in list(content)[:8])
    return f"a dictionary with the keys {keys}" if keys else "an empty dictionary"


def without_prefixes(found: Found, expected: Mapping[str, Tensor]) -> Found:
    """Strip prefixes that all keys share and the network does not have, repeatedly."""
    tensors, notes = found.tensors, found.notes
    for _ in range(MAX_NESTING):
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in tensors)), None)
        if prefix is None or all(key.startswith(prefix) for key in expected):
            break
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
        notes = (*notes, f"prefix {prefix!r} removed from all keys")
    return Found(tensors, notes)


def fitted(found: Found, expected: Mapping[str, Tensor], what: str) -> Found:
    """Return the tensors in the network's order and types, all dense, on the CPU and finite.

    `expected` is the network's own state dict, which may lie on the meta device. float16, bfloat16 and
    float64 become float32. Raises `InputRejected`: "architecture_mismatch" with a line for each key that does
    not fit, "dtype_refused", "not_finite".
    """
    mismatches = [*mismatched(found.tensors, expected)]
    if mismatches:
        shown = mismatches[:MAX_LINES]
        if len(mismatches) > MAX_LINES:
            shown.append(f"and {len(mismatches) - MAX_LINES} more")
        raise InputRejected(
            f"The weights do not fit {what}: {len(mismatches)} keys differ.\n" + "\n".join(shown) + "\n"
            "Declare the architecture and the options with which the model was trained, or save its state_dict anew.",
            code="architecture_mismatch",
        )
    tensors = {
        name: cast(name, found.tensors[name], want) if name in found.tensors else torch.zeros((), dtype=want.dtype)
        for name, want in expected.items()
    }
    check_finite(tensors)
    return Found(tensors, (*found.notes, *cast_notes(found.tensors, expected)))


def mismatched(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """One line for each key that is missing, unexpected, or of another shape."""
    missing = [
        f"missing: {name} {list(want.shape)}"
        for name, want in expected.items()
        if name not in tensors and not name.endswith(COUNTER)
    ]
    shapes = [
        f"shape: {name} is {list(tensors[name].shape)}, expected {list(want.shape)}"
        for name, want in expected.items()
        if name in tensors and tensors[name].shape != want.shape
    ]
    unexpected = [
        f"unexpected: {name[:200]} {list(tensor.shape)}" for name, tensor in tensors.items() if name not in expected
    ]
    return missing + shapes + unexpected


def cast(name: str, tensor: Tensor, want: Tensor) -> Tensor:
    """One tensor in the network's type, row-major, on the CPU, in memory of its own."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise InputRejected(
            f"{name} is sparse, quantized or without data; expected an ordinary dense tensor. "
            "Save the weights of the unquantized model.",
            code="dtype_refused",
        )
    both_integer = not (tensor.is_floating_point() or tensor.is_complex() or want.is_floating_point())
    if not (tensor.dtype == want.dtype or both_integer or is_widened(tensor, want)):
        raise InputRejected(
            f"{name} has type {short(tensor.dtype)}, expected {short(want.dtype)} (or float16, bfloat16, float64, "
            "which are converted). Save the weights in floating point.",
            code="dtype_refused",
        )
    return tensor.detach().to(dtype=want.dtype, copy=True, memory_format=torch.contiguous_format)


def is_widened(tensor: Tensor, want: Tensor) -> bool:
    """Whether a tensor is of a floating-point type that is converted to float32."""
    return want.dtype == torch.float32 and tensor.dtype in CAST_TO_FLOAT32


def cast_notes(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """What was converted, in words."""
    counts: dict[str, int] = {}
    for name, tensor in tensors.items():
        if is_widened(tensor, expected[name]):
            counts[short(tensor.dtype)] = counts.get(short(tensor.dtype), 0) + 1
    notes = [f"{count} tensors converted from {dtype} to float32" for dtype, count in sorted(counts.items())]
    if absent := sum(name not in tensors for name in expected):
        notes.append(f"{absent} batch-norm counters were absent and start at 0")
    return notes


def short(dtype: torch.dtype) -> str:
    """A type's name without torch's."""
    return str(dtype).removeprefix("torch.")


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights with NaN or infinity, by name."""
    bad = [
        f"{name}: {int((~tensor.isfinite()).sum())} of {tensor.numel()}"
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    if bad:
        more = [f"and {len(bad) - MAX_LINES} more"] if len(bad) > MAX_LINES else []
        raise InputRejected(
            f"{len(bad)} tensors hold NaN or infinity (as float32).\n" + "\n".join([*bad[:MAX_LINES], *more]) + "\n"
            "Expected finite numbers: upload a checkpoint from before training diverged.",
            code="not_finite",
        )
