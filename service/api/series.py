"""A job's metrics as series, thinned where they are stored: at most so many points of each, first and last kept."""

import csv
import io
import math
from collections.abc import Iterable
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field
from sqlalchemy import Row, Select, func, or_, select

from service.api.deps import Reader, ServicesDep, owned
from service.api.documents import answers
from service.contract.records import JobRecord, Metric

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

Point = tuple[str, int, float | None]
StepAndValue = Annotated[list[int | float | None], Field(min_length=2, max_length=2)]
CSV = "text/csv"


class Series(BaseModel):
    """Series by name: pairs of step and value; a value is null where it was not finite."""

    series: dict[str, list[StepAndValue]] = Field(examples=[{"validation/accuracy": [[100, 0.91], [200, 0.93]]}])


def thinned(
    job_id: str,
    after_step: int,
    max_points: int,  # of each series, at least 2
) -> Select[str, int, float | None]:
    """Return the statement for every k-th point of each series and its last, k as small as `max_points` allows."""
    numbered = (
        select(
            Metric.name,
            Metric.step,
            Metric.value,
            (func.row_number().over(partition_by=Metric.name, order_by=Metric.step) - 1).label("index"),
            func.count().over(partition_by=Metric.name).label("points"),
        )
        .where(Metric.job_id == job_id, Metric.step > after_step)
        .subquery()
    )
    columns = numbered.c
    stride = (columns.points - 1 + max_points - 2) // (max_points - 1)  # the quotient, rounded up
    kept = or_(columns.index == 0, columns.index == columns.points - 1, columns.index % stride == 0)
    return select(columns.name, columns.step, columns.value).where(kept).order_by(columns.name, columns.step)


def _points(rows: Iterable[Row[str, int, float | None]]) -> list[Point]:
    return [(name, step, value if value is not None and math.isfinite(value) else None) for name, step, value in rows]


def _as_csv(points: Iterable[Point]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("series", "step", "value"))
    writer.writerows((name, step, "" if value is None else repr(value)) for name, step, value in points)
    return text.getvalue()


def _as_series(points: Iterable[Point]) -> Series:
    series: dict[str, list[StepAndValue]] = {}
    for name, step, value in points:
        series.setdefault(name, []).append([step, value])
    return Series(series=series)


@router.get(
    "/{job_id}/metrics",
    response_model=Series,
    responses=answers(
        {
            200: {
                "content": {CSV: {"schema": {"type": "string"}, "example": "series,step,value\ntrain/loss,100,0.31\n"}}
            }
        },
        404,
    ),
)
def job_metrics(
    services: ServicesDep,
    caller: Reader,
    job_id: str,
    after_step: Annotated[int, Query(ge=-1, le=2**62, description="Only later steps.")] = -1,
    max_points: Annotated[int, Query(ge=2, le=10_000, description="Most points of each series.")] = 1000,
    format: Annotated[Literal["json", "csv"], Query()] = "json",
) -> Response:
    """Show a job's metrics."""
    with services.database.read() as session:
        owned(session, JobRecord, job_id, caller)
        points = _points(session.execute(thinned(job_id, after_step, max_points)).all())
    if format == "csv":
        return Response(_as_csv(points), media_type=CSV)
    return Response(_as_series(points).model_dump_json(), media_type="application/json")
