"""Hostile uploads: one builder for each way in which a file may lie, expand, climb out or carry code.

A builder writes its file into a folder and gets a `Trap`: what runs in it makes a folder and dials a socket, so
that a test sees it. What a reader must answer stands beside it: codes of its refusal, or READ where the file is
taken and the hostile part of it left alone.
"""

import io
import itertools
import json
import os
import pickle
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn

from tests.architectures import exported, quiet
from tests.unit.formats.pt2_forgery import PROGRAM, WEIGHTS, Json, central_directory, forge, forge_json, records

READ = "read"
MIB = 2**20


@dataclass(frozen=True)
class Trap:
    """What malicious code would do: make a folder, and dial a port of this machine."""

    marker: Path
    port: int

    def pickled(self, protocol: int = 2) -> bytes:
        return pickle.dumps([Made(self.marker), Dialled(self.port)], protocol)

    def code(self) -> str:
        """The same as an expression of Python."""
        made = f"__import__('os').mkdir({str(self.marker)!r})"
        return f"[{made}, __import__('socket').create_connection(('127.0.0.1', {self.port}))]"


class Made:
    """Unpickling it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


class Dialled:
    """Unpickling it dials."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __reduce__(self) -> tuple[object, ...]:
        return socket.create_connection, (("127.0.0.1", self.port),)


