"""Operators that compute each element from the elements at the same place, with broadcasting.

Operands whose labels vary on the same axes have the same channels. Where one varies on fewer axes (a gate for each
channel, a weight for each feature of a head), its labels own that axis of the other. Where one is full-sized but
fixed (a mask, a table of rotary angles), nothing may go along that axis, though whole rows across it still may.
"""

from collections.abc import Sequence

from torch import fx

from workers.graph.labels import LabelArray, Labels, Shape, aligned, varying
from workers.graph.sites import Held, Site, Value

UNARY = """
    relu relu6 gelu silu sigmoid tanh hardtanh hardswish hardsigmoid leaky_relu elu selu celu mish softplus
    log_sigmoid softshrink hardshrink threshold logit erf square sqrt rsqrt reciprocal exp expm1 log log1p log2 log10
    sin cos tan atan sinh cosh asin acos neg abs sign floor ceil round trunc frac nan_to_num logical_not bitwise_not
    isnan isinf isfinite dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout contiguous clone
    alias detach to _to_copy type_as lift_fresh lift_fresh_copy zeros_like ones_like full_like randn_like rrelu
""".split()  # noqa: SIM905  a list of words reads better
BINARY = """
    add sub rsub mul div true_divide floor_divide remainder fmod pow atan2 clamp clamp_min clamp_max maximum minimum
    lerp addcmul addcdiv logaddexp eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or
    bitwise_xor __and__ __or__ __xor__ where masked_fill
""".split()  # noqa: SIM905  a list of words reads better
# Their other tensor gives a dtype or a device, no values.
ONE_OPERAND = {"type_as", "to"}


def elementwise(site: Site) -> Value:
    """Any of the operators above; a held tensor alone stays the held tensor."""
    operands = site.tensors[:1] if site.operator in ONE_OPERAND else site.tensors
    if len(operands) == 1 and isinstance(operands[0], Held) and operands[0].shape == site.result_shape:
        return operands[0]
    result = broadcast(site, operands, len(site.result_shape))
    return [result, result] if site.operator == "native_dropout" else result


def broadcast(site: Site, operands: Sequence[fx.Node | Held], ndim: int) -> Labels:
    """State what combining `operands` place by place means, and give the result's labels."""
    held = [operand for operand in operands if isinstance(operand, Held)]
    nodes: list[fx.Node | Held] = [operand for operand in operands if not isinstance(operand, Held)]
    if not nodes:  # parameters that meet each other first are tensors like any others
        nodes, held = [*held], []
    arrays = [aligned(site.labels(node), ndim) for node in nodes]
    lead = max(arrays, key=lambda labels: len(varying(labels)), default=None)
    for labels, node in zip(arrays, nodes, strict=True):
        shape = site.shape(node)
        if labels is not lead:
            combine(site, lead, labels, (1,) * (ndim - len(shape)) + shape)
    for tensor in held:
        site.tie_held(lead, tensor, ndim - len(tensor.shape))
    return lead


def combine(site: Site, lead: Labels, labels: Labels, shape: Shape) -> None:
    """One operand of `shape` meets the one whose labels vary on the most axes."""
    axes, shared = varying(lead), varying(labels)
    if lead is None:
        return
    if labels is not None and shared == axes:
        site.ledger.equate(lead, labels)
        return
    if labels is not None:
        meet(site, lead, labels)
    for axis in axes:
        if axis not in shared and shape[axis] > 1:
            site.fix(lead, axis, "is combined with a tensor of fixed size")


def meet(site: Site, lead: LabelArray, labels: LabelArray) -> None:
    """An operand that varies on other axes than the lead: on one of its axes, or on some that it has not."""
    shared = varying(labels)
    if len(shared) == 1 and lead.shape[shared[0]] > 1:
        site.ledger.tie(lead, shared[0], labels.reshape(-1))
        return
    site.pin(labels, "is combined with channels of another axis")
    for axis in shared:
        site.fix(lead, axis, "is combined with a tensor of fixed size")


def glu(site: Site) -> Labels:
    """(..., 2C) -> (..., C): the first half of the channels times a gate from the second."""
    labels, axis = site.labels(site.source), site.arguments["dim"] % len(site.result_shape)
    if labels is None or labels.shape[axis] == 1:
        return labels
    half = labels.shape[axis] // 2
    first, second = labels.take(range(half), axis), labels.take(range(half, 2 * half), axis)
    site.ledger.equate(first, second)
    return first


def prelu(site: Site) -> Labels:
    """A slope for each channel, on axis 1, or one for all."""
    labels, weight = site.labels(site.source), site.held("weight")
    if weight is None and site.arguments.get("weight") is not None:
        site.pin(labels, "has slopes that are computed")
    site.tie_held(labels, weight, 1)
    return labels


ELEMENTWISE = {**dict.fromkeys([*UNARY, *BINARY], elementwise), "glu": glu, "prelu": prelu}
