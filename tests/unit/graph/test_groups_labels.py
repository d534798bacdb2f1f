"""Label arrays are moved as tensors are: every rule of shapes against the operator itself, on the labels as values."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from tests.architectures import export
from workers.formats.pt2_reader import read_pt2
from workers.graph.labels import reshaped, segments
from workers.graph.lifting import lift
from workers.graph.rules import read_network


def moves(x: Tensor) -> dict[str, Tensor]:
    """What can be done with a tensor (B, 5, 24) that only moves its elements."""
    heads = x.view(x.shape[0], 5, 4, 6)
    left, right = x.chunk(2, -1)
    return {
        "view": heads,
        "permute": heads.permute(0, 2, 1, 3),
        "transpose": heads.transpose(1, 3),
        "movedim": heads.movedim(1, -1),
        "movedim of several": heads.movedim((2, 3), (0, 1)),
        "swapaxes": heads.swapaxes(0, 2),
        "mT": heads.mT,
        "flatten": heads.flatten(1),
        "reshape": heads.permute(0, 2, 3, 1).reshape(x.shape[0], 4, -1),
        "unflatten": x.unflatten(-1, (2, 3, 4)),
        "unsqueeze": x.unsqueeze(1),
        "squeeze": x.unsqueeze(1).squeeze(1),
        "expand": x.unsqueeze(1).expand(-1, 7, -1, -1),
        "repeat": x.repeat(1, 1, 2),
        "repeat_interleave": x.repeat_interleave(3, dim=2),
        "cat": torch.cat([right, -left], -1),
        "cat of places": torch.cat([x, x], 1),
        "stack": torch.stack([left, left], 2),
        "split": x.split(10, -1)[1],
        "split of sizes": x.split([3, 20, 1], -1)[1],
        "chunk": x.chunk(5, -1)[4],
        "slice": x[..., 3:-2],
        "slice of places": x[:, ::2],
        "narrow": x.narrow(-1, 4, 9),
        "select of places": x[:, 2],
        "index of places": heads.transpose(0, 1)[torch.tensor([[0, 3], [1, 1]])],
        "pad": F.pad(x, (0, 0, 1, 2)),
        "flip of places": x.flip(1),
    }


class Moves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 24)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(moves(self.layer(x)).values())


def test_every_operator_that_moves_elements_moves_their_labels(tmp_path: Path) -> None:
    inputs = (torch.randn(2, 5, 3),)
    network = lift(read_pt2(export(Moves(), inputs, tmp_path / "moves.pt2")))
    reading = read_network(network)
    ids = torch.from_numpy(reading.ledger.slots["layer.weight", 0])
    expected = moves(ids.expand(2, 5, 24))
    returned: Any = network.graph.output_node().args[0]
    assert len(returned) == len(expected)
    for node, (name, values) in zip(returned, expected.items(), strict=True):
        assert isinstance(node, fx.Node)
        labels = reading.values[node]
        assert isinstance(labels, np.ndarray), name
        # A negated or padded place is told apart by its value, not by its unit.
        written = np.broadcast_to(labels, tuple(values.shape))
        known = values.abs().numpy()
        assert np.array_equal(written[known > 0], known[known > 0]), name


def test_a_reshape_writes_out_only_what_it_cuts_or_merges() -> None:
    labels = np.arange(1, 9).reshape(1, 8, 1, 1)
    flat = reshaped(labels, (3, 8, 2, 2), (3, 32))
    assert flat is not None
    assert flat.shape == (1, 32)
    assert flat.ravel().tolist() == np.repeat(np.arange(1, 9), 4).tolist()
    back = reshaped(flat, (3, 32), (3, 8, 2, 2))
    assert back is not None
    assert back.shape == (1, 8, 1, 1)


def test_segments_are_the_finest_runs_of_equally_many_elements() -> None:
    assert list(segments((2, 3, 4), (6, 2, 2))) == [([0, 1], [0]), ([2], [1, 2])]
    assert list(segments((5, 1), (5,))) == [([0], [0]), ([1], [])]
    assert list(segments((), (1, 1))) == [([], [0]), ([], [1])]
