"""The model card: what a person needs to know who finds the artifact without its service.

Plain Markdown, made from the same numbers as report.json and from nothing else. What came from a user (labels,
options) appears only as JSON in code blocks, where it cannot become markup.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

from service.contract.reports import Comparison, FileVerification, Interval, Measures, Report
from workers.training.data import Scaling


@dataclass(frozen=True)
class FileFacts:
    """One file of an artifact."""

    sha256: str
    size: int  # bytes


@dataclass(frozen=True)
class Inputs:
    """What the model takes: a batch of this shape after the batch dimension."""

    shape: tuple[int, ...]
    dtype: str
    scaling: Scaling | None = None  # None: not known here

    def as_json(self) -> dict[str, Any]:
        """As the manifest says it; the batch dimension is null."""
        scaling = None if self.scaling is None else vars(self.scaling)
        return {"shape": [None, *self.shape], "dtype": self.dtype, "scaling": scaling}


CARD = Template("""# $title

A smaller network made by Stillhouse from a larger one, its teacher. It stands alone: PyTorch loads it, and
every runtime of ONNX does, without Stillhouse and without any class of ours.

## What was found

Measured on $examples examples of the $split split, which training did not touch unless a finding says so.
Brackets are 95% intervals.

$findings

$table

Information is in nats. Agreement and KL compare with the teacher. The control is the same network, from the same
seed, trained on the labels alone. Claimed information, H(p̄) − E H(p), means what it says only for a calibrated
model. Latency was measured in alternation with the teacher on $device with $threads thread(s); parentheses hold
the interquartile range.

![Learning curve](learning_curve.svg)

## How to use it

Check the files first (`sha256sum`, hashes below): `torch.export.load` should only see an archive that you trust.

```python
import torch

model = torch.export.load("model.pt2").module()
with torch.no_grad():
    logits = model(x)  # x: $inputs
```

$onnx

$scaling

$weights

## What it comes from

```json
$lineage
```

The job, as it was resolved:

```json
$spec
```

## Limits

- The numbers hold for data like the $split split. Nothing was measured on any other, nor on shifted or hostile
  inputs.
- One seed was run. Differences between networks trained from different seeds can exceed the intervals above, which
  cover the choice of examples only.
- A student takes over errors and biases of its teacher, and may add its own for rare classes, which the
  averages above hide.
- MACs are not time. Measure latency on the hardware that will run it.

## Files

$files

$verification`manifest.json` repeats these hashes beside seed and versions.
""")


ONNX_USE = """`model.onnx` is the same network for ONNX Runtime and whatever else reads ONNX:

