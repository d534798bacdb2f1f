from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from service.contract import catalogue
from workers.students.architectures import ARCHITECTURES, build

# The small members of each family: they differ from the large ones in the number of blocks alone.
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("mlp", {"hidden": [12, 8], "dropout": 0.1}),
    ("lenet_300_100", {}),
    ("lenet5", {}),
    ("resnet8", {}),
    ("resnet8x4", {}),
    ("wrn", {"depth": 10, "width": 1, "dropout": 0.1}),
    ("vgg", {"depth": 8}),
    ("mobilenetv2", {"width": 0.25}),
]


NAMES = [name for name, _ in FAMILIES]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_name_of_the_catalogue_is_built_from_its_default_options() -> None:
    assert set(ARCHITECTURES) == set(catalogue.ARCHITECTURES)
    for name, options in catalogue.ARCHITECTURES.items():
        network = build(name, options().model_dump(), input_shape=(1, 28, 28), num_classes=10, seed=0)
        assert network.training


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        pytest.param(name, options, shape, id=f"{name}-{shape}")
        for name, options in FAMILIES
        for shape in [(1, 28, 28), (3, 32, 32), (1, 8, 8), (2, 32, 20)]
        if (name, shape) != ("lenet5", (1, 8, 8))  # too small for it; its refusal has its own test
    ],
)
def test_each_maps_a_batch_of_any_fitting_size_to_logits(
    name: str, options: Mapping[str, Any], shape: tuple[int, int, int]
) -> None:
    network = build(name, options, input_shape=shape, num_classes=7, seed=0).eval()
    logits = network(torch.randn(3, *shape))
    assert logits.shape == (3, 7)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(("name", "smallest"), [("lenet5", 16), ("vgg", 8), ("resnet8", 1), ("mobilenetv2", 1)])
def test_the_smallest_size_works(name: str, smallest: int) -> None:
    shape = (1, smallest, smallest)
    network = build(name, {}, input_shape=shape, num_classes=3, seed=0).eval()
    assert network(torch.zeros(2, *shape)).shape == (2, 3)


@pytest.mark.parametrize(("name", "smallest"), [("lenet5", 16), ("vgg", 8)])
def test_a_smaller_one_is_refused_by_naming_it(name: str, smallest: int) -> None:
    with pytest.raises(ValueError, match=f"{name} needs images of at least {smallest} x {smallest} pixels"):
        build(name, {}, input_shape=(1, 64, smallest - 1), num_classes=3, seed=0)


@pytest.mark.parametrize(("name", "options"), FAMILIES, ids=NAMES)
def test_the_exported_program_takes_any_batch_and_computes_the_same(name: str, options: Mapping[str, Any]) -> None:
    shape = (1, 28, 28)
    network = build(name, options, input_shape=shape, num_classes=10, seed=0).eval()
    dynamic_batch = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(network, (torch.randn(2, *shape),), dynamic_shapes=dynamic_batch)
    examples = torch.randn(5, *shape)
    torch.testing.assert_close(exported.module()(examples), network(examples))


@pytest.mark.parametrize(("name", "options"), FAMILIES, ids=NAMES)
def test_the_seed_decides_the_weights_and_nothing_else_does(name: str, options: Mapping[str, Any]) -> None:
    def logits(seed: int | None) -> torch.Tensor:
        network = build(name, options, input_shape=(1, 16, 16), num_classes=10, seed=seed).eval()
        with torch.no_grad():
            out: torch.Tensor = network(torch.linspace(-1, 1, 512).reshape(2, 1, 16, 16))
        return out

    torch.manual_seed(1)
    first = logits(5)
    torch.manual_seed(2)
    assert torch.equal(first, logits(5))
    assert not torch.equal(first, logits(6))
    assert not torch.equal(logits(None), logits(None))


@pytest.mark.parametrize("seed", [None, 0, 2**63])
def test_building_leaves_the_global_random_state_alone(seed: int | None) -> None:
    before = torch.get_rng_state()
    build("resnet8", {}, input_shape=(3, 32, 32), num_classes=10, seed=seed)
    assert torch.equal(torch.get_rng_state(), before)


def test_convolutions_start_with_he_variance_over_their_outputs() -> None:
    network = build("vgg", {"depth": 8}, input_shape=(3, 32, 32), num_classes=10, seed=0)
    weight = network.get_parameter("block3.0.weight")
    assert weight.var().item() == pytest.approx(2 / (9 * 512), rel=0.01)
    assert not network.get_parameter("block3.0.bias").any()


def test_dropout_is_active_in_training_alone() -> None:
    examples = torch.randn(4, 1, 8, 8)
    for name, options in [("mlp", {"dropout": 0.5}), ("wrn", {"depth": 10, "width": 1, "dropout": 0.5})]:
        network = build(name, options, input_shape=(1, 8, 8), num_classes=10, seed=0)
        assert not torch.equal(network(examples), network(examples))
        network.eval()
        assert torch.equal(network(examples), network(examples))


