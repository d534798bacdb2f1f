"""What ends `stillhouse-pack` with a message: the command asks for something that cannot be, or the network fails."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

WRONG_COMMAND, FAILED = 2, 1


class Mistake(Exception):
    """A message for the person, and the exit code that goes with it."""

    def __init__(self, text: str, exit_code: int = WRONG_COMMAND) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@contextmanager
def explaining(what: str, exit_code: int = WRONG_COMMAND) -> Iterator[None]:
    """Whatever the user's own code raises becomes a `Mistake` that says `what` failed, why and where."""
    try:
        yield
    except Mistake:
        raise
    except Exception as error:
        raise Mistake(f"{what}: {in_words(error)}{place_of(error)}", exit_code) from error


def in_words(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def place_of(error: BaseException) -> str:
    """The last line of the user's own code that led to an error, as words to append; empty if there is none."""
    ours = [str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), "<"]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(tuple(ours)) and not is_library(frame.filename)]
    return f"\n  at {own[-1].filename}, line {own[-1].lineno}: {own[-1].line}" if own else ""


def is_library(filename: str) -> bool:
    """Whether a file belongs to Python or to an installed package."""
    path = Path(filename)
    return "site-packages" in path.parts or path.is_relative_to(Path(traceback.__file__).parent)
