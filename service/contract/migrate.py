"""Bring a database to this version's tables, forward only."""

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from service.contract.database import WRITE, Database
from service.contract.errors import Unavailable
from service.contract.records import Record


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", "service:migrations")
    config.attributes["connection"] = connection
    return config


def migrate(database_url: str) -> None:
    """Run the migrations that the database lacks; none on an up-to-date one.

    Raises Unavailable when a newer version of Stillhouse wrote the database.
    """
    database = Database(database_url)
    try:
        with database.engine.connect().execution_options(**{WRITE: True}) as connection, connection.begin():
            current = MigrationContext.configure(connection).get_current_revision()
            known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
            if current is not None and current not in known:
                raise Unavailable(
                    f"the database was written by a newer version (revision {current}); upgrade Stillhouse"
                )
            command.upgrade(_config(connection), "head")
    finally:
        database.close()


def revisions(database: Database) -> tuple[str | None, list[str]]:
    """Return the database's revision, None for no tables, and those that this version knows, newest first."""
    with database.engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    return current, [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()]


def differences(database: Database) -> list[object]:
    """Return what the database's tables lack against the records; empty when they agree."""
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, Record.metadata))
