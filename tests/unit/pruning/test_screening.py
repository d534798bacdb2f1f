"""Screening: exact scores where they may decide who goes, and a stated rate of mistakes."""

from collections.abc import Mapping

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.pruning.criteria.screening import screened
from workers.pruning.scores import Scores

Values = dict[str, Tensor]


def imperfect(seed: int, *, spread: float, units: int = 600, signed: bool = False) -> tuple[Values, Values]:
    """True scores over several orders of magnitude, and cheap ones that err by a factor (or a difference)."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(units, generator=generator, dtype=torch.float64) * 2
    cheap = true + 0.7 + spread * torch.randn(units, generator=generator, dtype=torch.float64)
    true, cheap = (true, cheap) if signed else (true.exp(), cheap.exp())
    return tuple({"a": part[:400], "b": part[400:]} for part in (true, cheap))


class Oracle:
    """Exact scores that count how often they are asked for."""

    def __init__(self, true: Values) -> None:
        self.true, self.asked = true, []

    def __call__(self, only: Mapping[str, np.ndarray]) -> Scores:
        self.asked += [(name, int(unit)) for name, units in only.items() for unit in units]
        values = {name: torch.full_like(self.true[name], torch.nan) for name in only}
        for name, units in only.items():
            values[name][torch.as_tensor(units)] = self.true[name][torch.as_tensor(units)]
        return Scores(values)


def row(values: Values) -> Tensor:
    return torch.cat([values["a"], values["b"]])


def lowest(values: Values, count: int) -> set[int]:
    return set(row(values).argsort()[:count].tolist())


def wrong_share(true: Values, found: Values, count: int) -> float:
    return len(lowest(found, count) - lowest(true, count)) / count


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.booleans())
def test_few_of_those_that_go_are_wrong_and_few_units_are_checked(seed: int, signed: bool) -> None:
    true, cheap = imperfect(seed, spread=0.15, signed=signed)
    oracle = Oracle(true)
    found = screened(Scores(cheap), oracle, 300, seed=seed)
    assert found.error_rate <= 0.01
    assert wrong_share(true, found.scores.values, 300) <= 0.02
    assert len(oracle.asked) == len(set(oracle.asked)) < 300  # each once, and not everything
    assert found.logarithmic is not signed


def test_a_better_surrogate_needs_fewer_checks() -> None:
    checks = []
    for spread in (0.02, 0.1, 0.5):
        true, cheap = imperfect(1, spread=spread)
        oracle = Oracle(true)
        screened(Scores(cheap), oracle, 300)
        checks.append(len(oracle.asked))
    assert checks == sorted(checks)
    assert checks[0] < checks[-1]


def test_checked_units_have_their_exact_score_and_others_the_cheap_one_without_its_bias() -> None:
    true, cheap = imperfect(2, spread=0.1)
    found = screened(Scores(cheap), Oracle(true), 300)
    checked = row(found.checked)
    values = row(found.scores.values)
    assert torch.equal(values[checked], row(true)[checked])
    misses = (values[~checked] / row(true)[~checked]).log()
    assert abs(float(misses.mean())) < 0.05


def test_every_group_may_have_its_own_cut() -> None:
    true, cheap = imperfect(3, spread=0.1)
    oracle = Oracle(true)
    found = screened(Scores(cheap), oracle, {"a": 100, "b": 0}, sample=30)
    for name, count in (("a", 100),):
        expected, got = (set(part[name].argsort()[:count].tolist()) for part in (true, found.scores.values))
        assert len(got - expected) <= 2
    drawn_from_b = sum(name == "b" for name, _ in oracle.asked)
    assert drawn_from_b <= 30  # no cut there: only what was drawn


def test_the_note_says_how_many_were_checked() -> None:
    true, cheap = imperfect(4, spread=0.1)
    oracle = Oracle(true)
    found = screened(Scores(cheap), oracle, 300)
    assert found.scores.notes[-1].startswith(f"{len(oracle.asked)} of 600 units were scored exactly")


def test_a_surrogate_that_is_exact_needs_only_the_sample() -> None:
    true, _ = imperfect(5, spread=0.1)
    oracle = Oracle(true)
    found = screened(Scores(true), oracle, 300, sample=20)
    assert len(oracle.asked) <= 22
    assert np.isclose(found.error, 0)


def test_a_strict_rate_checks_more() -> None:
    true, cheap = imperfect(6, spread=0.2)
    counts = []
    for rate in (0.05, 0.001):
        oracle = Oracle(true)
        screened(Scores(cheap), oracle, 300, error_rate=rate)
        counts.append(len(oracle.asked))
    assert counts[0] < counts[1]
