"""Reading models: every kind of file that is taken, and each that is refused."""

import json
import os
import pickle
import struct
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from service.contract.errors import InputRejected
from service.contract.specs import ModelDeclaration
from tests.unit.formats.declared import UPLOAD, declare_model, read_model_in
from workers.evaluation.cost import measure_cost
from workers.formats.models import load_architecture, load_model
from workers.students.architectures import build

pytestmark = pytest.mark.usefixtures("one_thread")


def network(name: str = "mlp", **options: Any) -> nn.Module:
    if name == "mlp":
        return build(name, {"hidden": [5]}, input_shape=[4], num_classes=3, seed=1).eval()
    return build(name, options, input_shape=[1, 16, 16], num_classes=7, seed=1).eval()


def state(name: str = "mlp") -> dict[str, Tensor]:
    return network(name).state_dict()


def rejected(folder: Path, declaration: ModelDeclaration) -> InputRejected:
    with pytest.raises(InputRejected) as caught:
        read_model_in(folder, declaration)
    return caught.value


def test_a_safetensors_file_becomes_the_same_network(tmp_path: Path) -> None:
    model = network("resnet8")
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    declaration = declare_model("model.safetensors", "resnet8", input_shape=[1, 16, 16], num_classes=7)
    facts, out = read_model_in(tmp_path, declaration)
    x = torch.randn(3, 1, 16, 16)
    loaded = load_model(out)
    assert not loaded.training
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)
    assert load_architecture(out) == declaration.architecture
    cost = measure_cost(model, (1, 16, 16))
    assert (facts["parameters"], facts["macs"], facts["bytes"]) == (cost.parameters, cost.macs, cost.bytes)
    assert facts["inputs"] == [{"name": "input", "shape": ["batch", 1, 16, 16], "dtype": "float32"}]
    assert facts["outputs"] == [{"name": "logits", "shape": ["batch", 7], "dtype": "float32"}]
    assert facts["format"] == "safetensors"
    assert sum(group["units"] for group in facts["units"]["groups"]) == 16 + 16 + 2 * 32 + 2 * 64
    assert facts["notes"] == []
    assert facts["architecture"]["name"] == "resnet8"
    assert json.loads((out / "model.json").read_text())["facts"] == facts


def test_the_canonical_form_depends_on_the_weights_alone(tmp_path: Path) -> None:
    model = network("resnet8")
    declared = {"input_shape": [1, 16, 16], "num_classes": 7}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "a/model.safetensors")
    torch.save({"model": model.state_dict()}, tmp_path / "b/checkpoint.pt")
    _, a = read_model_in(tmp_path / "a", declare_model("model.safetensors", "resnet8", **declared))
    _, b = read_model_in(tmp_path / "b", declare_model("checkpoint.pt", "resnet8", **declared))
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "net", "params", "ema"])
def test_wrapped_checkpoints_are_unwrapped(tmp_path: Path, wrapper: str) -> None:
    torch.save({"epoch": 7, "optimizer": {"lr": 0.1}, wrapper: state()}, tmp_path / "checkpoint.pth")
    facts, out = read_model_in(tmp_path, declare_model("checkpoint.pth"))
    assert facts["format"] == "checkpoint"
    assert facts["notes"] == [f"weights taken from {wrapper}"]
    torch.testing.assert_close(load_model(out).state_dict(), state())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module."])
def test_prefixes_that_all_keys_share_are_removed(tmp_path: Path, prefix: str) -> None:
    torch.save({prefix + key: tensor for key, tensor in state().items()}, tmp_path / "checkpoint.bin")
    facts, out = read_model_in(tmp_path, declare_model("checkpoint.bin"))
    assert all("removed from all keys" in note for note in facts["notes"])
    torch.testing.assert_close(load_model(out).state_dict(), state())


