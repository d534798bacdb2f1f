"""What a network costs: parameters, multiply-accumulates, bytes.

A MAC is one multiplication with its addition, the unit of matrix products and convolutions; biases, norms and
activations are not counted, as is usual in the literature. torch's `FlopCounterMode` counts two FLOPs per MAC
while the network runs, so that any module is measured by what it computes, not by what its class is called.

Fused kernels (attention, recurrent layers, a whole transformer layer) are single operators in which the counter
sees nothing. Here they are switched off for the one run that counts, so that they appear as the matrix products
they consist of.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# Two, because a batch of one takes special paths in some exported graphs; the count is divided again.
BATCH = 2


@dataclass(frozen=True)
class Cost:
    """The cost of a network; MACs are those of one example."""

    parameters: int  # shared weights once
    macs: int
    bytes: int  # of parameters and buffers as they are held, shared ones once


def measure_cost(model: nn.Module, input_shape: Sequence[int], *, dtype: torch.dtype | None = None) -> Cost:
    """The cost of `model` for inputs of shape (B, *input_shape).

    The model runs once, in evaluation mode, on two examples of zeros on its own device; its modes, statistics
    and gradients are as before. `dtype` is the inputs' (int64 for token ids), by default that of the model's
    first floating-point parameter.
    """
    weights = list(model.parameters())
    held: list[Tensor] = [*weights, *model.buffers()]
    return Cost(
        parameters=sum(weight.numel() for weight in weights),
        macs=count_macs(model, input_shape, dtype),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in held),
    )


def count_macs(model: nn.Module, input_shape: Sequence[int], dtype: torch.dtype | None = None) -> int:
    """Multiply-accumulates of one example."""
    first = next((weight for weight in model.parameters() if weight.is_floating_point()), torch.empty(0))
    examples = torch.zeros(BATCH, *input_shape, dtype=dtype or first.dtype, device=first.device)
    counter = FlopCounterMode(display=False, custom_mapping=MATRIX_VECTOR_FLOPS)
    with evaluating(model), unfused(), torch.no_grad(), counter:
        model(examples)
    return int(counter.get_total_flops()) // (2 * BATCH)


def matrix_vector_flops(matrix: Sequence[int], vector: Sequence[int], **_: object) -> int:
    """FLOPs of (rows, columns) @ (columns,), which torch's counter leaves out."""
    (rows, columns), _columns = matrix, vector
    return 2 * rows * columns


def biased_matrix_vector_flops(_bias: Sequence[int], matrix: Sequence[int], vector: Sequence[int], **_: object) -> int:
    """FLOPs of bias + matrix @ vector."""
    return matrix_vector_flops(matrix, vector)


MATRIX_VECTOR_FLOPS = {
    torch.ops.aten.mv: matrix_vector_flops,
    torch.ops.aten.addmv: biased_matrix_vector_flops,
}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each module has its own mode again."""
    # Flags are set one by one, because an exported program refuses `eval()`, whose work was done at its export.
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def unfused() -> Iterator[None]:
    """Attention, transformer and recurrent layers as plain matrix products inside."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    backends = (torch.backends.mkldnn, torch.backends.cudnn)  # the owners of fused recurrent layers
    enabled = [backend.enabled for backend in backends]
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for backend in backends:
            switch(backend, False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for backend, was_enabled in zip(backends, enabled, strict=True):
            switch(backend, was_enabled)


def switch(backend: ModuleType, enabled: object) -> None:
    """Set one flag of a backend; torch's own `flags` would set all of them, and warns without a GPU."""
    setattr(backend, "enabled", enabled)  # noqa: B010  a descriptor whose type has no setter
