"""A pruning as it is watched: its stages come again and again, and its series stand beside those of the recovery."""

import io
from typing import Any

from rich.console import Console

from service.watching import follow_in_lines, latest

SERIES = {"pruning/kl": [[6, 0.03], [7, 0.05]], "pruning/macs": [[7, 1184.0]], "validation/accuracy": [[2, 0.875]]}


def job(stage: str, index: int, fraction: float) -> dict[str, Any]:
    return {
        "state": "running",
        "done": False,
        "stage": {"name": stage, "index": index, "total": 8},
        "progress": {"fraction": fraction, "eta_seconds": None},
    }


def test_a_stage_that_comes_again_is_one_line_each_time() -> None:
    out = io.StringIO()
    step = [
        job(name, index, n / 10 + 0.05) for index, name in enumerate(("scoring", "refitting"), 2) for n in range(10)
    ]
    list(follow_in_lines(iter(step * 3), lambda _: "", Console(file=out, width=200)))
    assert [line.split()[2] for line in out.getvalue().splitlines()] == [
        *["scoring"] * 10,
        *["refitting"] * 10,
        *["scoring", "refitting"] * 2,
    ]


def test_while_steps_are_taken_the_last_one_is_told_of() -> None:
    assert latest(SERIES, "scoring") == "step 7: pruning/kl 0.05  pruning/macs 1184"


def test_the_recovery_tells_of_its_own_series() -> None:
    assert latest(SERIES, "recovering") == "validation/accuracy 0.875"
