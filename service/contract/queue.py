"""The queue: Celery's name, its settings, and the doorbell.

A message holds an identifier and nothing else. The database row is the truth: a lost message is
rung again by the sweep, a repeated one finds nothing to claim.
"""

from typing import Literal

from celery import Celery
from kombu.exceptions import OperationalError

from service.contract.errors import Unavailable
from service.contract.settings import Settings

Queue = Literal["jobs", "inspections"]
TASKS: dict[Queue, str] = {"jobs": "stillhouse.run_job", "inspections": "stillhouse.inspect"}


def create_celery(settings: Settings) -> Celery:
    """Return the Celery application that both sides use."""
    app = Celery("stillhouse", broker=settings.broker, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=False,  # the lease does the safety; an early ack keeps the broker out of it
        task_default_queue="jobs",
        task_routes={name: {"queue": queue} for queue, name in TASKS.items()},
        task_create_missing_queues=True,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # a broker's restart must not end a job
        worker_hijack_root_logger=False,
        worker_soft_shutdown_timeout=settings.drain_seconds,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
            "visibility_timeout": 86400,
        },
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0.1},
    )
    return app


def ring(app: Celery, queue: Queue, resource_id: str) -> None:
    """Say that there is work. Raises Unavailable when the broker does not answer."""
    try:
        app.send_task(TASKS[queue], args=[resource_id], queue=queue)
    except (OperationalError, OSError) as error:
        raise Unavailable("the broker does not answer; the work is recorded and is rung again later") from error


def depth(app: Celery, queue: Queue) -> int:
    """Return how many messages wait. Raises Unavailable when the broker does not answer."""
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0.1)
            with connection.channel() as channel:
                return int(channel.queue_declare(queue=queue, durable=True, passive=False).message_count)
    except (OperationalError, OSError) as error:
        raise Unavailable("the broker does not answer") from error
