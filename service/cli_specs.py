"""Jobs as commands ask for them: from a file, or made of options."""

import json
import sys
from pathlib import Path
from typing import Any

from service.terminal import Mistake

Json = dict[str, Any]


def spec_from(file: Path) -> Json:
    """Return the job in a file, or on stdin for "-". Raises Mistake."""
    if str(file) != "-" and not file.is_file():
        raise Mistake(f"there is no file {file}")
    text = sys.stdin.read() if str(file) == "-" else file.read_text()
    try:
        spec = json.loads(text)
    except ValueError as error:
        raise Mistake(f"{file} is not JSON: {error}") from None
    if not isinstance(spec, dict):
        raise Mistake(f'{file} holds no JSON object; a job is one, such as {{"type": "distill", …}}')
    return spec


def given(**fields: Any) -> Json:
    """Return those fields that were given; the service fills in the others."""
    return {name: value for name, value in fields.items() if value not in (None, {})}


def distillation(teacher: str, dataset: str, student: str, options: Json, config: Json) -> Json:
    """Return a distillation; the student is a registered model by its id, or a built-in architecture by its name."""
    registered = student.startswith("mdl_")
    asked = {"model": student} if registered else {"architecture": {"name": student, "options": options}}
    return {"type": "distill", "teacher": teacher, "dataset": dataset, "student": asked, **given(config=config)}


def pruning(model: str, dataset: str, target: Json, criterion: str | None, recovery: Json | None) -> Json:
    """Return a pruning; `recovery` is None where the network is not to be trained afterwards. Raises Mistake."""
    if not target:
        raise Mistake(
            "say how small: --macs 0.25 (or --params, --bytes, --latency) is the fraction that remains; "
            "or what may be lost: --max-accuracy-drop 0.01, --max-kl 0.05"
        )
    judged = None if criterion is None else {"name": criterion}
    config = {"target": target, **given(criterion=judged)}
    if recovery is not None:
        config["recovery"] = recovery
    return {"type": "prune", "model": model, "dataset": dataset, "config": config}


def training(epochs: int | None, batch_size: int | None, lr: float | None) -> Json:
    """Return how a network is trained."""
    optimizer = None if lr is None else {"name": "adamw", "lr": lr}
    return given(epochs=epochs, batch_size=batch_size, optimizer=optimizer)


def refuse(kind: str, options: Json) -> None:
    """Raise Mistake for options that say nothing to this kind of job."""
    named = ", ".join(option for option, value in options.items() if value)
    if named:
        raise Mistake(f"{named}: not of a {kind}; see stillhouse submit --help")
