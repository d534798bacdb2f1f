"""Malicious and broken archives: each is refused by name, and nothing in it is run."""

import contextlib
import json
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from service.contract.errors import InputRejected
from tests.architectures import exported, quiet, specimen
from tests.unit.formats.pt2_forgery import (
    PROGRAM,
    WEIGHTS,
    Bomb,
    Json,
    central_directory,
    forge,
    forge_json,
    forge_program,
    records,
)
from workers.formats.operators import ALLOWED, CHECKS, overload
from workers.formats.pt2_reader import read_pt2
from workers.graph.lifting import lift


@pytest.fixture
def honest() -> Path:
    return exported("mlp")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.pt2"


def refusal(path: Path) -> tuple[str, str]:
    """The code and the detail with which a file is refused."""
    with pytest.raises(InputRejected) as caught:
        lift(read_pt2(path))
    fault = caught.value.fault()
    assert not fault.retryable
    return fault.code, fault.detail


def code(path: Path) -> str:
    return refusal(path)[0]


def nodes(document: Json) -> list[Json]:
    return document["graph_module"]["graph"]["nodes"]


# What would run code -----------------------------------------------------------------------------------------------


def test_sample_inputs_are_never_opened(honest: Path, target: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    forge(honest, target, {"data/sample_inputs/model.pt": pickle.dumps(Bomb(marker))})
    network, inputs = specimen("mlp")
    assert torch.equal(lift(read_pt2(target))(*inputs), network.eval()(*inputs))
    assert not marker.exists()


def test_pickled_weights_are_refused_unopened(honest: Path, target: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    config = json.loads(records(honest)[WEIGHTS])
    config["config"]["head.bias"]["use_pickle"] = True
    path = config["config"]["head.bias"]["path_name"]
    changes = {WEIGHTS: json.dumps(config).encode(), f"data/weights/{path}": pickle.dumps(Bomb(marker))}
    found, detail = refusal(forge(honest, target, changes))
    assert found == "pickle_refused"
    assert "head.bias" in detail
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["data/constants/custom_obj_0", "data/constants/opaque_obj_0", "data/weights/model.pt"]
)
def test_pickled_constants_are_refused_unopened(honest: Path, target: Path, tmp_path: Path, name: str) -> None:
    marker = tmp_path / "ran"
    found, detail = refusal(forge(honest, target, {name: pickle.dumps(Bomb(marker))}))
    assert found == "pickle_refused"
    assert name in detail
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["data/aotinductor/model/a.so", "data/aotinductor/model/wrapper.cpp", "data/executorch/m.pte"]
)
def test_compiled_code_is_refused_by_name(honest: Path, target: Path, name: str) -> None:
    found, detail = refusal(forge(honest, target, {name: b"\x7fELF"}))
    assert found == "compiled_code_refused"
    assert name in detail


@pytest.mark.parametrize(
    "operator",
    [
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.set_.source_Tensor",
        "torch.ops.aten.resize_.default",
        "torch.ops.aten.as_strided.default",
        "torch.ops.aten.empty.memory_format",
        "torch.ops.aten.bernoulli.default",
        "torch.ops.aten.item.default",
        "torch.ops.aten.relu.evil",
        "torch.ops.prims.convert_element_type.default",
        "torch.ops.mylib.anything.default",
        "torch.ops.higher_order.cond",
        "torch.ops.higher_order.wrap_with_autocast",
        "torch.load",
        "os.system",
        "_operator.methodcaller",
        "_operator.pow",
        "builtins.eval",
    ],
)
def test_an_operator_outside_the_table_is_refused_by_name(honest: Path, target: Path, operator: str) -> None:
    def change(document: Json) -> None:
        nodes(document)[0]["target"] = operator

    found, detail = refusal(forge_program(honest, target, change))
    assert found == "operator_refused"
    assert operator in detail


def test_the_table_names_operators_that_exist_and_open_nothing() -> None:
    for name in ALLOWED | CHECKS:
        assert overload(name).namespace == "aten"
    words = {name.split(".")[3] for name in ALLOWED}
    assert not words & {
        "from_file",
        "set_",
        "resize_",
        "as_strided",
        "empty",
        "item",
        "save",
        "_cuda_getCurrentRawStream",
    }
    assert not {word for word in words if "resize" in word or "storage" in word or "file" in word}


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "Symbol('s0').__class__",
        "exec('1')",
        "lambda: 0",
        "Symbol(\"s0'); import os; ('\", integer=True)",
        "Pow(Integer(10), Integer(1000000000))",
        "10**10**10",
        "(" * 5000 + "1" + ")" * 5000,
        "(" * 300 + "1" + ")" * 300,
        "1" + "*1" * 500,
        "Mul(" + "Integer(9223372036854775807)," * 40 + "Integer(2))",
        "FloorDiv(Integer(1), Integer(0))",
        "s99",
        "",
    ],
)
def test_a_size_outside_the_grammar_is_refused(honest: Path, target: Path, expression: str) -> None:
    def change(document: Json) -> None:
        values = document["graph_module"]["graph"]["tensor_values"]
        values["linear"]["sizes"][0] = {"as_expr": {"expr_str": expression, "hint": {"as_int": 3}}}

    assert code(forge_program(honest, target, change)) in {"size_refused", "archive_malformed"}


