import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import fx, nn

from service.contract.errors import Invalid
from service.contract.specs import Architecture, DistillSpec
from tests.unit.training.blobs import blobs, small_network
from workers.graph.layer_graph import LayerGraph
from workers.material import built, held_out, redrawn, selection_of, student_architecture
from workers.training.outcome import TrainingOutcome, copied_state


def outcome(best: int, last: int) -> TrainingOutcome:
    state = copied_state(small_network())
    return TrainingOutcome(state, state, last, best, 10, stopped_early=False, precision="float32", history=())


@pytest.mark.parametrize(("which", "epoch", "other_epoch"), [("best", 3, 7), ("last", 7, 3)])
def test_the_selection_names_both_candidates(which: Literal["best", "last"], epoch: int, other_epoch: int) -> None:
    selection = selection_of(outcome(best=3, last=7), which)
    assert (selection.selected, selection.epoch, selection.other_epoch) == (which, epoch, other_epoch)
    assert selection.other != which


def test_there_is_no_other_candidate_when_the_last_epoch_is_the_best() -> None:
    selection = selection_of(outcome(best=7, last=7), "best")
    assert (selection.other, selection.other_epoch) == (None, None)


def test_the_report_is_written_on_the_test_split_or_else_the_next_best() -> None:
    dataset = blobs()
    assert held_out(dataset) == ("validation", dataset.validation)
    assert held_out(replace(dataset, test=dataset.train)) == ("test", dataset.train)
    assert held_out(replace(dataset, validation=None)) == ("train", dataset.train)


def test_a_network_is_built_with_the_seeds_weights() -> None:
    options = {"input_shape": [6], "num_classes": 3, "hidden": [4]}
    architecture = Architecture.model_validate({"name": "mlp", "options": options})
    first, again, other = (built(architecture, seed).state_dict()["fc1.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "input_shape and num_classes"), ({"input_shape": [1, 4, 4], "num_classes": 3}, "at least")],
)
def test_options_that_do_not_go_together_are_told_with_their_field(options: dict[str, object], message: str) -> None:
    architecture = Architecture.model_validate({"name": "lenet5", "options": options})
    with pytest.raises(Invalid, match=message) as caught:
        built(architecture, 0)
    assert caught.value.errors[0].pointer == "/student/architecture/options"


def test_a_students_shapes_are_what_inspection_found_of_a_teacher_without_an_architecture(tmp_path: Path) -> None:
    facts = {"inputs": [{"shape": ["batch", 3, 8, 8]}], "outputs": [{"shape": ["batch", 7]}]}
    (tmp_path / "model.json").write_text(json.dumps({"architecture": None, "facts": facts}))
    teacher = "mdl_" + "0" * 26
    body = {"type": "distill", "teacher": teacher, "dataset": "dat_" + "0" * 26}
    spec = DistillSpec.model_validate({**body, "student": {"architecture": {"name": "lenet5"}}})
    completed = student_architecture(spec, {teacher: tmp_path})
    assert completed is not None
    assert (completed.options.input_shape, completed.options.num_classes) == ((3, 8, 8), 7)


def test_a_graph_with_a_parameter_of_no_layer_cannot_be_reset_and_says_which() -> None:
    root, graph = nn.Module(), fx.Graph()
    root.register_parameter("token", nn.Parameter(torch.zeros(3)))
    graph.output(graph.get_attr("token"))
    with pytest.raises(Invalid, match="token belong to no layer") as caught:
        redrawn(LayerGraph.assemble(root, graph, {}), 0)
    assert caught.value.errors[0].pointer == "/student/reset"
