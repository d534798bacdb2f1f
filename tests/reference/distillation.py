"""Hinton's distillation loss, one example and one class at a time, in Python's floats.

loss = α · CE(student, y) + (1 − α) · T² · KL(softmax(teacher/T) ‖ softmax(student/T)), batch mean
CE   = −Σ_k target_k log student_k, target = (1 − ε) · onehot(y) + ε/K
KL   = Σ_k t_k log(t_k / s_k)
"""

import math
from collections.abc import Sequence

Row = Sequence[float]


def softmax(logits: Row, temperature: float = 1.0) -> list[float]:
    exponentials = [math.exp(logit / temperature) for logit in logits]
    total = sum(exponentials)
    return [exponential / total for exponential in exponentials]


def cross_entropy(logits: Row, label: int, label_smoothing: float) -> float:
    num_classes = len(logits)
    probabilities = softmax(logits)
    loss = 0.0
    for k in range(num_classes):
        one_hot = 1.0 if k == label else 0.0
        target = (1 - label_smoothing) * one_hot + label_smoothing / num_classes
        loss -= target * math.log(probabilities[k])
    return loss


def kl(teacher: Row, student: Row, temperature: float) -> float:
    t, s = softmax(teacher, temperature), softmax(student, temperature)
    return sum(t[k] * math.log(t[k] / s[k]) for k in range(len(t)))


def knowledge_distillation(
    student: Sequence[Row],
    teacher: Sequence[Row],
    labels: Sequence[int],
    temperature: float,
    alpha: float,
    label_smoothing: float,
) -> float:
    total = 0.0
    for student_row, teacher_row, label in zip(student, teacher, labels, strict=True):
        hard = cross_entropy(student_row, label, label_smoothing)
        soft = kl(teacher_row, student_row, temperature)
        total += alpha * hard + (1 - alpha) * temperature**2 * soft
    return total / len(student)
