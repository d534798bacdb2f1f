"""Built-in architectures as graphs: nothing about them changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from service.contract.specs import Architecture
from tests.architectures import exported
from workers.evaluation.cost import measure_cost
from workers.formats.models import load_as_graph, load_model, write_canonical, write_description
from workers.formats.tracing import as_graph
from workers.graph.cost import graph_cost
from workers.graph.groups import find_groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.surgery import remove
from workers.students.architectures import ARCHITECTURES, build

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [7, 5], "dropout": 0.25},
    "wrn": {"depth": 10, "width": 1, "dropout": 0.25},
    "vgg": {"depth": 11},
}
SHAPES = {"mlp": (2, 3), "lenet_300_100": (1, 8, 8), "lenet5": (1, 28, 28), "vgg": (3, 32, 32)}


def shape_of(name: str) -> tuple[int, ...]:
    return SHAPES.get(name, (3, 8, 8))


def network(name: str) -> nn.Module:
    """With statistics that are not the initial ones."""
    made = build(name, OPTIONS.get(name, {}), input_shape=shape_of(name), num_classes=4, seed=1)
    made(batch(name, 8))
    return made.eval()


def batch(name: str, examples: int) -> Tensor:
    return torch.randn(examples, *shape_of(name), generator=torch.Generator().manual_seed(examples))


def trained_step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Gradients and buffers after one step in training mode, dropout drawn from one seed."""
    torch.manual_seed(5)
    model.train().zero_grad()
    model(x).square().sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return gradients | dict(model.named_buffers())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_built_in_network_is_the_same_as_a_graph(name: str) -> None:
    model = network(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    graph = as_graph(model, shape_of(name))
    assert isinstance(graph, LayerGraph)
    assert not graph.training
    assert graph.state_dict().keys() == before.keys()
    assert all(torch.equal(graph.state_dict()[key], tensor) for key, tensor in before.items())
    with torch.no_grad():
        for examples in (1, 2, 5):
            assert torch.equal(graph(batch(name, examples)), model(batch(name, examples)))
    cost, expected = graph_cost(graph), measure_cost(model, shape_of(name))
    assert (cost.parameters, cost.macs, cost.bytes) == (expected.parameters, expected.macs, expected.bytes)


@pytest.mark.parametrize("name", ["mlp", "lenet5", "resnet8", "wrn", "mobilenetv2"])
def test_it_trains_as_the_original_does_and_leaves_it_alone(name: str) -> None:
    model = network(name)
    graph = as_graph(model, shape_of(name))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    found = trained_step(graph, batch(name, 6))
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in before.items())
    expected = trained_step(model, batch(name, 6))
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_network_in_training_keeps_its_mode_and_its_statistics() -> None:
    model = network("resnet8").train()
    as_graph(model, shape_of("resnet8"))
    assert all(module.training for module in model.modules())
    assert int(model.state_dict()["bn1.num_batches_tracked"]) == 1


def test_a_graph_passes_through() -> None:
    graph = as_graph(network("mlp"), shape_of("mlp"))
    assert as_graph(graph, shape_of("mlp")) is graph


def test_a_built_in_network_can_be_pruned() -> None:
    graph = as_graph(network("resnet8"), shape_of("resnet8"))
    pruned = remove(graph, {name: range(group.num_units // 2) for name, group in find_groups(graph).items()})
    assert graph_cost(pruned).parameters < graph_cost(graph).parameters // 3
    assert pruned(batch("resnet8", 3)).shape == (3, 4)


def test_a_canonical_folder_of_weights_is_loaded_as_a_graph(tmp_path: Path) -> None:
    model = network("resnet8")
    options = {"input_shape": shape_of("resnet8"), "num_classes": 4}
    architecture = Architecture.model_validate({"name": "resnet8", "options": options})
    write_canonical(model.state_dict(), architecture, {}, tmp_path)
    graph = load_as_graph(tmp_path)
    assert isinstance(graph, LayerGraph)
    x = batch("resnet8", 4)
    assert torch.equal(graph(x), model(x))
    assert torch.equal(graph(x), load_model(tmp_path)(x))


def test_a_canonical_folder_of_a_graph_is_loaded_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(exported("resnet8").read_bytes())
    write_description(None, {}, tmp_path)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(load_as_graph(tmp_path)(x), load_model(tmp_path)(x))
