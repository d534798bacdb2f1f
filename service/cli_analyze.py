"""The command that measures a model, or two, without making one."""

from typing import Annotated, Any

import typer

from service.cli_jobs import conclude
from service.cli_specs import given
from service.terminal import Labels, Mistake, connect, note, pairs

app = typer.Typer()
MOST_MODELS = 2


@app.command()
def analyze(
    models: Annotated[list[str], typer.Argument(metavar="MODEL [MODEL]", help="One, or two to compare.")],
    dataset: Annotated[str, typer.Option(metavar="DATASET")],
    criterion: Annotated[
        list[str] | None,
        typer.Option(help="What judges the units, such as output_kl or l2; may be repeated. [default: output_kl]"),
    ] = None,
    layers: Annotated[bool, typer.Option(help="Measure each group of units.")] = True,
    examples: Annotated[int | None, typer.Option(help="Inputs on which layers and units are judged.")] = None,
    split: Annotated[str | None, typer.Option(help="On which outputs are measured. [default: test]")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same result.")] = None,
    label: Labels = None,
    follow: Annotated[bool, typer.Option("--watch", help="Then watch it.")] = False,
) -> None:
    """Submit an analysis: what one model, or each of two, says and holds, and what pruning would do."""
    if len(models) > MOST_MODELS:
        raise Mistake(f"an analysis takes one model or two to compare; got {len(models)}")
    config: dict[str, Any] = given(criteria=criterion, calibration=given(examples=examples), split=split)
    if not layers:
        config["layers"] = False
    spec = {"type": "analyze", "models": models, "dataset": dataset, **given(config=config)}
    with connect() as client:
        job = client.submit(spec | given(seed=seed, labels=pairs(label, "--label")))
        typer.echo(job["id"])
        for warning in job["warnings"]:
            note(f"warning: {warning}")
        if follow:
            conclude(client, job["id"])
