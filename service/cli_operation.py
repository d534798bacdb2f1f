"""Commands for whoever runs a service: they work on the data folder itself, whether it is served or not."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli_keys import DataDir
from service.terminal import AsJson, Mistake, note

if TYPE_CHECKING:
    from service.contract.settings import Settings
    from service.doctor.findings import Finding

app = typer.Typer()
SHOWN = 10  # subjects of a finding, for people


def _settings(data: Path | None) -> "Settings":
    from service.contract.settings import Settings

    return Settings(data_dir=data) if data else Settings()


@app.command()
def doctor(
    data: DataDir = None,
    as_json: AsJson = False,
    deep: Annotated[bool, typer.Option("--deep", help="Read every stored file, and compare its SHA-256.")] = False,
    fix: Annotated[bool, typer.Option("--fix", help="Then remove what no row names and is a day old.")] = False,
) -> None:
    """Check a data folder and its database against each other; exits with 1 when something is lost or broken."""
    from service.doctor import examination

    settings = _settings(data)
    removed = [path.name for path in examination.mend(settings)] if fix else []
    findings = examination.examine(settings, deep=deep)
    (_print_json if as_json else _print_lines)(findings, removed)
    if not examination.is_healthy(findings):
        raise typer.Exit(1)


def _print_json(findings: list["Finding"], removed: list[str]) -> None:
    import json
    from dataclasses import asdict

    from service.doctor import examination

    healthy = examination.is_healthy(findings)
    typer.echo(json.dumps({"healthy": healthy, "findings": list(map(asdict, findings)), "removed": removed}))


def _print_lines(findings: list["Finding"], removed: list[str]) -> None:
    for name in removed:
        note(f"removed {name}")
    for finding in findings:
        typer.echo(f"{finding.grade:<8} {finding.check}: {finding.text}")
        for subject in finding.subjects[:SHOWN]:
            typer.echo(f"           {subject}")
        if len(finding.subjects) > SHOWN:
            typer.echo(f"           and {len(finding.subjects) - SHOWN} more (--json lists all)")
        if finding.advice:
            typer.echo(f"         → {finding.advice}")


@app.command()
def backup(
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="The tar file to make.")], data: DataDir = None
) -> None:
    """Write the database and all stored files to one tar file, while the service runs or not."""
    from service.backup import back_up

    manifest = back_up(_settings(data), to)
    note(f"{to}: the database and {len(manifest.files)} files, {sum(manifest.files.values()):,} bytes")
    if manifest.damaged:
        raise Mistake(
            f"the backup is complete but for {len(manifest.damaged)} files that were missing or damaged already; "
            "see what they belong to: stillhouse doctor --deep",
            exit_code=1,
        )


@app.command()
def restore(
    archive: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `stillhouse backup` made.")],
    data: Annotated[Path, typer.Option("--data", help="The data folder to make; it must be new or empty.")],
) -> None:
    """Make a new data folder of a backup; every file is verified."""
    from service.restoring import restore as make

    restored = make(archive, data)
    counts = ", ".join(f"{number} {name}" for name, number in restored.counts.items())
    note(f"{data}: {counts} and {len(restored.manifest.files)} files, all as they were backed up")
    if restored.given_back:
        note(f"{len(restored.given_back)} of the jobs ran then; they go on from their checkpoints once it is served")
    if restored.manifest.damaged:
        note(f"{len(restored.manifest.damaged)} files were missing or damaged when the backup was made: see the doctor")
    typer.echo(f"stillhouse serve --data {data}")
