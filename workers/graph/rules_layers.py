"""Layers that own their weights: dense layers, convolutions, norms, embeddings.

A dense layer or convolution is where one set of channels ends and another begins: its weight has a slot of labels
for what it reads and one for what it writes. Norms keep their channels. A norm over channels (layer, RMS and one-
group norm) takes its statistics over those that remain; the ledger notes where.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from workers.graph.labels import LabelArray, Labels, along, line, varying
from workers.graph.ledger import Product
from workers.graph.sites import Held, Site, Value
from workers.graph.unknown import unknown

OWNED = ("weight", "bias", "running_mean", "running_var")


def read(site: Site, labels: Labels, axis: int, owner: LabelArray) -> Labels:
    """A layer sums over `axis` of its input; what is left are labels of the other axes, which pass."""
    if labels is None or labels.shape[axis] == 1:
        site.pin(owner, "reads channels that are fixed")
        return labels
    site.ledger.equate(site.collapse(labels, axis), owner)
    return None


def write(site: Site, passing: Labels, axis: int, owner: LabelArray) -> Labels:
    """The labels of what a layer writes: its own channels on `axis`, unless other axes carry channels through."""
    if passing is None:
        return along(owner, axis, len(site.result_shape))
    site.pin(owner, "works on an axis beside the channels")
    return passing


# Dense layers -----------------------------------------------------------------------------------------------------


def linear(site: Site) -> Value:
    """(..., in) @ weight (out, in)."""
    return dense(site, site.arguments["input"], site.held("weight"), (1, 0), site.arguments["bias"])


def dense(site: Site, source: Any, weight: Held | None, axes: tuple[int, int], bias: Any) -> Value:
    """A matrix product with a held weight whose (in, out) axes are `axes`."""
    if weight is None or isinstance(source, Held) or not (bias is None or isinstance(bias, Held)):
        return unknown(site)
    inputs, outputs = (site.slot(weight, axis) for axis in axes)
    last = len(site.shape(source)) - 1
    passing = read(site, site.labels(source), last, inputs)
    labels = write(site, passing, last, outputs)
    site.tie_held(labels, bias, last)
    factors = (inputs, outputs) if passing is None else (passing,)
    site.ledger.products.append(Product(site.node.name, 1, factors))
    return labels


# Convolutions -----------------------------------------------------------------------------------------------------


def convolution(site: Site) -> Value:
    """Weight (out, in / groups, *kernel)."""
    return convolve(site, (1, 0))


def transposed_convolution(site: Site) -> Value:
    """Weight (in, out / groups, *kernel)."""
    return convolve(site, (0, 1))


def any_convolution(site: Site) -> Value:
    """`aten.convolution`, which has a flag."""
    return convolve(site, (0, 1) if site.arguments["transposed"] else (1, 0))


def convolve(site: Site, axes: tuple[int, int]) -> Value:
    """A convolution whose weight has its (in, out) channels on `axes`."""
    weight, bias, groups = site.held("weight"), site.arguments["bias"], site.arguments["groups"]
    if weight is None or not (bias is None or isinstance(bias, Held)):
        return unknown(site)
    channel = len(site.result_shape) - len(weight.shape) + 1
    labels = site.labels(site.arguments["input"])
    for axis in range(channel + 1, len(site.result_shape)):
        site.hold(site.slot(weight, axis - channel + 1))
        site.fix(labels, axis, "slides over this axis")
    if groups > 1:
        result = grouped(site, labels, weight, axes, channel)
    else:
        inputs, outputs = (site.slot(weight, axis) for axis in axes)
        passing = read(site, labels, channel, inputs)
        site.pin(passing, "slides over this axis")
        result = write(site, None, channel, outputs)
        site.ledger.products.append(Product(site.node.name, 1, (inputs, outputs)))
    site.tie_held(result, bias, channel)
    return result


def grouped(site: Site, labels: Labels, weight: Held, axes: tuple[int, int], channel: int) -> Labels:
    """A grouped (or depthwise) convolution loses whole groups: their inputs and outputs together."""
    groups = site.arguments["groups"]
    full = axes.index(0)  # 0: the weight's first axis counts inputs, 1: outputs
    own = site.slot(weight, 0)
    site.hold(site.slot(weight, 1))
    if labels is None or labels.shape[channel] == 1:
        site.pin(own, "reads channels that are fixed")
        return None
    inputs = own if full == 0 else site.collapse(labels, channel)
    outputs = own if full == 1 else site.ledger.fresh(site.result_shape[channel])
    site.ledger.equate(site.collapse(labels, channel), inputs)
    by_group = inputs.reshape(groups, -1)
    site.ledger.equate(by_group, by_group[:, :1])
    site.ledger.equate(outputs.reshape(groups, -1), by_group[:, :1])
    site.ledger.products.append(Product(site.node.name, 1, (outputs,)))
    return along(outputs, channel, len(site.result_shape))


# Norms ------------------------------------------------------------------------------------------------------------


def channel_norm(site: Site) -> Value:
    """Batch and instance norm: every channel (axis 1) for itself."""
    labels = site.labels(site.source)
    computed = [name for name in OWNED if not isinstance(site.arguments.get(name), Held | None)]
    if computed:
        return unknown(site)
    for name in OWNED:
        site.tie_held(labels, site.held(name), 1)
    for axis in varying(labels):
        if axis != 1:
            site.fix(labels, axis, "takes statistics over this axis")
    return labels


def trailing_norm(site: Site) -> Value:
    """Layer and RMS norm: statistics over the last axes, which may be channels."""
    labels, ndim = site.labels(site.source), len(site.shape(site.source))
    num_axes = len(site.arguments["normalized_shape"])
    if any(not isinstance(site.arguments.get(name), Held | None) for name in ("weight", "bias")):
        return unknown(site)
    for name in ("weight", "bias"):
        site.tie_held(labels, site.held(name), ndim - num_axes)
    if labels is not None and any(axis >= ndim - num_axes for axis in varying(labels)):
        site.ledger.statistics.append((site.node.name, labels.reshape(-1)))
    return [labels, None, None] if site.result_shapes else labels


def group_norm(site: Site) -> Value:
    """Statistics for each group of channels (axis 1): whole groups go; with one group, as a layer norm."""
    labels = site.labels(site.source)
    groups = site.arguments.get("num_groups", site.arguments.get("group"))
    if any(not isinstance(site.arguments.get(name), Held | None) for name in ("weight", "bias")):
        return unknown(site)
    for name in ("weight", "bias"):
        site.tie_held(labels, site.held(name), 1)
    for axis in varying(labels):
        if axis > 1:
            site.fix(labels, axis, "takes statistics over this axis")
    if labels is not None and labels.shape[1] > 1 and groups > 1:
        by_group = site.collapse(labels, 1).reshape(groups, -1)
        site.ledger.equate(by_group, by_group[:, :1])
    elif labels is not None and labels.shape[1] > 1:
        site.ledger.statistics.append((site.node.name, line(labels, 1)))
    return [labels, None, None] if site.result_shapes else labels


def native_batch_norm(site: Site) -> Value:
    """The decomposed batch norms give their statistics too."""
    labels = channel_norm(site)
    return [labels if isinstance(labels, np.ndarray) else None, *[None] * (len(site.result_shapes) - 1)]


# Embeddings -------------------------------------------------------------------------------------------------------


def embedding(site: Site) -> Value:
    """Rows of weight (entries, features): features are channels, entries are not."""
    weight = site.held("weight")
    if weight is None:
        return unknown(site)
    site.hold(site.slot(weight, 0))
    return along(site.slot(weight, 1), -1, len(site.result_shape))


LAYER_RULES: dict[str, Callable[[Site], Value]] = {
    "linear": linear,
    **dict.fromkeys(["conv1d", "conv2d", "conv3d"], convolution),
    **dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], transposed_convolution),
    "convolution": any_convolution,
    **dict.fromkeys(["batch_norm", "instance_norm"], channel_norm),
    "_native_batch_norm_legit_no_training": native_batch_norm,
    **dict.fromkeys(["layer_norm", "rms_norm", "native_layer_norm"], trailing_norm),
    **dict.fromkeys(["group_norm", "native_group_norm"], group_norm),
    "embedding": embedding,
}
