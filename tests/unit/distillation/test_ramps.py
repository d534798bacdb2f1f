import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.ramps import Ramp
from workers.distillation.ramps import SHAPES, value_at


def ramp(start: float, stop: float, shape: str) -> Ramp:
    return Ramp.model_validate({"from": start, "to": stop, "shape": shape})


@given(st.floats(0, 10), st.floats(0, 10), st.sampled_from(list(SHAPES)), st.floats(0, 1))
def test_it_stays_between_its_ends_and_reaches_both(start: float, stop: float, shape: str, share: float) -> None:
    asked = ramp(start, stop, shape)
    assert value_at(asked, 0.0) == start
    assert value_at(asked, 1.0) == pytest.approx(stop)
    low, high = asked.bounds
    assert low - 1e-12 <= value_at(asked, share) <= high + 1e-12
    assert value_at(asked, 0.5) == pytest.approx((start + stop) / 2)


def test_a_cosine_is_slow_at_both_ends() -> None:
    straight, bent = (value_at(ramp(1.0, 0.0, shape), 0.1) for shape in ("linear", "cosine"))
    assert straight == pytest.approx(0.9)
    assert straight < bent < 1


def test_a_number_stays_what_it_is() -> None:
    assert value_at(0.3, 0.7) == 0.3
