"""What one worker process works with: its settings, database, storage, broker and name."""

import threading
from dataclasses import dataclass, field

from celery import Celery
from structlog import get_logger

from service.contract import queue
from service.contract.database import Database
from service.contract.errors import Unavailable
from service.contract.ids import new_id
from service.contract.settings import Settings
from service.contract.storage import Storage

log = get_logger(__name__)


@dataclass
class Station:
    """One Celery process. `draining` is set once it is to leave; `job_id` is what it works on now."""

    settings: Settings
    database: Database
    storage: Storage
    celery: Celery
    worker: str = field(default_factory=lambda: new_id("wrk"))
    draining: threading.Event = field(default_factory=threading.Event)
    job_id: str | None = None

    def ring(self, name: queue.Queue, resource_id: str) -> None:
        """Say that there is work; if the broker does not answer, the sweep says it later."""
        try:
            queue.ring(self.celery, name, resource_id)
        except Unavailable as error:
            log.warning("could not ring", queue=name, id=resource_id, error=error.detail)
