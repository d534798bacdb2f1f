"""Models that arrive as archives of torch.export: what they become, and which of them a job could not use."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from service.contract.errors import InputRejected
from service.contract.specs import ModelDeclaration
from tests.unit.formats.declared import UPLOAD, declare_model, read_model_in
from tests.unit.formats.pt2_forgery import forge, records
from workers.evaluation.cost import measure_cost
from workers.formats.artifacts import export_program, write_safetensors
from workers.formats.models import load_architecture, load_model
from workers.graph.layer_graph import LayerGraph
from workers.graph.redrawing import redraw

pytestmark = pytest.mark.usefixtures("one_thread")

DECLARED = ModelDeclaration.model_validate({"name": "m", "files": {"model.pt2": UPLOAD}})
BATCH = {0: Dim("batch")}
X = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """A stem, one residual block with batch norms, and a classifier."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        y = torch.relu(y + self.norm(self.conv(y)))
        logits: Tensor = self.head(self.dropout(y.mean((2, 3))))
        return logits


def network() -> nn.Module:
    torch.manual_seed(3)
    model = Residual()
    model(X)  # batch norms leave their initial statistics
    return model.eval()


def export(model: nn.Module, folder: Path, *inputs: Tensor, dynamic: Any = (BATCH,)) -> Path:
    program = torch.export.export(model.eval(), inputs or (X[:2],), dynamic_shapes=dynamic)
    torch.export.save(program, folder / "model.pt2")
    return folder


def rejected(folder: Path) -> InputRejected:
    with pytest.raises(InputRejected) as caught:
        read_model_in(folder, DECLARED)
    return caught.value


def test_an_archive_becomes_the_same_network_without_its_class(tmp_path: Path) -> None:
    model = network()
    facts, out = read_model_in(export(model, tmp_path), DECLARED)
    loaded = load_model(out)
    assert isinstance(loaded, LayerGraph)
    assert not loaded.training
    torch.testing.assert_close(loaded(X), model(X), rtol=0, atol=0)
    torch.testing.assert_close(dict(loaded.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert load_architecture(out) is None
    assert json.loads((out / "model.json").read_text()) == {"architecture": None, "facts": facts}


def test_its_facts_are_those_of_the_network(tmp_path: Path) -> None:
    model = network()
    facts, _ = read_model_in(export(model, tmp_path), DECLARED)
    cost = measure_cost(model, (1, 8, 8))
    assert (facts["parameters"], facts["macs"], facts["bytes"]) == (cost.parameters, cost.macs, cost.bytes)
    assert (
        facts["peak_activation_bytes"] == 3 * (6 * 8 * 8) * 4
    )  # the block's input, and what its norm reads and writes
    assert (facts["format"], facts["architecture"], facts["notes"]) == ("pt2", None, [])
    assert [(group["name"], group["units"]) for group in facts["units"]["groups"]] == [("stem", 6)]
    assert facts["inputs"] == [{"name": "x", "shape": ["batch", 1, 8, 8], "dtype": "float32"}]
    assert facts["outputs"] == [{"name": "logits", "shape": ["batch", 10], "dtype": "float32"}]


def test_the_canonical_archive_holds_what_is_read_and_no_sample_inputs(tmp_path: Path) -> None:
    export(network(), tmp_path)
    forge(tmp_path / "model.pt2", tmp_path / "other.pt2", {"data/sample_inputs/model.pt": b"anything at all"})
    (tmp_path / "other.pt2").rename(tmp_path / "model.pt2")
    _, out = read_model_in(tmp_path, DECLARED)
    before, after = records(tmp_path / "model.pt2"), records(out / "model.pt2")
    assert "data/sample_inputs/model.pt" in before
    assert not [name for name in after if "sample_inputs" in name]
    assert all(after[name] == before[name] for name in after)
    with zipfile.ZipFile(out / "model.pt2") as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}


def test_the_canonical_archive_is_read_to_the_same_canonical_archive(tmp_path: Path) -> None:
    _, out = read_model_in(export(network(), tmp_path), DECLARED)
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "model.pt2").write_bytes((out / "model.pt2").read_bytes())
    _, twice = read_model_in(tmp_path / "again", DECLARED)
    assert (twice / "model.pt2").read_bytes() == (out / "model.pt2").read_bytes()


def test_training_a_loaded_network_leaves_its_archive_alone(tmp_path: Path) -> None:
    _, out = read_model_in(export(network(), tmp_path), DECLARED)
    before = (out / "model.pt2").read_bytes()
    loaded = load_model(out).train()
    with torch.no_grad():
        for weight in loaded.parameters():
            weight.add_(1.0)
    loaded(X)
    assert (out / "model.pt2").read_bytes() == before


