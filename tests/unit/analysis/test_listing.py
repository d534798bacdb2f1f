import json

import numpy as np
import pytest
import torch

from workers.analysis.listing import Room, unit_values


def test_quantiles_and_extremes_are_those_of_what_was_measured() -> None:
    values = torch.tensor([3.0, torch.nan, 1.0, 2.0, torch.inf, 5.0], dtype=torch.float64)
    found = unit_values(values, listed=True)
    assert found is not None
    known = [3.0, 1.0, 2.0, 5.0]
    assert found.mean == pytest.approx(np.mean(known))
    assert found.quantiles == {
        str(share): pytest.approx(np.quantile(known, share / 100)) for share in (0, 5, 25, 50, 75, 95, 100)
    }
    assert [(each.unit, each.value) for each in found.lowest] == [(2, 1.0), (3, 2.0), (0, 3.0), (5, 5.0)]
    assert [each.unit for each in found.highest] == [5, 0, 3, 2]
    assert found.values == (3.0, None, 1.0, 2.0, None, 5.0)


@pytest.mark.parametrize("values", [None, torch.empty(0), torch.full((3,), torch.nan)])
def test_what_nobody_measured_is_not_there(values: torch.Tensor | None) -> None:
    assert unit_values(values, listed=True) is None


def test_a_group_is_listed_whole_or_not_at_all() -> None:
    room = Room(left=10)
    assert room.takes(torch.zeros(4), None, torch.zeros(4))
    assert not room.takes(torch.zeros(3))
    assert room.takes(torch.zeros(2))
    assert room.left == 0


def test_a_long_list_stays_small() -> None:
    values = torch.rand(50_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, short = (unit_values(values, listed=listed) for listed in (True, False))
    assert whole is not None
    assert short is not None
    assert short.values is None
    assert len(short.lowest) == len(short.highest) == 10
    assert len(json.dumps(short.model_dump())) < 2000
    assert len(json.dumps(whole.model_dump())) < 12 * len(values)
