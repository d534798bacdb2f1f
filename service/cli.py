"""The `stillhouse` command: `serve` and `keys` work on a data folder, all else speaks HTTP.

Everything that takes long to import is imported by the command that needs it. A user's mistake is
one message on stderr and exit code 1 (the service refused, or a job failed) or 2 (the command was
wrong); what scripts read goes to stdout, what people read besides goes to stderr.
"""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service import cli_analyze, cli_jobs, cli_keys, cli_operation, cli_resources
from service.terminal import Mistake, console, note

if TYPE_CHECKING:
    from pydantic import ValidationError

    from service.contract.settings import Settings

app = typer.Typer(
    help="Stillhouse, a self-hosted model-compression service.",
    epilog="Commands that speak HTTP read STILLHOUSE_URL (http://127.0.0.1:8000) and STILLHOUSE_API_KEY.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
FAILED, WRONG_COMMAND = 1, 2


@app.command()
def serve(
    data: cli_keys.DataDir = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="How many jobs may run at a time; left out, one for each GPU, at least one."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Also show the children's logs here.")] = False,
) -> None:
    """Run the whole stack on this machine until Ctrl-C."""
    from service import embedded
    from service.contract.settings import Settings

    def say(text: str) -> None:
        typer.echo(text)
        sys.stdout.flush()  # a script that reads the address is not to wait

    folder = data or Settings().data_dir
    embedded.serve(folder, host, port, workers, verbose=verbose, say=say, warn=lambda text: note(f"stillhouse: {text}"))


app.add_typer(cli_resources.app)
app.add_typer(cli_jobs.app)
app.add_typer(cli_analyze.app)
app.add_typer(cli_keys.app, name="keys")
app.add_typer(cli_operation.app)


@app.command()
def settings() -> None:
    """List every setting: environment variable, value, default and meaning."""
    from service.contract.settings import Settings
    from service.tables import print_table

    print_table(console(), ["variable", "value", "default", "meaning"], setting_rows(Settings()))


def setting_rows(current: "Settings") -> Iterator[list[str]]:
    """Yield a row for each setting; secrets are masked."""
    for name, field in type(current).model_fields.items():
        value = getattr(current, name)
        yield [f"STILLHOUSE_{name.upper()}", shown(value), shown(field.default), field.description or ""]


def shown(value: Any) -> str:
    """Return a setting's value for the screen; a secret shows itself as asterisks."""
    return "" if value is None else str(value)


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(installed("stillhouse"))


def explain(error: Exception) -> tuple[str, int] | None:
    """Return a user's message and the exit code for an error that a user can act on."""
    if isinstance(error, Mistake):
        return str(error), error.exit_code
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from service.client import NotInTime
    from service.connection import ClientError
    from service.contract.errors import Invalid, StillhouseError

    codes: dict[type[Exception], int] = {
        Invalid: WRONG_COMMAND,
        SettingsError: WRONG_COMMAND,
        StillhouseError: FAILED,
        ClientError: FAILED,
        NotInTime: FAILED,
    }
    if isinstance(error, ValidationError) and error.title == "Settings":
        return wrong_settings(error), WRONG_COMMAND
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}", FAILED
    code = next((code for kind, code in codes.items() if isinstance(error, kind)), None)
    return None if code is None else (with_fields(error), code)


def with_fields(error: Exception) -> str:
    """Return a problem's message with a line for each wrong field that it does not name itself."""
    from service.connection import ProblemError

    fields = error.errors if isinstance(error, ProblemError) else ()
    more = [f"  {pointer}: {detail}" for pointer, detail in fields if pointer not in str(error)]
    return "\n".join([str(error), *more])


def wrong_settings(error: "ValidationError") -> str:
    """Return a line for each environment variable that holds no valid setting."""
    return "\n".join(
        f"STILLHOUSE_{str(wrong['loc'][0]).upper()}: {wrong['msg']}; got {wrong['input']!r}" for wrong in error.errors()
    )


def main() -> None:
    """Run the command line; a mistake is one message and an exit code, never a traceback."""
    try:
        app()
    except Exception as error:
        explained = explain(error)
        if explained is None:
            raise
        text, code = explained
        note(f"stillhouse: {text}")
        sys.exit(code)


if __name__ == "__main__":
    main()
