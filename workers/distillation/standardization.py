"""Logit standardisation: a student need not match the size of its teacher's logits, only their order and spacing.

A temperature that both networks share makes the student copy the range of its teacher's logits, for which a small
network may be too weak. Sun et al. 2024 z-score every row of either first, (z − mean) / sd, so that each network
in effect has a temperature of its own, T · sd. The loss then does not change under any affine map a·z + b, a > 0,
of either network's logits: it says nothing of the student's confidence, which the hard term must settle.

The deviation is that of the authors' code, with K − 1 in its denominator.
"""

from torch import Tensor

from workers.information.probability import promoted

SMALLEST_DEVIATION = 1e-7  # a row whose entries are all equal becomes zeros; as in the authors' code


def standardized(logits: Tensor) -> Tensor:
    """Rows (..., K) of mean 0 and standard deviation 1, in float32 or float64; finite gradients everywhere."""
    z = promoted(logits)
    deviation = z.std(dim=-1, keepdim=True).clamp(min=SMALLEST_DEVIATION)
    return (z - z.mean(dim=-1, keepdim=True)) / deviation