def test_a_wrapper_without_weights_does_not_hide_another(tmp_path: Path) -> None:
    torch.save({"model": {"depth": 8}, "net": {"state_dict": state()}}, tmp_path / "checkpoint.pt")
    facts, _ = read_model_in(tmp_path, declare_model("checkpoint.pt"))
    assert facts["notes"] == ["weights taken from net / state_dict"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = {key: tensor.to(dtype) for key, tensor in state().items()}
    safetensors.torch.save_file(stored, tmp_path / "model.safetensors")
    facts, out = read_model_in(tmp_path, declare_model("model.safetensors"))
    assert facts["notes"] == [f"4 tensors converted from {str(dtype).removeprefix('torch.')} to float32"]
    loaded = load_model(out).state_dict()
    assert all(torch.equal(loaded[key], tensor.float()) for key, tensor in stored.items())


def test_a_checkpoint_of_the_format_before_zip_is_read(tmp_path: Path) -> None:
    torch.save({"state_dict": state()}, tmp_path / "checkpoint.pth", _use_new_zipfile_serialization=False)
    _, out = read_model_in(tmp_path, declare_model("checkpoint.pth"))
    torch.testing.assert_close(load_model(out).state_dict(), state())


def test_absent_batch_norm_counters_start_at_zero(tmp_path: Path) -> None:
    kept = {key: tensor for key, tensor in state("resnet8").items() if not key.endswith("num_batches_tracked")}
    torch.save(kept, tmp_path / "checkpoint.pt")
    declaration = declare_model("checkpoint.pt", "resnet8", input_shape=[1, 16, 16], num_classes=7)
    facts, out = read_model_in(tmp_path, declaration)
    assert "counters were absent" in facts["notes"][0]
    assert load_model(out).state_dict()["bn1.num_batches_tracked"] == 0


def test_missing_options_are_inferred_from_a_perceptrons_weights(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "checkpoint.pt")
    declaration = declare_model("checkpoint.pt", input_shape=None, num_classes=None)
    facts, _ = read_model_in(tmp_path, declaration)
    assert facts["architecture"]["options"]["input_shape"] == [4]
    assert facts["architecture"]["options"]["num_classes"] == 3


def test_the_number_of_classes_of_a_convolutional_network_is_inferred(tmp_path: Path) -> None:
    torch.save({"module." + key: tensor for key, tensor in state("resnet8").items()}, tmp_path / "checkpoint.pt")
    facts, _ = read_model_in(tmp_path, declare_model("checkpoint.pt", "resnet8", input_shape=[1, 16, 16]))
    assert facts["outputs"][0]["shape"] == ["batch", 7]


def test_an_image_size_that_the_weights_do_not_say_is_asked_for(tmp_path: Path) -> None:
    torch.save(state("resnet8"), tmp_path / "checkpoint.pt")
    error = rejected(tmp_path, declare_model("checkpoint.pt", "resnet8"))
    assert error.specific_code == "option_missing"
    assert '"input_shape": [1, height, width]' in error.detail


def test_a_number_of_classes_that_the_weights_do_not_say_is_asked_for(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(16, 1, 3, 3)}, tmp_path / "checkpoint.pt")
    error = rejected(tmp_path, declare_model("checkpoint.pt", "resnet8", input_shape=[1, 16, 16]))
    assert error.specific_code == "option_missing"
    assert "num_classes" in error.detail
    assert "fc.weight" in error.detail


def test_weights_of_another_architecture_are_listed_key_by_key(tmp_path: Path) -> None:
    tensors = {"fc1.weight": torch.zeros(5, 9), "fc1.bias": torch.zeros(5), "head.weight": torch.zeros(3, 5)}
    torch.save(tensors, tmp_path / "checkpoint.pt")
    error = rejected(tmp_path, declare_model("checkpoint.pt"))
    assert error.specific_code == "architecture_mismatch"
    lines = error.detail.splitlines()
    assert lines[1:-1] == [
        "missing: fc2.weight [3, 5]",
        "missing: fc2.bias [3]",
        "shape: fc1.weight is [5, 9], expected [5, 4]",
        "unexpected: head.weight [3, 5]",
    ]


