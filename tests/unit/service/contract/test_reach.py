"""How far pruning can go by a model's record alone, held to what workers find out with the network in hand."""

from typing import Any

import pytest

from service.contract.compatibility import check_pruning
from service.contract.errors import Invalid
from service.contract.prune_spec import PruneSpec
from service.contract.reach import floor, obstacle, reachable
from tests.unit.pruning.zoo import groups_of, layout_of, network_of
from workers.formats.graph_models import graph_facts
from workers.pruning.schedule.limits import Limits
from workers.pruning.schedule.targets import at_floor

NETWORKS = ("resnet8", "fused_qkv", "densenet")
LIMITS: tuple[dict[str, Any], ...] = ({}, {"min_units": 1}, {"min_units": 5}, {"round_to": 4}, {"keep": {}})
IDS = {"model": "mdl_" + 26 * "1", "dataset": "dat_" + 26 * "2"}


def spec_of(**config: Any) -> PruneSpec:
    return PruneSpec.model_validate({"type": "prune", **IDS, "config": {"target": {"macs": 0.5}, **config}})


def on_the_worker(name: str, config: dict[str, Any]) -> dict[str, float]:
    """Each cost at the floor, as a fraction of the whole."""
    least = at_floor(layout_of(name), Limits(**config)).costs
    facts = graph_facts(network_of(name))
    return {
        "macs": least.macs / facts["macs"],
        "params": least.params / facts["parameters"],
        "bytes": least.bytes / facts["bytes"],
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_by_default_the_floor_is_that_of_the_workers(name: str) -> None:
    assert floor(spec_of(), graph_facts(network_of(name))) == pytest.approx(on_the_worker(name, {}))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("config", LIMITS)
def test_with_limits_of_its_own_a_job_is_refused_only_what_workers_refuse_too(
    name: str, config: dict[str, Any]
) -> None:
    if "keep" in config:
        config = {"keep": dict.fromkeys(list(groups_of(name))[:2], 3)}
    bound, least = floor(spec_of(**config), graph_facts(network_of(name))), on_the_worker(name, config)
    assert bound is not None
    assert all(bound[cost] <= least[cost] + 1e-12 for cost in least)
    assert bound["macs"] > 0 or config == {"min_units": 1}


def test_fewer_units_than_recorded_may_be_left_where_the_job_says_so() -> None:
    facts = graph_facts(network_of("resnet8"))
    recorded = floor(spec_of(), facts)
    assert recorded is not None
    between = {"macs": recorded["macs"] * 0.9}
    refusal = obstacle(spec_of(target=between), facts)
    assert refusal is not None
    assert "cannot be reached" in refusal
    assert obstacle(spec_of(target=between, min_units=1), facts) is None
    assert reachable(spec_of(target=between, min_units=1), facts) is None


def test_floors_above_the_target_are_seen_where_the_groups_tell() -> None:
    facts = graph_facts(network_of("resnet8"))
    assert reachable(spec_of(target={"macs": 0.3}, min_units=1000), facts) is False
    refusal = obstacle(spec_of(target={"macs": 0.3}, min_units=1000), facts)
    assert refusal is not None
    assert "at least 1 are left. Lower min_units, keep or round_to." in refusal
    refusal = obstacle(spec_of(target={"macs": 0.3}, round_to=16), facts)
    assert refusal is not None
    assert "or more, or lower min_units" in refusal


def test_no_group_can_keep_more_units_than_it_has() -> None:
    facts = graph_facts(network_of("resnet8"))
    group = facts["units"]["groups"][0]
    check_pruning(facts, {}, spec_of(keep={group["name"]: group["units"]}))
    with pytest.raises(Invalid, match=f"has {group['units']} units and cannot keep {group['units'] + 1}"):
        check_pruning(facts, {}, spec_of(keep={group["name"]: group["units"] + 1}))


def test_only_a_worker_can_tell_of_a_latency() -> None:
    facts = graph_facts(network_of("resnet8"))
    assert reachable(spec_of(target={"latency": 0.5}), facts) is None
    assert reachable(spec_of(target={"max_kl": 0.1}), facts) is True
    assert reachable(spec_of(), {}) is None
