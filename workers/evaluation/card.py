"""The model card: what a person needs to know who finds the artifact without its service.

Plain Markdown, made from the same numbers as report.json and from nothing else. What came from a user (labels,
options) appears only as JSON in code blocks, where it cannot become markup.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

from service.contract.reports import FileVerification, Pruning, Report
from workers.evaluation import tables
from workers.evaluation.roles import title_of
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

Information is in nats. Agreement and KL compare with the teacher.$controls
Claimed information, H(p̄) − E H(p), means what it says only for a calibrated model. Latency was measured in
alternation with the teacher on $device with $threads thread(s); parentheses hold the interquartile range.

$pruning${curve}All of this with figures is in `report.html`, which any browser opens without a network.

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
- $seeds
- A student takes over errors and biases of its teacher, and may add its own for rare classes, which the
  averages above hide.
- MACs are not time. Measure latency on the hardware that will run it.

## Files

$files

$verification`manifest.json` repeats these hashes beside seed and versions.
""")


SEEDS_TRAINED = """One seed was run. Differences between networks trained from different seeds can exceed the intervals
  above, which cover the choice of examples only."""
SEEDS_PRUNED = """One seed was run. It drew the calibration inputs; others may have removed other units. The intervals
  above cover the choice of test examples only."""
#: What would begin a tag, and what would end inline code or a cell.
TAG = re.compile(r"<(?=[A-Za-z/!?])")
UNUSUAL = re.compile(r"[^A-Za-z0-9_.:/\[\]() -]")

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
        title=title_of(report, None if architecture is None else architecture["name"]),
        examples=report.examples,
        split=report.split,
        findings="\n".join(f"- {plain(finding.text)}" for finding in report.findings),
        pruning="" if report.pruning is None else _pruning(report.pruning),
        controls=_controls(report),
        curve="![Learning curve](learning_curve.svg)\n\n" if "learning_curve.svg" in files else "",
        seeds=SEEDS_PRUNED if report.pruning is not None else SEEDS_TRAINED,
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
    return _table(*tables.measures(report))


def plain(text: str) -> str:
    """A finding's sentence, in which no name that a user gave becomes markup."""
    line = " ".join(text.split()).replace("`", "'").replace("](", "] (")
    return TAG.sub("&lt;", line)


def code(name: str) -> str:
    """A layer's name as code in a cell of a table; characters that could end either are shown as ?."""
    return f"`{UNUSUAL.sub('?', name)}`"


def _controls(report: Report) -> str:
    if report.controls:
        return (
            " The controls are networks of the same cost by other ways: another criterion with the same schedule and "
            "repair, or (scratch) the same network with new weights, trained on the labels."
        )
    if report.control is not None:
        return " The control is the same network, from the same\nseed, trained on the labels alone."
    return ""


def _pruning(pruning: Pruning) -> str:
    header, rows = tables.groups(pruning)
    table = _table(header, [[code(row[0]), *row[1:]] for row in rows])
    return (
        "## What was removed\n\nA unit is what goes from every layer that carries it: the channel of a convolution and "
        "of all that reads it. The\ncriterion was "
        f"{pruning.criterion}; steps were judged on the {pruning.split} split.\n\n{table}\n\n"
        "![Units before and after, and the way there](pruning.svg)\n\n"
    )


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
    header, rows = tables.verification(files)
    marked = [[f"`{row[0]}`", f"`{file.tool}` {file.version}", *row[2:]] for file, row in zip(files, rows, strict=True)]
    table = _table(header, marked)
    return (
        "Before they were published, a fresh process opened these and compared their logits with the trained model's, "
        f"on all of the examples together and on one alone:\n\n{table}\n\n"
    )


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
