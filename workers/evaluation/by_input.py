"""Teacher and student input by input: how their divergence is spread, and where it is largest.

A mean KL of 0.01 nats may be 0.01 everywhere, or 1 on every hundredth input and nothing on the rest; these are two
different students. The spread over inputs tells them apart, and the inputs at its far end are worth a look.

Shapes: logits (n, K), labels (n,) int64; divergences in nats, in float64.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from service.contract.reports import ByInput, Disagreement, Prediction, Spread
from workers.evaluation.by_class import name_of
from workers.information.divergence import jensen_shannon_from_logits, kl_divergence_from_logits

MOST_DIFFERENT = 10
PERCENTAGES = (0, 5, 25, 50, 75, 95, 99, 100)
#: Divergences reach over many decades: bins of equal width would put almost all inputs into the first.
BINS_PER_DECADE = 4
LOWEST_DECADE, HIGHEST_DECADE = -8, 2


def by_input(
    teacher: Tensor, student: Tensor, labels: Tensor | None = None, names: Sequence[str] | None = None
) -> ByInput:
    """Compare logits (n, K) input by input; `names` are what the dataset calls the classes."""
    t, s = teacher.double(), student.double()
    kl = kl_divergence_from_logits(t, s)
    rows = kl.sort(descending=True, stable=True).indices[:MOST_DIFFERENT].tolist()
    return ByInput(
        kl=spread(kl),
        jensen_shannon=spread(jensen_shannon_from_logits(t, s)),
        most_different=tuple(
            Disagreement(
                row=row,
                label=None if labels is None else int(labels[row]),
                name=None if labels is None else name_of(int(labels[row]), names),
                teacher=prediction(t[row], names),
                student=prediction(s[row], names),
                kl=float(kl[row]),
            )
            for row in rows
        ),
    )


def spread(values: Tensor) -> Spread:
    """Mean, quantiles and logarithmic histogram of divergences (n,)."""
    values = values.clamp(min=0)  # equal distributions may come out a rounding error below
    shares = torch.tensor(PERCENTAGES, dtype=torch.float64) / 100
    ordered, places = values.sort().values, shares * (len(values) - 1)
    below, above = places.floor().long(), places.ceil().long()
    # torch.quantile takes at most 16 million values.
    quantiles = ordered[below].lerp(ordered[above], places - below)
    edges, histogram = histogram_of(values)
    return Spread(
        mean=float(values.mean()),
        quantiles=dict(zip(map(str, PERCENTAGES), quantiles.tolist(), strict=True)),
        edges=edges,
        histogram=histogram,
    )


def histogram_of(values: Tensor) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Edges and counts of the bins from the lowest that holds a value to the highest."""
    exponents = range(LOWEST_DECADE * BINS_PER_DECADE, HIGHEST_DECADE * BINS_PER_DECADE + 1)
    edges = [10.0 ** (exponent / BINS_PER_DECADE) for exponent in exponents]
    inner = torch.tensor(edges[1:-1], dtype=torch.float64)
    counts = torch.bincount(torch.searchsorted(inner, values, right=True), minlength=len(edges) - 1)
    occupied = counts.nonzero().flatten()
    first, last = int(occupied[0]), int(occupied[-1])
    return tuple(edges[first : last + 2]), tuple(counts[first : last + 1].tolist())


def prediction(logits: Tensor, names: Sequence[str] | None) -> Prediction:
    """The most likely class of one input's logits (K,)."""
    label = int(logits.argmax())
    return Prediction(label=label, name=name_of(label, names), probability=float(logits.softmax(0)[label]))
