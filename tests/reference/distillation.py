"""The distillation losses, one example and one class at a time, in Python's floats. All are batch means.

kd         α · CE(student, y) + (1 − α) · T² · D(p, q), p = softmax(teacher/T), q = softmax(student/T)
CE         −Σ_k target_k log student_k, target = (1 − ε) · onehot(y) + ε/K
D          forward_kl: KL(p ‖ q) = Σ_k p_k log(p_k / q_k); reverse_kl: KL(q ‖ p);
           jensen_shannon: β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = βp + (1 − β)q
dkd        CE(student, y) + w · T² · (a · TCKD + b · NCKD)
TCKD       KL((p_y, 1 − p_y) ‖ (q_y, 1 − q_y))
NCKD       KL(p̂ ‖ q̂), p̂_k = p_k / (1 − p_y) for k ≠ y
dist       CE(student, y) + T² · (b · mean over rows of (1 − r(q, p)) + c · mean over columns of (1 − r(q, p)))
r          Σ (x − x̄)(y − ȳ) / √(Σ (x − x̄)² · Σ (y − ȳ)²)
z-score    (z − z̄) / √(Σ (z − z̄)² / (K − 1))
bernoulli  α · Σ_k BCE(y_k, σ(s_k)) + (1 − α) · T² · Σ_k KL((σ(t_k/T), σ(−t_k/T)) ‖ (σ(s_k/T), σ(−s_k/T)))
mse        α · mean_k (y_k − s_k)² + (1 − α) · mean_k (t_k − s_k)²
"""

import math
from collections.abc import Sequence

Row = Sequence[float]


def softmax(logits: Row, temperature: float = 1.0) -> list[float]:
    exponentials = [math.exp(logit / temperature) for logit in logits]
    total = sum(exponentials)
    return [exponential / total for exponential in exponentials]


def z_score(logits: Row) -> list[float]:
    mean = sum(logits) / len(logits)
    variance = sum((logit - mean) ** 2 for logit in logits) / (len(logits) - 1)
    return [(logit - mean) / math.sqrt(variance) for logit in logits]


def cross_entropy(logits: Row, label: int, label_smoothing: float = 0.0) -> float:
    num_classes = len(logits)
    probabilities = softmax(logits)
    loss = 0.0
    for k in range(num_classes):
        one_hot = 1.0 if k == label else 0.0
        target = (1 - label_smoothing) * one_hot + label_smoothing / num_classes
        loss -= target * math.log(probabilities[k])
    return loss


def kl(p: Row, q: Row) -> float:
    return sum(p[k] * math.log(p[k] / q[k]) for k in range(len(p)))


def divergence(p: Row, q: Row, name: str, beta: float) -> float:
    if name == "forward_kl":
        return kl(p, q)
    if name == "reverse_kl":
        return kl(q, p)
    m = [beta * p[k] + (1 - beta) * q[k] for k in range(len(p))]
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def knowledge_distillation(
    student: Sequence[Row],
    teacher: Sequence[Row],
    labels: Sequence[int],
    temperature: float,
    alpha: float,
    label_smoothing: float = 0.0,
    name: str = "forward_kl",
    beta: float = 0.5,
    standardize: bool = False,
) -> float:
    total = 0.0
    for student_row, teacher_row, label in zip(student, teacher, labels, strict=True):
        hard = cross_entropy(student_row, label, label_smoothing)
        s, t = (z_score(student_row), z_score(teacher_row)) if standardize else (student_row, teacher_row)
        soft = divergence(softmax(t, temperature), softmax(s, temperature), name, beta)
        total += alpha * hard + (1 - alpha) * temperature**2 * soft
    return total / len(student)


def target_divergence(p: Row, q: Row, label: int) -> float:
    p_rest = sum(p[k] for k in range(len(p)) if k != label)
    q_rest = sum(q[k] for k in range(len(q)) if k != label)
    return kl([p[label], p_rest], [q[label], q_rest])


def non_target_divergence(p: Row, q: Row, label: int) -> float:
    p_rest = sum(p[k] for k in range(len(p)) if k != label)
    q_rest = sum(q[k] for k in range(len(q)) if k != label)
    others = [k for k in range(len(p)) if k != label]
    return kl([p[k] / p_rest for k in others], [q[k] / q_rest for k in others])


def decoupled_distillation(
    student: Sequence[Row],
    teacher: Sequence[Row],
    labels: Sequence[int],
    temperature: float,
    target_weight: float,
    non_target_weight: float,
    warmup: float = 1.0,
) -> float:
    total = 0.0
    for student_row, teacher_row, label in zip(student, teacher, labels, strict=True):
        p, q = softmax(teacher_row, temperature), softmax(student_row, temperature)
        soft = target_weight * target_divergence(p, q, label) + non_target_weight * non_target_divergence(p, q, label)
        total += cross_entropy(student_row, label) + warmup * temperature**2 * soft
    return total / len(student)


def pearson(x: Row, y: Row) -> float:
    n = len(x)
    x_mean, y_mean = sum(x) / n, sum(y) / n
    product = sum((x[i] - x_mean) * (y[i] - y_mean) for i in range(n))
    x_squares = sum((x[i] - x_mean) ** 2 for i in range(n))
    y_squares = sum((y[i] - y_mean) ** 2 for i in range(n))
    return product / math.sqrt(x_squares * y_squares)


def relational_distillation(
    student: Sequence[Row],
    teacher: Sequence[Row],
    labels: Sequence[int],
    temperature: float,
    inter_weight: float,
    intra_weight: float,
) -> float:
    num_examples, num_classes = len(student), len(student[0])
    q = [softmax(row, temperature) for row in student]
    p = [softmax(row, temperature) for row in teacher]
    hard = sum(cross_entropy(student[i], labels[i]) for i in range(num_examples)) / num_examples
    inter = sum(1 - pearson(q[i], p[i]) for i in range(num_examples)) / num_examples
    intra = 0.0
    for k in range(num_classes):
        q_column, p_column = [row[k] for row in q], [row[k] for row in p]
        intra += (1 - pearson(q_column, p_column)) / num_classes
    return hard + temperature**2 * (inter_weight * inter + intra_weight * intra)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def multilabel_distillation(
    student: Sequence[Row], teacher: Sequence[Row], labels: Sequence[Row], temperature: float, alpha: float
) -> float:
    total = 0.0
    for student_row, teacher_row, label_row in zip(student, teacher, labels, strict=True):
        for s, t, y in zip(student_row, teacher_row, label_row, strict=True):
            hard = -y * math.log(sigmoid(s)) - (1 - y) * math.log(sigmoid(-s))
            p = [sigmoid(t / temperature), sigmoid(-t / temperature)]
            q = [sigmoid(s / temperature), sigmoid(-s / temperature)]
            total += alpha * hard + (1 - alpha) * temperature**2 * kl(p, q)
    return total / len(student)


def regression_distillation(
    student: Sequence[Row], teacher: Sequence[Row], labels: Sequence[Row], alpha: float
) -> float:
    total = 0.0
    for student_row, teacher_row, label_row in zip(student, teacher, labels, strict=True):
        for s, t, y in zip(student_row, teacher_row, label_row, strict=True):
            total += (alpha * (y - s) ** 2 + (1 - alpha) * (t - s) ** 2) / len(student_row)
    return total / len(student)
