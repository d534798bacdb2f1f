"""Operators that join tensors, cut pieces out of them, or pad them: the label arrays are joined and cut alike."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from workers.graph.labels import PINNED, LabelArray, Labels, Shape, simplified, spread, varying
from workers.graph.sites import Site, Value
from workers.graph.unknown import unknown

# Joining ----------------------------------------------------------------------------------------------------------


def concatenate(site: Site) -> Value:
    """Tensors one after another; on the other axes they have the same channels."""
    axis, ndim = site.arguments["dim"] % len(site.result_shape), len(site.result_shape)
    arrays = [(site.labels(tensor), site.shape(tensor)) for tensor in site.tensors]
    return join(site, [(labels, shape) for labels, shape in arrays if len(shape) == ndim], axis, ndim)


def stack(site: Site) -> Value:
    """Concatenation along a new axis, which is no axis of channels."""
    ndim = len(site.result_shape)
    axis = site.arguments["dim"] % ndim
    arrays = []
    for tensor in site.tensors:
        labels, shape = site.labels(tensor), site.shape(tensor)
        arrays.append((None if labels is None else np.expand_dims(labels, axis), (*shape[:axis], 1, *shape[axis:])))
    joined = join(site, arrays, axis, ndim)
    site.fix(joined, axis, "stacks tensors along this axis")
    return joined


def join(site: Site, arrays: Sequence[tuple[Labels, Shape]], axis: int, ndim: int) -> Labels:
    """The labels one after another along `axis`, each written out where any of them varies."""
    axes = {other for labels, _ in arrays for other in varying(labels)}
    if not axes:
        return None
    fixed = np.full((1,) * ndim, PINNED)
    parts = [spread(fixed if labels is None else labels, shape, [*axes, axis]) for labels, shape in arrays]
    if axis not in axes and all(labels is not None for labels, _ in arrays):
        for labels, _ in arrays[1:]:
            site.ledger.equate(non_empty(arrays[0][0]), non_empty(labels))
        return arrays[0][0]
    if axis not in axes:
        for labels, _ in arrays:
            site.pin(labels, "is joined with a tensor of fixed size")
        return None
    return simplified(np.concatenate(parts, axis))


def non_empty(labels: Labels) -> LabelArray:
    assert labels is not None  # noqa: S101  asked only for tensors that carry labels
    return labels


# Cutting ----------------------------------------------------------------------------------------------------------


def split(site: Site) -> Value:
    """Consecutive pieces along an axis."""
    labels, axis = site.labels(site.source), site.arguments["dim"]
    shapes = site.result_shapes
    if labels is None:
        return [None] * len(shapes)
    if labels.shape[axis] == 1:
        return [labels] * len(shapes)
    ends = np.cumsum([shape[axis] for shape in shapes])
    return [simplified(part) for part in np.split(labels, ends[:-1], axis)]


def unbind(site: Site) -> Value:
    """Every index of an axis as a tensor of its own."""
    labels, axis = site.labels(site.source), site.arguments["dim"]
    site.fix(labels, axis if labels is None else axis % labels.ndim, "takes single indices of this axis")
    return [at(labels, axis, index) for index in range(len(site.result_shapes))]


def select(site: Site) -> Value:
    """One index of an axis."""
    labels, axis = site.labels(site.source), site.arguments["dim"]
    site.fix(labels, axis if labels is None else axis % labels.ndim, "takes single indices of this axis")
    return at(labels, axis, site.arguments["index"]) if isinstance(site.arguments["index"], int) else unknown(site)


def at(labels: Labels, axis: int, index: int) -> Labels:
    """The labels without `axis`, at `index` of it."""
    return None if labels is None else simplified(np.asarray(labels.take(index if labels.shape[axis] > 1 else 0, axis)))


def slice_(site: Site) -> Value:
    """A range of an axis; one with steps leaves that axis as it is."""
    labels, axis = site.labels(site.source), site.arguments["dim"]
    if labels is None or labels.shape[axis] == 1:
        return labels
    start, end, step = (site.arguments[name] for name in ("start", "end", "step"))
    if step != 1 or not all(value is None or isinstance(value, int) for value in (start, end)):
        return unknown(site)
    return simplified(labels.take(range(*slice(start, end).indices(labels.shape[axis])), axis))


def narrow(site: Site) -> Value:
    """A range of an axis by its start and length."""
    labels, axis = site.labels(site.source), site.arguments["dim"]
    start, length = site.arguments["start"], site.arguments["length"]
    if labels is None or labels.shape[axis] == 1:
        return labels
    if not isinstance(start, int) or not isinstance(length, int):
        return unknown(site)
    return simplified(labels.take(range(start, start + length), axis))


def index(site: Site) -> Value:
    """Tensors of indices for the first axes; the others pass."""
    indices = site.arguments["indices"]
    num_indexed = next((place for place, one in enumerate(indices) if one is None), len(indices))
    labels = site.labels(site.source)
    if labels is None:
        return None
    if any(one is not None for one in indices[num_indexed:]) or any(axis < num_indexed for axis in varying(labels)):
        return unknown(site)
    rest = labels.shape[num_indexed:]
    return labels.reshape((1,) * (len(site.result_shape) - len(rest)) + rest)


def index_select(site: Site) -> Value:
    """Rows of an axis that carries no channels."""
    labels = site.labels(site.source)
    return labels if labels is None or labels.shape[site.arguments["dim"]] == 1 else unknown(site)


# Padding ---------------------------------------------------------------------------------


def pad(site: Site) -> Value:
    """Padded axes: what a constant adds to an axis of channels are units of their own, which may go."""
    labels, amounts = site.labels(site.source), site.arguments["pad" if "pad" in site.arguments else "padding"]
    constant = site.arguments.get("mode", "constant") == "constant" and "reflection" not in site.operator
    if labels is None:
        return None
    for place in range(len(amounts) // 2):
        axis = labels.ndim - 1 - place
        before, after = amounts[2 * place], amounts[2 * place + 1]
        if labels.shape[axis] == 1 or before == after == 0:
            continue
        if not constant or "replication" in site.operator or not all(isinstance(n, int) and n >= 0 for n in amounts):
            return unknown(site)
        labels = np.concatenate([padding(site, labels, axis, before), labels, padding(site, labels, axis, after)], axis)
    return labels


def padding(site: Site, labels: LabelArray, axis: int, count: int) -> LabelArray:
    shape = [count if other == axis else size for other, size in enumerate(labels.shape)]
    return site.ledger.fresh(math.prod(shape)).reshape(shape)


PIECE_RULES: dict[str, Callable[[Site], Value]] = {
    **dict.fromkeys(["cat", "concat"], concatenate),
    "stack": stack,
    **dict.fromkeys(["split", "split_with_sizes", "chunk", "tensor_split"], split),
    "unbind": unbind,
    "select": select,
    "slice": slice_,
    "narrow": narrow,
    "index": index,
    "index_select": index_select,
    **dict.fromkeys(["pad", "constant_pad_nd"], pad),
    **{f"{kind}_pad{dims}d": pad for kind in ("reflection", "replication") for dims in (1, 2, 3)},
}