def test_what_a_job_writes_of_a_graph_is_a_model_again(tmp_path: Path) -> None:
    _, out = read_model_in(export(network(), tmp_path), DECLARED)
    trained = load_model(out).train()
    with torch.no_grad():
        trained(X + 1)  # statistics move
        next(trained.parameters()).mul_(1.5)
    (tmp_path / "artifact").mkdir()
    export_program(trained.eval(), X, tmp_path / "artifact" / "model.pt2")
    _, again = read_model_in(tmp_path / "artifact", DECLARED)
    loaded = load_model(again)
    torch.testing.assert_close(dict(loaded.state_dict()), dict(trained.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(loaded(X), trained(X), rtol=0, atol=0)


def test_weights_beside_an_archive_take_the_place_of_its_own(tmp_path: Path) -> None:
    _, out = read_model_in(export(network(), tmp_path), DECLARED)
    other = load_model(out)
    with torch.no_grad():
        next(other.parameters()).mul_(2.0)
    write_safetensors(other, out / "model.safetensors", {})
    torch.testing.assert_close(load_model(out)(X), other(X), rtol=0, atol=0)


# Refused ---------------------------------------------------------------------------------------------------------


def test_an_architecture_beside_an_archive_is_one_too_many(tmp_path: Path) -> None:
    export(network(), tmp_path)
    with pytest.raises(InputRejected) as caught:
        read_model_in(tmp_path, declare_model("model.pt2"))
    assert caught.value.specific_code == "architecture_unexpected"


def test_a_baked_batch_is_refused_with_the_way_out(tmp_path: Path) -> None:
    error = rejected(export(network(), tmp_path, X[:1], dynamic=None))
    assert error.specific_code == "batch_baked"
    assert "['1', '1', '8', '8']" in error.detail
    assert "batch of 2 or more and a dynamic dimension 0" in error.detail


class Calling(nn.Module):
    """A function with one weight, as a module."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.weight, self.call = nn.Parameter(torch.ones(())), call

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(self.weight, *inputs)


PAIR = torch.zeros(2, 4)
UNUSABLE: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], str, str]] = {
    "two inputs": (lambda w, a, b: w * a + b, (PAIR, PAIR), "signature_refused", "takes 2 tensors"),
    "two outputs": (lambda w, a: (w * a, a + 1), (PAIR,), "signature_refused", "returns 2 tensors"),
    "narrow token ids": (lambda w, a: w * a.float(), (PAIR.int(),), "dtype_refused", "int32"),
    "integer pictures": (lambda w, a: w * a[:, 0].float(), (PAIR.long()[:, None],), "dtype_refused", "3 dimensions"),
    "float64": (lambda w, a: w * a, (PAIR.double(),), "dtype_refused", "float64"),
    "numbers": (lambda w, a: w * a, (torch.zeros(2),), "signature_refused", "1 dimensions"),
    "pictures out": (lambda w, a: (w * a)[:, None], (PAIR,), "signature_refused", "row of logits"),
    "one answer for all": (lambda w, a: (w * a).sum(0, keepdim=True), (PAIR,), "signature_refused", "row of logits"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_network_that_no_job_could_use_is_refused(tmp_path: Path, what: str) -> None:
    call, inputs, code, phrase = UNUSABLE[what]
    error = rejected(export(Calling(call), tmp_path, *inputs, dynamic=((BATCH,) * len(inputs),)))
    assert (error.specific_code, phrase in error.detail) == (code, True), error.detail


def test_a_second_dynamic_dimension_is_refused_by_its_number(tmp_path: Path) -> None:
    both = ({0: Dim("batch"), 2: Dim("height")},)
    error = rejected(export(network(), tmp_path, dynamic=both))
    assert error.specific_code == "signature_refused"
    assert "dimension 2 of the input x is dynamic too" in error.detail


@pytest.mark.parametrize("name", ["head.bias", "norm.running_var"])
def test_weights_and_statistics_must_be_finite(tmp_path: Path, name: str) -> None:
    model = network()
    with torch.no_grad():
        model.state_dict()[name][0] = float("inf")
    error = rejected(export(model, tmp_path))
    assert error.specific_code == "not_finite"
    assert f"{name}: 1 of" in error.detail


def test_a_mask_may_be_infinite_and_no_number_else(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self, hidden: float) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, hidden, 0.0, 0.0]))
            self.head = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(self.head(x) + self.mask, 1)

    (tmp_path / "good").mkdir()
    (tmp_path / "bad").mkdir()
    read_model_in(export(Masked(float("-inf")), tmp_path / "good", PAIR), DECLARED)
    assert "mask: 1 of 4" in rejected(export(Masked(float("nan")), tmp_path / "bad", PAIR)).detail


def test_a_bounded_batch_is_noted(tmp_path: Path) -> None:
    facts, _ = read_model_in(export(network(), tmp_path, dynamic=({0: Dim("batch", max=64)},)), DECLARED)
    assert "at most 64" in facts["notes"][0]


# Weights drawn anew ----------------------------------------------------------------------------------------------


def graph(tmp_path: Path, model: nn.Module) -> LayerGraph:
    tmp_path.mkdir(exist_ok=True)
    _, out = read_model_in(export(model, tmp_path), DECLARED)
    loaded = load_model(out)
    assert isinstance(loaded, LayerGraph)
    return loaded


def test_a_graph_draws_its_weights_anew_from_the_seed(tmp_path: Path) -> None:
    original = network()
    drawn = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        redrawn = graph(tmp_path / name, original)
        before = torch.get_rng_state()
        redraw(redrawn, seed)
        assert torch.equal(torch.get_rng_state(), before)
        drawn[name] = redrawn.state_dict()
    torch.testing.assert_close(dict(drawn["a"]), dict(drawn["b"]), rtol=0, atol=0)
    for name in ("stem.weight", "conv.weight", "head.bias"):
        assert not torch.equal(drawn["a"][name], drawn["c"][name])
        assert not torch.equal(drawn["a"][name], original.state_dict()[name])
    assert torch.equal(drawn["a"]["norm.running_mean"], torch.zeros(6))
    bound = 1 / 6**0.5  # of nn.Linear: uniform within 1 / sqrt(inputs)
    assert drawn["a"]["head.weight"].abs().max() <= bound


def test_a_parameter_of_no_layer_cannot_be_drawn_anew(tmp_path: Path) -> None:
    class WithToken(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 1, 8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + self.token)

    with pytest.raises(ValueError, match=r"^token belong to no layer"):
        redraw(graph(tmp_path, WithToken()), 1)
