"""One node as the rules of dependency groups see it: an operator, its arguments by name, and the ledger.

A call of `nn.Conv2d` and a call of `aten.conv2d` on free parameters are the same site: operator `conv2d`, its
input a node, its weight a `Held` tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
from torch import Tensor, fx, nn

from workers.graph.calls import arguments_of, is_aten, operator_name
from workers.graph.labels import PINNED, LabelArray, Labels, Shape, along, varying
from workers.graph.layer_graph import LayerGraph
from workers.graph.ledger import Ledger, PinNote
from workers.graph.module_tree import tensor_at
from workers.graph.tensor_meta import TensorMeta

FIXED = np.array([PINNED])


@dataclass(frozen=True)
class Held:
    """A parameter or floating-point buffer, or a view of one whose axes are the tensor's, permuted or of size 1."""

    name: str  # the first of its names, where it has several
    shape: Shape  # of the view
    axes: tuple[int | None, ...]  # for each axis of the view, the tensor's
    is_parameter: bool


Value = Labels | list[Labels] | Held


@dataclass
class Reading:
    """What is known while one network is read, node by node."""

    network: LayerGraph
    ledger: Ledger = field(default_factory=Ledger)
    values: dict[fx.Node, Value] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)  # id of a tensor -> its first name

    def __post_init__(self) -> None:
        tensors = [
            *self.network.named_parameters(remove_duplicate=False),
            *self.network.named_buffers(remove_duplicate=False),
        ]
        for name, tensor in tensors:
            self.names.setdefault(id(tensor), name)

    def held(self, tensor: Tensor | None) -> Held | None:
        """A tensor that may carry channels; None for one of integers, which cannot."""
        if tensor is None or not tensor.is_floating_point():
            return None
        shape = tuple(tensor.shape)
        return Held(self.names[id(tensor)], shape, tuple(range(len(shape))), isinstance(tensor, nn.Parameter))


# Layer -> the operator that it calls, and that operator's name for the layer's input.
OPERATORS: dict[type[nn.Module], tuple[str, str]] = {
    nn.Linear: ("linear", "input"),
    **{kind: (name, "input") for kind, name in [(nn.Conv1d, "conv1d"), (nn.Conv2d, "conv2d"), (nn.Conv3d, "conv3d")]},
    nn.ConvTranspose1d: ("conv_transpose1d", "input"),
    nn.ConvTranspose2d: ("conv_transpose2d", "input"),
    nn.ConvTranspose3d: ("conv_transpose3d", "input"),
    **dict.fromkeys([nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d], ("batch_norm", "input")),
    **dict.fromkeys([nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d], ("instance_norm", "input")),
    nn.LayerNorm: ("layer_norm", "input"),
    nn.RMSNorm: ("rms_norm", "input"),
    nn.GroupNorm: ("group_norm", "input"),
    nn.Embedding: ("embedding", "indices"),
    nn.PReLU: ("prelu", "self"),
    **dict.fromkeys(
        [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout],
        ("dropout", "input"),
    ),
}
OWNED = ("weight", "bias", "running_mean", "running_var")
OPTIONS = ("groups", "num_groups", "normalized_shape")


