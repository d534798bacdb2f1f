"""How numbers are said: the same way in every finding."""

from collections.abc import Sequence

from service.contract.reports import Interval, Latency

#: Ratios nearer to 1 than this are not worth a word.
NOTICEABLE = 1.05
#: p-values from this on are no ground to speak of a difference.
SIGNIFICANT = 0.05


def ends(name: str, interval: Interval) -> dict[str, float]:
    """An interval as three numbers of a finding."""
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def percent(share: float) -> str:
    """0.875 as 87.5%."""
    return f"{share:.1%}"


def counted(number: int, noun: str) -> str:
    """1 unit, 2 units."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(names: Sequence[str]) -> str:
    """A, B and C."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def percent_or_unknown(share: float | None) -> str:
    """The same, where it may not have been measured."""
    return "unknown" if share is None else percent(share)


def points(difference: Interval) -> str:
    """A difference of shares in percentage points, with its interval."""
    value, low, high = (100 * end for end in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]"


def p_value(value: float) -> str:
    """As it stands after the letter p."""
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def change(ratio: float) -> str:
    """0.25 as "fell 4.0x", 2 as "rose 2.0x", 1.01 as "did not change"."""
    if ratio * NOTICEABLE < 1:
        return f"fell {1 / ratio:.1f}x"
    return f"rose {ratio:.1f}x" if ratio > NOTICEABLE else "did not change"


def latency_change(teacher: Latency, student: Latency) -> str:
    """How the time of one batch changed, with both times."""
    times = f"{teacher.median_seconds * 1000:.3g} ms to {student.median_seconds * 1000:.3g} ms"
    return f"{change(student.median_seconds / teacher.median_seconds)} at batch {teacher.batch} ({times})"


def shortfall(teacher: Latency, student: Latency) -> str:
    """How little the time of one batch fell."""
    speedup = teacher.median_seconds / student.median_seconds
    if speedup < 1 / NOTICEABLE:
        return f"rose {1 / speedup:.1f}x at batch {teacher.batch}"
    if speedup <= NOTICEABLE:
        return f"did not fall at batch {teacher.batch}"
    return f"only {speedup:.1f}x at batch {teacher.batch}"
