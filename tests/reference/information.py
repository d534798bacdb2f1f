"""The measures of information, each as its formula stands in a textbook, in Python floats and loops.

0 log 0 = 0 by leaving such terms out. No vectorising, no rearranging, no rounding tricks: where a fast
version differs from these, the fast version is wrong or says why.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence

Row = Sequence[float]
Table = Sequence[Row]


def entropy(p: Row) -> float:
    return -sum(a * math.log(a) for a in p if a > 0)


def softmax(z: Row) -> list[float]:
    top = max(z)
    weights = [math.exp(a - top) for a in z]
    return [w / math.fsum(weights) for w in weights]


def log_softmax(z: Row) -> list[float]:
    top = max(z)
    log_total = math.log(math.fsum(math.exp(a - top) for a in z))
    return [a - top - log_total for a in z]


def cross_entropy(p: Row, q: Row) -> float:
    if any(a > 0 and b == 0 for a, b in zip(p, q, strict=True)):
        return math.inf
    return -sum(a * math.log(b) for a, b in zip(p, q, strict=True) if a > 0)


def kl(p: Row, q: Row) -> float:
    if any(a > 0 and b == 0 for a, b in zip(p, q, strict=True)):
        return math.inf
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def kl_from_logits(a: Row, b: Row) -> float:
    log_p, log_q = log_softmax(a), log_softmax(b)
    return math.fsum(math.exp(s) * (s - t) for s, t in zip(log_p, log_q, strict=True))


def jensen_shannon(p: Row, q: Row, beta: float = 0.5) -> float:
    m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def binary_cross_entropy(p: float, t: float) -> float:
    return cross_entropy([t, 1 - t], [p, 1 - p])


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def smoothed(target: int, num_classes: int, smoothing: float) -> list[float]:
    return [(1 - smoothing) * (k == target) + smoothing / num_classes for k in range(num_classes)]


def gaussian_kl(mean_p: float, var_p: float, mean_q: float, var_q: float) -> float:
    return 0.5 * (math.log(var_q / var_p) + (var_p + (mean_p - mean_q) ** 2) / var_q - 1)


def gaussian_entropy(var: float) -> float:
    return 0.5 * math.log(2 * math.pi * math.e * var)


def gaussian_negative_log_likelihood(y: float, mean: float, var: float) -> float:
    return (y - mean) ** 2 / (2 * var) + 0.5 * math.log(2 * math.pi * var)


def marginals(joint: Table) -> tuple[list[float], list[float]]:
    return [math.fsum(row) for row in joint], [math.fsum(column) for column in zip(*joint, strict=True)]


def joint_entropy(joint: Table) -> float:
    return entropy([a for row in joint for a in row])


def conditional_entropy(joint: Table) -> float:
    """H(Y|X), the mean over x of the entropy of P(Y|x)."""
    return math.fsum(sum(row) * entropy([a / sum(row) for a in row]) for row in joint if sum(row) > 0)


def mutual_information(joint: Table) -> float:
    p_x, p_y = marginals(joint)
    return math.fsum(
        # As a difference of logarithms, for the product of two tiny marginals is 0 in floating point.
        joint[i][j] * (math.log(joint[i][j]) - math.log(p_x[i]) - math.log(p_y[j]))
        for i in range(len(p_x))
        for j in range(len(p_y))
        if joint[i][j] > 0
    )


def mean_prediction(logits: Table) -> list[float]:
    predictions = [softmax(row) for row in logits]
    return [math.fsum(column) / len(logits) for column in zip(*predictions, strict=True)]


def predictive_entropy(logits: Table) -> float:
    return math.fsum(entropy(softmax(row)) for row in logits) / len(logits)


def predictive_information(logits: Table) -> float:
    return entropy(mean_prediction(logits)) - predictive_entropy(logits)


def miller_madow_entropy(symbols: Sequence[int]) -> float:
    counts = Counter(symbols)
    plug_in = entropy([n / len(symbols) for n in counts.values()])
    return plug_in + (len(counts) - 1) / (2 * len(symbols))


def miller_madow_mutual_information(x: Sequence[int], y: Sequence[int]) -> float:
    pairs = list(zip(x, y, strict=True))  # as numbers, so that one function serves all three
    joint = [hash(pair) for pair in pairs]
    return miller_madow_entropy(x) + miller_madow_entropy(y) - miller_madow_entropy(joint)


def equal_width_code(v: float, low: float, high: float, num_bins: int) -> int:
    """How many inner edges lie at or below the value."""
    return sum(v >= low + (high - low) * k / num_bins for k in range(1, num_bins))


def equal_mass_code(v: float, sample: Sequence[float], num_bins: int) -> int:
    ordered = sorted(sample)
    return sum(v >= ordered[k * len(sample) // num_bins] for k in range(1, num_bins))


def bootstrap_means(values: Sequence[float], num_resamples: int, seed: int) -> list[float]:
    draw = random.Random(seed)
    return [math.fsum(draw.choices(values, k=len(values))) / len(values) for _ in range(num_resamples)]