class Called:
    """Pickles as any call of a function by its name."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[object, ...]:
        return self.parts


@dataclass(frozen=True)
class Hostile:
    """One hostile file: its name says the format."""

    file: str
    build: Callable[[Path, Trap], None]
    codes: frozenset[str]
    words: str = ""  # in the refusal

    @property
    def kind(self) -> str:
        return "dataset" if self.file.startswith(("data.", "images.")) else "model"


FILES: dict[str, Hostile] = {}


def hostile(file: str, *codes: str, words: str = "", name: str = "") -> Callable[[Callable[[Path, Trap], None]], Any]:
    """Enter a builder into the table under its own name."""

    def entered(build: Callable[[Path, Trap], None]) -> Callable[[Path, Trap], None]:
        FILES[name or build.__name__] = Hostile(file, build, frozenset(codes), words)
        return build

    return entered


# Archives of torch.export ----------------------------------------------------------------------------------------


def honest() -> Path:
    return exported("mlp")


def changed(path: Path, record: str, change: Callable[[Json], None]) -> None:
    forge_json(honest(), path, record, change)


def rewritten(path: Path, change: Callable[[bytearray], None]) -> None:
    contents = bytearray(forge(honest(), path).read_bytes())
    change(contents)
    path.write_bytes(contents)


def nodes(document: Json) -> list[Json]:
    return document["graph_module"]["graph"]["nodes"]


def set_size(expression: Any) -> Callable[[Json], None]:
    def change(document: Json) -> None:
        values = document["graph_module"]["graph"]["tensor_values"]
        values["linear"]["sizes"][0] = {"as_expr": {"expr_str": expression, "hint": {"as_int": 3}}}

    return change


@hostile("model.pt2", READ)
def pickled_sample_inputs(path: Path, trap: Trap) -> None:
    forge(honest(), path, {"data/sample_inputs/model.pt": trap.pickled()})


@hostile("model.pt2", "pickle_refused", words="head.bias")
def weights_with_use_pickle(path: Path, trap: Trap) -> None:
    config = json.loads(records(honest())[WEIGHTS])
    config["config"]["head.bias"]["use_pickle"] = True
    place = f"data/weights/{config['config']['head.bias']['path_name']}"
    forge(honest(), path, {WEIGHTS: json.dumps(config).encode(), place: trap.pickled()})


@hostile("model.pt2", "pickle_refused", words="opaque_obj_0")
def opaque_constant(path: Path, trap: Trap) -> None:
    forge(honest(), path, {"data/constants/opaque_obj_0": trap.pickled()})


@hostile("model.pt2", "pickle_refused", words="custom_obj_0")
def custom_object(path: Path, trap: Trap) -> None:
    forge(honest(), path, {"data/constants/custom_obj_0": trap.pickled()})


@hostile("model.pt2", "pickle_refused", words="export it again")
def older_layout_with_pickled_weights(path: Path, trap: Trap) -> None:
    names = ["version", "serialized_state_dict.pt", "serialized_constants.pt", "serialized_exported_program.json"]
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, trap.pickled())


@hostile("model.pt2", "size_refused", words="__import__")
def call_in_a_symbolic_size(path: Path, trap: Trap) -> None:
    changed(path, PROGRAM, set_size(trap.code().strip("[]").partition(", __import__")[0]))


@hostile("model.pt2", "size_refused", "archive_malformed")
def power_tower_in_a_symbolic_size(path: Path, trap: Trap) -> None:
    changed(path, PROGRAM, set_size("Pow(Integer(10), Pow(Integer(10), Integer(10)))"))


@hostile("model.pt2", "size_refused", "archive_malformed")
def nesting_in_a_symbolic_size(path: Path, trap: Trap) -> None:
    changed(path, PROGRAM, set_size("(" * 2000 + "1" + ")" * 2000))


@hostile("model.pt2", "name_refused", "archive_malformed")
def parameter_name_that_is_code(path: Path, trap: Trap) -> None:
    program, config = (json.loads(records(honest())[record]) for record in (PROGRAM, WEIGHTS))
    name = f"a;{trap.code()}"[:500]
    program["graph_module"]["signature"]["input_specs"][-2]["parameter"]["parameter_name"] = name
    config["config"][name] = config["config"]["head.bias"]
    forge(honest(), path, {PROGRAM: json.dumps(program).encode(), WEIGHTS: json.dumps(config).encode()})


@hostile("model.pt2", "name_refused", "archive_malformed")
def parameter_name_that_hides_a_method(path: Path, trap: Trap) -> None:
    program, config = (json.loads(records(honest())[record]) for record in (PROGRAM, WEIGHTS))
    program["graph_module"]["signature"]["input_specs"][-2]["parameter"]["parameter_name"] = "head.__class__"
    config["config"]["head.__class__"] = config["config"]["head.bias"]
    forge(honest(), path, {PROGRAM: json.dumps(program).encode(), WEIGHTS: json.dumps(config).encode()})


@hostile("model.pt2", "name_refused", "archive_malformed")
def input_name_that_is_code(path: Path, trap: Trap) -> None:
    name = json.dumps(f"x={trap.code()}"[:400]).encode()
    forge(honest(), path, {PROGRAM: records(honest())[PROGRAM].replace(b'"x"', name)})


@hostile("model.pt2", READ)
def value_name_that_is_code(path: Path, trap: Trap) -> None:
    forge(
        honest(), path, {PROGRAM: records(honest())[PROGRAM].replace(b'"linear_1"', json.dumps(trap.code()).encode())}
    )


@hostile("model.pt2", READ)
def guards_that_are_code(path: Path, trap: Trap) -> None:
    changed(path, PROGRAM, lambda document: document.update(guards_code=[trap.code()]))


@hostile("model.pt2", "archive_malformed")
def word_that_is_code(path: Path, trap: Trap) -> None:
    argument = {"name": "mode", "arg": {"as_string": f"'); {trap.code()[:200]}; ('"}, "kind": 1}
    changed(path, PROGRAM, lambda document: nodes(document)[0]["inputs"].append(argument))


@hostile("model.pt2", "compiled_code_refused", words="AOTInductor")
def aotinductor_payload(path: Path, trap: Trap) -> None:
    forge(honest(), path, {"data/aotinductor/model/a.so": b"\x7fELF" + bytes(1000)})


@hostile("model.pt2", "compiled_code_refused", words="ExecuTorch")
def executorch_payload(path: Path, trap: Trap) -> None:
    forge(honest(), path, {"data/executorch/m.pte": bytes(1000)})


def operator_called(target: str) -> None:
    def build(path: Path, trap: Trap) -> None:
        changed(path, PROGRAM, lambda document: nodes(document)[0].update(target=target))

    hostile("model.pt2", "operator_refused", words=target, name=f"operator {target}")(build)


for each in ("torch.ops.aten.from_file.default", "torch.ops.aten.set_.source_Tensor", "os.system", "builtins.eval",
             "torch.ops.mylib.anything.default", "torch.ops.higher_order.cond", "torch.load"):  # fmt: skip
    operator_called(each)


@hostile("model.pt2", "archive_malformed", words="compressed")
def compressed_record(path: Path, trap: Trap) -> None:
    forge(honest(), path, {"data/weights/weight_0": bytes(200 * MIB)}, compressed="data/weights/weight_0")


@hostile("model.pt2", "archive_malformed", words="overlaps")
def overlapping_records(path: Path, trap: Trap) -> None:
    def overlap(contents: bytearray) -> None:
        first = central_directory(bytes(contents))
        second = first + 46 + sum(struct.unpack("<3H", contents[first + 28 : first + 34]))
        contents[second + 42 : second + 46] = contents[first + 42 : first + 46]

    rewritten(path, overlap)


@hostile("model.pt2", "archive_malformed")
def directory_that_disagrees_with_a_local_header(path: Path, trap: Trap) -> None:
    def disagree(contents: bytearray) -> None:
        contents[30] ^= 1  # the first letter of the first local name

    rewritten(path, disagree)


@hostile("model.pt2", "archive_malformed")
def zip64_end_that_lies(path: Path, trap: Trap) -> None:
    content = forge(honest(), path).read_bytes()
    start = len(content) - 22
    end_64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 2**63, 2**63, 2**62, 2**62)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(content[:start] + end_64 + locator + end)


@hostile("model.pt2", "archive_malformed")
def sizes_in_zip64_beyond_the_file(path: Path, trap: Trap) -> None:
    name = b"model/byteorder"
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 45, 0, 0, 0, 0, 0, 2**32 - 1, 2**32 - 1, len(name), 0) + name
    extra = struct.pack("<2H3Q", 1, 24, 2**63 - 1, 2**63 - 1, 0)
    numbers = (45, 45, 0, 0, 0, 0, 0, 2**32 - 1, 2**32 - 1, len(name), len(extra), 0, 0, 0, 0, 2**32 - 1)
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *numbers) + name + extra
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(entry), len(local) + 6, 0)
    path.write_bytes(local + b"little" + entry + end)


@hostile("model.pt2", "archive_malformed", words="belong")
def path_traversal(path: Path, trap: Trap) -> None:
    forge(honest(), path, {"data/weights/../../../../../../../tmp/evil": b"x"})


@hostile("model.pt2", "archive_malformed")
def root_that_climbs(path: Path, trap: Trap) -> None:
    forge(honest(), path, root="..")


@hostile("model.pt2", "archive_malformed", words="twice")
def record_named_twice(path: Path, trap: Trap) -> None:
    doubled(forge(honest(), path), b"model/byteorder", b"model/byteordex")


def doubled(path: Path, wanted: bytes, other: bytes) -> None:
    """A member of one name gets that of another: zipfile would not write it without a word."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(other.decode(), b"")
    path.write_bytes(path.read_bytes().replace(other, wanted))


