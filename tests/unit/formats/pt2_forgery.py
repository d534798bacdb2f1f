"""Archives that torch would not write, made from one that it wrote."""

import json
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = "model"
PROGRAM = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"

Json = dict[str, Any]


def records(path: Path) -> dict[str, bytes]:
    """The contents of an archive by name, without its root folder."""
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def forge(
    original: Path, target: Path, changes: Mapping[str, bytes | None] = {}, *, root: str = ROOT, compressed: str = ""
) -> Path:
    """`original` with records replaced, added, or (None) taken away; one may be compressed."""
    contents = {**records(original), **changes}
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in contents.items():
            if content is not None:
                method = zipfile.ZIP_DEFLATED if name == compressed else zipfile.ZIP_STORED
                archive.writestr(f"{root}/{name}" if root else name, content, method)
    return target


def forge_json(original: Path, target: Path, record: str, change: Callable[[Json], None]) -> Path:
    """`original` with one JSON document changed in place."""
    document = json.loads(records(original)[record])
    change(document)
    return forge(original, target, {record: json.dumps(document).encode()})


def forge_program(original: Path, target: Path, change: Callable[[Json], None]) -> Path:
    return forge_json(original, target, PROGRAM, change)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def central_directory(contents: bytes) -> int:
    """Where the directory of a small zip file begins."""
    return int(struct.unpack("<L", contents[-6:-2])[0])
