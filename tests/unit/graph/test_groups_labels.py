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


def looks(x: Tensor) -> dict[str, Any]:
    """Operators of every other kind on a tensor (B, 5, 24), in forms that are seldom written."""
    picture, heads = x.unflatten(-1, (2, 12)).transpose(1, 2), x.view(x.shape[0], 5, 4, 6)
    return {
        "max of an axis": x.max(1).values,
        "max of two": torch.max(x, x + 1),
        "median": x.median(-1).values,
        "std": x.std(-1, keepdim=True),
        "var and mean": torch.var_mean(x, dim=(1, 2), correction=1),
        "norm": torch.linalg.vector_norm(x, dim=-1),
        "mean of all": x.mean(),
        "amax of places": x.amax(1),
        "logsumexp": heads.logsumexp(-1),
        "cumsum": x.cumsum(1),
        "roll": x.roll(2, 1),
        "tril": torch.tril(heads),
        "softmax of places": x.softmax(1),
        "log_softmax": x.log_softmax(-1),
        "product of places": x @ x.mT,
        "product of channels": x.mT @ x,
        "vector": x @ x[0, 0],
        "pool": F.avg_pool1d(x, 2),
        "pool of pictures": F.adaptive_max_pool2d(picture, 2),
        "interpolation": F.interpolate(picture, scale_factor=2.0, mode="bilinear"),
        "reflection": F.pad(x, (2, 2), mode="reflect"),
        "gather": x.gather(1, torch.zeros(x.shape[0], 1, 24, dtype=torch.int64)),
        "index behind an axis": x[:, torch.tensor([0, 2])],
        "where": torch.where(x > 0, x, 0.0),
        "clamp": x.clamp(min=x.mean(-1, keepdim=True)),
        "hstack": torch.hstack([x, x]),
        "layer norm without weights": F.layer_norm(x, (24,)),
        "layer norm of two axes": F.layer_norm(x, (5, 24)),
        "instance norm": F.instance_norm(x),
        "unfused": F.scaled_dot_product_attention(x, x, x, attn_mask=torch.zeros(5, 5)),
        "einsum of one": torch.einsum("btc->bc", x),
        "pixel unshuffle": F.pixel_unshuffle(picture[..., :4, :4], 2),
        "channel shuffle": F.channel_shuffle(picture.transpose(1, 2)[:, :4], 2),
    }


class Looks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 24)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        results = looks(self.layer(x)).values()
        return tuple(part for result in results for part in (result if isinstance(result, tuple) else (result,)))


def test_labels_have_the_axes_of_their_tensor_whatever_the_operator(tmp_path: Path) -> None:
    network = lift(read_pt2(export(Looks(), (torch.randn(2, 5, 3),), tmp_path / "looks.pt2")))
    values = read_network(network).values
    carrying = {node: labels for node, labels in values.items() if isinstance(labels, np.ndarray)}
    assert len(carrying) > 20
    for node, labels in carrying.items():
        shape = node.meta["val"].example_shape
        assert labels.ndim == len(shape), node
        assert all(size in {1, full} for size, full in zip(labels.shape, shape, strict=True)), node
