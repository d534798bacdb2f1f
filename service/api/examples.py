"""Examples of every body, as documentation and for tests; each validates against its model."""

from collections.abc import Mapping
from typing import Any

UPLOAD = "upl_01ktcz5vwm9j6p2n4qe8rhsxtb"
MODEL = "mdl_01ktcz5vwm9j6p2n4qe8rhsxtb"
DATASET = "dat_01ktcz6h4x0t8v3w7pc5dnmgae"
JOB = "job_01ktczc2q5y8n4s6bk1gx7wfrj"
SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
NOW = "2026-01-05T09:30:00.000Z"

RESNET20 = {"name": "resnet20", "options": {"input_shape": [1, 28, 28], "num_classes": 10}}
RESNET8 = {"name": "resnet8", "options": {"input_shape": [1, 28, 28], "num_classes": 10}}
MODEL_REQUEST = {
    "name": "teacher",
    "files": {"model.safetensors": UPLOAD},
    "architecture": RESNET20,
    "labels": {"team": "vision"},
}
DATASET_REQUEST = {
    "name": "digits",
    "files": {"data.npz": UPLOAD},
    "splits": {"validation": 0.1, "test": 0.2, "seed": 0, "stratify": True},
    "transform": {"normalize": {"mean": [0.13], "std": [0.31]}},
}
TRAINING = {
    "epochs": 30,
    "batch_size": 128,
    "optimizer": {"name": "adamw", "lr": 0.001, "weight_decay": 0.01},
    "schedule": {"name": "cosine", "warmup_epochs": 1},
    "early_stopping": None,
    "precision": "auto",
}
JOB_REQUEST = {
    "type": "distill",
    "teacher": MODEL,
    "dataset": DATASET,
    "seed": 0,
    "student": {"architecture": {"name": "resnet8", "options": {}}},
    "config": {
        "objective": {"name": "kd", "temperature": 3.0, "alpha": 0.5, "label_smoothing": 0.0},
        "training": TRAINING,
        "control": False,
    },
    "labels": {"team": "vision"},
}
SPEC = JOB_REQUEST | {"student": {"architecture": RESNET8}, "deadline_seconds": None}
MODEL_REQUESTS: dict[str, Any] = {
    "weights": {"summary": "Weights of a built-in architecture", "value": MODEL_REQUEST},
    "graph": {
        "summary": "Any network, exported with torch.export",
        "value": {"name": "teacher", "files": {"model.pt2": UPLOAD}},
    },
}
DATASET_REQUESTS: dict[str, Any] = {"arrays": {"summary": "Arrays, to be divided", "value": DATASET_REQUEST}}
PRUNE_REQUEST = {
    "type": "prune", "model": MODEL, "dataset": DATASET, "seed": 0,
    "config": {
        "target": {"macs": 0.25},
        "criterion": {"name": "output_kl", "mode": "linearised", "ablation": "residual"},
        "schedule": {"name": "interleaved", "step": 0.15}, "allocation": "per_mac",
        "calibration": {"examples": 512}, "refit": {"examples": 2000, "ridge": "auto"}, "recovery": None,
    },
}  # fmt: skip
ANALYZE_REQUEST = {
    "type": "analyze", "models": [MODEL], "dataset": DATASET, "seed": 0,
    "config": {"criteria": ["output_kl", {"name": "taylor"}], "layers": True, "calibration": {"examples": 512}},
}  # fmt: skip
JOB_REQUESTS: dict[str, Any] = {
    "distill": {"summary": "Distil into a smaller network", "value": JOB_REQUEST},
    "shortest": {
        "summary": "Every default",
        "value": {key: JOB_REQUEST[key] for key in ("type", "teacher", "dataset", "student")},
    },
    "prune": {"summary": "Prune to a quarter of the MACs", "value": PRUNE_REQUEST},
    "prune_as_far_as_it_goes": {
        "summary": "Prune while the accuracy holds",
        "value": {
            **{key: PRUNE_REQUEST[key] for key in ("type", "model", "dataset")},
            "config": {"target": {"max_accuracy_drop": 0.01}},
        },
    },
    "analyze": {"summary": "Measure a model from the outside and the inside", "value": ANALYZE_REQUEST},
}


def _file(kind: str, resource: str, path: str) -> dict[str, Any]:
    return {"path": path, "size": 1090000, "sha256": SHA256, "url": f"/v1/{kind}/{resource}/files/{path}"}


def _links(kind: str, resource: str) -> dict[str, str]:
    return {"self": f"/v1/{kind}/{resource}", "archive": f"/v1/{kind}/{resource}/archive"}


