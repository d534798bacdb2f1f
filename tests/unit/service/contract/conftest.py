from collections.abc import Iterator
from pathlib import Path

import pytest

from service.contract.database import Database
from service.contract.migrate import migrate


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'stillhouse.db'}"
    migrate(url)
    database = Database(url)
    yield database
    database.close()