@hostile("model.pt2", "archive_malformed", words="beyond what is read")
def hundreds_of_thousands_of_records(path: Path, trap: Trap) -> None:
    many_members(path, 400_000)


def many_members(path: Path, count: int, declared: int | None = None) -> None:
    """A zip directory of empty members, with its zip64 end."""
    entry = struct.Struct("<4s6H3L5H2L")
    table = b"".join(
        entry.pack(b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0) + b"a/%08d" % number
        for number in range(count)
    )
    declared = count if declared is None else declared
    end_64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, declared, declared, len(table), 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(table), 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(table + end_64 + locator + end)


@hostile("model.pt2", "archive_malformed")
def deeply_nested_json(path: Path, trap: Trap) -> None:
    forge(honest(), path, {PROGRAM: b'{"a":' * 10**6})


@hostile("model.pt2", "archive_malformed", words="bytes")
def a_document_of_a_hundred_megabytes(path: Path, trap: Trap) -> None:
    forge(honest(), path, {PROGRAM: b"[" + b"1," * (50 * MIB) + b"1]"})


@hostile("model.pt2", "archive_malformed", words="objects")
def a_document_of_millions_of_objects(path: Path, trap: Trap) -> None:
    forge(honest(), path, {PROGRAM: b"[" + b"{}," * (20 * MIB) + b"{}]"})