UNITS = {
    "groups": [
        {"name": "layer1.0.conv1", "kind": "channels", "units": 16, "parameters_per_unit": 290,
         "macs_per_unit": 225792, "bytes_per_unit": 1168, "statistics": False,
         "tensors": ["layer1.0.conv1.weight", "layer1.0.bn1.weight", "layer1.0.bn1.bias", "layer1.0.bn1.running_mean"],
         "tensors_left_out": 2},
    ],
    "groups_left_out": 11,
    "pinned": [
        {"operator": "output", "node": "output", "reason": "the network's output", "channels": 10,
         "tensors": ["fc.weight", "fc.bias"], "tensors_left_out": 0},
    ],
    "pinned_left_out": 0,
    "floor": {"parameters": 788, "macs": 237376, "bytes": 3656},
}  # fmt: skip
MODEL_VIEW = {
    "id": MODEL, "name": "teacher", "state": "ready", "error": None, "created_at": NOW,
    "labels": {"team": "vision"}, "files": [_file("models", MODEL, "model.safetensors")],
    "links": _links("models", MODEL), "bytes": 1090000, "architecture": RESNET20, "lineage": None,
    "format": "safetensors", "parameters": 272186, "macs": 31260000,
    "inputs": [{"name": "input", "shape": ["batch", 1, 28, 28], "dtype": "float32"}],
    "outputs": [{"name": "logits", "shape": ["batch", 10], "dtype": "float32"}], "units": UNITS, "notes": [],
}  # fmt: skip
DATASET_VIEW = {
    "id": DATASET, "name": "digits", "state": "ready", "error": None, "created_at": NOW, "labels": {},
    "files": [_file("datasets", DATASET, "data.npz")], "links": _links("datasets", DATASET),
    "bytes": 3920000, "task": "classification", "splits": {"train": 3500, "validation": 500, "test": 1000},
    "input_shape": [1, 28, 28], "dtype": "uint8", "num_classes": 10, "class_counts": {"test": [100] * 10},
    "range": [0.0, 255.0], "labelled": True, "scaling": {"factor": 0.00392156862745098},
    "division": {"named": False, "seed": 0, "stratify": True},
    "transform": {"normalize": {"mean": [0.13], "std": [0.31]}},
}  # fmt: skip
JOB_VIEW = {
    "id": JOB, "type": "distill", "done": False, "state": "running", "reason": None,
    "stage": {"name": "train student", "index": 2, "total": 5},
    "progress": {"fraction": 0.4, "step": 320, "total_steps": 800, "eta_seconds": 41.0, "updated_at": NOW},
    "attempt": 1, "queue_position": None, "heartbeat_at": NOW, "durations": {"queued": 0.2, "running": None},
    "result": None, "error": None, "links": {"self": f"/v1/jobs/{JOB}", "events": f"/v1/jobs/{JOB}/events"},
    "spec": SPEC, "warnings": [], "labels": {"team": "vision"}, "created_at": NOW, "started_at": NOW,
    "finished_at": None,
}  # fmt: skip


def _interval(value: float, half: float = 0.01) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def _measures(accuracy: float, parameters: int, macs: int) -> dict[str, Any]:
    return {
        "accuracy": _interval(accuracy), "nll": 0.09, "predictive_entropy": 0.07, "marginal_entropy": 2.3,
        "claimed_information": 2.23, "label_information": 2.18, "calibration_error": 0.008,
        "reliability": [{"confidence": 0.99, "accuracy": 0.985, "examples": 67}], "parameters": parameters,
        "macs": macs, "bytes": 4 * parameters,
        "latency": [{"batch": 1, "median_seconds": 0.0021, "iqr_seconds": 0.0002}],
    }  # fmt: skip


