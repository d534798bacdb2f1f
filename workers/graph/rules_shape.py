"""Operators that move elements and keep them all: the label array is moved as the tensor is.

Views of a held tensor that only permute its axes or add some of size 1 stay held, so that `weight.t()` and
`scale[None, :, None, None]` are still that weight and that scale.
"""

from collections.abc import Callable, Sequence

import numpy as np

from workers.graph.labels import Shape, aligned, first_of, reshaped
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
    return np.repeat(first_of(labels, [channel + 1, channel + 2]), factor * factor, channel)


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
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
    **dict.fromkeys(["flip", "roll", "cumsum", "cumprod", "tril", "triu"], same),
}
