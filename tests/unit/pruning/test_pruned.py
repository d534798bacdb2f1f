"""A pruned network: cut from its teacher, with the weights that it had; its units known by the teacher's numbers."""

import io

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.unit.pruning.zoo import groups_of, network_of, random_scores
from workers.graph.cost import graph_cost
from workers.graph.footprints import HEADS
from workers.graph.surgery import remove
from workers.pruning.schedule.correspondence import by_the_teacher, origins
from workers.pruning.schedule.pruned import Pruned, tensors_of
from workers.pruning.scores import Scores

SEQUENCES = ("resnet8", "densenet", "fused_qkv", "llama")


def whole(name: str) -> Pruned:
    return Pruned.whole(network_of(name), groups_of(name))


def changed(pruned: Pruned, seed: int) -> Pruned:
    """Other weights, as a repair would leave them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, tensor in tensors_of(pruned.network):
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator))
    return pruned


def some_units(pruned: Pruned, seed: int, most: int = 3) -> dict[str, list[int]]:
    """A few units of the teacher that are still there; two of every group stay."""
    generator = np.random.default_rng(seed)
    found = {}
    for name, group in pruned.origin.items():
        there = [unit for unit in range(group.num_units) if unit not in pruned.gone.get(name, ())]
        count = int(generator.integers(0, min(most, len(there) - 2) + 1)) if len(there) > 2 else 0
        if count:
            found[name] = sorted(int(unit) for unit in generator.choice(there, count, replace=False))
    return found


def same_tensors(left: nn.Module, right: nn.Module) -> bool:
    ours, theirs = dict(tensors_of(left)), dict(tensors_of(right))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def own_selection(pruned: Pruned, selection: dict[str, list[int]]) -> dict[str, list[int]]:
    """Units of the teacher as units of the network itself."""
    found: dict[str, list[int]] = {}
    for name, units in origins(pruned).items():
        for unit, origin in enumerate(units):
            if origin is not None and origin[1] in selection.get(origin[0], ()):
                found.setdefault(name, []).append(unit)
    return found


@given(seed=st.integers(0, 10_000), name=st.sampled_from(SEQUENCES))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_removals_in_a_row_are_surgery_on_the_current_network_unit_for_unit(seed: int, name: str) -> None:
    pruned = whole(name)
    for turn in range(3):
        pruned = changed(pruned, seed + turn)
        found = [origin for units in origins(pruned).values() for origin in units]
        there = {
            (group, unit)
            for group in pruned.origin
            for unit in range(pruned.origin[group].num_units)
            if unit not in pruned.gone.get(group, ())
        }
        assert len(found) == len(there)
        assert set(found) == there
        further = some_units(pruned, seed + turn)
        direct = remove(pruned.network, own_selection(pruned, further), pruned.groups)
        pruned = pruned.without(further)
        assert same_tensors(pruned.network, direct)


def test_the_last_unit_of_a_group_is_judged_no_more() -> None:
    pruned = whole("densenet")
    some = next(iter(pruned.origin))
    pruned = pruned.without({some: range(1, pruned.origin[some].num_units)})
    scores = by_the_teacher(random_scores(pruned.groups), pruned)
    assert scores.values[some].isnan().all()
    assert all(not scores.values[name].isnan().any() for name in pruned.origin if name != some)


def test_heads_and_width_of_one_attention_are_told_apart() -> None:
    pruned = whole("fused_qkv")
    heads = next(name for name, group in pruned.origin.items() if group.kind == HEADS)
    width = heads.replace(":heads", ":width")
    pruned = pruned.without({heads: [0], width: [1, 3]})
    found = origins(pruned)
    assert set(found[heads]) == {(heads, unit) for unit in range(1, pruned.origin[heads].num_units)}
    assert [origin for origin in found[width] if origin is not None] == [
        (width, unit) for unit in range(pruned.origin[width].num_units) if unit not in (1, 3)
    ]


def test_the_size_is_that_of_the_network() -> None:
    for name in ("resnet8", "llama"):
        pruned = whole(name).without(some_units(whole(name), 3))
        cost = graph_cost(pruned.network)
        assert (pruned.size.parameters, pruned.size.macs) == (cost.parameters, cost.macs)


def test_units_that_are_gone_stay_gone_and_the_teacher_stays_whole() -> None:
    pruned = whole("mlp")
    first = next(iter(pruned.origin))
    before = {name: tensor.clone() for name, tensor in tensors_of(pruned.teacher)}
    once = pruned.without({first: [1, 4]})
    twice = changed(once, 0).without({first: [4, 2]})
    assert twice.gone == {first: (1, 2, 4)}
    assert twice.num_left(first) == pruned.origin[first].num_units - 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(pruned.teacher))
    with pytest.raises(ValueError, match="nothing would be left"):
        pruned.without({first: list(range(pruned.origin[first].num_units))})


@pytest.mark.parametrize("name", ["resnet8", "gpt"])
def test_a_network_is_rebuilt_from_its_state_bit_for_bit(name: str) -> None:
    pruned = changed(whole(name).without(some_units(whole(name), 5)), 6)
    written = io.BytesIO()
    torch.save(pruned.state(), written)
    written.seek(0)
    again = Pruned.from_state(network_of(name), groups_of(name), torch.load(written, weights_only=True))
    assert again.gone == pruned.gone
    assert same_tensors(again.network, pruned.network)
    assert {one: tensor.stride() for one, tensor in tensors_of(again.network)} == {
        one: tensor.stride() for one, tensor in tensors_of(pruned.copy().network)
    }
    further = some_units(pruned, 7)
    assert same_tensors(again.without(further).network, pruned.without(further).network)


def test_scores_come_back_by_the_numbers_of_the_teacher() -> None:
    pruned = whole("resnet8").without(some_units(whole("resnet8"), 8))
    own = random_scores(pruned.groups, seed=9)
    scores = by_the_teacher(Scores(own.values, own.errors, 64, comparable=False, notes=("a note",)), pruned)
    assert (scores.examples, scores.comparable, scores.notes) == (64, False, ("a note",))
    for name, units in origins(pruned).items():
        for unit, origin in enumerate(units):
            assert origin is not None
            assert scores.values[origin[0]][origin[1]] == own.values[name][unit]
            assert scores.errors[origin[0]][origin[1]] == own.errors[name][unit]
    for name, group in pruned.origin.items():
        gone = list(pruned.gone.get(name, ()))
        assert scores.values[name].shape == (group.num_units,)
        assert scores.values[name][gone].isnan().all()
        assert int(scores.values[name].isnan().sum()) == len(gone)
