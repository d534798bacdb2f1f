"""Commands about jobs: submit, watch, the list, cancel, retry and the report."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli_specs import distillation, given, pruning, refuse, spec_from, training
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


def conclude(client: "Client", job_id: str) -> None:
    """Watch a job until it is done; fail when it did."""
    from service.watching import watch as follow

    job = follow(client, job_id, console(err=True))
    if job["state"] != "succeeded":
        why = (job["error"] or {}).get("detail") or job["reason"]
        raise Mistake(f"{job_id} {job['state']}" + (f": {why}" if why else ""), exit_code=1)
    made = job["result"]["model_id"] or "a report and no model"
    note(f"{job_id} made {made}; next: stillhouse report {job_id}")


Amount = Annotated[float | None, typer.Option(metavar="FRACTION", rich_help_panel="Pruning", help="That remains.")]
DISTILLATION = {"rich_help_panel": "Distillation"}
PRUNING = {"rich_help_panel": "Pruning"}


@app.command()
def submit(
    file: Annotated[Path | None, typer.Argument(metavar="FILE.json|-", help="A job as on the wire.")] = None,
    dataset: Annotated[str | None, typer.Option(metavar="DATASET")] = None,
    teacher: Annotated[str | None, typer.Option(metavar="MODEL", help="What to distil.", **DISTILLATION)] = None,
    student: Annotated[
        str | None, typer.Option(metavar="ARCHITECTURE|MODEL", help="What to train.", **DISTILLATION)
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=JSON", help="Of the student's architecture.", **DISTILLATION)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split.", **DISTILLATION)] = None,
    control: Annotated[
        bool, typer.Option("--control", help="Also train the student on the labels alone.", **DISTILLATION)
    ] = False,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="What to prune.", **PRUNING)] = None,
    macs: Amount = None,
    params: Amount = None,
    bytes_: Annotated[
        float | None, typer.Option("--bytes", metavar="FRACTION", help="That remains.", **PRUNING)
    ] = None,
    latency: Amount = None,
    max_accuracy_drop: Annotated[
        float | None, typer.Option(help="Prune while the accuracy holds; 0.01 is one point.", **PRUNING)
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(help="Prune while the divergence from MODEL, in nats, holds.", **PRUNING)
    ] = None,
    criterion: Annotated[
        str | None, typer.Option(help="What judges the units, such as output_kl or l2.", **PRUNING)
    ] = None,
    recover: Annotated[
        int | None, typer.Option(metavar="EPOCHS", help="Then distil the small network from MODEL.", **PRUNING)
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="T of the distillation loss.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of the hard labels.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in a batch.")] = None,
    lr: Annotated[float | None, typer.Option(help="AdamW's learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same result.")] = None,
    label: Labels = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key makes the job only once.")] = None,
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="Make no job; print what it would be, and how far pruning can go.")
    ] = False,
    follow: Annotated[bool, typer.Option("--watch", help="Then watch it.")] = False,
) -> None:
    """Submit a job: from a file, or a distillation or a pruning from options."""
    objective = given(temperature=temperature, alpha=alpha)
    target = given(
        macs=macs, params=params, bytes=bytes_, latency=latency, max_accuracy_drop=max_accuracy_drop, max_kl=max_kl
    )
    if file is not None and teacher is None and model is None:
        spec = spec_from(file)
    elif file is None and model is not None and dataset is not None and teacher is None:
        refuse("pruning", {"--student": student, "--option": option, "--epochs": epochs, "--control": control})
        recovery = given(objective=objective, training=training(recover, batch_size, lr))
        if recover is None and recovery:
            raise Mistake("--temperature, --alpha, --batch-size and --lr are of the recovery; add --recover EPOCHS")
        spec = pruning(model, dataset, target, criterion, None if recover is None else recovery)
    elif file is None and teacher is not None and dataset is not None and student is not None and model is None:
        refuse("distillation", {"--criterion": criterion, "--recover": recover, **{f"--{name}": 1 for name in target}})
        options = {key: parsed(value) for key, value in pairs(option, "--option").items()}
        config = given(objective=objective, training=training(epochs, batch_size, lr), control=control)
        spec = distillation(teacher, dataset, student, options, config)
    else:
        raise Mistake(
            "give a FILE.json (- for stdin), or the options --teacher, --dataset and --student, "
            "or --model, --dataset and a target such as --macs 0.25"
        )
    spec |= given(seed=seed, labels=pairs(label, "--label"))
    with connect() as client:
        if validate_only:
            show_validation(client.validate(spec))
            return
        job = client.submit(spec, idempotency_key)
        typer.echo(job["id"])
        for warning in job["warnings"]:
            note(f"warning: {warning}")
        if follow:
            conclude(client, job["id"])


def show_validation(answer: dict[str, Any]) -> None:
    """Print what a job would be; fail when it cannot be."""
    typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    for warning in answer["warnings"]:
        note(f"warning: {warning}")
    if not answer["valid"]:
        raise Mistake("the job would be refused", exit_code=1)


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
def report(
    job: JobId,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    as_html: Annotated[
        bool, typer.Option("--html", help="Print it as a page with figures; send it to a file.")
    ] = False,
) -> None:
    """Print the final comparison: teacher, student and controls; of an analysis, what was measured."""
    from service.tables import print_report
    from service.tables_analysis import print_analysis

    if as_json and as_html:
        raise Mistake("--json and --html exclude each other")
    with connect() as client:
        if as_html:
            typer.echo(client.report_page(job).encode(), nl=False)  # a page is UTF-8 whatever the terminal is
            return
        found = client.report(job)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    elif found.get("kind") == "analysis":
        print_analysis(console(), found)
    else:
        print_report(console(), found)
