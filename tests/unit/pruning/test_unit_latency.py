"""What a unit takes: the whole network against the one without half of a group, and nothing where noise is larger."""

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from service.contract.reports import Latency
from tests.unit.pruning.zoo import groups_of, network_of
from workers.graph.cost import graph_cost
from workers.graph.layer_graph import LayerGraph
from workers.journal import Silent, Stopped
from workers.pruning.schedule import unit_latency
from workers.pruning.schedule.unit_latency import LatencyProbe

EXAMPLE = torch.zeros(1, 48)


def probe(journal: Silent | None = None) -> LatencyProbe:
    return LatencyProbe(network_of("mlp"), groups_of("mlp"), EXAMPLE, torch.device("cpu"), journal or Silent())


def a_machine(monkeypatch: pytest.MonkeyPatch, noise: float) -> None:
    """Networks take a microsecond for each MAC, give or take `noise` seconds."""

    def measure(models: Mapping[str, nn.Module], *_: object, **__: object) -> dict[str, tuple[Latency, ...]]:
        found = {}
        for name, model in models.items():
            assert isinstance(model, LayerGraph)
            found[name] = (Latency(batch=1, median_seconds=1e-6 * graph_cost(model).macs, iqr_seconds=noise),)
        return found

    monkeypatch.setattr(unit_latency, "measure_latency", measure)


def test_a_unit_takes_its_part_of_what_half_its_group_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    a_machine(monkeypatch, noise=1e-9)
    found = probe().per_unit()
    groups = groups_of("mlp")
    assert set(found) == set(groups)
    for name, group in groups.items():
        half = group.num_units // 2
        saved = groups.size.macs - groups.size_without({name: range(half)}).macs
        assert found[name] == pytest.approx(1e-6 * saved / half)


def test_differences_within_the_noise_count_as_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a_machine(monkeypatch, noise=1.0)
    assert set(probe().per_unit().values()) == {0.0}


def test_the_teacher_is_timed_beside_every_network() -> None:
    teacher, own = probe().seconds(network_of("mlp"))
    assert teacher > 0
    assert own > 0


def test_probing_can_be_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopping(Silent):
        def check(self) -> None:
            raise Stopped

    a_machine(monkeypatch, noise=0.0)
    with pytest.raises(Stopped):
        probe(Stopping()).per_unit()