@pytest.mark.parametrize(
    "name",
    [
        "head.we ight",
        "a;import os",
        "head.__class__",
        "head.forward",
        "state_dict",
        "a'b",
        "",
        ".",
        "x" * 600,
        "ä",
        "a..b",
    ],
)
def test_a_name_that_could_be_code_or_hide_a_module_is_refused(honest: Path, target: Path, name: str) -> None:
    def rename(document: Json) -> None:
        document["graph_module"]["signature"]["input_specs"][-2]["parameter"]["parameter_name"] = name

    contents = records(honest)
    program, config = json.loads(contents[PROGRAM]), json.loads(contents[WEIGHTS])
    rename(program)
    config["config"][name] = config["config"]["head.bias"]
    forge(honest, target, {PROGRAM: json.dumps(program).encode(), WEIGHTS: json.dumps(config).encode()})
    assert code(target) in {"name_refused", "archive_malformed"}


@pytest.mark.parametrize("name", ["x y", "x): import os", "class", "1x", "x" * 300])
def test_an_input_named_by_no_identifier_is_refused(honest: Path, target: Path, name: str) -> None:
    path = forge(honest, target, {PROGRAM: records(honest)[PROGRAM].replace(b'"x"', json.dumps(name).encode())})
    assert code(path) in {"name_refused", "archive_malformed"}


def test_names_of_values_are_only_looked_up(honest: Path, target: Path, tmp_path: Path) -> None:
    """Whatever the archive calls its values, our graph calls them after their operators."""
    marker = tmp_path / "ran"
    evil = json.dumps(f"__import__('os').mkdir({str(marker)!r}) or x").encode()
    forge(honest, target, {PROGRAM: records(honest)[PROGRAM].replace(b'"linear_1"', evil)})
    network, inputs = specimen("mlp")
    ours = lift(read_pt2(target))
    assert torch.equal(ours(*inputs), network.eval()(*inputs))
    assert "os" not in ours.code
    assert not marker.exists()


def test_words_in_arguments_are_plain(honest: Path, target: Path) -> None:
    def change(document: Json) -> None:
        argument = {"name": "mode", "arg": {"as_string": "constant'); import os; ('"}, "kind": 1}
        nodes(document)[0]["inputs"].append(argument)

    assert code(forge_program(honest, target, change)) == "archive_malformed"


