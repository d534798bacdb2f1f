"""`stillhouse-pack`: export one's own network to `model.pt2`, and hear beforehand what the service will say of it.

It runs in the user's own process with the user's own code, and speaks to no service. Exit codes: 0 accepted, 1 the
export failed or the archive would be refused, 2 the command was wrong.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from workers.packing.mistakes import FAILED, Mistake

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
ATTENTION = (
    "dropout inside attention is not in an export made in evaluation mode, so training here will go without it; "
    "--training keeps it"
)


@app.command()
def pack(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:FUNCTION", help="What gives the network: nets:build or nets.py:Net.")
    ],
    example: Annotated[
        list[str] | None,
        typer.Option(
            "--example",
            metavar="SHAPE|FILE",
            help="An input: the shape of one example (1,28,28 or 128:int64), or .npy, .npz or .safetensors with a "
            "batch; repeat it for further inputs.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the archive.")] = Path("model.pt2"),
    weights: Annotated[
        Path | None, typer.Option(help="A state dict to load: .safetensors, or .pt, .pth, .bin.")
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="Export in training mode, which keeps dropout inside attention.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,  # noqa: ARG001  main reads it
) -> None:
    """Export a network to a .pt2 archive, and check it as the service will."""
    # torch takes seconds to import: --help and mistakes of spelling are not to wait for it.
    from workers.packing.examples import example_inputs
    from workers.packing.export import (
        BATCH,
        OTHER_BATCH,
        export_network,
        loses_attention_dropout,
        write_program,
    )
    from workers.packing.network import build_network, load_weights
    from workers.packing.telling import as_json as told_as_json
    from workers.packing.telling import in_lines
    from workers.packing.verdict import judge

    if output.suffix != ".pt2":
        raise Mistake(
            f"--output {output}: the service knows what a file is by its name; expected one that ends in .pt2"
        )
    inputs, others = (example_inputs(example or [], size) for size in (BATCH, OTHER_BATCH))
    network = build_network(target)
    notes = load_weights(network, weights) if weights is not None else []
    if weights is None:
        notes.append("no --weights: the archive holds the weights that the function gave")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program, refused = export_network(network, inputs, training=training)
        if not training and loses_attention_dropout(network):
            notes.append(ATTENTION)
        write_program(program, output)
        verdict = judge(output, network, others)
    if as_json:
        typer.echo(json.dumps(told_as_json(output, verdict, refused, notes)))
    else:
        typer.echo("\n".join(in_lines(output, verdict, refused, notes)))
        if verdict.accepted:
            typer.echo(f"next: stillhouse push model {output} --name NAME", err=True)
    if not verdict.accepted:
        raise typer.Exit(FAILED)


def main() -> None:
    """Run the command line; a mistake is one message and an exit code, never a traceback unless it is asked for."""
    try:
        app()
    except Mistake as mistake:
        if "--traceback" in sys.argv:
            raise
        typer.echo(f"stillhouse-pack: {mistake}", err=True)
        sys.exit(mistake.exit_code)


if __name__ == "__main__":
    main()
