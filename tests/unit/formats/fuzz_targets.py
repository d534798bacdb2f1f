"""What is fuzzed: an honest upload of every kind, ways to break it, and the reader that gets it.

A mutation is drawn from a `random.Random`, so that a seed names it: what the long run finds (benchmarks/fuzz.py)
is repeated by its number. Half of the mutations are made behind the container's own checks (JSON inside an archive
whose checksums hold, a header of the right length), since blind flips seldom get that far.
"""

import functools
import io
import json
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from PIL import Image

from service.contract.errors import InputRejected
from service.contract.specs import ModelDeclaration
from tests.architectures import exported
from tests.unit.formats.declared import MAX_BYTES, UPLOAD, declare_dataset, declare_model
from tests.unit.formats.pt2_forgery import PROGRAM, WEIGHTS
from workers.formats.datasets import read_dataset
from workers.formats.models import read_model
from workers.pipe import Failed, Read
from workers.students.architectures import build

Mutation = Callable[[bytes, Random], bytes]

INTEGERS = (0, 1, -1, 2, 7, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64)
WORDS = ("", "x", "s0", "s0 + 1", "../x", "weight_0", "__class__", "\x00", "\ud800", "NaN", "a" * 5000, "torch.load")
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


@dataclass(frozen=True)
class Target:
    """One kind of upload."""

    file: str
    honest: Callable[[], bytes]
    structured: tuple[Mutation, ...] = ()
    is_model: bool = False

    def mutated(self, random: Random, content: bytes | None = None) -> bytes:
        """An upload that was honest once, or `content` broken further."""
        content = self.honest() if content is None else content
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            choices = (*self.structured, *self.structured, *BLIND) if self.structured else BLIND
            content = random.choice(choices)(content, random)
        return content

    def read(self, content: bytes) -> str:
        """Read as the jailed child does, up to the words it sends; return the refusal's code, "" for none.

        Raises whatever is not a clean refusal: a finding.
        """
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        try:
            (folder / self.file).write_bytes(content)
            (out := folder / "out").mkdir()
            Read(facts=self._facts(folder, out)).model_dump_json()
        except InputRejected as error:
            Failed(fault=error.fault()).model_dump_json()
            if not error.detail:
                raise AssertionError("a refusal without words") from error
            return error.fault().code
        finally:
            shutil.rmtree(folder)
        return ""

    def _facts(self, folder: Path, out: Path) -> dict[str, Any]:
        if not self.is_model:
            return read_dataset(folder, declare_dataset(self.file), out, max_bytes=MAX_BYTES)
        if self.file == "model.pt2":
            declaration = ModelDeclaration.model_validate({"name": "m", "files": {self.file: UPLOAD}})
            return read_model(folder, declaration, out)
        return read_model(folder, declare_model(self.file), out)


# Blind mutations -------------------------------------------------------------------------------------------------


def flip(content: bytes, random: Random) -> bytes:
    data = bytearray(content)
    for _ in range(random.choice((1, 2, 8))):
        if data:
            data[random.randrange(len(data))] = random.randrange(256)
    return bytes(data)


def truncate(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content) + 1)]


def overwrite_number(content: bytes, random: Random) -> bytes:
    """An edge value over 1 to 8 bytes, as counts, sizes and offsets are written."""
    width = random.choice((1, 2, 4, 8))
    value = (random.choice(EDGES) & (256**width - 1)).to_bytes(width, random.choice(("little", "big")))
    place = random.randrange(max(1, len(content) - width))
    return content[:place] + value + content[place + width :]


def repeat(content: bytes, random: Random) -> bytes:
    start = random.randrange(len(content) + 1)
    end = min(len(content), start + random.randrange(1, 200))
    return content[:end] + content[start:end] * random.choice((1, 2, 50)) + content[end:]


def remove(content: bytes, random: Random) -> bytes:
    start = random.randrange(len(content) + 1)
    return content[:start] + content[start + random.randrange(1, 200) :]


def end_lies(content: bytes, random: Random) -> bytes:
    """As `overwrite_number`, near the end, where zips and Parquet keep their tables."""
    cut = max(0, len(content) - random.choice((22, 100, 1000)))
    return content[:cut] + overwrite_number(content[cut:], random)


BLIND: tuple[Mutation, ...] = (flip, truncate, overwrite_number, repeat, remove, end_lies)


# JSON ------------------------------------------------------------------------------------------------------------


