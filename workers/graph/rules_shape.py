"""Operators that move elements: the label array is moved as the tensor is.

Views of a held tensor that only permute its axes or add some of size 1 stay held, so that `weight.t()` and
`scale[None, :, None, None]` are still that weight and that scale.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from workers.graph.labels import (
    PINNED,
    LabelArray,
    Labels,
    Shape,
    aligned,
    reshaped,
    simplified,
    spread,
    varying,
)
from workers.graph.sites import Held, Site, Value
from workers.graph.unknown import unknown

# Reshapes and permutations ----------------------------------------------------------------------------------------


def reshape(site: Site) -> Value:
    """Row-major reshapes of every name."""
    before, after = site.shape(site.source), site.result_shape
    if isinstance(site.source, Held):
        return held_view(site.source, after) or reshaped(site.labels(site.source), before, after)
    return reshaped(site.labels(site.source), before, after)


def held_view(held: Held, after: Shape) -> Held | None:
    """The held tensor with its axes of size 1 in other places; None where a larger axis is cut or merged."""
    big = [axis for axis, size in enumerate(held.shape) if size > 1]
    places = [axis for axis, size in enumerate(after) if size > 1]
    if [held.shape[axis] for axis in big] != [after[axis] for axis in places]:
        return None
    axes = {place: held.axes[axis] for place, axis in zip(places, big, strict=True)}
    return Held(held.name, after, tuple(axes.get(axis) for axis in range(len(after))), held.is_parameter)


def permuted(site: Site, order: Sequence[int]) -> Value:
    """The axes in another order."""
    source = site.source
    if isinstance(source, Held):
        shape, axes = tuple(source.shape[axis] for axis in order), tuple(source.axes[axis] for axis in order)
        return Held(source.name, shape, axes, source.is_parameter)
    labels = site.labels(source)
    return None if labels is None else labels.transpose(order)


def permute(site: Site) -> Value:
    return permuted(site, [axis % len(site.result_shape) for axis in site.arguments["dims"]])


def transpose(site: Site) -> Value:
    """Two axes exchanged; `t`, `numpy_T` and `mT` name none."""
    ndim = len(site.result_shape)
    order = list(range(ndim))
    if site.operator == "numpy_T":
        return permuted(site, order[::-1])
    if ndim > 1:
        first = site.arguments.get("dim0", site.arguments.get("axis0", -2))
        second = site.arguments.get("dim1", site.arguments.get("axis1", -1))
        order[first], order[second] = order[second], order[first]
    return permuted(site, order)


def movedim(site: Site) -> Value:
    """Some axes to other places, the rest in order."""
    ndim = len(site.result_shape)
    source, target = (
        [axis % ndim for axis in ([value] if isinstance(value, int) else value)]
        for value in (site.arguments["source"], site.arguments["destination"])
    )
    rest = iter([axis for axis in range(ndim) if axis not in source])
    return permuted(site, [source[target.index(axis)] if axis in target else next(rest) for axis in range(ndim)])


def expand(site: Site) -> Value:
    """Axes of size 1 made larger; labels do not depend on those."""
    return aligned(site.labels(site.source), len(site.result_shape))


def repeat(site: Site) -> Value:
    """The whole tensor several times along each axis."""
    labels = aligned(site.labels(site.source), len(site.result_shape))
    if labels is None:
        return None
    before = site.shape(site.source)
    times = [
        after // size if labels.shape[axis] > 1 else 1
        for axis, (size, after) in enumerate(zip(aligned_shape(before, labels.ndim), site.result_shape, strict=True))
    ]
    return np.tile(labels, times)


def aligned_shape(shape: Shape, ndim: int) -> Shape:
    return (1,) * (ndim - len(shape)) + shape


def repeat_interleave(site: Site) -> Value:
    """Each index of an axis several times in place."""
    labels, axis = site.labels(site.source), site.arguments["dim"]
    if axis is None:
        return unknown(site)
    if labels is None or labels.shape[axis] == 1:
        return labels
    return np.repeat(labels, site.result_shape[axis] // labels.shape[axis], axis)


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


# Padding and rearranging channels ---------------------------------------------------------------------------------


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


def pixel_shuffle(site: Site) -> Value:
    """(C r², H, W) -> (C, H r, W r): the r² channels of one place go together."""
    labels, factor = site.labels(site.source), site.arguments["upscale_factor"]
    channel = len(site.result_shape) - 3
    for axis in (channel + 1, channel + 2):
        site.fix(labels, axis, "rearranges this axis")
    if labels is None or labels.shape[channel] == 1:
        return None
    by_place = site.collapse(labels, channel).reshape(-1, factor * factor)
    site.ledger.equate(by_place, by_place[:, :1])
    return by_place[:, :1].reshape([-1 if axis == channel else 1 for axis in range(labels.ndim)])


def pixel_unshuffle(site: Site) -> Value:
    """(C, H r, W r) -> (C r², H, W)."""
    labels, factor = site.labels(site.source), site.arguments["downscale_factor"]
    channel = len(site.result_shape) - 3
    for axis in (channel + 1, channel + 2):
        site.fix(labels, axis, "rearranges this axis")
    if labels is None or labels.shape[channel] == 1:
        return None
    return np.repeat(labels, factor * factor, channel)


def channel_shuffle(site: Site) -> Value:
    """(g n) -> (n g): each of the g runs loses the same indices."""
    labels, groups = site.labels(site.source), site.arguments["groups"]
    if labels is None or labels.shape[1] == 1:
        return labels
    runs = site.collapse(labels, 1).reshape(groups, -1)
    site.ledger.equate(runs, runs[:1])
    return runs.T.reshape([-1 if axis == 1 else 1 for axis in range(labels.ndim)])


def same(site: Site) -> Value:
    """Operators along an axis that must keep its order and size: flip, roll, cumulative sums, triangles."""
    labels = site.labels(site.source)
    for axis in moved_axes(site):
        site.fix(labels, axis, "works along this axis")
    return labels


def moved_axes(site: Site) -> list[int]:
    ndim = len(site.result_shape)
    if site.operator in {"tril", "triu"}:
        return [ndim - 2, ndim - 1]
    dims = site.arguments.get("dims", site.arguments.get("dim"))
    chosen = [dims] if isinstance(dims, int) else list(dims or range(ndim))
    return [axis % ndim for axis in chosen]


RESHAPES = """
    view reshape _unsafe_view view_as reshape_as flatten unflatten squeeze unsqueeze atleast_1d atleast_2d atleast_3d
""".split()  # noqa: SIM905  a list of words reads better
SHAPE_RULES: dict[str, Callable[[Site], Value]] = {
    **dict.fromkeys(RESHAPES, reshape),
    "permute": permute,
    **dict.fromkeys(["transpose", "swapaxes", "t", "numpy_T", "mT"], transpose),
    "movedim": movedim,
    **dict.fromkeys(["expand", "expand_as", "broadcast_to"], expand),
    **dict.fromkeys(["repeat", "tile"], repeat),
    "repeat_interleave": repeat_interleave,
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
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
    **dict.fromkeys(["flip", "roll", "cumsum", "cumprod", "tril", "triu"], same),
}
