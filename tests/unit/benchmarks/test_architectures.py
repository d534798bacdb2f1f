"""The rows of docs/architectures.md: measured, and a failure is shown as one."""

import pytest

from benchmarks import architecture_row, architectures
from tests.architectures import ARCHITECTURES, PUBLISHED

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ["lenet", "bert"])
def test_a_network_passes_every_column(name: str) -> None:
    facts = architecture_row.row(name)
    assert architectures.failures(facts) == []
    assert facts["exact"]
    assert facts["trains"]
    assert facts["groups"] > 0
    assert 0 < facts["prunable"] <= 1
    for count in ("parameters", "macs"):
        before, after = facts[count]
        assert after < before
    assert "fails" not in " ".join(architectures.cells(facts))


def test_a_failure_is_shown_with_its_reason() -> None:
    def refuse() -> None:
        raise RuntimeError("no such | operator")

    facts = {"name": "lenet", "failures": {}, "exact": True, "masked": 0.5}
    architecture_row.step(facts, "onnx", refuse)
    assert architectures.failures(facts) == ["onnx", "masked"]
    shown = architectures.cells(facts)
    assert "**fails**: RuntimeError: no such \\| operator" in shown
    assert "**no**: 5e-01" in shown


def test_every_network_has_a_row() -> None:
    assert architectures.LABELS.keys() == ARCHITECTURES.keys() | PUBLISHED.keys()