def places(value: object, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in a JSON document."""
    found = [at]
    if isinstance(value, dict):
        found += [path for key, part in value.items() for path in places(part, (*at, key))]
    elif isinstance(value, list):
        found += [path for index, part in enumerate(value) for path in places(part, (*at, index))]
    return found


def junk(random: Random, document: Any) -> Any:
    """Something else: of another type, huge, or from elsewhere in the document."""
    kind = random.randrange(6)
    if kind == 0:
        return random.choice(INTEGERS) * random.choice((1, 1, -1))
    if kind == 1:
        return random.choice((None, True, False, 0.5, float("nan"), float("inf"), -1e308, [], {}))
    if kind == 2:
        return random.choice(WORDS)
    if kind == 3:
        return [{"as_int": random.choice(INTEGERS)} for _ in range(random.randrange(20))]
    if kind == 4:
        nested: Any = 1
        for _ in range(random.choice((10, 300))):
            nested = [nested] if random.random() < 0.5 else {"as_graph": nested}
        return nested
    return at(document, random.choice(places(document)))


def at(document: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        document = document[step]
    return json.loads(json.dumps(document))


def mutated_json(text: bytes, random: Random) -> bytes:
    """One to three values exchanged, removed, doubled or renamed."""
    try:
        return json.dumps(changed(json.loads(text), random)).encode()
    except (ValueError, RecursionError):  # no JSON any more, or too deep for Python's own module
        return flip(text, random)


def changed(document: Any, random: Random) -> Any:
    for _ in range(random.choice((1, 1, 2, 3))):
        candidates = [path for path in places(document) if path]
        if not candidates:
            break
        path = random.choice(candidates)
        owner = document
        for step in path[:-1]:
            owner = owner[step]
        change(owner, path[-1], random, document)
    return document


def change(owner: Any, key: Any, random: Random, document: Any) -> None:
    kind = random.randrange(8)
    if kind == 0:
        del owner[key]
    elif kind == 1 and isinstance(owner, list):
        owner.insert(key, json.loads(json.dumps(owner[key])))
    elif kind == 1:
        owner[random.choice(WORDS)] = owner.pop(key)
    elif kind == 2:  # a reference to something else of its kind
        alike = [path for path in places(document) if path and path[-1] == key]
        owner[key] = at(document, random.choice(alike)) if alike else None
    else:
        owner[key] = junk(random, document)


# Zips, whose checksums hold --------------------------------------------------------------------------------------


def rezipped(content: bytes, edit: Callable[[dict[str, bytes]], None], method: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with its members changed; as it is where it is none any more."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # noqa: BLE001  broken by an earlier mutation, in whatever way
        return content
    edit(members)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name.replace("\ud800", "?")), data, method)
    return buffer.getvalue()


def in_member(suffix: str, mutate: Mutation, method: int = zipfile.ZIP_STORED) -> Mutation:
    """A mutation of one member's contents, chosen among those of a name."""

    def mutated(content: bytes, random: Random) -> bytes:
        def edit(members: dict[str, bytes]) -> None:
            chosen = [name for name in members if name.endswith(suffix)]
            if chosen:
                name = random.choice(chosen)
                members[name] = mutate(members[name], random)

        return rezipped(content, edit, method)

    return mutated


def exchange_members(content: bytes, random: Random) -> bytes:
    """Two members trade places, one goes, or one gets another name."""

    def edit(members: dict[str, bytes]) -> None:
        names = list(members)
        if not names:
            return
        one, other = random.choice(names), random.choice(names)
        kind = random.randrange(3)
        if kind == 0:
            members[one], members[other] = members[other], members[one]
        elif kind == 1:
            del members[one]
        else:
            members[random.choice((*WORDS[4:9], other + "x", "a/" + one))] = members.pop(one)

    return rezipped(content, edit)


# Formats ---------------------------------------------------------------------------------------------------------


def safetensors_header(content: bytes, random: Random) -> bytes:
    """The JSON header changed, its length corrected."""
    length = int.from_bytes(content[:8], "little")
    header = mutated_json(content[8 : 8 + length], random)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


LITERALS = (
    "'<f4'", "'|O'", "'<f8,<i4'", "'<M8[s]'", "'<U9'", "'\\ud800'", "()", "(2,)", "(0, 3)", "(9223372036854775807, 0)",
    "(4611686018427387904, 4)", "True", "-1", "{}", "1e999", "(" * 90, "-" * 9000 + "1", "None", "b''", "'(2,)f4'",
)  # fmt: skip


def npy_header(content: bytes, random: Random) -> bytes:
    """The header's dictionary with a value exchanged, its length corrected."""
    start = content.find(b"{")
    end = content.find(b"}") + 1
    if not 0 <= start < end:
        return flip(content, random)
    fields = content[start:end].decode("latin1")
    key = random.choice(("descr", "fortran_order", "shape"))
    before, _, rest = fields.partition(f"'{key}': ")
    _, comma, after = rest.partition("," if key != "shape" else "), ")
    text = (before + f"'{key}': " + random.choice(LITERALS) + comma.replace(")", "") + after + "\n").encode("latin1")
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text + content[end:].lstrip(b" \n")


def pickle_bytes(content: bytes, random: Random) -> bytes:
    """Opcodes over, into or out of a pickle."""
    place = random.randrange(len(content) + 1)
    opcodes = b"".join(
        bytes([random.choice(b"c(.0120QRbtuae}])K\x85\x86\x87qhjr\x89\x8dIVX\x8c\x93i")]) for _ in range(4)
    )
    return content[:place] + opcodes[: random.randrange(1, 5)] + content[place + random.randrange(3) :]


def png_chunks(content: bytes, random: Random) -> bytes:
    """A chunk of a PNG changed, its checksum corrected."""
    chunks, position = [], 8
    while position + 12 <= len(content):
        (length,) = struct.unpack(">I", content[position : position + 4])
        chunks.append((content[position + 4 : position + 8], content[position + 8 : position + 8 + length]))
        position += 12 + length
    if not chunks:
        return flip(content, random)
    place = random.randrange(len(chunks))
    kind, data = chunks[place]
    kind = random.choice((kind, kind, kind, b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"acTL", b"fcTL", b"IDAT", b"gAMA"))
    chunks[place] = (kind, random.choice((flip, overwrite_number, truncate, repeat))(data, random) if data else b"x")
    if random.random() < 0.2:
        chunks.insert(place, chunks[random.randrange(len(chunks))])
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return content[:8] + b"".join(parts)


@functools.cache
def honest_pt2(name: str) -> bytes:
    return exported(name).read_bytes()


def network() -> torch.nn.Module:
    return build("mlp", {"hidden": [5]}, input_shape=(4,), num_classes=3, seed=0)


@functools.cache
def honest_safetensors() -> bytes:
    return safetensors.torch.save(network().state_dict())


@functools.cache
def honest_checkpoint(use_zip: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": network().state_dict(), "epoch": 3}, buffer, _use_new_zipfile_serialization=use_zip)
    return buffer.getvalue()


def arrays() -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {"x": random.normal(size=(40, 6)).astype(np.float32), "y": np.arange(40) % 4}


@functools.cache
def honest_npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.asfortranarray(arrays()["x"]), y=arrays()["y"])
    return buffer.getvalue()


@functools.cache
def honest_tensors() -> bytes:
    return safetensors.torch.save({name: torch.from_numpy(array) for name, array in arrays().items()})


@functools.cache
def encoded(form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)).save(buffer, form, **options)
    return buffer.getvalue()