@dataclass(frozen=True)
class Site:
    """A call: its operator, its arguments (nodes, `Held` tensors and plain values), and where statements go."""

    node: fx.Node
    operator: str
    arguments: Mapping[str, Any]
    reading: Reading

    @property
    def ledger(self) -> Ledger:
        return self.reading.ledger

    # What the arguments are ------------------------------------------------------------------------------------

    @property
    def source(self) -> Any:
        """The first argument, which most operators work on."""
        return next(iter(self.arguments.values()))

    def held(self, name: str) -> Held | None:
        """The argument `name` where it is a held tensor."""
        value = self.arguments.get(name)
        return value if isinstance(value, Held) else None

    def shape(self, value: Any) -> Shape:
        """The shape of an argument, at the example inputs."""
        if isinstance(value, Held):
            return value.shape
        meta = value.meta.get("val") if isinstance(value, fx.Node) else None
        return meta.example_shape if isinstance(meta, TensorMeta) else ()

    def labels(self, value: Any) -> Labels:
        """The labels of an argument; of a parameter, those of its last axis of more than one index."""
        if isinstance(value, Held):
            return self.free_labels(value)
        known = self.reading.values.get(value) if isinstance(value, fx.Node) else None
        return known if isinstance(known, np.ndarray) else None

    def free_labels(self, held: Held) -> Labels:
        """A parameter used as a tensor of its own: its channels are taken to be its last axis."""
        big = [axis for axis, size in enumerate(held.shape) if size > 1]
        if not big or not held.is_parameter:
            self.pin_held(held)
            return None
        for axis in big[:-1]:
            self.hold(self.slot(held, axis))
        return along(self.slot(held, big[-1]), big[-1], len(held.shape))

    @property
    def tensors(self) -> list[fx.Node | Held]:
        """The arguments that are tensors, those in lists too."""
        found: list[fx.Node | Held] = []
        for value in self.arguments.values():
            for item in value if isinstance(value, (list, tuple)) else [value]:
                if is_tensor(item):
                    found.append(item)  # noqa: PERF401  two loops and a choice are clearer written out
        return found

    # What comes out --------------------------------------------------------------------------------------------

    @property
    def result_shape(self) -> Shape:
        return self.shape(self.node)

    @property
    def result_shapes(self) -> list[Shape]:
        """The shapes of an operator with several results."""
        metas = self.node.meta.get("val")
        parts = metas if isinstance(metas, tuple) else ()
        return [part.example_shape if isinstance(part, TensorMeta) else () for part in parts]

    # What rules say --------------------------------------------------------------------------------------------

    def slot(self, held: Held, axis: int) -> LabelArray:
        """The labels of one axis of a held tensor, counted in the view."""
        own = held.axes[axis]
        return FIXED if own is None else self.ledger.slot(held.name, own, held.shape[axis])

    def pin(self, labels: Labels, reason: str) -> None:
        """Never remove `labels`."""
        if labels is not None and (labels != PINNED).any():
            self.ledger.pins.append(PinNote(self.node.name, self.operator, reason, labels.reshape(-1)))

    def hold(self, labels: LabelArray) -> None:
        """Never remove `labels`, which are no channels anyway: the extent of a kernel, the entries of an embedding."""
        self.ledger.equate(labels, FIXED)

    def pin_held(self, held: Held, reason: str = "a tensor that is used as it is") -> None:
        for axis in range(len(held.shape)):
            self.pin(self.slot(held, axis), reason)

    def tie(self, labels: Labels, axis: int, owner: LabelArray, reason: str = "reads channels that are fixed") -> None:
        """Index i of `axis` goes exactly when `owner[i]` goes; an axis that does not vary pins its owner."""
        if labels is None or labels.shape[axis] == 1:
            self.pin(owner, reason)
        else:
            self.ledger.tie(labels, axis, owner)

    def fix(self, labels: Labels, axis: int, reason: str) -> None:
        """Nothing may be removed along `axis`; whole rows across it still may."""
        if labels is None or labels.shape[axis] == 1:
            return
        if varying(labels) == (axis,):
            self.pin(labels, reason)
        else:
            self.ledger.tie(labels, axis, np.full(labels.shape[axis], PINNED))

    def tie_held(self, labels: Labels, held: Held | None, offset: int) -> None:
        """A held tensor is combined with `labels` index by index; its first axis is the tensor's `offset`."""
        for axis, size in enumerate(held.shape) if held is not None else ():
            if held is not None and size > 1:
                self.tie(labels, axis + offset, self.slot(held, axis))

    def collapse(self, labels: LabelArray, axis: int) -> LabelArray:
        """One label for each index of `axis`, the others' made equal to it: (size of the axis,)."""
        rows = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
        if rows.shape[1] > 1:
            self.ledger.equate(rows, rows[:, :1])
        return rows[:, 0]


def is_tensor(value: Any) -> TypeGuard["fx.Node | Held"]:
    """Whether an argument is a tensor, rather than a number, a switch or a size."""
    if isinstance(value, fx.Node):
        return value.op == "get_attr" or isinstance(value.meta.get("val"), TensorMeta)
    return isinstance(value, Held)


def site_of(node: fx.Node, reading: Reading) -> Site:
    """How the rules see a call of a layer or of an ATen operator."""
    if node.op == "call_module":
        layer = reading.network.get_submodule(str(node.target))
        operator, arguments = layer_call(layer, node, reading)
    else:
        operator, arguments = operator_name(node) or str(node.target), {}
        if is_aten(node):
            arguments = {name: resolved(value, reading) for name, value in arguments_of(node).items()}
    return Site(node, operator, arguments, reading)


def layer_call(layer: nn.Module, node: fx.Node, reading: Reading) -> tuple[str, dict[str, Any]]:
    """The operator that a layer calls, and its arguments."""
    operator, source = OPERATORS.get(type(layer), (type(layer).__name__, "input"))
    arguments: dict[str, Any] = {source: node.args[0] if node.args else None}
    arguments |= {name: reading.held(getattr(layer, name, None)) for name in OWNED}
    arguments |= {name: getattr(layer, name) for name in OPTIONS if hasattr(layer, name)}
    return operator, arguments


def resolved(value: Any, reading: Reading) -> Any:
    """An argument with held tensors in place of the nodes that fetch them, in lists too."""
    if isinstance(value, (list, tuple)):
        return [resolved(item, reading) for item in value]
    if not isinstance(value, fx.Node):
        return value
    if value.op == "get_attr":
        return reading.held(tensor_at(reading.network, str(value.target))) or value
    known = reading.values.get(value)
    return known if isinstance(known, Held) else value
