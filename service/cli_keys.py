"""Commands about API keys; they work on the database itself, for whoever has it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.terminal import Mistake, console, note

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

app = typer.Typer(help="API keys: who may call, and what for.", no_args_is_help=True)

DataDir = Annotated[Path | None, typer.Option("--data", help="The data folder.  [default: STILLHOUSE_DATA_DIR]")]


@contextmanager
def local_database(data: Path | None) -> Iterator["Session"]:
    """A writing transaction on the database of a data folder, brought up to date first."""
    from service.contract.database import Database
    from service.contract.migrate import migrate
    from service.contract.settings import Settings

    settings = Settings(data_dir=data) if data else Settings()
    if settings.database_url is None and not settings.data_dir.is_dir():
        raise Mistake(f"there is no data folder {settings.data_dir}; name it with --data or STILLHOUSE_DATA_DIR")
    migrate(settings.database)
    database = Database(settings.database)
    try:
        with database.write() as session:
            yield session
    finally:
        database.close()


@app.command("create")
def create_key(
    owner: Annotated[str, typer.Argument(help="Whose key it is; owners see their own resources only.")],
    scope: Annotated[list[str] | None, typer.Option(help="read, submit or admin; may be repeated.")] = None,
    data: DataDir = None,
) -> None:
    """Make a key and print it; only its hash is kept."""
    from service.keys import create_key as create

    with local_database(data) as session:
        token = create(session, owner, scope or ("read", "submit"))
    typer.echo(token)


@app.command("list")
def list_keys(data: DataDir = None) -> None:
    """List the keys, revoked ones too."""
    from datetime import UTC, datetime

    from service import keys as stored
    from service.tables import print_table

    with local_database(data) as session:
        rows = [
            [key.id, key.owner, " ".join(key.scopes), f"{datetime.fromtimestamp(key.created_at, UTC):%Y-%m-%d %H:%M}",
             "revoked" if key.revoked_at else "valid"]
            for key in stored.list_keys(session)
        ]  # fmt: skip
    print_table(console(), ["id", "owner", "scopes", "created (UTC)", ""], rows)


@app.command("revoke")
def revoke_key(key: Annotated[str, typer.Argument(metavar="KEY_ID")], data: DataDir = None) -> None:
    """End a key within a second."""
    from service.keys import revoke

    with local_database(data) as session:
        revoke(session, key)
    note(f"{key} is revoked")
