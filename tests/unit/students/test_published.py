"""A checkpoint published for a CIFAR network loads into ours, and computes what it computed."""

import pytest

from tests.unit.students.published import PUBLISHED, Published, fingerprint, outputs_of
from workers.students.architectures import build


def name_of(row: Published) -> str:
    return "-".join([row.architecture, *map(str, row.options.values()), str(row.side)])


@pytest.mark.parametrize("row", PUBLISHED, ids=name_of)
def test_state_dict_and_outputs_are_those_of_the_published_network(row: Published) -> None:
    shape = (3, row.side, row.side)
    network = build(row.architecture, row.options, input_shape=shape, num_classes=100, seed=0)
    state = network.state_dict()
    assert sum(weight.numel() for weight in network.parameters()) == row.parameters
    assert len(state) == row.entries
    assert fingerprint(state) == row.fingerprint
    assert outputs_of(network, row.side) == pytest.approx(row.outputs, rel=1e-7)


@pytest.mark.parametrize(
    ("architecture", "options", "millions"),
    [
        ("resnet20", {}, 0.28),
        ("resnet8x4", {}, 1.23),
        ("resnet32x4", {}, 7.43),
        ("wrn", {"depth": 16, "width": 2}, 0.70),
        ("wrn", {"depth": 40, "width": 2}, 2.26),
        ("vgg", {"depth": 8}, 3.96),
        ("vgg", {"depth": 13}, 9.46),
        ("mobilenetv2", {"width": 0.5}, 0.81),
    ],
)
def test_sizes_are_those_of_the_distillation_tables(
    architecture: str, options: dict[str, int], millions: float
) -> None:
    network = build(architecture, options, input_shape=(3, 32, 32), num_classes=100, seed=0)
    parameters = sum(weight.numel() for weight in network.parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.0051)


@pytest.mark.parametrize(
    ("architecture", "options", "entries"),
    [
        (
            "resnet8x4",
            {},
            {
                "conv1.weight": (32, 3, 3, 3),
                "bn1.running_mean": (32,),
                "layer1.0.conv1.weight": (64, 32, 3, 3),
                "layer1.0.downsample.0.weight": (64, 32, 1, 1),
                "layer3.0.bn2.bias": (256,),
                "layer3.0.downsample.1.weight": (256,),
                "fc.weight": (100, 256),
            },
        ),
        ("resnet110", {}, {"layer3.17.conv2.weight": (64, 64, 3, 3), "fc.weight": (100, 64)}),
        (
            "wrn",
            {"depth": 16, "width": 2},
            {
                "conv1.weight": (16, 3, 3, 3),
                "block1.layer.0.bn1.weight": (16,),
                "block1.layer.0.convShortcut.weight": (32, 16, 1, 1),
                "block3.layer.1.conv2.weight": (128, 128, 3, 3),
                "bn1.running_var": (128,),
                "fc.bias": (100,),
            },
        ),
        (
            "vgg",
            {"depth": 13},
            {
                "block0.0.weight": (64, 3, 3, 3),
                "block0.0.bias": (64,),
                "block0.1.weight": (64,),
                "block0.3.weight": (64, 64, 3, 3),
                "block4.4.running_mean": (512,),
                "classifier.weight": (100, 512),
            },
        ),
        (
            "mobilenetv2",
            {},
            {
                "conv1.0.weight": (16, 3, 3, 3),
                "blocks.0.0.conv.0.weight": (16, 16, 1, 1),
                "blocks.1.0.conv.3.weight": (48, 1, 3, 3),
                "blocks.6.0.conv.7.bias": (160,),
                "conv2.0.weight": (1280, 160, 1, 1),
                "classifier.0.weight": (100, 1280),
            },
        ),
    ],
)
def test_entries_have_the_published_names(
    architecture: str, options: dict[str, int], entries: dict[str, tuple[int, ...]]
) -> None:
    network = build(architecture, options, input_shape=(3, 32, 32), num_classes=100, seed=0)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert entries.items() <= shapes.items()
