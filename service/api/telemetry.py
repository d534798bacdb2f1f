"""What Prometheus reads: latency of each route, and how many jobs stand in each state."""

from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from service.api.documents import text_answer
from service.contract.database import Database
from service.contract.errors import Unavailable
from service.contract.records import JobRecord, JobState

METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"})


class JobsByState(Collector):
    """Counts rows when it is asked; without the database it says nothing rather than fail the scrape."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def collect(self) -> Iterator[Metric]:
        """Yield one gauge with a sample for each state, zeros too."""
        try:
            with self.database.read() as session:
                rows = session.execute(select(JobRecord.state, func.count()).group_by(JobRecord.state))
                counts = dict(rows.all())
        except Unavailable:
            return
        gauge = GaugeMetricFamily("stillhouse_jobs", "Jobs by state.", labels=["state"])
        for state in JobState:
            gauge.add_metric([state], counts.get(state, 0))
        yield gauge


class Telemetry:
    """One registry for one application."""

    def __init__(self, database: Database) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(JobsByState(database))
        self._requests = Histogram(
            "stillhouse_http_request_seconds",
            "Time from a request's first byte to its answer's last, by route.",
            ["method", "route", "status"],
            registry=self.registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request; a made-up method is counted as OTHER, so that labels stay few."""
        self._requests.labels(method if method in METHODS else "OTHER", route, str(status)).observe(seconds)


router = APIRouter(tags=["operation"])


@router.get(
    "/metrics",
    response_class=Response,
    responses=text_answer("Prometheus exposition.", 'stillhouse_jobs{state="queued"} 2.0\n'),
)
def metrics(request: Request) -> Response:
    """Metrics for Prometheus: HTTP latency by route, jobs by state."""
    telemetry: Telemetry = request.app.state.telemetry
    return Response(generate_latest(telemetry.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
