"""How good one model is on labelled examples, and what its outputs say.

With p(x) the softmax output and p̄ its mean over the split: E H(p) is how unsure single predictions are,
H(p̄) how varied they are together, and their difference I(X;Ŷ) what the model *claims* to tell about its
inputs. What it does tell about the labels is I(Y;Ŷ), from the confusion matrix of labels and most likely
classes; it can never exceed H(Y), and a confident but wrong model has much of the first and little of the second.

Shapes: logits (n, K), labels (n,) int64 in 0…K−1. Measures are taken in float64, in nats.
"""

import numpy as np
import torch
from torch import Tensor

from service.contract.reports import Interval
from workers.evaluation.intervals import wilson
from workers.information.crossentropy import cross_entropy_from_logits
from workers.information.estimators import estimate_mutual_information
from workers.information.mutual import entropy_of_mean_prediction, predictive_entropy, predictive_information


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each example's most likely class is its label: (n,) bool."""
    return logits.argmax(1) == labels


def accuracy(logits: Tensor, labels: Tensor) -> Interval:
    """Share of examples whose most likely class is the label, with its Wilson interval."""
    return wilson(int(correct(logits, labels).sum()), len(labels))


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean of −log p(label), nats."""
    return float(cross_entropy_from_logits(logits.double(), labels).mean())


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts by label (rows) and most likely class (columns), int64: (K', K''), classes that occur only.

    Rows and columns of classes that never occur carry no information; with 10⁵ classes the table with
    them would not fit in memory.
    """
    rows, row = np.unique(labels.numpy(), return_inverse=True)
    columns, column = np.unique(logits.argmax(1).numpy(), return_inverse=True)
    cells = np.bincount(row * len(columns) + column, minlength=len(rows) * len(columns))
    return torch.from_numpy(cells).view(len(rows), len(columns))


def label_information(logits: Tensor, labels: Tensor) -> float:
    """I(Y;Ŷ) from the confusion matrix, Miller–Madow, nats; for useless predictions it may be slightly negative."""
    return estimate_mutual_information(confusion_matrix(logits, labels), estimator="miller_madow").value


def output_information(logits: Tensor) -> dict[str, float]:
    """E H(p), H(p̄) and the claimed information H(p̄) − E H(p), by the names that a report gives them; nats."""
    logits = logits.double()
    return {
        "predictive_entropy": float(predictive_entropy(logits)),
        "marginal_entropy": float(entropy_of_mean_prediction(logits)),
        "claimed_information": float(predictive_information(logits)),
    }