@hostile("model.pt2", "archive_malformed")
def a_graph_of_as_many_objects_as_are_read(path: Path, trap: Trap) -> None:
    def grow(document: Json) -> None:
        nodes(document)[0]["outputs"] = [{"as_bool": True}] * 490_000

    changed(path, PROGRAM, grow)


@hostile("model.pt2", "archive_malformed")
def a_graph_of_too_many_nodes(path: Path, trap: Trap) -> None:
    def grow(document: Json) -> None:
        found = nodes(document)
        check = {**found[0], "target": "torch.ops.aten.detach.default", "metadata": {}}
        found[1:1] = [check] * 20_000

    changed(path, PROGRAM, grow)


@hostile("model.pt2", "archive_malformed", words="buffer")
def tens_of_thousands_of_changed_buffers(path: Path, trap: Trap) -> None:
    """Each looked up among all: once a minute of work for a few megabytes."""
    program, config = (json.loads(records(honest())[record]) for record in (PROGRAM, WEIGHTS))
    signature, values = program["graph_module"]["signature"], program["graph_module"]["graph"]["tensor_values"]
    for i in range(8_000):
        name = f"buffer{i}"
        config["config"][name] = {**config["config"]["head.bias"], "is_param": False}
        values[f"b_{i}"] = values["p_head_bias"]
        signature["input_specs"].append(
            {"buffer": {"arg": {"name": f"b_{i}"}, "buffer_name": name, "persistent": True}}
        )
        mutation = {"arg": {"name": f"b_{i}"}, "buffer_name": name if i < 7_999 else "nobody"}
        signature["output_specs"].insert(0, {"buffer_mutation": mutation})
    signature["output_specs"].insert(0, signature["output_specs"].pop(7_999))
    forge(honest(), path, {PROGRAM: json.dumps(program).encode(), WEIGHTS: json.dumps(config).encode()})


@hostile("model.pt2", "archive_malformed")
def not_a_number_in_json(path: Path, trap: Trap) -> None:
    changed(path, PROGRAM, lambda document: document["schema_version"].update(minor=float("nan")))


def described(words: str, codes: tuple[str, ...], **fields: Any) -> None:
    def build(path: Path, trap: Trap) -> None:
        changed(path, WEIGHTS, lambda d: d["config"]["layers.0.weight"]["tensor_meta"].update(fields))

    hostile("model.pt2", *codes, name=f"tensor with {words}")(build)


def whole(*numbers: int) -> list[Json]:
    return [{"as_int": number} for number in numbers]


MALFORMED = ("archive_malformed",)
described("strides of 0", MALFORMED, strides=whole(0, 0))
described("overlapping strides", MALFORMED, strides=whole(1, 1))
described("negative strides", MALFORMED, strides=whole(-48, 1))
described("an offset out of range", MALFORMED, storage_offset={"as_int": 2**40})
described("a negative offset", MALFORMED, storage_offset={"as_int": -1})
described("sizes out of range", MALFORMED, sizes=whole(2**20, 48))
described("sizes whose product is 2^64", MALFORMED, sizes=whole(2**32, 2**32))
described("sizes beyond 64 bits", MALFORMED, sizes=whole(2**64, 1))
described("an empty axis beside huge ones", MALFORMED, sizes=whole(0, 2**47), strides=whole(2**47, 1))
described("a wider type than its bytes", MALFORMED, dtype=8)
described("an unknown type", ("dtype_refused",), dtype=99)
described("a sparse layout", ("layout_refused",), layout=1)


@hostile("model.pt2", "archive_malformed", words="views of each other")
def one_record_behind_thousands_of_tensors(path: Path, trap: Trap) -> None:
    program, config = (json.loads(records(honest())[record]) for record in (PROGRAM, WEIGHTS))
    for i in range(2000):
        payload = json.loads(json.dumps(config["config"]["layers.0.weight"]))
        payload["tensor_meta"].update(sizes=whole(1535 - i % 700), strides=whole(1), storage_offset={"as_int": i % 700})
        config["config"][f"alias{i}"] = payload
    forge(honest(), path, {PROGRAM: json.dumps(program).encode(), WEIGHTS: json.dumps(config).encode()})


# Checkpoints and files of other kinds ------------------------------------------------------------------------------


