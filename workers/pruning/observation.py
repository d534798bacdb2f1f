"""Looking at a network without disturbing it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from workers.graph.cost import example_batch
from workers.graph.layer_graph import LayerGraph
from workers.graph.tensor_meta import TensorMeta
from workers.pruning.calibration import Calibration
from workers.pruning.reads import Read, ReadingRun

MAX_BATCH = 64  # beyond it a batch only outgrows the processor's caches


@contextmanager
def observed(network: LayerGraph) -> Iterator[None]:
    """`network` in evaluation mode, no parameter asking for gradients; every mode and flag is put back afterwards."""
    modes = {module: module.training for module in network.modules()}
    asking = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval()
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for parameter in asking:
            parameter.requires_grad_(True)


def as_input(network: LayerGraph, x: Tensor) -> Tensor:
    """`x` in the type that the network takes: float32 for most, int64 for tokens."""
    return x.to(next(iter(network.inputs.values())).dtype)


def base_logits(network: LayerGraph, calibration: Calibration, memory_bytes: int) -> Tensor:
    """The network's outputs on all calibration inputs: (N, K)."""
    size = batch_size(2 * activation_bytes(network), memory_bytes)
    run = ReadingRun(network, {}, lambda _, value: value)
    with observed(network), torch.no_grad():
        return torch.cat([run.outputs(as_input(network, batch.x)) for batch in calibration.batches(size)])


def activation_bytes(network: LayerGraph) -> int:
    """Bytes of everything that the graph computes for one example, all of it held at once."""
    metas = [node.meta.get("val") for node in network.graph.nodes if node.op not in ("get_attr", "output")]
    return sum(map(tensor_bytes, metas)) // example_batch(network)


def read_bytes(network: LayerGraph, reads: Mapping[str, tuple[Read, ...]]) -> int:
    """Bytes of one example of what is read of every group, once for each source."""
    sources = {(read.group, read.source): read for edges in reads.values() for read in edges}
    return sum(tensor_bytes(source.meta.get("val")) for _, source in sources) // example_batch(network)


def tensor_bytes(meta: object) -> int:
    """Bytes of a tensor at the example inputs; 0 for what is none."""
    return meta.num_elements * meta.dtype.itemsize if isinstance(meta, TensorMeta) else 0


def batch_size(bytes_per_example: int, memory_bytes: int) -> int:
    """The examples that fit into the memory, at least one and at most `MAX_BATCH`."""
    return max(1, min(MAX_BATCH, memory_bytes // max(bytes_per_example, 1)))
