"""What an examination says, and what it looks at."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from service.contract.database import Database
from service.contract.settings import Settings
from service.contract.storage import LocalStorage

SHOWN = 5  # subjects that a sentence names


class Grade(StrEnum):
    """How grave a finding is."""

    OK = "ok"  #: as it should be
    WARNING = "warning"  #: nothing is lost, but somebody should know
    ERROR = "error"  #: something is lost, or does not work


@dataclass(frozen=True)
class Finding:
    """One thing that was found: what is so, how grave that is, what to do, and what exactly it is about."""

    check: str
    grade: Grade
    text: str
    advice: str = ""
    subjects: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """A finding that is not good, before it is told which check it is of."""

    grade: Grade
    text: str
    advice: str
    subjects: tuple[str, ...] = ()


@dataclass(frozen=True)
class Premises:
    """A data folder with its database and its storage; `is_served` says whether a service runs on it now."""

    settings: Settings
    database: Database
    storage: LocalStorage
    is_served: bool
    deep: bool = False  # also read every content


Check = Callable[[Premises], Iterator[Problem]]


def warning(text: str, advice: str, subjects: Sequence[str] = ()) -> Problem:
    """Nothing is lost, but somebody should know."""
    return Problem(Grade.WARNING, text, advice, tuple(subjects))


def error(text: str, advice: str, subjects: Sequence[str] = ()) -> Problem:
    """Something is lost, or does not work."""
    return Problem(Grade.ERROR, text, advice, tuple(subjects))


def counted(number: int, noun: str) -> str:
    """Return "1 job", "2 jobs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def named(subjects: Sequence[str]) -> str:
    """Return the first few of some names, and how many more there are."""
    more = f" and {len(subjects) - SHOWN} more" if len(subjects) > SHOWN else ""
    return ", ".join(subjects[:SHOWN]) + more


def in_bytes(number: float) -> str:
    """Return a size for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def in_time(seconds: float) -> str:
    """Return an age for people."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
