"""Binning: continuous activations as a few discrete symbols.

Entropy of a continuous value has no unit-free meaning, so activations are cut into B bins per unit first.
*Equal-width* bins divide the range evenly and see where the mass is; *equal-mass* bins divide the sample
evenly, so a unit's own entropy is log B wherever ties allow, and only what it shares with another variable
is informative. Either way the result depends on B, and must be reported with it.

A bin holds edge[k−1] ≤ v < edge[k]. Many equal values (the zeros of a ReLU) fall into one bin together,
and the bins that their edges would have separated stay empty.

Shapes: values (N, U) for N examples and U units; edges (U, B − 1), the inner ones; codes (N, U) in 0..B−1.
"""

import torch
from torch import Tensor

from workers.information.probability import promoted


def equal_width_edges(low: Tensor, high: Tensor, num_bins: int) -> Tensor:
    """Inner edges low + (high − low)·k/B of each unit's range: (U,), (U,) -> (U, B − 1)."""
    _check_bins(num_bins)
    low, high = promoted(low), promoted(high)
    steps = torch.arange(1, num_bins, device=low.device, dtype=low.dtype) / num_bins
    return low[:, None] + (high - low)[:, None] * steps


def equal_mass_edges(values: Tensor, num_bins: int) -> Tensor:
    """Inner edges at the order statistics of rank ⌊kN/B⌋, from a sample (N, U) -> (U, B − 1).

    Without ties, bins differ by at most one example.
    """
    _check_bins(num_bins)
    ordered = checked_values(values).sort(0).values
    return ordered[equal_mass_ranks(len(values), num_bins, values.device)].T.contiguous()


def equal_mass_ranks(num_rows: int, num_bins: int, device: torch.device | None = None) -> Tensor:
    """Ranks ⌊kN/B⌋ for k = 1..B−1, counted from 0: (B − 1,) int64."""
    return torch.arange(1, num_bins, device=device) * num_rows // num_bins


def bin_codes(values: Tensor, edges: Tensor) -> Tensor:
    """Each value's bin: values (N, U), inner edges (U, B − 1) -> int64 codes (N, U)."""
    values = checked_values(values)
    if edges.dim() != 2 or edges.shape[0] != values.shape[1]:
        raise ValueError(
            f"Edges have shape {tuple(edges.shape)}; expected ({values.shape[1]}, bins − 1), a row per unit."
        )
    by_unit = values.T.contiguous()
    return torch.searchsorted(edges.to(by_unit.dtype).contiguous(), by_unit, right=True).T


def count_codes(codes: Tensor, num_bins: int, labels: Tensor | None = None, num_labels: int = 1) -> Tensor:
    """Counts per unit and bin: codes (N, U) -> (U, B); with labels (N,) in 0..L−1 -> (U, B, L). int64."""
    num_units = codes.shape[1]
    cells = codes + num_bins * torch.arange(num_units, device=codes.device)
    if labels is None:
        return torch.bincount(cells.flatten(), minlength=num_units * num_bins).view(num_units, num_bins)
    cells = cells * num_labels + checked_labels(labels, len(codes), num_labels)[:, None]
    counts = torch.bincount(cells.flatten(), minlength=num_units * num_bins * num_labels)
    return counts.view(num_units, num_bins, num_labels)


def checked_values(values: Tensor) -> Tensor:
    """Return activations (N, U) promoted, or raise ValueError for another shape, none, or NaN/infinity."""
    if values.dim() != 2 or not values.numel():
        raise ValueError(f"Activations have shape {tuple(values.shape)}; expected (examples, units), both > 0.")
    values = promoted(values.detach())
    if not bool(torch.isfinite(values).all()):
        raise ValueError("An activation is NaN or infinite; it belongs to no bin.")
    return values


def checked_labels(labels: Tensor, num_rows: int, num_labels: int) -> Tensor:
    """Return classes (N,) as int64, or raise ValueError for another shape or a class outside 0..L−1."""
    if labels.shape != (num_rows,):
        raise ValueError(f"Labels have shape {tuple(labels.shape)}; expected ({num_rows},), one per example.")
    if num_rows and not 0 <= int(labels.min()) <= int(labels.max()) < num_labels:
        raise ValueError(f"Labels range over {int(labels.min())}..{int(labels.max())}; expected 0..{num_labels - 1}.")
    return labels.long()


def _check_bins(num_bins: int) -> None:
    if num_bins < 2:
        raise ValueError(f"The number of bins is {num_bins}; expected at least 2.")
