"""Temporary folders that a user without privileges may pass through."""

from pathlib import Path


def open_to_all(folder: Path) -> None:
    """Let everybody list `folder` and all above it that pytest has made."""
    for each in (folder, *folder.parents):
        each.chmod(0o755)
        if each.name.startswith("pytest-of-"):
            return
