"""What the commands share: where the service is, arguments as data, and what is said on stdout and stderr."""

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from service.client import Client

Labels = Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A tag; may be repeated.")]
States = Annotated[list[str] | None, typer.Option("--state", help="Only this state; may be repeated.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="At most this many, newest first.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
UNBOUNDED = 10_000  # columns


class Mistake(Exception):
    """What ends a command with a message: by default, the command line asks for something that cannot be."""

    def __init__(self, text: str, exit_code: int = 2) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def note(text: str) -> None:
    """Tell the person something that is not the command's result."""
    typer.echo(text, err=True)


def connect() -> "Client":
    """Return a client of the service that the environment names. Raises Mistake."""
    from service.client import Client

    api_key = os.environ.get("STILLHOUSE_API_KEY", "").strip()
    if not api_key:
        raise Mistake(
            "no API key; set STILLHOUSE_API_KEY to the key that `stillhouse serve` printed at its first start, "
            "or make one with: stillhouse keys create OWNER"
        )
    url = os.environ.get("STILLHOUSE_URL", "http://127.0.0.1:8000")
    if not url.startswith(("http://", "https://")):
        raise Mistake(f"STILLHOUSE_URL must begin with http:// or https://; got {url!r}")
    return Client(url, api_key)


def console(*, err: bool = False) -> "Console":
    """Return where tables and bars go; where that is no terminal, lines are as long as they are."""
    from rich.console import Console

    found = Console(stderr=err)
    return found if found.is_terminal else Console(stderr=err, width=UNBOUNDED)


def parsed(text: str) -> Any:
    """Return a value as JSON reads it, or as the string that it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def pairs(given: list[str] | None, option: str) -> dict[str, str]:
    """Return KEY=VALUE arguments as a mapping. Raises Mistake."""
    wrong = [text for text in given or () if "=" not in text]
    if wrong:
        raise Mistake(f"{option} takes KEY=VALUE; got {wrong[0]!r}")
    return dict(text.split("=", 1) for text in given or ())


def print_list(kind: str, states: list[str] | None, labels: list[str] | None, limit: int, as_json: bool) -> None:
    """Print the newest of a kind of resource."""
    from itertools import islice

    from service import tables

    wanted = [f"{key}:{value}" for key, value in pairs(labels, "--label").items()]
    with connect() as client:
        entries = getattr(client, kind)(limit=min(limit, 200), state=states or [], label=wanted)
        rows = list(islice(entries, limit))
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
        return
    columns = {"jobs": tables.JOBS, "models": tables.MODELS, "datasets": tables.DATASETS}[kind]
    tables.print_rows(console(), columns, rows)
