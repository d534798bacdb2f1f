"""How sure each measure of a model is: 95% intervals from one set of resamples, shared by all models.

NLL and E H(p) are means over the examples. The others are functions of means: H(p̄) and I = H(p̄) − E H(p) of those of
p and H(p); the calibration error, with the bins as they are, of Σ_b |mean of (right − confidence) in bin b|. So all of
them come from the same product of resampling weights with per-example quantities, as the differences of a comparison
do (comparison.py), and a model's measures vary together with its teacher's.

The calibration error of a resample is biased upwards, as that of the sample is; only the spread of the resamples is
taken (a normal interval, cut at 0). I(Y;Ŷ) is resampled over the cells of the confusion matrix, with the estimator
that gives its value.

Shapes: logits (n, K), labels (n,) int64; measures in float64, in nats.
Source: Efron and Tibshirani 1993.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from service.contract.reports import Interval
from workers.evaluation.calibration import NUM_BINS, bins_of
from workers.evaluation.intervals import resampling_for
from workers.evaluation.quality import confusion_matrix, correct
from workers.information.bootstrap import Resampling, normal_interval, percentile_interval, resampled_means
from workers.information.crossentropy import cross_entropy_from_logits
from workers.information.entropy import entropy, entropy_from_logits
from workers.information.estimators import estimate_mutual_information

#: The mean output is not resampled where all models together have more outputs than this, for one example or for all:
#: the product with the resampling weights has a column for each of them.
MOST_OUTPUTS, MOST_VALUES = 256, 2**25
#: Cells of confusion matrices that are drawn at most, over all resamples.
MOST_CELLS = 20_000_000
FEWEST_RESAMPLES = 1_000


def measure_intervals(
    logits: Mapping[str, Tensor], labels: Tensor | None, *, seed: int = 0, resampling: Resampling | None = None
) -> dict[str, dict[str, Interval]]:
    """Intervals of each model's measures, by role and by the names that a report gives them."""
    num_examples = len(next(iter(logits.values())))
    resampling = resampling or resampling_for(num_examples, seed)
    num_outputs = sum(outputs.shape[1] for outputs in logits.values())
    with_mean = num_outputs <= MOST_OUTPUTS and num_outputs * num_examples <= MOST_VALUES
    columns = {role: rows_of(outputs, labels, with_mean=with_mean) for role, outputs in logits.items()}
    table = torch.cat([rows for of_role in columns.values() for rows in of_role.values()], dim=1)
    means = resampled_means(table, resampling)
    found: dict[str, dict[str, Interval]] = {}
    start = 0
    for role, of_role in columns.items():
        sample, resampled = {}, {}
        for name, rows in of_role.items():
            sample[name] = rows.mean(0, keepdim=True)
            resampled[name] = means[:, start : start + rows.shape[1]]
            start += rows.shape[1]
        found[role] = _intervals(measures_of(sample), measures_of(resampled), resampling)
        if labels is not None:
            found[role]["label_information"] = _label_information(logits[role], labels, resampling)
    return found


def rows_of(logits: Tensor, labels: Tensor | None, *, with_mean: bool) -> dict[str, Tensor]:
    """The per-example quantities (n, m) whose means the measures are functions of; with those of the mean output."""
    logits = logits.double()
    rows = {"entropy": entropy_from_logits(logits)[:, None]}
    if with_mean:
        rows["outputs"] = logits.softmax(1)
    if labels is not None:
        rows["nll"] = cross_entropy_from_logits(logits, labels)[:, None]
        gaps = correct(logits, labels).double() - logits.softmax(1).amax(1)
        rows["gaps"] = torch.zeros(len(logits), NUM_BINS, dtype=torch.float64)
        rows["gaps"].scatter_(1, bins_of(logits)[:, None], gaps[:, None])
    return rows


def measures_of(means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Measures (R,) from means (R, m) of those quantities."""
    found = {"predictive_entropy": means["entropy"][:, 0]}
    if "outputs" in means:
        outputs = means["outputs"].clamp(min=0)
        found["marginal_entropy"] = entropy(outputs / outputs.sum(1, keepdim=True))
        found["claimed_information"] = found["marginal_entropy"] - found["predictive_entropy"]
    if "nll" in means:
        found["nll"] = means["nll"][:, 0]
        found["calibration_error"] = means["gaps"].abs().sum(1)
    return found


def _intervals(
    values: Mapping[str, Tensor], resampled: Mapping[str, Tensor], resampling: Resampling
) -> dict[str, Interval]:
    found = {}
    for name, value in values.items():
        if name == "calibration_error":
            interval = normal_interval(float(value), 0.0, resampled[name], resampling)
            found[name] = Interval(value=interval.value, low=max(0.0, interval.low), high=interval.high)
        else:
            interval = percentile_interval(float(value), resampled[name], resampling)
            found[name] = Interval(value=interval.value, low=interval.low, high=interval.high)
    return found


def _label_information(logits: Tensor, labels: Tensor, resampling: Resampling) -> Interval:
    table = confusion_matrix(logits, labels)
    affordable = max(FEWEST_RESAMPLES, MOST_CELLS // table.numel())
    resampling = replace(resampling, num_resamples=min(resampling.num_resamples, affordable))
    interval = estimate_mutual_information(table, estimator="miller_madow", resampling=resampling).interval
    assert interval is not None  # noqa: S101  a resampling was given
    return Interval(value=interval.value, low=interval.low, high=interval.high)
