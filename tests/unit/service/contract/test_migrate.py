from pathlib import Path

import pytest
from sqlalchemy import text

from service.contract.database import Database
from service.contract.errors import Unavailable
from service.contract.migrate import differences, migrate


def test_the_migrations_make_exactly_the_tables_of_the_records(database: Database) -> None:
    assert differences(database) == []


def test_migrating_twice_changes_nothing(database: Database) -> None:
    migrate(database.engine.url.render_as_string(hide_password=False))
    assert differences(database) == []


def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path, database: Database) -> None:
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = 'ffff'"))
    with pytest.raises(Unavailable, match="newer version"):
        migrate(f"sqlite:///{tmp_path / 'stillhouse.db'}")