@functools.cache
def honest_table() -> bytes:
    buffer = io.BytesIO()
    columns = {"a": arrays()["x"][:, 0], "b": arrays()["x"][:, 1], "y": arrays()["y"]}
    pq.write_table(pa.table(columns), buffer, row_group_size=17)
    return buffer.getvalue()


@functools.cache
def honest_picture_table() -> bytes:
    buffer = io.BytesIO()
    column = [{"bytes": encoded("PNG"), "path": "p"} for _ in range(20)]
    pq.write_table(pa.table({"image": column, "y": np.arange(20) % 2}), buffer)
    return buffer.getvalue()


@functools.cache
def honest_folders() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for i in range(12):
            kind, options = (("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}))[i % 3]
            archive.writestr(f"{'ab'[i % 2]}/{i}.{kind.lower()}", encoded(kind, **options))
    return buffer.getvalue()


def pt2(name: str) -> Target:
    structured = (
        *[in_member(PROGRAM.rpartition("/")[2], mutated_json)] * 4,
        *[in_member(WEIGHTS.rpartition("/")[2], mutated_json)] * 2,
        exchange_members,
    )
    return Target("model.pt2", lambda: honest_pt2(name), structured, is_model=True)


TARGETS: dict[str, Target] = {
    "pt2": pt2("mlp"),
    "pt2_convolutions": pt2("resnet8"),
    "pt2_attention": pt2("vit"),
    "safetensors": Target("model.safetensors", honest_safetensors, (safetensors_header,), is_model=True),
    "checkpoint": Target(
        "model.pt",
        lambda: honest_checkpoint(True),
        (in_member("data.pkl", pickle_bytes), exchange_members),
        is_model=True,
    ),
    "old_checkpoint": Target("model.pt", lambda: honest_checkpoint(False), (pickle_bytes,), is_model=True),
    "npz": Target("data.npz", honest_npz, (in_member(".npy", npy_header), in_member(".npy", flip), exchange_members)),
    "tensors": Target("data.safetensors", honest_tensors, (safetensors_header,)),
    "parquet": Target("data.parquet", honest_table),
    "parquet_pictures": Target("data.parquet", honest_picture_table),
    "folders": Target(
        "images.zip", honest_folders, (in_member(".png", png_chunks), in_member(".jpeg", flip), exchange_members)
    ),
}