```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(logits_as_array,) = session.run(["logits"], {"input": x.numpy()})
```"""


def model_card(
    *,
    report: Report,
    architecture: Mapping[str, Any] | None,
    spec: Mapping[str, Any],
    lineage: Mapping[str, Any],
    inputs: Inputs,
    files: Mapping[str, FileFacts],
    without_onnx: str | None = None,
) -> str:
    """README.md of an artifact whose other files are `files`; `without_onnx` says why there is no model.onnx."""
    return CARD.substitute(
        title="Student" if architecture is None else f"Student: {architecture['name']}",
        examples=report.examples,
        split=report.split,
        findings="\n".join(f"- {finding.text}" for finding in report.findings),
        table=measures_table(report),
        device=report.environment.device,
        threads=report.environment.threads,
        inputs=f"{inputs.dtype}, shape ({', '.join(['batch', *map(str, inputs.shape)])})",
        onnx=ONNX_USE if without_onnx is None else f"There is no `model.onnx`: {without_onnx}.",
        scaling=_scaling(inputs.scaling),
        weights=_weights(architecture),
        lineage=_json(lineage),
        spec=_json(spec),
        verification=_verification(report.verification),
        files=_table(
            ["file", "bytes", "SHA-256"], [[f"`{name}`", f"{f.size:,}", f"`{f.sha256}`"] for name, f in files.items()]
        ),
    )


def measures_table(report: Report) -> str:
    """A Markdown table with a column for each model; rows that no model has a number for are left out."""
    columns = {"teacher": report.teacher, "student": report.student}
    if report.control is not None:
        columns["control"] = report.control
    comparisons = {"student": report.comparison, "control": report.control_comparison}
    rows = [[label, *(cell(measures) for measures in columns.values())] for label, cell in ROWS.items()]
    for index, entry in enumerate(report.teacher.latency):
        label = f"latency, batch {entry.batch}"
        rows.append([label, *(_latency(measures, index) for measures in columns.values())])
    for label, get in COMPARED_ROWS.items():
        compared = [comparisons.get(name) for name in columns]
        rows.append([label, *("" if comparison is None else get(comparison) for comparison in compared)])
    return _table(["", *columns], [row for row in rows if any(row[1:])])


def _percent(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def _nats(value: float | Interval | None) -> str:
    if isinstance(value, Interval):
        return f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]"
    return "" if value is None else f"{value:.4f}"


def _latency(measures: Measures, index: int) -> str:
    entry = measures.latency[index]
    return f"{entry.median_seconds * 1000:.3g} ms ({entry.iqr_seconds * 1000:.2g})"


ROWS: dict[str, Callable[[Measures], str]] = {
    "accuracy": lambda m: _percent(m.accuracy),
    "negative log-likelihood": lambda m: _nats(m.nll),
    "predictive entropy E H(p)": lambda m: _nats(m.predictive_entropy),
    "marginal entropy H(p̄)": lambda m: _nats(m.marginal_entropy),
    "claimed information I(X;Ŷ)": lambda m: _nats(m.claimed_information),
    "label information I(Y;Ŷ)": lambda m: _nats(m.label_information),
    "calibration error": lambda m: "" if m.calibration_error is None else f"{m.calibration_error:.1%}",
    "parameters": lambda m: f"{m.parameters:,}",
    "MACs per example": lambda m: f"{m.macs:,}",
    "bytes on disk": lambda m: f"{m.bytes:,}",
}
COMPARED_ROWS: dict[str, Callable[[Comparison], str]] = {
    "agreement": lambda c: _percent(c.agreement),
    "agreement on the teacher's errors": lambda c: _percent(c.agreement_on_teacher_errors),
    "KL(teacher‖model)": lambda c: _nats(c.kl_teacher_student),
    "KL(model‖teacher)": lambda c: _nats(c.kl_student_teacher),
    "Jensen–Shannon": lambda c: _nats(c.jensen_shannon),
}


def _scaling(scaling: Scaling | None) -> str:
    if scaling is None:
        return "Prepare inputs as those of the dataset were prepared."
    return (
        "Inputs are scaled as they were in training, per channel: "
        f"`x = (raw * {scaling.factor!r} - mean) / std` with `mean = {list(scaling.mean)}` and "
        f"`std = {list(scaling.std)}`."
    )


def _weights(architecture: Mapping[str, Any] | None) -> str:
    if architecture is None:
        return "`model.safetensors` holds its weights, by the names that `model.pt2` uses."
    return (
        "The weights alone, as a plain state dict:\n\n```python\nfrom safetensors.torch import load_file\n\n"
        f'state = load_file("model.safetensors")\n```\n\nThey belong to this architecture:\n\n```json\n'
        f"{_json(architecture)}\n```"
    )


def _verification(files: Sequence[FileVerification]) -> str:
    """How far each file is from the trained model; nothing where none was verified."""
    if not files:
        return ""
    rows = [
        [f"`{f.file}`", f"`{f.tool}` {f.version}", str(f.examples), f"{f.max_abs_difference:.2g}", f"{f.tolerance:.2g}"]
        for f in files
    ]
    table = _table(["file", "opened with", "examples", "largest difference", "tolerance"], rows)
    return (
        "Before they were published, a fresh process opened these and compared their logits with the trained model's, "
        f"on all of the examples together and on one alone:\n\n{table}\n\n"
    )


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
