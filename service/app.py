"""The HTTP side of Stillhouse: `create_app(settings)`, and `service.app:application` for uvicorn."""

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import anyio
import structlog
from anyio.to_thread import run_sync
from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline

from service.api import (
    access,
    catalogue,
    datasets,
    documents,
    errors,
    events,
    expiry,
    health,
    jobs,
    models,
    outcomes,
    series,
    telemetry,
    uploads,
    workers,
)
from service.api.authentication import Authentication
from service.api.deps import Services
from service.api.doorbell import Doorbell
from service.api.idempotency import InFlight
from service.api.leaving import called_before_stopping
from service.api.part_files import PartFiles
from service.api.watch import Watch
from service.contract.database import Database
from service.contract.queue import create_celery
from service.contract.settings import Settings
from service.contract.storage import open_storage

ROUTERS: tuple[APIRouter, ...] = (  # in the order in which a path is matched: what is polled comes first
    jobs.router,
    uploads.router,
    models.router,
    datasets.router,
    events.router,
    series.router,
    outcomes.router,
    catalogue.router,
    workers.router,
)
DESCRIPTION = """
Teams that own trained networks post a teacher, a dataset and a job; workers distil; the result is a
model like any other. Every error is an `application/problem+json` with a stable `code`.
"""


def assemble(settings: Settings) -> Services:
    """Return the parts that requests share; nothing is asked of the database or the broker yet."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    storage = open_storage(settings.storage)
    celery = create_celery(settings)
    database = Database(settings.database)
    return Services(
        settings=settings,
        database=database,
        storage=storage,
        celery=celery,
        doorbell=Doorbell(celery),
        parts=PartFiles(storage.incoming),  # on the storage's filesystem, so that adopting is a rename
        in_flight=InFlight(),
        authentication=Authentication(database),
        watch=Watch(database, settings.poll_seconds),
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    with called_before_stopping(services.watch.close):
        async with anyio.create_task_group() as group:
            group.start_soon(expiry.keep_expiring, services)
            group.start_soon(expiry.keep_retaining, services)
            yield
            group.cancel_scope.cancel()
    await run_sync(services.doorbell.close)
    await run_sync(services.database.close)


def create_app(settings: Settings) -> FastAPI:
    """Return the application."""
    app = FastAPIOffline(  # its documentation page needs no network
        title="Stillhouse",
        version=version("stillhouse"),
        summary="A self-hosted model-compression service.",
        description=DESCRIPTION,
        lifespan=_lifespan,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: f"{route.name}_head" if route.methods == {"HEAD"} else route.name,
    )
    app.state.services = assemble(settings)
    app.state.telemetry = telemetry.Telemetry(app.state.services.database)
    for router in ROUTERS:
        app.include_router(router, responses=documents.COMMON)
    app.include_router(health.router)
    app.include_router(telemetry.router)
    errors.install(app)
    documents.install(app)
    app.add_middleware(access.Access, telemetry=app.state.telemetry)
    return app


def _for_people() -> structlog.dev.ConsoleRenderer:
    # The default formatter prints local variables, and with them keys.
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)


def configure_logging(settings: Settings) -> None:
    """Send structured lines to standard error, as text for people or as JSON for machines."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    renderer = structlog.processors.JSONRenderer() if settings.log_format == "json" else _for_people()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if settings.log_format == "json" else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def application() -> FastAPI:
    """Return the application with settings from the environment: `uvicorn --factory service.app:application`."""
    settings = Settings()
    configure_logging(settings)
    return create_app(settings)
