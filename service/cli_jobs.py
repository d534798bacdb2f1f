"""Commands about jobs: submit, watch, the list, cancel, retry and the report."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.terminal import (
    AsJson,
    Labels,
    Limit,
    Mistake,
    States,
    connect,
    console,
    note,
    pairs,
    parsed,
    print_list,
)

if TYPE_CHECKING:
    from service.client import Client

app = typer.Typer()
JobId = Annotated[str, typer.Argument(metavar="JOB")]


def spec_from(file: Path) -> dict[str, Any]:
    """Return the job in a file, or on stdin for "-". Raises Mistake."""
    if str(file) != "-" and not file.is_file():
        raise Mistake(f"there is no file {file}")
    text = sys.stdin.read() if str(file) == "-" else file.read_text()
    try:
        spec = json.loads(text)
    except ValueError as error:
        raise Mistake(f"{file} is not JSON: {error}") from None
    if not isinstance(spec, dict):
        raise Mistake(f'{file} holds no JSON object; a job is one, such as {{"type": "distill", …}}')
    return spec


def given(**fields: Any) -> dict[str, Any]:
    """Return those fields that were given; the service fills in the others."""
    return {name: value for name, value in fields.items() if value not in (None, {})}


def student_of(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the student: a registered model by its id, or a built-in architecture by its name."""
    return {"model": name} if name.startswith("mdl_") else {"architecture": {"name": name, "options": options}}


def conclude(client: "Client", job_id: str) -> None:
    """Watch a job until it is done; fail when it did."""
    from service.watching import watch as follow

    job = follow(client, job_id, console(err=True))
    if job["state"] != "succeeded":
        why = (job["error"] or {}).get("detail") or job["reason"]
        raise Mistake(f"{job_id} {job['state']}" + (f": {why}" if why else ""), exit_code=1)
    note(f"{job_id} made {job['result']['model_id']}; next: stillhouse report {job_id}")


@app.command()
def submit(
    file: Annotated[Path | None, typer.Argument(metavar="FILE.json|-", help="A job as on the wire.")] = None,
    teacher: Annotated[str | None, typer.Option(metavar="MODEL")] = None,
    dataset: Annotated[str | None, typer.Option(metavar="DATASET")] = None,
    student: Annotated[str | None, typer.Option(metavar="ARCHITECTURE|MODEL", help="What to train.")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=JSON", help="Of the student's architecture.")] = None,
    temperature: Annotated[float | None, typer.Option(help="T of the distillation loss.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of the hard labels.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in a batch.")] = None,
    lr: Annotated[float | None, typer.Option(help="AdamW's learning rate.")] = None,
    control: Annotated[bool, typer.Option("--control", help="Also train the student on the labels alone.")] = False,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same student.")] = None,
    label: Labels = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key makes the job only once.")] = None,
    follow: Annotated[bool, typer.Option("--watch", help="Then watch it.")] = False,
) -> None:
    """Submit a job: from a file, or a distillation from options."""
    if file is not None and teacher is None:
        spec = spec_from(file)
    elif file is None and teacher is not None and dataset is not None and student is not None:
        options = {key: parsed(value) for key, value in pairs(option, "--option").items()}
        optimizer = None if lr is None else {"name": "adamw", "lr": lr}
        objective = given(temperature=temperature, alpha=alpha)
        training = given(epochs=epochs, batch_size=batch_size, optimizer=optimizer)
        config = given(objective=objective, training=training, control=control)
        spec = {"type": "distill", "teacher": teacher, "dataset": dataset, "student": student_of(student, options)}
        spec |= given(config=config, seed=seed, labels=pairs(label, "--label"))
    else:
        raise Mistake("give a FILE.json (- for stdin), or the options --teacher, --dataset and --student")
    with connect() as client:
        job = client.submit(spec, idempotency_key)
        typer.echo(job["id"])
        for warning in job["warnings"]:
            note(f"warning: {warning}")
        if follow:
            conclude(client, job["id"])


@app.command()
def watch(job: JobId) -> None:
    """Follow a job until it is done: stage, progress, time left and the latest metrics."""
    with connect() as client:
        conclude(client, job)


@app.command()
def jobs(state: States = None, label: Labels = None, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List jobs, newest first."""
    print_list("jobs", state, label, limit, as_json)


@app.command()
def cancel(job: JobId) -> None:
    """Ask a job to stop."""
    with connect() as client:
        note(f"{job} is {client.cancel(job)['state']}")


@app.command()
def pause(job: JobId) -> None:
    """Ask a job to give its worker free; it keeps what it has done."""
    with connect() as client:
        note(f"{job} is {client.pause(job)['state']}")


@app.command()
def resume(job: JobId) -> None:
    """Queue a paused job again; it goes on where it stood."""
    with connect() as client:
        note(f"{job} is {client.resume(job)['state']}")


@app.command()
def retry(job: JobId) -> None:
    """Queue a failed or cancelled job again, under the same id."""
    with connect() as client:
        found = client.retry(job)
        note(f"{job} is {found['state']}, attempt {found['attempt']}")


@app.command()
def report(job: JobId, as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False) -> None:
    """Print the final comparison: teacher, student and control."""
    from service.tables import print_report

    with connect() as client:
        found = client.report(job)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print_report(console(), found)
