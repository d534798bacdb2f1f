"""Commands about models and datasets: push, pull, show and the lists."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.terminal import AsJson, Labels, Limit, Mistake, States, connect, note, pairs, parsed, print_list

if TYPE_CHECKING:
    from service.client import Client

app = typer.Typer()
push = typer.Typer(help="Upload files and register them as a model or a dataset.", no_args_is_help=True)
app.add_typer(push, name="push")

Name = Annotated[str, typer.Option("--name", help="What to call it.")]
Wait = Annotated[bool, typer.Option(help="Wait until a worker has read it.")]
MODEL_ROLES = {".safetensors": "model.safetensors", ".pt": "checkpoint.pt", ".pth": "checkpoint.pth",
               ".bin": "checkpoint.bin", ".pt2": "model.pt2"}  # fmt: skip
DATASET_ROLES = {".npz": "data.npz", ".safetensors": "data.safetensors", ".parquet": "data.parquet",
                 ".zip": "images.zip"}  # fmt: skip


STORED = re.compile(r"(mdl|dat)_[0-9a-z]{26}/[^/]+")  # a file of a model or dataset that the service has


def existing(files: list[Path], roles: dict[str, str]) -> dict[str, Path | str]:
    """Return the files by role, which a file's ending tells; those that the service has stay ids. Raises Mistake."""
    named: dict[str, Path | str] = {}
    for path in files:
        stored = STORED.fullmatch(str(path)) is not None
        if not stored and not path.is_file():
            raise Mistake(f"there is no file {path}")
        role = path.name if path.suffix == ".json" else roles.get(path.suffix.lower(), path.name)
        named[role] = str(path) if stored else path
    if len(named) < len(files):
        raise Mistake(f"several files have the same role ({', '.join(named)}); push one of them")
    return named


def finish_push(client: "Client", resource: dict[str, Any], wait: bool) -> None:
    """Print the new resource's id; wait for its inspection and fail when it is rejected."""
    typer.echo(resource["id"])
    if not wait:
        return
    note("waiting for its inspection …")
    found = client.wait_until_inspected(resource["id"])
    if found["state"] == "rejected":
        raise Mistake(f"{found['id']} was rejected: {found['error']['detail']}", exit_code=1)
    note(f"{found['id']} is ready")


@push.command("model")
def push_model(
    files: Annotated[list[Path], typer.Argument(metavar="FILE|MODEL/FILE...")],
    name: Name,
    architecture: Annotated[str | None, typer.Option(help="A built-in architecture, such as resnet20.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=JSON", help="Of the architecture: input_shape=[1,28,28]")
    ] = None,
    label: Labels = None,
    wait: Wait = True,
) -> None:
    """Register a model: an export (.pt2), or weights (.safetensors, .pt, .pth, .bin) with a built-in architecture.

    MODEL/FILE is a file of another model, such as mdl_…/step-003.pt2, a network on the way of a pruning.
    """
    options = {key: parsed(value) for key, value in pairs(option, "--option").items()}
    if architecture is None and options:
        raise Mistake("--option belongs to an architecture; name it with --architecture")
    declared = None if architecture is None else {"name": architecture, "options": options}
    with connect() as client:
        sources = existing(files, MODEL_ROLES)
        finish_push(client, client.register_model(name, sources, declared, labels=pairs(label, "--label")), wait)


@push.command("dataset")
def push_dataset(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...")],
    name: Name,
    validation: Annotated[float | None, typer.Option(help="Share to validate on, when the file has one split.")] = None,
    test: Annotated[float | None, typer.Option(help="Share to test on, when the file has one split.")] = None,
    split_seed: Annotated[int | None, typer.Option(help="Seed of that division.")] = None,
    normalize: Annotated[str | None, typer.Option(metavar="auto|JSON", help='"auto", or {"mean": […], …}')] = None,
    label: Labels = None,
    wait: Wait = True,
) -> None:
    """Register a dataset (.npz, .safetensors, .parquet, or a .zip of images)."""
    given = {"validation": validation, "test": test, "seed": split_seed}
    splits = {key: value for key, value in given.items() if value is not None} or None
    transform = None if normalize is None else {"normalize": parsed(normalize)}
    with connect() as client:
        made = client.register_dataset(
            name, existing(files, DATASET_ROLES), splits=splits, transform=transform, labels=pairs(label, "--label")
        )
        finish_push(client, made, wait)


@app.command()
def models(state: States = None, label: Labels = None, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List models, newest first."""
    print_list("models", state, label, limit, as_json)


@app.command()
def datasets(state: States = None, label: Labels = None, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List datasets, newest first."""
    print_list("datasets", state, label, limit, as_json)


@app.command()
def pull(
    source: Annotated[str, typer.Argument(metavar="MODEL|JOB")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder for the files.")],
) -> None:
    """Download a model, or the model that a job made; each file's hash is checked."""
    with connect() as client:
        model_id = source
        if source.startswith("job_"):
            job = client.job(source)
            if job["result"] is None:
                raise Mistake(f"{source} is {job['state']} and has made no model", exit_code=1)
            model_id = job["result"]["model_id"]
            if model_id is None:
                raise Mistake(f"{source} is an analysis and has made no model; see stillhouse report {source}", 1)
        for name, sha256 in client.download(model_id, to).items():
            typer.echo(f"{sha256}  {to / name}")


@app.command()
def show(resource: Annotated[str, typer.Argument(metavar="ID", help="Of a job, a model or a dataset.")]) -> None:
    """Print everything about a job, a model or a dataset as JSON."""
    with connect() as client:
        getters = {"job": client.job, "mdl": client.model, "dat": client.dataset}
        if (get := getters.get(resource[:3])) is None:
            raise Mistake(f"{resource!r} is no id; ids begin with job_, mdl_ or dat_")
        typer.echo(json.dumps(get(resource), indent=2, ensure_ascii=False))
