"""Sizes that an export bakes into calls, and what they become when indices are gone.

`view(B, T, 12, 64)`, `split(768)`, `groups=32`, `normalized_shape=(768,)`: each is a number that was right for the old
channels. For every operator with such a number stands here how it follows from what survives.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from workers.graph.calls import set_argument
from workers.graph.labels import Shape
from workers.graph.sites import Site
from workers.graph.survivors import Survivors
from workers.graph.tensor_meta import Apply, SymbolicSize

Rewrite = Callable[[Site, Survivors], None]


def resize(name: str) -> Rewrite:
    """An argument that is the shape of the result, or its last axes."""

    def rewrite(site: Site, survivors: Survivors) -> None:
        sizes = list(site.arguments[name])
        before = site.result_shape or site.result_shapes[0]
        after = survivors.shape(site, site.node) if site.result_shape else first_shape(site, survivors)
        start = 0 if name in {"size", "shape"} else len(before) - len(sizes)
        set_sizes(site, name, sizes, before[start:], after[start:])

    return rewrite


def first_shape(site: Site, survivors: Survivors) -> Shape:
    """The shape of the input, which is that of the first of several results."""
    return survivors.shape(site, site.source)


def unflatten(site: Site, survivors: Survivors) -> None:
    """One axis cut into several."""
    sizes = list(site.arguments["sizes"])
    start = site.arguments["dim"] % len(site.shape(site.source))
    after = survivors.shape(site, site.node)
    set_sizes(site, "sizes", sizes, site.result_shape[start:], after[start:])


def set_sizes(site: Site, name: str, sizes: list[Any], before: Sequence[int], after: Sequence[int]) -> None:
    """Give each size that changed its new value; -1 stays, and a computed size is scaled."""
    changed = False
    for place, (size, old, new) in enumerate(zip(sizes, before, after, strict=False)):
        if old != new and size != -1:
            sizes[place] = new if isinstance(size, int) else scaled(size, new, old, site.node)
            changed = True
    if changed:
        set_argument(site.node, name, sizes)


def scaled(size: fx.Node, numerator: int, denominator: int, before: fx.Node) -> fx.Node:
    """A node that computes size x numerator / denominator, which is a whole number, in front of `before`."""
    common = math.gcd(numerator, denominator)
    multiplied = arithmetic(size, operator.mul, numerator // common, before)
    return arithmetic(multiplied, operator.floordiv, denominator // common, before)


# The functions on sizes that are used here, and their names among expressions.
NAMES: dict[Callable[[int, int], int], str] = {operator.mul: "multiply", operator.floordiv: "floor_divide"}


def arithmetic(size: fx.Node, function: Callable[[int, int], int], factor: int, before: fx.Node) -> fx.Node:
    """A node that computes with a size, in front of `before`; the size itself where that changes nothing."""
    if factor == 1:
        return size
    with size.graph.inserting_before(before):
        node = size.graph.call_function(function, (size, factor))
    known = size.meta["val"]
    expression, hint = (known.expression, known.hint) if isinstance(known, SymbolicSize) else (known, known)
    node.meta["val"] = SymbolicSize(Apply(NAMES[function], (expression, factor)), function(hint, factor))
    return node


def sym_size(site: Site, survivors: Survivors) -> None:
    """A size that is asked for at run time is what it was before, so that what was computed from it stays right."""
    axis = site.arguments["dim"]
    old = site.shape(site.source)[axis]
    new = survivors.size(site, site.source, axis, old)
    if new == old:
        return
    users = list(site.node.users)
    restored = scaled(site.node, old, new, site.node.next)
    for user in users:
        user.replace_input_with(site.node, restored)


def pieces(site: Site, survivors: Survivors) -> None:
    """`split` and `chunk`: the sizes of the pieces, which need no longer be equal."""
    axis = site.arguments["dim"]
    stays = survivors.indices(site, site.source, axis)
    if stays is None or stays.all():
        return
    ends = np.cumsum([shape[axis] for shape in site.result_shapes])
    sizes = [int(part.sum()) for part in np.split(stays, ends[:-1])]
    site.node.target = torch.ops.aten.split_with_sizes.default
    site.node.args, site.node.kwargs = (site.node.args[0], sizes, axis), {}


def range_of_axis(site: Site, survivors: Survivors) -> None:
    """`slice`: start and end move by what is gone before them."""
    stays = survivors.indices(site, site.source, site.arguments["dim"])
    if stays is None or stays.all():
        return
    start, end, _ = slice(site.arguments["start"], site.arguments["end"]).indices(len(stays))
    set_argument(site.node, "start", int(stays[:start].sum()))
    set_argument(site.node, "end", int(stays[:end].sum()))


def start_and_length(site: Site, survivors: Survivors) -> None:
    """`narrow`."""
    stays = survivors.indices(site, site.source, site.arguments["dim"])
    if stays is None or stays.all():
        return
    start, length = site.arguments["start"], site.arguments["length"]
    set_argument(site.node, "start", int(stays[:start].sum()))
    set_argument(site.node, "length", int(stays[start : start + length].sum()))


def padding(site: Site, survivors: Survivors) -> None:
    """How much a constant adds before and behind."""
    amounts = list(site.arguments["pad"])
    ndim = len(site.result_shape)
    for place in range(len(amounts) // 2):
        stays = survivors.indices(site, site.node, ndim - 1 - place)
        if stays is not None and not stays.all():
            before, after = amounts[2 * place], amounts[2 * place + 1]
            amounts[2 * place] = int(stays[:before].sum())
            amounts[2 * place + 1] = int(stays[len(stays) - after :].sum())
    if amounts != list(site.arguments["pad"]):
        set_argument(site.node, "pad", amounts)


def scale_of_scores(site: Site, survivors: Survivors) -> None:
    """Attention divides by the square root of a head's width, unless told: it is told the old one."""
    width = site.shape(site.arguments["query"])[-1]
    kept = survivors.size(site, site.arguments["query"], len(site.shape(site.arguments["query"])) - 1, width)
    if kept != width and site.arguments["scale"] is None:
        set_argument(site.node, "scale", width**-0.5)


