"""What a record says of a model's units is what surgery does."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from service.contract.errors import Internal
from service.contract.specs import Architecture
from tests.architectures import exported
from workers.formats import models, units
from workers.formats.graph_models import graph_facts
from workers.formats.models import facts_of
from workers.formats.pt2_reader import read_pt2
from workers.formats.tracing import as_graph
from workers.formats.units import Json, listed, units_of
from workers.graph.cost import graph_cost
from workers.graph.groups import Groups, find_groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.lifting import lift
from workers.graph.surgery import remove
from workers.students.architectures import build

pytestmark = pytest.mark.usefixtures("one_thread")

#: Convolutions with shortcuts, branches and gates; attention with whole heads, grouped queries, tied embeddings.
NETWORKS = ["resnet8", "densenet", "mobilenet_v3", "unet", "vit", "llama", "bert", "gpt"]


@pytest.fixture(scope="module", params=NETWORKS)
def found(request: pytest.FixtureRequest) -> tuple[LayerGraph, Groups, Json]:
    """A network, its groups, and what its record says of them."""
    network = lift(read_pt2(exported(request.param)))
    groups = find_groups(network)
    described, notes = units_of(lambda: network)
    assert notes == []
    assert described is not None
    return network, groups, described


def test_every_group_is_listed_with_what_one_unit_carries(found: tuple[LayerGraph, Groups, Json]) -> None:
    network, groups, described = found
    whole = graph_cost(network)
    assert [group["name"] for group in described["groups"]] == list(groups)
    for group in described["groups"][:6]:
        without = graph_cost(remove(network, {group["name"]: [0]}, groups))
        assert group["units"] == groups[group["name"]].num_units
        assert group["parameters_per_unit"] == whole.parameters - without.parameters
        assert group["macs_per_unit"] == whole.macs - without.macs
        assert group["bytes_per_unit"] == whole.bytes - without.bytes
        assert set(group["tensors"]) <= network.state_dict().keys() | dict(network.named_buffers()).keys()


def test_the_floor_is_the_network_at_two_units_of_every_group(found: tuple[LayerGraph, Groups, Json]) -> None:
    network, groups, described = found
    smallest = remove(network, {name: range(2, group.num_units) for name, group in groups.items()}, groups)
    cost = graph_cost(smallest)
    assert described["floor"] == {"parameters": cost.parameters, "macs": cost.macs, "bytes": cost.bytes}


def test_what_is_pinned_is_said_with_its_reason(found: tuple[LayerGraph, Groups, Json]) -> None:
    _, groups, described = found
    assert [pin["node"] for pin in described["pinned"]] == [pin.node for pin in groups.pinned]
    assert "the network's output" in {pin["reason"] for pin in described["pinned"]}
    assert all(pin["channels"] >= 0 and len(pin["tensors"]) <= units.SHOWN_TENSORS for pin in described["pinned"])


def test_it_is_json_and_the_same_each_time(found: tuple[LayerGraph, Groups, Json]) -> None:
    network, _, described = found
    assert json.loads(json.dumps(described)) == described
    assert units_of(lambda: network) == (described, [])


def test_means_over_channels_are_pointed_out() -> None:
    described = graph_facts(single_output("vit"))["units"]
    assert {group["kind"] for group in described["groups"]} == {"channels", "heads", "head width"}
    assert {group["kind"] for group in described["groups"] if group["statistics"]} == {"channels"}


def single_output(name: str) -> LayerGraph:
    return lift(read_pt2(exported(name)))


def test_lists_end_where_a_record_would_become_too_long_and_the_floor_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    network = lift(read_pt2(exported("resnet8")))
    whole, _ = units_of(lambda: network)
    assert whole is not None
    first = len(json.dumps(whole["groups"][0]))
    monkeypatch.setattr(units, "GROUPS_BYTES", first)
    monkeypatch.setattr(units, "PINNED_BYTES", 0)
    short, _ = units_of(lambda: network)
    assert short == {
        **whole,
        "groups": whole["groups"][:1],
        "groups_left_out": len(whole["groups"]) - 1,
        "pinned": [],
        "pinned_left_out": len(whole["pinned"]),
    }


def test_ten_thousand_groups_take_a_bounded_part_of_a_record() -> None:
    facts: list[Json] = [{"name": f"layers.{index}", "units": 64} for index in range(10_000)]
    shown, left_out = listed(facts, 65_536)
    assert shown == facts[: len(shown)]
    assert len(shown) + left_out == 10_000
    assert 60_000 < len(json.dumps(shown)) < 70_000


def test_a_small_fact_after_a_large_one_is_left_out_too() -> None:
    assert listed([{"a": 1}, {"a": "x" * 50}, {"a": 2}], 20) == ([{"a": 1}], 2)


def test_what_cannot_be_exported_has_no_units_and_says_so() -> None:
    def fails() -> LayerGraph:
        raise RuntimeError("in /secret/place.py, line 7")

    assert units_of(fails) == (None, ["its units are not known, and it cannot be pruned: RuntimeError"])


def test_our_own_errors_are_quoted() -> None:
    def fails() -> LayerGraph:
        raise Internal("no operator of that name")

    assert units_of(fails) == (None, ["its units are not known, and it cannot be pruned: no operator of that name"])


def test_a_graph_too_large_to_look_through_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "MOST_NODES", 3)
    described, (note,) = units_of(lambda: lift(read_pt2(exported("mlp"))))
    assert described is None
    assert "more than 3" in note


def mlp() -> tuple[Architecture, nn.Module]:
    options: dict[str, Any] = {"input_shape": [1, 4, 4], "num_classes": 3, "hidden": [7, 5]}
    network = build("mlp", {"hidden": [7, 5]}, input_shape=(1, 4, 4), num_classes=3, seed=0).eval()
    return Architecture.model_validate({"name": "mlp", "options": options}), network


def test_a_built_in_network_has_the_units_of_its_graph() -> None:
    architecture, network = mlp()
    facts = facts_of(architecture, network)
    assert facts["units"] == units_of(lambda: as_graph(network, (1, 4, 4)))[0]
    assert [(group["name"], group["units"]) for group in facts["units"]["groups"]] == [("fc1", 7), ("fc2", 5)]
    first, second = facts["units"]["groups"]
    assert (first["parameters_per_unit"], first["macs_per_unit"]) == (16 + 1 + 5, 16 + 5)
    assert (second["parameters_per_unit"], second["bytes_per_unit"]) == (7 + 1 + 3, 4 * (7 + 1 + 3))
    assert facts["units"]["floor"] == {"parameters": 34 + 6 + 9, "macs": 32 + 4 + 6, "bytes": 4 * 49}


def test_a_built_in_network_that_cannot_become_a_graph_is_inspected_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> LayerGraph:
        raise SyntaxError

    monkeypatch.setattr(models, "as_graph", fails)
    facts = facts_of(*mlp())
    assert (facts["units"], facts["parameters"]) == (None, 7 * 17 + 5 * 8 + 3 * 6)
    assert facts["notes"] == ["its units are not known, and it cannot be pruned: SyntaxError"]


def test_a_buffer_that_no_unit_touches_is_all_in_the_floor() -> None:
    held = {"table": torch.zeros(5, 3, dtype=torch.int64)}
    size = SimpleNamespace(parameters=1, macs=2)
    groups: Any = SimpleNamespace(
        items=dict[str, Any]().items,
        size_without=lambda _: size,
        kept=lambda _: None,
        reading=SimpleNamespace(ledger=SimpleNamespace(slots={})),
    )
    assert units.floor_of(held, groups) == {"parameters": 1, "macs": 2, "bytes": 5 * 3 * 8}
