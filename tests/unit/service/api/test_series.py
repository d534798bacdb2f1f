import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, insert
from sqlalchemy.orm import Session

from service.api.series import thinned
from service.contract.records import Metric, Record


def naive(points: list[int], max_points: int) -> list[int]:
    """Try k = 1, 2, …: every k-th point and the last, as soon as they are few enough."""
    for k in range(1, len(points) + 1):
        kept = [point for place, point in enumerate(points) if place % k == 0 or place == len(points) - 1]
        if len(kept) <= max_points:
            return kept
    return points


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    max_points=st.integers(2, 30),
    after=st.integers(-1, 20),
)
def test_thinning_keeps_first_last_and_every_kth_point(lengths: list[int], max_points: int, after: int) -> None:
    engine = create_engine("sqlite://")
    Record.metadata.create_all(engine, tables=[Record.metadata.tables["metrics"]])
    with Session(engine) as session:
        for series, length in enumerate(lengths):
            rows = [{"job_id": "job", "name": f"s{series}", "step": 2 * n, "value": 1.0} for n in range(length)]
            session.execute(insert(Metric), rows)
        found: dict[str, list[int]] = {}
        for name, step, _ in session.execute(thinned("job", after, max_points)):
            found.setdefault(name, []).append(step)
    engine.dispose()
    for series, length in enumerate(lengths):
        steps = [2 * n for n in range(length) if 2 * n > after]
        kept = found.get(f"s{series}", [])
        assert len(kept) <= max_points
        assert kept[:1] + kept[-1:] == steps[:1] + steps[-1:]
        assert set(kept) <= set(steps)
        assert len(kept) >= min(len(steps), len(naive(steps, max_points)))


@pytest.mark.parametrize(
    ("length", "max_points", "expected"), [(5, 3, [0, 2, 4]), (6, 3, [0, 3, 5]), (3, 3, [0, 1, 2])]
)
def test_thinning_by_hand(length: int, max_points: int, expected: list[int]) -> None:
    assert naive(list(range(length)), max_points) == expected