def group_count(name: str) -> Rewrite:
    """The number of groups of a convolution or norm, of which whole ones go."""

    def rewrite(site: Site, survivors: Survivors) -> None:
        set_argument(site.node, name, remaining_groups(site, survivors, name))

    return rewrite


def remaining_groups(site: Site, survivors: Survivors, name: str) -> int:
    """The groups that are left: as many as there are channels left, in proportion."""
    groups = int(site.arguments[name])
    axis = channel_axis(site)
    before = site.shape(site.source)[axis]
    return max(groups * survivors.size(site, site.source, axis, before) // before, 1)


def channel_axis(site: Site) -> int:
    """The axis of the channels of what a convolution or group norm reads."""
    weight = site.arguments.get("weight")
    if "conv" in site.operator and weight is not None:
        return len(site.shape(site.source)) - len(site.shape(weight)) + 1
    return 1


def native_group_norm(site: Site, survivors: Survivors) -> None:
    """The decomposed norm also says how many channels there are."""
    before = site.shape(site.source)[1]
    groups = remaining_groups(site, survivors, "group")
    set_argument(site.node, "C", survivors.size(site, site.source, 1, before))
    set_argument(site.node, "group", groups)


def repeat_interleave(site: Site, survivors: Survivors) -> None:
    """The size of the result, where it is given."""
    if site.arguments.get("output_size") is not None and site.arguments["dim"] is not None:
        axis = site.arguments["dim"]
        after = survivors.size(site, site.node, axis, site.result_shape[axis])
        if after != site.result_shape[axis]:
            set_argument(site.node, "output_size", after)


REWRITES: dict[str, Rewrite] = {
    **dict.fromkeys(["view", "_unsafe_view", "expand", "broadcast_to"], resize("size")),
    "reshape": resize("shape"),
    "unflatten": unflatten,
    **dict.fromkeys(["layer_norm", "rms_norm", "native_layer_norm"], resize("normalized_shape")),
    **dict.fromkeys(["conv1d", "conv2d", "conv3d", "convolution"], group_count("groups")),
    **dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], group_count("groups")),
    "group_norm": group_count("num_groups"),
    "native_group_norm": native_group_norm,
    "sym_size": sym_size,
    **dict.fromkeys(["split", "split_with_sizes", "chunk", "tensor_split"], pieces),
    "slice": range_of_axis,
    "narrow": start_and_length,
    **dict.fromkeys(["pad", "constant_pad_nd"], padding),
    "scaled_dot_product_attention": scale_of_scores,
    "_scaled_dot_product_flash_attention_for_cpu": scale_of_scores,
    "repeat_interleave": repeat_interleave,
}
