import json
import re
from typing import Any

from service.contract.reports import Report
from tests.unit.evaluation.reports import answers, present, pruned_report, report
from workers.evaluation.card import FileFacts, Inputs, measures_table, model_card, plain
from workers.training.data import Scaling

REPORT = report()
ARCHITECTURE = {"name": "mlp", "options": {"hidden": [32], "input_shape": [1, 8, 8], "num_classes": 5}}
SCALED = Inputs(shape=(1, 8, 8), dtype="float32", scaling=Scaling(factor=0.5, mean=(0.13,), std=(0.31,)))
FILES = {"model.pt2": FileFacts("ab" * 32, 12_345), "model.safetensors": FileFacts("cd" * 32, 4_300)}


def card(found: Report | None = None, **changes: Any) -> str:
    parts: dict[str, Any] = {
        "report": found or REPORT,
        "architecture": ARCHITECTURE,
        "spec": {"type": "distill", "labels": {"team": "|**evil**|\n```\n<script>"}},
        "lineage": {"teacher": "mdl_a", "dataset": "dat_b", "job": "job_c"},
        "inputs": SCALED,
        "files": FILES,
    }
    return model_card(**{**parts, **changes})


def cells(table: str, label: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_table_has_a_column_for_each_model_with_intervals() -> None:
    table = measures_table(REPORT)
    assert table.splitlines()[0] == "|  | teacher | student | control |"
    accuracy = present(present(REPORT.control).accuracy)
    shown = f"{accuracy.value:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}]"
    assert cells(table, "accuracy")[2] == shown
    assert cells(table, "MACs per example") == ["400,000", "100,000", "100,000"]
    assert cells(table, "latency, batch 1") == ["2.2 ms (0.1)", "2 ms (0.1)", "2 ms (0.1)"]
    kl = present(REPORT.control_comparison).kl_teacher_student
    assert cells(table, "KL(teacher‖model)")[2] == f"{kl.value:.4f} [{kl.low:.4f}, {kl.high:.4f}]"
    assert cells(table, "agreement")[0] == ""


def test_rows_without_a_number_are_left_out() -> None:
    table = measures_table(report(*answers(labelled=False, control=False)))
    assert "accuracy" not in table
    assert "control" not in table
    assert "predictive entropy" in table


def test_every_row_has_as_many_cells_as_the_header() -> None:
    widths = {line.count("|") for line in measures_table(REPORT).splitlines()}
    assert widths == {5}


def test_every_finding_is_on_the_card() -> None:
    assert len(REPORT.findings) >= 5
    assert all(f"- {finding.text}" in card() for finding in REPORT.findings)


def test_lineage_spec_and_architecture_can_be_read_back() -> None:
    blocks = [json.loads(block) for block in re.findall(r"```json\n(.*?)\n```", card(), flags=re.DOTALL)]
    assert ARCHITECTURE in blocks
    assert {"teacher": "mdl_a", "dataset": "dat_b", "job": "job_c"} in blocks


def test_a_users_text_cannot_become_markup() -> None:
    outside = re.sub(r"^```json\n.*?^```$", "", card(), flags=re.DOTALL | re.MULTILINE)
    assert "evil" not in outside
    assert "script" not in outside


def test_hashes_and_sizes_are_listed() -> None:
    assert f"| `model.pt2` | 12,345 | `{'ab' * 32}` |" in card()


def test_the_input_and_its_scaling_are_stated() -> None:
    assert "x: float32, shape (batch, 1, 8, 8)" in card()
    assert "`x = (raw * 0.5 - mean) / std` with `mean = [0.13]` and `std = [0.31]`" in card()


def test_a_graph_without_an_architecture_is_described_without_one() -> None:
    text = card(architecture=None)
    assert text.startswith("# Student\n")
    assert "They belong to this architecture" not in text


def test_no_placeholder_is_left() -> None:
    assert not re.search(r"\$[a-z]", card())


def test_the_curve_is_shown_only_where_something_was_trained() -> None:
    assert "learning_curve.svg" not in card()
    curve = {"learning_curve.svg": FileFacts("ef" * 32, 9)}
    assert "![Learning curve](learning_curve.svg)" in card(files={**FILES, **curve})


def test_a_pruned_network_is_called_so_with_a_row_for_each_group_and_a_column_for_each_control() -> None:
    text = card(pruned_report(), architecture=None)
    assert text.startswith("# Pruned network\n")
    assert "| `conv1` | channels | 32 | 20 | 62.5% | 5,000 | 20 | 6 |" in text
    assert "(pruning.svg)" in text
    assert "|  | teacher | student | l2 | random |" in text
    assert "trained from different seeds" not in text
    assert "removed" not in card()


def test_the_name_of_a_layer_cannot_become_markup() -> None:
    text = card(pruned_report(names=("a`|<script>|\n# b](http://c)", "![x](y)")), architecture=None, spec={})
    assert "<script" not in text
    rows = [line for line in text.splitlines() if "| channels |" in line]
    assert [row.split("|")[1] for row in rows] == [" `a???script???? b](http://c)` ", " `?[x](y)` "]
    assert [row.count("|") for row in rows] == [9, 9]


def test_a_finding_that_quotes_a_name_cannot_become_markup() -> None:
    assert plain("p < 0.001 [1, 2]") == "p < 0.001 [1, 2]"
    assert plain("a\n# b <img src=x> `c` [d](e)") == "a # b &lt;img src=x> 'c' [d] (e)"