def saved(content: Any, path: Path, *, use_zip: bool = True) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=use_zip)


@hostile("checkpoint.pt", "pickle_refused", words="Nothing in it was run")
def checkpoint_with_a_reduce(path: Path, trap: Trap) -> None:
    saved({"state_dict": [Made(trap.marker), Dialled(trap.port)]}, path)


@hostile("checkpoint.pth", "pickle_refused")
def old_checkpoint_with_a_reduce(path: Path, trap: Trap) -> None:
    saved({"state_dict": [Made(trap.marker), Dialled(trap.port)]}, path, use_zip=False)


@hostile("checkpoint.bin", "pickle_refused")
def bare_pickle(path: Path, trap: Trap) -> None:
    path.write_bytes(trap.pickled())


@hostile("checkpoint.bin", "pickle_refused", words="STACK_GLOBAL")
def bare_pickle_of_a_new_protocol(path: Path, trap: Trap) -> None:
    path.write_bytes(trap.pickled(protocol=4))


@hostile("checkpoint.pt", "pickle_refused", words="whole pickled module")
def pickled_module(path: Path, trap: Trap) -> None:
    saved(nn.Linear(4, 3), path)


@hostile("checkpoint.pt", "torchscript_refused", words="TorchScript")
def torchscript(path: Path, trap: Trap) -> None:
    with quiet():
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)


@hostile("model.pt2", "code_refused", "pickle_refused", words="torch.export")
def torchscript_as_an_export(path: Path, trap: Trap) -> None:
    torchscript(path, trap)


@hostile("checkpoint.pt", "pickle_refused", words="_rebuild_parameter_with_state")
def tensor_with_state_of_its_own(path: Path, trap: Trap) -> None:
    parameter = nn.Parameter(torch.ones(4))
    parameter.evil = Made(trap.marker)  # type: ignore[attr-defined]  # torch pickles it along
    saved({"fc1.weight": parameter}, path)


@hostile("checkpoint.pt", "too_large", "architecture_mismatch")
def tensor_with_strides_of_0(path: Path, trap: Trap) -> None:
    saved({"fc1.weight": torch.ones(1).expand(2**40)}, path)


@hostile("checkpoint.pt", "truncated", "pickle_refused", "too_large")
def storage_beyond_its_record(path: Path, trap: Trap) -> None:
    saved({"fc1.weight": torch.ones(257)}, path)
    path.write_bytes(path.read_bytes().replace(b"M\x01\x01", b"M\xff\xff"))


@hostile("checkpoint.pt", "too_large", words="opcodes")
def pickle_of_millions_of_opcodes(path: Path, trap: Trap) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"N0" * (31 * MIB) + b"N.")


@hostile("checkpoint.pt", "format_refused", words="compressed")
def compressed_checkpoint(path: Path, trap: Trap) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(200 * MIB))


@hostile("checkpoint.pt", "archive_refused", words="overlaps")
def checkpoint_of_overlapping_members(path: Path, trap: Trap) -> None:
    saved({"fc1.weight": torch.ones(4)}, path)
    contents = bytearray(path.read_bytes())
    first = central_directory(bytes(contents))
    second = first + 46 + sum(struct.unpack("<3H", contents[first + 28 : first + 34]))
    contents[second + 42 : second + 46] = contents[first + 42 : first + 46]
    path.write_bytes(contents)