def test_guards_are_not_evaluated(honest: Path, target: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    def change(document: Json) -> None:
        document["guards_code"] = [f"__import__('os').mkdir({str(marker)!r})"]

    read_pt2(forge_program(honest, target, change))
    assert not marker.exists()


# The container -----------------------------------------------------------------------------------------------------


def test_a_compressed_record_is_refused(honest: Path, target: Path) -> None:
    forge(honest, target, {"data/weights/weight_0": bytes(50 * 2**20)}, compressed="data/weights/weight_0")
    assert target.stat().st_size < 2**20
    found, detail = refusal(target)
    assert found == "archive_malformed"
    assert "compressed" in detail


@pytest.mark.parametrize(
    "name", ["../evil", "data/weights/../../evil", "/etc/passwd", "data\\weights", "weights.bin", "extra/../x"]
)
def test_records_of_unexpected_names_are_refused(honest: Path, target: Path, name: str) -> None:
    assert code(forge(honest, target, {name: b"x"})) == "archive_malformed"


@pytest.mark.parametrize("root", ["", ".", ".."])
def test_records_must_stand_in_one_ordinary_folder(honest: Path, target: Path, root: str) -> None:
    assert code(forge(honest, target, root=root)) == "archive_malformed"


def test_extra_files_are_left_unread(honest: Path, target: Path) -> None:
    network, inputs = specimen("mlp")
    ours = lift(read_pt2(forge(honest, target, {"extra/notes.txt": b"hello"})))
    assert torch.equal(ours(*inputs), network.eval()(*inputs))


def test_a_record_named_twice_is_refused(honest: Path, target: Path) -> None:
    forge(honest, target)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(target, "a") as archive:
        archive.writestr("model/byteorder", b"little")
    assert code(target) == "archive_malformed"


def rewrite(path: Path, change: Callable[[bytearray], None]) -> Path:
    contents = bytearray(path.read_bytes())
    change(contents)
    path.write_bytes(contents)
    return path


def test_overlapping_records_are_refused(honest: Path, target: Path) -> None:
    """The second entry of the directory is pointed at the first record, as in a zip bomb that quotes itself."""

    def overlap(contents: bytearray) -> None:
        first = central_directory(bytes(contents))
        lengths = struct.unpack("<3H", contents[first + 28 : first + 34])
        second = first + 46 + sum(lengths)
        contents[second + 42 : second + 46] = contents[first + 42 : first + 46]

    assert code(rewrite(forge(honest, target), overlap)) == "archive_malformed"


def test_bytes_before_the_archive_are_refused(honest: Path, target: Path) -> None:
    target.write_bytes(b"#!/bin/sh\n" + forge(honest, target).read_bytes())
    assert code(target) == "archive_malformed"


def test_a_comment_behind_the_archive_is_refused(honest: Path, target: Path) -> None:
    forge(honest, target)
    with zipfile.ZipFile(target, "a") as archive:
        archive.comment = b"x" * 1000
    assert code(target) == "archive_malformed"


@pytest.mark.parametrize(
    "field", [8, 10, 12, 16], ids=["records here", "records", "directory bytes", "directory offset"]
)
def test_an_end_that_lies_is_refused(honest: Path, target: Path, field: int) -> None:
    def lie(contents: bytearray) -> None:
        place = len(contents) - 22 + field
        contents[place] ^= 0x55

    assert code(rewrite(forge(honest, target), lie)) == "archive_malformed"


def test_a_checksum_that_is_wrong_is_refused(honest: Path, target: Path) -> None:
    def flip(contents: bytearray) -> None:
        place = contents.index(b'"using_ints"') if b'"using_ints"' in contents else contents.index(b"relu.default")
        contents[place + 1] ^= 1

    found, detail = refusal(rewrite(forge(honest, target), flip))
    assert found == "archive_malformed"
    assert "checksum" in detail


@pytest.mark.parametrize("size", [0, 1, 21, 22, 1000, -1, -22, -60, -2000])
def test_a_truncated_archive_is_refused(honest: Path, target: Path, size: int) -> None:
    target.write_bytes(honest.read_bytes()[:size])
    assert code(target) == "archive_malformed"


# Other files that people have --------------------------------------------------------------------------------------


def test_a_checkpoint_is_refused_with_the_way_out(target: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), target)
    found, detail = refusal(target)
    assert found == "pickle_refused"
    assert "checkpoint" in detail


def test_torchscript_is_refused_with_the_way_out(target: Path) -> None:
    with quiet():
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), target)
    found, detail = refusal(target)
    assert found in {"code_refused", "pickle_refused"}
    assert "torch.export" in detail


def test_an_archive_of_an_older_torch_is_refused_with_the_way_out(target: Path) -> None:
    names = ["version", "serialized_state_dict.pt", "serialized_constants.pt", "serialized_exported_program.json"]
    with zipfile.ZipFile(target, "w") as archive:
        for name in names:
            archive.writestr(name, b"{}")
    found, detail = refusal(target)
    assert found == "pickle_refused"
    assert "export it again" in detail


def test_another_schema_version_is_refused_with_the_way_out(honest: Path, target: Path) -> None:
    def change(document: Json) -> None:
        document["schema_version"]["major"] = 9

    found, detail = refusal(forge_program(honest, target, change))
    assert found == "version_unsupported"
    assert "9.20" in detail


# Tensors -----------------------------------------------------------------------------------------------------------


def meta_change(key: str, value: Any) -> Callable[[Json], None]:
    def change(document: Json) -> None:
        document["config"]["layers.0.weight"]["tensor_meta"][key] = value

    return change


def sizes(*numbers: int) -> list[Json]:
    return [{"as_int": number} for number in numbers]


@pytest.mark.parametrize(
    "change",
    [
        meta_change("strides", sizes(0, 1)),
        meta_change("strides", sizes(1, 1)),
        meta_change("strides", sizes(-48, 1)),
        meta_change("strides", sizes(49, 1)),
        meta_change("strides", sizes(48)),
        meta_change("storage_offset", {"as_int": 1}),
        meta_change("storage_offset", {"as_int": -1}),
        meta_change("sizes", sizes(33, 48)),
        meta_change("sizes", sizes(2**40, 2**40)),
        meta_change("sizes", sizes(2**62, 2)),
        meta_change("sizes", [{"as_expr": {"expr_str": "s0"}}, {"as_int": 48}]),
        meta_change("dtype", 8),
        meta_change("dtype", 99),
        meta_change("layout", 1),
        meta_change("sizes", sizes(*[1] * 40)),
    ],
)
def test_a_view_beyond_its_record_is_refused_before_it_is_made(
    honest: Path, target: Path, change: Callable[[Json], None]
) -> None:
    forge_json(honest, target, WEIGHTS, change)
    tracemalloc.start()
    found = code(target)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found in {"archive_malformed", "dtype_refused", "layout_refused"}
    assert peak < 16 * 2**20


