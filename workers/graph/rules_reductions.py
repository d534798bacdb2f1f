"""Operators that look along axes: pooling and resampling, softmax, means and sums.

A sum over channels does not notice one that is zero, so a removal may pass under it. A mean, a variance or a
standard deviation is taken over those that remain; the ledger notes where. What takes a maximum or a softmax over
channels would notice, and pins them.
"""

from collections.abc import Callable

import numpy as np

from workers.graph.labels import Labels, first_of, varying
from workers.graph.rules_elementwise import elementwise
from workers.graph.sites import Site, Value

# How many of the last axes each operator slides over.
SPATIAL: dict[str, int] = {
    **{f"{kind}_pool{dims}d": dims for kind in ("max", "avg") for dims in (1, 2, 3)},
    **{f"adaptive_{kind}_pool{dims}d": dims for kind in ("max", "avg") for dims in (1, 2, 3)},
    **{f"max_pool{dims}d_with_indices": dims for dims in (2, 3)},
    "_adaptive_avg_pool2d": 2,
    **{f"upsample_nearest{dims}d": dims for dims in (1, 2, 3)},
    "_upsample_nearest_exact2d": 2,
    "upsample_linear1d": 1,
    **dict.fromkeys(["upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa"], 2),
    "upsample_trilinear3d": 3,
}


def spatial(site: Site) -> Value:
    """Channels pass; the axes that are slid over keep their size."""
    labels = site.labels(site.source)
    ndim, count = len(site.shape(site.source)), SPATIAL[site.operator]
    for axis in range(ndim - count, ndim):
        site.fix(labels, axis, "slides over this axis")
    passing = None if labels is None else first_of(labels, range(ndim - count, ndim))
    return [passing] * len(site.result_shapes) if site.result_shapes else passing


def softmax(site: Site) -> Value:
    """Every index of the axis sees all others."""
    labels, axis = site.labels(site.source), site.arguments["dim"] % len(site.result_shape)
    site.fix(labels, axis, "takes a softmax over this axis")
    return labels


SUMS = {"sum", "linalg_vector_norm", "norm", "count_nonzero"}
MEANS = {"mean", "var", "std", "var_mean"}
EXTREMES = {"amax", "amin", "max", "min", "argmax", "argmin", "prod", "logsumexp", "all", "any", "median"}


def reduction(site: Site) -> Value:
    """Some axes reduced to one value each, or to none."""
    if site.operator in {"max", "min"} and "other" in site.arguments:
        return elementwise(site)
    labels = site.labels(site.source)
    ndim = len(site.shape(site.source))
    axes = reduced_axes(site, ndim)
    passing = reduce_labels(site, labels, axes)
    if passing is not None and not site.arguments.get("keepdim", False):
        passing = passing.reshape([size for axis, size in enumerate(passing.shape) if axis not in axes])
    return [passing] * len(site.result_shapes) if site.result_shapes else passing


def reduced_axes(site: Site, ndim: int) -> list[int]:
    """The axes by number; all of them where none is named."""
    dims = site.arguments.get("dim")
    chosen = [dims] if isinstance(dims, int) else list(dims or range(ndim))
    return [axis % ndim for axis in chosen] if ndim else []


def reduce_labels(site: Site, labels: Labels, axes: list[int]) -> Labels:
    """The labels of the axes that stay; what is reduced together with them becomes whole rows."""
    reduced = [axis for axis in varying(labels) if axis in axes]
    if labels is None or not reduced:
        return labels
    if site.operator not in SUMS | MEANS:
        for axis in reduced:
            site.fix(labels, axis, "looks at all indices of this axis")
        return stay(labels, reduced)
    kept = [axis for axis in varying(labels) if axis not in axes]
    if kept:
        site.ledger.equate(labels, first_of(labels, reduced))
    elif site.operator in MEANS:
        site.ledger.statistics.append((site.node.name, labels.reshape(-1)))
    return stay(labels, reduced)


def stay(labels: np.ndarray, reduced: list[int]) -> Labels:
    """What is left of the labels; None where nothing varies any more."""
    left = first_of(labels, reduced)
    return left if varying(left) else None


REDUCTION_RULES: dict[str, Callable[[Site], Value]] = {
    **dict.fromkeys(SPATIAL, spatial),
    **dict.fromkeys(["softmax", "_softmax", "log_softmax", "_log_softmax"], softmax),
    **dict.fromkeys(sorted(SUMS | MEANS | EXTREMES), reduction),
}