@hostile("checkpoint.pt", "truncated", "pickle_refused")
def compressed_tar_with_a_header_of_gigabytes(path: Path, trap: Trap) -> None:
    """`tarfile` would unpack the extended header in memory to see whether it is one."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**30
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    blocks = [packer.compress(header.tobuf(tarfile.USTAR_FORMAT)), *(packer.compress(bytes(MIB)) for _ in range(1024))]
    path.write_bytes(b"".join([*blocks, packer.flush()]))


@hostile("checkpoint.pt", "architecture_mismatch", words="unexpected")
def names_that_no_database_takes(path: Path, trap: Trap) -> None:
    saved({"a\x00\ud800\x1b[2J": torch.ones(4)}, path)


@hostile("model.onnx", "not_available", "external_data_refused", "unexpected_files", words="model.pt2")
def onnx_with_external_data(path: Path, trap: Trap) -> None:
    path.write_bytes(b"\x08\x0a:\x20\x2a\x1elocation\x12../../../../etc/passwd")


@hostile("model.safetensors", "safetensors_refused", "too_large", "truncated")
def python_file(path: Path, trap: Trap) -> None:
    path.write_text(f"{trap.code()}\n" * 20)


# safetensors -------------------------------------------------------------------------------------------------------


def safetensors_of(path: Path, header: str, data: int = 0, length: int | None = None) -> None:
    raw = header.encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + bytes(data))


def header_of(words: str, codes: tuple[str, ...], header: str, data: int = 0, length: int | None = None) -> None:
    def build(path: Path, trap: Trap) -> None:
        safetensors_of(path, header, data, length)

    hostile("model.safetensors", *codes, name=f"safetensors with {words}")(build)


def entry(shape: str = "[1]", start: Any = 0, end: Any = 4, dtype: str = "F32") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}'


UNSOUND = ("safetensors_refused",)
header_of("a header of 2^63 bytes", ("too_large",), "{}", length=2**63)
header_of("a header beyond the file", ("truncated",), "{}", length=2**20)
header_of("the same key twice", UNSOUND, f'{{"a":{entry()},"a":{entry()}}}', 4)
header_of("overlapping tensors", UNSOUND, f'{{"a":{entry()},"b":{entry()}}}', 4)
header_of("a gap", UNSOUND, f'{{"a":{entry(start=4, end=8)}}}', 8)
header_of("sizes whose product is 2^64", UNSOUND, f'{{"a":{entry("[4294967296,4294967296]", 0, 0)}}}')
header_of("sizes beyond 64 bits", UNSOUND, f'{{"a":{entry("[18446744073709551616]")}}}', 4)
header_of("an integer of 100,000 digits", UNSOUND, f'{{"a":{entry("[1" + "0" * 100_000 + "]")}}}', 4)
header_of("NaN for a size", UNSOUND, f'{{"a":{entry("[NaN]")}}}', 4)
header_of("a negative offset", UNSOUND, f'{{"a":{entry(start=-4, end=0)}}}', 4)
header_of("an unknown type", ("dtype_refused",), f'{{"a":{entry(dtype="PY")}}}', 4)
header_of("deep nesting", UNSOUND, '{"a":' * 200_000)
header_of(
    "empty tensors of huge shape", ("architecture_mismatch",), f'{{"a":{entry("[0,9223372036854775807]", 0, 0)}}}'
)


@hostile("model.safetensors", "too_large", words="at most")
def safetensors_with_400_000_entries(path: Path, trap: Trap) -> None:
    header = "{" + ",".join(f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(400_000)) + "}"
    safetensors_of(path, header)


@hostile("model.safetensors", "too_large", words="at most")
def safetensors_with_400_000_entries_in_16_mib(path: Path, trap: Trap) -> None:
    safetensors_of(path, "{" + ",".join(f'"{i}":1' for i in range(400_000)) + "}")


# Datasets ----------------------------------------------------------------------------------------------------------


def npy(descr: str, shape: str, data: bytes = b"") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text + data


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@hostile("data.npz", "object_array_refused", words="pickle")
def object_array(path: Path, trap: Trap) -> None:
    np.savez(path, x=np.array([Made(trap.marker), Dialled(trap.port)], dtype=object))


@hostile("data.npz", "npy_refused")
def pickle_in_place_of_an_array(path: Path, trap: Trap) -> None:
    zipped(path, {"x.npy": trap.pickled()})


@hostile("data.npz", "npy_refused")
def npy_header_that_is_code(path: Path, trap: Trap) -> None:
    zipped(path, {"x.npy": npy("'<f4'", trap.code(), bytes(240))})


@hostile("data.npz", "npy_refused")
def npy_header_of_brackets(path: Path, trap: Trap) -> None:
    zipped(path, {"x.npy": npy("'<f4'", "(" * 16000, bytes(240))})


@hostile("data.npz", "too_large", words="header")
def npy_header_of_gigabytes(path: Path, trap: Trap) -> None:
    zipped(path, {"x.npy": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{"})


@hostile("data.npz", "truncated", "npy_refused")
def npy_shape_whose_product_is_2_64(path: Path, trap: Trap) -> None:
    zipped(path, {"x.npy": npy("'<f4'", "(4294967296, 4294967296)", bytes(240))})


@hostile("data.npz", "shape_refused", "empty_split")
def npy_rows_without_end_and_without_bytes(path: Path, trap: Trap) -> None:
    zipped(path, {"x.npy": npy("'<f4'", "(9223372036854775807, 0)")})


@hostile("data.npz", "too_large", "labels_shape", "rows_mismatch", "labels_out_of_range", words="")
def npy_labels_without_end_and_without_bytes(path: Path, trap: Trap) -> None:
    zipped(path, {"x.npy": npy("'<f4'", "(20, 3)", bytes(240)), "y.npy": npy("'<i8'", "(20, 0, 9223372036854775807)")})


@hostile("data.npz", "too_large", words="unpack")
def npz_bomb(path: Path, trap: Trap) -> None:
    """Four gigabytes of zeros in four megabytes."""
    member_of_zeros(path, "x.npy", npy("'<u1'", f"({4 * 2**20}, 1024)"), 4 * 2**30)


def member_of_zeros(path: Path, name: str, start: bytes, size: int) -> None:
    """One deflated member that begins with `start`: a megabyte of zeros is compressed once and repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    data = head + block * (size // MIB) + packer.flush()
    full, encoded = len(start) + size, name.encode()
    fields = (0, 0, 0, len(data), 2**32 - 1, len(encoded), 20)
    wide = struct.pack("<2H2Q", 1, 16, full, len(data))
    local = struct.pack("<4s3H2H3L2H", b"PK\x03\x04", 45, 0, 8, 0, 0, 0, 2**32 - 1, 2**32 - 1, len(encoded), 20)
    central = struct.pack(
        "<4s4H2H3L5H2L", b"PK\x01\x02", 45, 45, 0, 8, 0, 0, *fields[2:4], 2**32 - 1, len(encoded), 12, 0, 0, 0, 0, 0
    )
    table = central + encoded + struct.pack("<2HQ", 1, 8, full)
    start_of_table = len(local) + len(encoded) + len(wide) + len(data)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(table), start_of_table, 0)
    path.write_bytes(local + encoded + wide + data + table + end)