def test_a_record_that_a_payload_names_must_be_its_own(honest: Path, target: Path) -> None:
    def change(document: Json) -> None:
        document["config"]["head.bias"]["path_name"] = "../../models/model"

    assert code(forge_json(honest, target, WEIGHTS, change)) == "archive_malformed"


# The graph ---------------------------------------------------------------------------------------------------------


def first_argument(document: Json) -> Json:
    return nodes(document)[0]["inputs"][0]


def use_what_is_not_there(document: Json) -> None:
    first_argument(document)["arg"] = {"as_tensor": {"name": "nobody"}}


def two_kinds_at_once(document: Json) -> None:
    first_argument(document)["arg"] = {"as_tensor": {"name": "x"}, "as_int": 1}


def no_such_argument(document: Json) -> None:
    first_argument(document)["name"] = "colour"


def a_custom_object(document: Json) -> None:
    first_argument(document)["arg"] = {"as_custom_obj": {"name": "x", "class_fqn": "os.system"}}


def computed_twice(document: Json) -> None:
    nodes(document)[1]["outputs"] = nodes(document)[0]["outputs"]


def an_unknown_field(document: Json) -> None:
    document["graph_module"]["hook"] = "print(1)"


def regions_without_end(document: Json) -> None:
    graph: Json = {
        "inputs": [],
        "outputs": [],
        "nodes": [],
        "tensor_values": {},
        "sym_int_values": {},
        "sym_bool_values": {},
    }
    for _ in range(12):
        arguments = [
            {"name": "", "arg": {"as_bool": False}, "kind": 1},
            {"name": "", "arg": {"as_graph": {"name": "g", "graph": graph}}, "kind": 1},
        ]
        region = {
            "target": "torch.ops.higher_order.wrap_with_set_grad_enabled",
            "inputs": arguments,
            "outputs": [],
            "metadata": {},
        }
        graph = {**graph, "nodes": [region]}
    nodes(document).insert(0, graph["nodes"][0])


@pytest.mark.parametrize(
    "change",
    [
        use_what_is_not_there,
        two_kinds_at_once,
        no_such_argument,
        a_custom_object,
        computed_twice,
        an_unknown_field,
        regions_without_end,
    ],
)
def test_a_graph_that_torch_would_not_write_is_refused(
    honest: Path, target: Path, change: Callable[[Json], None]
) -> None:
    assert code(forge_program(honest, target, change)) == "archive_malformed"


def test_json_nested_without_end_is_refused(honest: Path, target: Path) -> None:
    assert code(forge(honest, target, {PROGRAM: b"[" * 10**6})) == "archive_malformed"


def test_a_graph_that_cannot_be_computed_is_refused(honest: Path, target: Path) -> None:
    contents = records(honest)[PROGRAM].replace(b'"p_layers_1_weight"}', b'"p_head_weight"}')
    assert code(forge(honest, target, {PROGRAM: contents})) in {"graph_inconsistent", "archive_malformed"}


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), length=st.integers(1, 8))
def test_broken_bytes_lead_to_a_clean_refusal_or_a_network(place: float, value: int, length: int, target: Path) -> None:
    contents = bytearray(exported("mlp").read_bytes())
    start = int(place * len(contents))
    contents[start : start + length] = bytes([value]) * len(contents[start : start + length])
    target.write_bytes(contents)
    with contextlib.suppress(InputRejected):
        lift(read_pt2(target))


DOCUMENT = json.loads(records(exported("mlp"))[PROGRAM])


def paths(value: object, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in a JSON document."""
    found = [at]
    if isinstance(value, dict):
        found += [path for key, part in value.items() for path in paths(part, (*at, key))]
    elif isinstance(value, list):
        found += [path for index, part in enumerate(value) for path in paths(part, (*at, index))]
    return found


JUNK = (
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=8) | st.just([]) | st.just({})
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from([path for path in paths(DOCUMENT) if path]), junk=JUNK)
def test_junk_in_the_program_leads_to_a_clean_refusal_or_a_network(
    place: tuple[str | int, ...], junk: object, target: Path
) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    owner = document
    for step in place[:-1]:
        owner = owner[step]
    owner[place[-1]] = junk
    forge(exported("mlp"), target, {PROGRAM: json.dumps(document).encode("utf-8", "surrogatepass")})
    with contextlib.suppress(InputRejected):
        lift(read_pt2(target))
