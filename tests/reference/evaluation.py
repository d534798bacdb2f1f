"""What the report's formulas say, one example at a time, in plain Python. Slow, and meant to be read."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import comb, exp, log, sqrt

Row = Sequence[float]


def softmax(logits: Row) -> list[float]:
    largest = max(logits)
    weights = [exp(value - largest) for value in logits]
    return [weight / sum(weights) for weight in weights]


def most_likely(logits: Row) -> int:
    return max(range(len(logits)), key=lambda k: logits[k])


def entropy(p: Row) -> float:
    """H(P) = −Σ p log p, with 0 log 0 = 0."""
    return -sum(value * log(value) for value in p if value > 0)


def mean_prediction(logits: Sequence[Row]) -> list[float]:
    columns = zip(*(softmax(row) for row in logits), strict=True)
    return [sum(column) / len(logits) for column in columns]


def predictive_entropy(logits: Sequence[Row]) -> float:
    """E H(p)."""
    return sum(entropy(softmax(row)) for row in logits) / len(logits)


def negative_log_likelihood(logits: Sequence[Row], labels: Sequence[int]) -> float:
    """Mean of −log p(label)."""
    return sum(-log(softmax(row)[y]) for row, y in zip(logits, labels, strict=True)) / len(labels)


def kl(p: Row, q: Row) -> float:
    """KL(P‖Q) = Σ p log(p/q)."""
    return sum(a * log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def jensen_shannon(p: Row, q: Row) -> float:
    """½ KL(P‖M) + ½ KL(Q‖M), M = (P + Q)/2."""
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return kl(p, middle) / 2 + kl(q, middle) / 2


def label_information(predicted: Sequence[int], labels: Sequence[int]) -> float:
    """I(Y;Ŷ) of the confusion matrix, plug-in, plus Miller and Madow's (m_Y + m_Ŷ − m_YŶ − 1)/2N."""
    n = len(labels)
    pairs = list(zip(labels, predicted, strict=True))
    information = 0.0
    for pair in set(pairs):
        joint = pairs.count(pair) / n
        p_y, p_yhat = list(labels).count(pair[0]) / n, list(predicted).count(pair[1]) / n
        information += joint * log(joint / (p_y * p_yhat))
    return information + (len(set(labels)) + len(set(predicted)) - len(set(pairs)) - 1) / (2 * n)


def wilson(successes: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The p that solve |p̂ − p| = z·√(p(1 − p)/n): the two roots of a quadratic."""
    share = successes / trials
    a, b, c = 1 + z**2 / trials, -(2 * share + z**2 / trials), share**2
    root = sqrt(max(0.0, b**2 - 4 * a * c))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def mcnemar_p_value(b: int, c: int) -> float:
    """The chance, if each of b + c discordant examples fell either way like a coin, of a split at least as uneven."""
    n = b + c
    unevenness = abs(b - c)
    ways = sum(comb(n, k) for k in range(n + 1) if abs(n - 2 * k) >= unevenness)
    return float(Fraction(ways, 2**n))


def reliability(confidence: Row, right: Sequence[bool], num_bins: int) -> list[tuple[float, float, int]]:
    """Equal-mass bins (mean confidence, accuracy, examples); of equal confidences, none is parted from another.

    Bin i of B begins at the confidence of rank ⌊n·i/B⌋; an example belongs to the last bin whose beginning its
    confidence reaches.
    """
    ordered = sorted(confidence)
    beginnings = [ordered[len(ordered) * i // num_bins] for i in range(1, num_bins)]
    bins: dict[int, list[tuple[float, bool]]] = {}
    for value, hit in zip(confidence, right, strict=True):
        index = sum(1 for beginning in beginnings if value >= beginning)
        bins.setdefault(index, []).append((value, hit))
    return [
        (sum(v for v, _ in members) / len(members), sum(h for _, h in members) / len(members), len(members))
        for _, members in sorted(bins.items())
    ]


def expected_calibration_error(bins: Sequence[tuple[float, float, int]]) -> float:
    """Σ (n_b/n)·|accuracy_b − confidence_b|."""
    n = sum(size for _, _, size in bins)
    return sum(size / n * abs(accuracy - confidence) for confidence, accuracy, size in bins)


def paired_percentile_interval(
    statistic: Callable[[list[int]], float], resamples: Sequence[list[int]], level: float = 0.95
) -> tuple[float, float]:
    """The central 95% of a statistic of drawn example numbers, interpolated between order statistics."""
    values = sorted(statistic(drawn) for drawn in resamples)

    def quantile(share: float) -> float:
        place = share * (len(values) - 1)
        below = int(place)
        above = min(below + 1, len(values) - 1)
        return values[below] + (place - below) * (values[above] - values[below])

    return quantile((1 - level) / 2), quantile((1 + level) / 2)


def of_class(predicted: Sequence[int], labels: Sequence[int], label: int) -> tuple[int, int, int]:
    """Examples of the class, answers of the class, and answers of it that are right."""
    right = sum(1 for guess, y in zip(predicted, labels, strict=True) if guess == y == label)
    return list(labels).count(label), list(predicted).count(label), right


def quantile(values: Row, share: float) -> float:
    """Interpolated between the order statistics about the place share·(n − 1)."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