@hostile("data.npz", "truncated")
def npz_bomb_whose_table_lies(path: Path, trap: Trap) -> None:
    content = npy("'<u1'", "(209715200, 1)", bytes(200 * MIB))
    zipped(path, {"x.npy": content})
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", len(content)), struct.pack("<I", 1000)))


@hostile("data.npz", "archive_refused", words="overlaps")
def npz_of_overlapping_members(path: Path, trap: Trap) -> None:
    content = npy("'<f4'", "(20, 3)", bytes(240))
    zipped(path, {"x.npy": content, "y.npy": content})
    contents = bytearray(path.read_bytes())
    table = central_directory(bytes(contents))
    second = contents.index(b"PK\x01\x02", table + 4)
    contents[second + 42 : second + 46] = bytes(4)
    path.write_bytes(contents)


@hostile("data.npz", "archive_refused")
def npz_with_path_traversal(path: Path, trap: Trap) -> None:
    zipped(path, {"../../../../x.npy": npy("'<f4'", "(20, 3)", bytes(240))})


@hostile("data.npz", "archive_refused", words="twice")
def npz_member_named_twice(path: Path, trap: Trap) -> None:
    zipped(path, {"x.npy": npy("'<f4'", "(20, 3)", bytes(240))})
    doubled(path, b"x.npy", b"z.npy")


@hostile("data.npz", "too_large", words="members")
def npz_with_400_000_members(path: Path, trap: Trap) -> None:
    many_members(path, 400_000)


@hostile("images.zip", "archive_refused", words="lists more")
def zip_directory_longer_than_it_says(path: Path, trap: Trap) -> None:
    many_members(path, 400_000, declared=60_000 * 4 // 3)


@hostile("data.safetensors", "safetensors_refused", "shape_refused", "empty_split")
def tensors_without_end_and_without_bytes(path: Path, trap: Trap) -> None:
    safetensors_of(path, f'{{"x":{entry("[9223372036854775807,0]", 0, 0)}}}')


@hostile("data.parquet", "too_large", words="at most")
def parquet_bomb(path: Path, trap: Trap) -> None:
    """More than a gigabyte of one value, which the encoding says once."""
    repeated = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2**24, np.int8)), pa.array([1.5]))
    table = pa.table({f"c{i}": repeated for i in range(5)})
    with pq.ParquetWriter(path, table.schema, compression="zstd", store_schema=False) as writer:
        for _ in range(4):
            writer.write_table(table)