def test_a_long_list_of_differences_is_cut_with_their_number(tmp_path: Path) -> None:
    torch.save(state("resnet8"), tmp_path / "checkpoint.pt")
    declaration = declare_model("checkpoint.pt", "vgg", input_shape=[1, 16, 16], num_classes=7)
    error = rejected(tmp_path, declaration)
    lines = error.detail.splitlines()
    assert len(lines) == 1 + 20 + 1 + 1
    assert lines[21].startswith("and ")
    assert int(lines[21].split()[1]) + 20 == int(lines[0].split(": ")[1].split()[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, bad: float) -> None:
    tensors = state()
    tensors["fc2.bias"][1] = bad
    torch.save(tensors, tmp_path / "checkpoint.pt")
    error = rejected(tmp_path, declare_model("checkpoint.pt"))
    assert error.specific_code == "not_finite"
    assert "fc2.bias: 1 of 3" in error.detail


def test_a_float64_weight_that_overflows_float32_is_refused(tmp_path: Path) -> None:
    tensors = {key: tensor.double() for key, tensor in state().items()}
    tensors["fc1.weight"][0, 0] = 1e300
    torch.save(tensors, tmp_path / "checkpoint.pt")
    assert rejected(tmp_path, declare_model("checkpoint.pt")).specific_code == "not_finite"


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    torch.save({key: tensor.to(torch.int8) for key, tensor in state().items()}, tmp_path / "checkpoint.pt")
    assert rejected(tmp_path, declare_model("checkpoint.pt")).specific_code == "dtype_refused"


class Bomb:
    """Pickles as a call that would leave a marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("use_zip", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_a_pickle_with_code_runs(tmp_path: Path, use_zip: bool, protocol: int) -> None:
    marker = tmp_path / "marker"
    content = {"state_dict": state(), "extra": Bomb(marker)}
    torch.save(content, tmp_path / "checkpoint.pt", _use_new_zipfile_serialization=use_zip, pickle_protocol=protocol)
    error = rejected(tmp_path, declare_model("checkpoint.pt"))
    assert error.specific_code == "pickle_refused"
    assert "save_file" in error.detail
    assert not marker.exists()
    if protocol == 2:
        assert "mkdir" in error.detail


def test_the_bomb_of_these_tests_is_a_real_one(tmp_path: Path) -> None:
    torch.save(Bomb(tmp_path / "marker"), tmp_path / "checkpoint.pt")
    torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    assert (tmp_path / "marker").exists()


def test_a_bare_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    assert rejected(tmp_path, declare_model("checkpoint.pt")).specific_code == "pickle_refused"
    assert not (tmp_path / "marker").exists()


def test_a_whole_pickled_module_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(4, 3)), tmp_path / "checkpoint.pt")
    error = rejected(tmp_path, declare_model("checkpoint.pt"))
    assert error.specific_code == "pickle_refused"
    assert "whole pickled module" in error.detail


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_archive_is_refused_by_name(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(4, 3)).save(tmp_path / "checkpoint.pt")  # type: ignore[no-untyped-call]  # torch's own
    error = rejected(tmp_path, declare_model("checkpoint.pt"))
    assert error.specific_code == "torchscript_refused"
    assert "TorchScript" in error.detail


def test_a_tar_file_of_the_first_versions_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tensors").write_bytes(b"\0" * 100)
    with tarfile.open(tmp_path / "checkpoint.pt", "w") as tar:
        tar.add(tmp_path / "tensors", "tensors")
    error = rejected(tmp_path, declare_model("checkpoint.pt"))
    assert error.specific_code == "format_refused"
    assert "tar" in error.detail


@pytest.mark.parametrize("use_zip", [True, False])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, use_zip: bool) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"a": torch.zeros(1000)}, path, _use_new_zipfile_serialization=use_zip)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert rejected(tmp_path, declare_model("checkpoint.pt")).specific_code == "truncated"


def test_a_tensor_that_repeats_one_value_a_million_times_is_refused(tmp_path: Path) -> None:
    torch.save({"fc1.weight": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "checkpoint.pt")
    assert rejected(tmp_path, declare_model("checkpoint.pt")).specific_code == "too_large"


def test_a_declared_network_of_terabytes_is_refused_without_allocating_it(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "checkpoint.pt")
    error = rejected(tmp_path, declare_model("checkpoint.pt", hidden=[10**6] * 8))
    assert error.specific_code == "architecture_mismatch"


def test_a_checkpoint_without_weights_says_what_was_found(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "optimizer": [1, 2]}, tmp_path / "checkpoint.pt")
    error = rejected(tmp_path, declare_model("checkpoint.pt"))
    assert error.specific_code == "no_weights"
    assert "'epoch', 'optimizer'" in error.detail


def test_files_of_later_versions_are_not_available(tmp_path: Path) -> None:
    assert rejected(tmp_path, declare_model("model.onnx")).specific_code == "not_available"


def test_an_exported_archive_under_another_name_is_told_its_own(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(4, 3), (torch.zeros(2, 4),)), tmp_path / "program.pt2")
    (tmp_path / "program.pt2").rename(tmp_path / "checkpoint.pt")
    error = rejected(tmp_path, declare_model("checkpoint.pt"))
    assert error.specific_code == "unexpected_files"
    assert "upload it as model.pt2" in error.detail


def test_weights_without_an_architecture_are_refused(tmp_path: Path) -> None:
    declaration = ModelDeclaration.model_validate({"name": "m", "files": {"model.safetensors": UPLOAD}})
    assert rejected(tmp_path, declaration).specific_code == "architecture_missing"


def test_options_that_make_no_network_are_refused(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "checkpoint.pt")
    declaration = declare_model("checkpoint.pt", "lenet5", input_shape=[1, 8, 8], num_classes=3)
    error = rejected(tmp_path, declaration)
    assert error.specific_code == "architecture_options"
    assert "16 x 16" in error.detail


def header_file(path: Path, header: bytes, data: bytes = b"") -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def entry(begin: int = 0, end: int = 4, dtype: str = "F32", shape: str = "[1]") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}'


@pytest.mark.parametrize(
    ("header", "data", "code"),
    [
        (f'{{"a":{entry()},"a":{entry()}}}', 4, "safetensors_refused"),  # a key twice
        (f'{{"a":{entry()},"b":{entry()}}}', 4, "safetensors_refused"),  # the same bytes twice
        (f'{{"a":{entry()},"b":{entry(8, 12)}}}', 12, "safetensors_refused"),  # a gap
        (f'{{"a":{entry()}}}', 8, "safetensors_refused"),  # bytes after the last tensor
        (f'{{"a":{entry()}}}', 3, "truncated"),
        (f'{{"a":{entry(0, 8)}}}', 8, "safetensors_refused"),  # more bytes than the shape has
        (f'{{"a":{entry(dtype="PICKLE")}}}', 4, "dtype_refused"),
        (f'{{"a":{entry(shape="[-1]")}}}', 4, "safetensors_refused"),
        (f'{{"a":{entry(shape="[true]")}}}', 4, "safetensors_refused"),
        (f'{{"a":{entry(shape="[1.0]")}}}', 4, "safetensors_refused"),
        ('{"a":{"dtype":"F32","shape":[1]}}', 4, "safetensors_refused"),
        ('{"__metadata__":{"a":1}}', 0, "safetensors_refused"),
        ("[1]", 0, "safetensors_refused"),
        ("{", 0, "truncated"),
        ("not json at all", 0, "safetensors_refused"),
        ("[" * 100_000, 0, "safetensors_refused"),
    ],
)
def test_an_unsound_safetensors_header_is_refused(tmp_path: Path, header: str, data: int, code: str) -> None:
    header_file(tmp_path / "model.safetensors", header.encode(), b"\0" * data)
    assert rejected(tmp_path, declare_model("model.safetensors")).specific_code == code


def test_a_header_of_400_000_entries_is_refused(tmp_path: Path) -> None:
    empty = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = "{" + ",".join(f'"{i}":{empty}' for i in range(400_000)) + "}"
    header_file(tmp_path / "model.safetensors", header.encode())
    assert rejected(tmp_path, declare_model("model.safetensors")).specific_code == "too_large"


def test_more_entries_than_taken_in_a_header_of_allowed_length_are_refused(tmp_path: Path) -> None:
    empty = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = "{" + ",".join(f'"{i}":{empty}' for i in range(100_001)) + "}"
    assert len(header) < 16 * 2**20
    header_file(tmp_path / "model.safetensors", header.encode())
    error = rejected(tmp_path, declare_model("model.safetensors"))
    assert error.specific_code == "too_large"
    assert "100001 tensors, and at most 100000" in error.detail


def test_a_header_length_beyond_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 1000) + b"{}")
    assert rejected(tmp_path, declare_model("model.safetensors")).specific_code == "truncated"
    (tmp_path / "canonical").rmdir()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    assert rejected(tmp_path, declare_model("model.safetensors")).specific_code == "too_large"


def test_an_ordered_dictionary_of_parameters_is_read(tmp_path: Path) -> None:
    torch.save(OrderedDict((key, nn.Parameter(tensor)) for key, tensor in state().items()), tmp_path / "checkpoint.pt")
    _, out = read_model_in(tmp_path, declare_model("checkpoint.pt"))
    torch.testing.assert_close(load_model(out).state_dict(), state())
