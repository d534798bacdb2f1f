"""The Celery worker's entry: one process for each slot, and one or more for inspections.

    python -m celery -A workers.app worker -Q jobs --pool=threads --concurrency=1 -n gpu0@%h
    python -m celery -A workers.app worker -Q inspections --pool=threads --concurrency=1 -n inspector@%h

(`--without-mingle --without-gossip` saves a second of the start: workers meet in the database.)
Started as `python -m celery`, for then Python's multiprocessing knows that children need not import
the main program again. This process never imports torch; its children do (`workers.child`).
"""

from typing import Any

from celery import signals
from structlog import get_logger

from service.contract.database import Database
from service.contract.queue import TASKS, Queue, create_celery
from service.contract.settings import Settings
from service.contract.storage import open_storage
from workers import child, logs, tasks
from workers.jail import probe
from workers.presence import Presence
from workers.station import Station
from workers.sweep import Sweeper

log = get_logger(__name__)
settings = Settings()
app = create_celery(settings)
app.conf.worker_disable_prefetch = True  # a busy slot must not hold a message that an idle one could answer
station = Station(settings, Database(settings.database), open_storage(settings.storage), app)
company: list[Presence | Sweeper] = []  # the threads that run beside the work


def run_job(job_id: str) -> None:
    """Run a job."""
    tasks.run_job(station, job_id)


def inspect(resource_id: str) -> None:
    """Inspect a model or dataset."""
    tasks.inspect(station, resource_id)


def _set_up_logging(**_: Any) -> None:
    logs.configure_for(settings)


def _warm(**_: Any) -> None:
    child.warm()  # here, in the main thread: the fork server imports torch while Celery starts


def _begin(sender: Any, **_: Any) -> None:
    child.wait_until_warm()  # before the first message: a job that an idle, warm worker could run is not for this one
    queues = [name for name in TASKS if name in sender.app.amqp.queues.consume_from]
    queue: Queue = queues[0]
    jail = probe.in_force()
    probe.announce(jail)
    company.extend([Presence(station, queue, sender.hostname, jail), Sweeper(station)])
    for companion in company:
        companion.start()
    log.info("worker ready", worker=station.worker, queues=queues)


def _drain(**_: Any) -> None:
    station.draining.set()


def _leave(**_: Any) -> None:
    for companion in reversed(company):
        companion.leave()
    station.database.close()


app.task(name=TASKS["jobs"])(run_job)
app.task(name=TASKS["inspections"])(inspect)
signals.setup_logging.connect(_set_up_logging)
signals.worker_init.connect(_warm)
signals.worker_ready.connect(_begin)
signals.worker_shutting_down.connect(_drain)
signals.worker_shutdown.connect(_leave)