REPORT = {
    "job": JOB, "split": "test", "examples": 1000, "teacher": _measures(0.98, 272186, 31260000),
    "student": _measures(0.97, 77754, 9530000), "control": None,
    "comparison": {
        "agreement": _interval(0.975), "agreement_on_teacher_errors": _interval(0.4, 0.2),
        "kl_teacher_student": _interval(0.04), "kl_student_teacher": _interval(0.05),
        "jensen_shannon": _interval(0.012, 0.003), "mcnemar": {"b": 18, "c": 8, "p_value": 0.076},
        "latency_ratio": 0.45, "macs_ratio": 0.305, "parameters_ratio": 0.286,
    },
    "control_comparison": None,
    "by_class": {"classes": 10, "outcomes": [
        {"label": 3, "name": None, "examples": 100, "teacher_recall": _interval(0.97, 0.03),
         "teacher_precision": _interval(0.98, 0.03), "student_recall": _interval(0.95, 0.04),
         "student_precision": _interval(0.96, 0.04), "agreement": _interval(0.96, 0.04), "kl": 0.06},
    ]},
    "by_input": {
        "kl": {"mean": 0.04, "quantiles": {"0": 1e-6, "50": 0.006, "95": 0.2, "100": 1.4},
               "edges": [0.001, 0.01, 0.1, 1.0, 10.0], "histogram": [610, 280, 105, 5]},
        "jensen_shannon": {"mean": 0.012, "quantiles": {"0": 2e-7, "50": 0.002, "95": 0.06, "100": 0.4},
                           "edges": [0.001, 0.01, 0.1, 1.0], "histogram": [790, 190, 20]},
        "most_different": [
            {"row": 417, "label": 3, "name": None, "teacher": {"label": 3, "name": None, "probability": 0.91},
             "student": {"label": 5, "name": None, "probability": 0.77}, "kl": 1.4},
        ],
    },
    "selection": {"selected": "best", "epoch": 27, "other": "last", "other_epoch": 30,
                  "other_accuracy": _interval(0.969), "other_nll": 0.1},
    "environment": {"device": "cpu", "threads": 2, "precision": "float32", "versions": {"torch": "2.13.0"}},
    "stages": [{"name": "train student", "seconds": 71.2, "accuracy": 0.97, "kl": 0.04}],
    "findings": [{"text": "The student answers as its teacher does on 97.5% of the examples.",
                  "numbers": {"agreement": 0.975}}],
    "verification": [
        {"file": "model.onnx", "sha256": SHA256, "tool": "onnxruntime.InferenceSession", "version": "1.27.0",
         "examples": 64, "max_abs_difference": 2.9e-06, "tolerance": 0.0011},
    ],
}  # fmt: skip
EVENT = {"id": 17, "at": NOW, "kind": "state", "data": {"state": "running"}}
WORKER = {
    "id": "wrk_01ktcz1p8n", "queue": "jobs", "alive": True, "busy": True, "job_id": JOB, "started_at": NOW,
    "heartbeat_at": NOW, "facts": {"device": "cpu", "threads": 2},
}  # fmt: skip
ENTRY = {
    "name": "resnet8", "summary": "Residual network for small images (three stages).", "source": "He et al. 2016",
    "options": {"type": "object", "properties": {"num_classes": {"type": "integer"}}},
}  # fmt: skip


CRITERION = {
    "name": "output_kl", "summary": "How far the outputs move when the unit goes; needs no labels. The default.",
    "source": "Stillhouse; linearised, it is close to the Fisher score of Theis et al. 2018",
    "options": {"type": "object", "properties": {"mode": {"enum": ["linearised", "exact", "screened"]}}},
    "formula": "E KL(p || p_i)", "comparable": True,
    "cost": "linearised: one backward pass for each class (or probe); exact: one pass for each unit",
    "needs_labels": False, "needs_inputs": True,
}  # fmt: skip
OBJECTIVE = {
    "name": "kd", "summary": "Hinton's distillation: hard labels and the teacher's tempered outputs. The default.",
    "source": "Hinton, Vinyals and Dean 2015", "formula": "α · CE(y, s) + (1 − α) · T² · KL(p ‖ q)",
    "options": {"type": "object", "properties": {"temperature": {"type": "number"}}}, "needs_labels": False,
    "task": "classification", "presets": {"cifar100": {"temperature": 4.0, "alpha": 0.1}},
}  # fmt: skip


def _page(item: dict[str, Any]) -> dict[str, Any]:
    return {"items": [item], "next_page_token": None}


EXAMPLES: Mapping[str, Any] = {
    "UploadDone": {"id": UPLOAD, "size": 60000, "sha256": SHA256},
    "UploadBegun": {"id": UPLOAD, "offset": 0, "length": 60000},
    "ModelView": MODEL_VIEW,
    "ModelPage": _page(
        {**MODEL_VIEW, "units": {**UNITS, "groups": [], "groups_left_out": 12, "pinned": [], "pinned_left_out": 1}}
    ),
    "DatasetView": DATASET_VIEW,
    "DatasetPage": _page(DATASET_VIEW),
    "JobView": JOB_VIEW,
    "JobPage": _page(JOB_VIEW),
    "Validation": {
        "valid": True, "resolved": {**PRUNE_REQUEST, "labels": {}, "deadline_seconds": None}, "reachable": True,
        "floor": {"macs": 0.021, "params": 0.014, "bytes": 0.017},
        "pinned": ["output (output): 10 channels, the network's output"], "warnings": [],
    },
    "CancelRequest": {},
    "EventPage": _page(EVENT),
    "Series": {"series": {"validation/accuracy": [[100, 0.91], [200, 0.93]]}},
    "Report": REPORT,
    "Catalogue": _page(ENTRY),
    "Criteria": _page(CRITERION),
    "Objectives": _page(OBJECTIVE),
    "WorkerPage": _page(WORKER),
    "Alive": {"status": "alive"},
    "Ready": {"status": "ready", "checks": [{"name": "database", "ok": True, "detail": "answers"}]},
}  # fmt: skip