@hostile("data.parquet", "too_large", words="repeated pictures")
def parquet_with_one_picture_in_a_million_rows(path: Path, trap: Trap) -> None:
    picture = encoded_picture(1, 1) + bytes(MIB)
    rows = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**6, np.int32)), pa.array([picture]))
    table = pa.table({"image": rows, "y": np.zeros(10**6, np.int8)})
    pq.write_table(table, path, dictionary_pagesize_limit=2**24, compression="zstd", store_schema=False)


@hostile("data.parquet", READ, "columns_refused")
def parquet_with_a_pickled_extension_type(path: Path, trap: Trap) -> None:
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": trap.pickled()}
    fields = [pa.field("a", pa.float32(), metadata=metadata), pa.field("y", pa.int64())]
    pq.write_table(pa.table([np.ones(40, np.float32), np.arange(40) % 2], pa.schema(fields)), path)


@hostile("data.parquet", "truncated")
def parquet_footer_that_lies(path: Path, trap: Trap) -> None:
    pq.write_table(pa.table({"a": np.ones(40)}), path)
    content = path.read_bytes()
    path.write_bytes(content[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1")


def encoded_picture(width: int, height: int, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    ends = chunk(b"IDAT", zlib.compress(bytes((1 + min(width, 64)) * min(height, 64)))) + chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + ends


def pictured(words: str, codes: tuple[str, ...], picture: Callable[[], bytes], suffix: str = "png") -> None:
    def build(path: Path, trap: Trap) -> None:
        zipped(path, {f"{label}/1.{suffix}": picture() for label in "ab"})

    hostile("images.zip", *codes, name=f"picture {words}")(build)


def repeated_scans() -> bytes:
    """A progressive JPEG, one of whose scans stands in it a thousand times."""
    content = encoded_picture(4000, 4000, "JPEG", progressive=True)
    starts = [place for place, pair in enumerate(itertools.pairwise(content)) if pair == (0xFF, 0xDA)]
    return content[: starts[2]] + content[starts[1] : starts[2]] * 1000 + content[starts[2] :]


pictured("of 10^10 pixels", ("image_too_large",), lambda: png(100_000, 100_000))
pictured("of 2^31 pixels a side", ("image_too_large", "image_refused"), lambda: png(2**31 - 1, 2**31 - 1))
pictured(
    "of fifty thousand chunks",
    ("image_refused",),
    lambda: png(5, 4, *(chunk(b"abCd", os.urandom(9)) for _ in range(50_000))),
)
pictured("of twelve megabytes of nothing", ("too_large",), lambda: png(5, 4, chunk(b"abCd") * 10**6))
pictured("with a text that expands", ("image_refused", "empty_split"),
         lambda: png(5, 4, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100 * MIB)))))  # fmt: skip
pictured("with a profile that expands", ("image_refused", "empty_split"),
         lambda: png(5, 4, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100 * MIB)))))  # fmt: skip
pictured("of a thousand scans", ("image_refused",), repeated_scans, "jpg")
pictured("that is a script", ("image_refused",), lambda: b"%!PS\n/etc/passwd (r) file\n")


@hostile("images.zip", "too_large", words="pictures")
def pictures_deflated_to_nothing(path: Path, trap: Trap) -> None:
    zipped(path, {f"a/{i}.png": encoded_picture(1, 1) + bytes(20 * MIB) for i in range(10)})


@hostile("images.zip", "archive_refused", words="symbolic link")
def symbolic_link_in_a_zip(path: Path, trap: Trap) -> None:
    link = zipfile.ZipInfo("a/1.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")


@hostile("images.zip", "archive_refused", words="leaves the archive")
def zip_with_path_traversal(path: Path, trap: Trap) -> None:
    zipped(path, {"../../a/1.png": encoded_picture(5, 4)})