def test_a_perceptron_is_linear_layers_with_relu_between() -> None:
    network = build("mlp", {"hidden": [5, 4]}, input_shape=(2, 3), num_classes=3, seed=0)
    w = network.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in w.items()} == {
        "fc1.weight": (5, 6), "fc1.bias": (5,), "fc2.weight": (4, 5), "fc2.bias": (4,),
        "fc3.weight": (3, 4), "fc3.bias": (3,),
    }  # fmt: skip
    x = torch.randn(8, 2, 3)
    h1 = (x.reshape(8, 6) @ w["fc1.weight"].T + w["fc1.bias"]).clamp(min=0)
    h2 = (h1 @ w["fc2.weight"].T + w["fc2.bias"]).clamp(min=0)
    torch.testing.assert_close(network(x), h2 @ w["fc3.weight"].T + w["fc3.bias"])


def test_a_perceptron_without_hidden_layers_is_a_linear_classifier() -> None:
    network = build("mlp", {"hidden": []}, input_shape=(4,), num_classes=3, seed=0)
    assert sorted(network.state_dict()) == ["fc1.bias", "fc1.weight"]


def test_lenet_300_100_has_its_published_size() -> None:
    network = build("lenet_300_100", {}, input_shape=(1, 28, 28), num_classes=10, seed=0)
    assert sum(weight.numel() for weight in network.parameters()) == 266_610
    assert network.get_parameter("fc2.weight").shape == (100, 300)


def test_lenet5_is_two_convolutions_and_two_linear_layers_of_the_published_size() -> None:
    network = build("lenet5", {}, input_shape=(1, 28, 28), num_classes=10, seed=0)
    w = network.state_dict()
    assert sum(weight.numel() for weight in network.parameters()) == 431_080
    assert {name.split(".")[0] for name in w} == {"conv1", "conv2", "fc1", "fc2"}
    x = torch.randn(3, 1, 28, 28)
    h = F.max_pool2d(F.conv2d(x, w["conv1.weight"], w["conv1.bias"]).clamp(min=0), 2)
    h = F.max_pool2d(F.conv2d(h, w["conv2.weight"], w["conv2.bias"]).clamp(min=0), 2).reshape(3, 800)
    h = (h @ w["fc1.weight"].T + w["fc1.bias"]).clamp(min=0)
    torch.testing.assert_close(network(x), h @ w["fc2.weight"].T + w["fc2.bias"])


@pytest.mark.parametrize(
    ("name", "options", "shape", "message"),
    [
        ("resnet9", {}, (3, 32, 32), "no architecture 'resnet9'; choose one of mlp"),
        ("resnet20", {"depth": 8}, (3, 32, 32), "resnet20 does not take depth; it has no options of its own"),
        ("wrn", {"widen": 2}, (3, 32, 32), "wrn does not take widen; its options are depth, width, dropout"),
        ("wrn", {"depth": 18}, (3, 32, 32), r"6n \+ 4"),
        ("wrn", {"width": 0}, (3, 32, 32), "width of at least 1"),
        ("wrn", {"dropout": 1.0}, (3, 32, 32), r"dropout in \[0, 1\)"),
        ("vgg", {"depth": 12}, (3, 32, 32), r"depth among \[8, 11, 13, 16, 19\]"),
        ("mobilenetv2", {"width": 0.05}, (3, 32, 32), "width of at least 0.0625"),
        ("mobilenetv2", {"width": float("nan")}, (3, 32, 32), "width of at least"),
        ("mlp", {"hidden": [4, 0]}, (3, 32, 32), "hidden sizes of at least 1"),
        ("mlp", {"dropout": -0.1}, (3, 32, 32), r"dropout in \[0, 1\)"),
        ("mlp", {}, (), "positive numbers"),
        ("resnet8", {}, (28, 28), r"three numbers \[channels, height, width\]"),
        ("resnet8", {}, (0, 28, 28), "positive numbers"),
        ("resnet8", {"num_classes": 3}, (3, 32, 32), "num_classes 3 and 10"),
        ("resnet8", {"input_shape": [1, 32, 32]}, (3, 32, 32), r"input_shape \[1, 32, 32\] and \[3, 32, 32\]"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_would_do(
    name: str, options: dict[str, Any], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, options, input_shape=shape, num_classes=10, seed=0)


def test_no_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes of at least 1"):
        build("mlp", {}, input_shape=(4,), num_classes=0, seed=0)


def test_options_may_repeat_what_is_given_beside_them() -> None:
    options = {"input_shape": [4], "num_classes": 3, "hidden": (2,)}
    network = build("mlp", options, input_shape=(4,), num_classes=3, seed=0)
    assert network(torch.zeros(1, 4)).shape == (1, 3)
