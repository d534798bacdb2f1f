"""Fixtures of the HTTP side; `house.py` says what a house is."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from tests.integration.api.house import House, Served, opened, settings_for


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with opened(settings_for(tmp_path)) as house:
        yield house


@pytest.fixture
def open_house(tmp_path: Path) -> Callable[..., Any]:
    """For tests that need other settings: `with open_house(max_upload_bytes=10) as house`."""
    return lambda **changes: opened(settings_for(tmp_path, **changes))


@pytest.fixture
def served(house: House) -> Iterator[Served]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(house.app, "127.0.0.1", port, lifespan="off", log_level="critical", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    headers = {"Authorization": f"Bearer {house.keys['ann']}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:
        yield Served(house, port, client)
    server.should_exit = True
    server.force_exit = True
    thread.join(20)
