"""A network of one of our own classes -> the same network as a graph of layers.

Whatever analyses and rewrites networks (dependency groups, surgery, cost) reads graphs. A network that arrived as an
archive is one; a built-in architecture becomes one by the way of every other: torch.export writes it, the strict
reader reads it, lifting makes layers of it. One way in means that what holds for an uploaded graph holds for it too.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from workers.formats.artifacts import export_program
from workers.formats.pt2_reader import read_pt2
from workers.graph.layer_graph import LayerGraph
from workers.graph.lifting import lift

EXAMPLES = 2  # of which the export learns that the batch is free


def as_graph(network: nn.Module, input_shape: Sequence[int]) -> LayerGraph:
    """`network` as a graph of layers in evaluation mode; a LayerGraph is returned as it is.

    Parameters
    ----------
    network
        On the CPU; takes one float32 tensor (B, *input_shape) and returns one tensor. It stays as it is.
    input_shape
        Of one example, without the batch.

    Returns
    -------
    LayerGraph
        With copies of the weights under the same names, bit for bit, and bit for bit the same outputs. Its tensors
        are views of a mapped file that has no name any more; a page is copied when it is written to.

    """
    if isinstance(network, LayerGraph):
        return network
    with TemporaryDirectory() as folder:
        archive = Path(folder) / "network.pt2"
        export_program(network, torch.zeros(EXAMPLES, *input_shape), archive)
        return lift(read_pt2(archive)).eval()
