"""`stillhouse-pack` as its user meets it: what it writes, says and returns."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.unit.packing.networks import Good, Tagger
from workers.formats.pt2_reader import read_pt2
from workers.graph.lifting import lift
from workers.packing import command
from workers.packing.examples import example_inputs
from workers.packing.mistakes import Mistake

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORKS = "tests.unit.packing.networks"
IMAGE = ("--example", "1,8,8")


class Pack:
    """Runs the command in a folder of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.archive = folder / "model.pt2"
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, name: str, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr; a name alone is one of networks.py."""
        target = name if ":" in name else f"{NETWORKS}:{name}"
        self.monkeypatch.setattr("sys.argv", ["stillhouse-pack", target, "--output", str(self.archive), *arguments])
        with pytest.raises(SystemExit) as ended:
            command.main()
        out, err = self.capsys.readouterr()
        return int(ended.value.code or 0), out, err

    def json(self, name: str, *arguments: str) -> dict[str, Any]:
        return json.loads(self(name, "--json", *arguments)[1])


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pack:
    return Pack(tmp_path, monkeypatch, capsys)


def test_a_good_network_is_accepted_and_described(pack: Pack) -> None:
    code, out, err = pack("Good", *IMAGE)
    assert code == 0
    assert "ACCEPTED" in out
    assert "input   x (batch, 1, 8, 8) float32" in out
    assert "186 parameters" in out
    assert "1 group with 8 prunable units" in out
    assert "pinned  10 channels of head.weight, head.bias by output (output): the network's output" in out
    assert "stillhouse push model" in err


def test_json_says_what_the_service_would_record(pack: Pack) -> None:
    found = pack.json("Good", *IMAGE)
    assert found["accepted"]
    assert found["error"] is None
    assert found["difference"] == 0
    assert found["bytes"] == pack.archive.stat().st_size
    assert found["model"]["units"]["floor"]["parameters"] < found["model"]["parameters"] == 186


def test_what_is_packed_still_follows_its_mode(pack: Pack) -> None:
    assert pack("Good", *IMAGE)[0] == 0
    network, x = lift(read_pt2(pack.archive)), torch.randn(4, 1, 8, 8)
    assert torch.equal(network(x), network(x))
    network.train()
    assert not torch.equal(network(x), network(x))
    assert isinstance(network.norm, nn.BatchNorm2d)
    assert network.norm.num_batches_tracked == 2


def test_nothing_of_the_source_is_in_the_archive(pack: Pack) -> None:
    pack("Good", *IMAGE)
    assert b"networks.py" not in pack.archive.read_bytes()


def test_every_operator_that_would_be_refused_is_named_with_its_line(pack: Pack) -> None:
    code, out, _ = pack("Noisy", *IMAGE)
    assert code == 1
    assert "REFUSED (operator_refused): 2 of its operators" in out
    assert "torch.ops.aten.linalg_inv.default" in out
    assert "draw them only `if self.training`" in out
    assert "torch.linalg.inv(x + torch.rand_like(x))" in out
    assert "Write these parts with other operators" in out


def test_a_branch_on_values_is_explained_without_a_traceback(pack: Pack) -> None:
    code, out, err = pack("Branching", *IMAGE)
    assert (code, out) == (1, "")
    assert "torch.where" in err
    assert "return super().forward(x if x.sum() > 0 else -x)" in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("OneExample", "It runs on one example alone: the code fixes the size."),
        ("FirstExample", "takes 3 examples and returns shape [1, 10]: the code fixes the size."),
        ("ThreeExamples", "Of the batch, the code fixes the size."),
    ],
)
def test_a_fixed_batch_is_found(pack: Pack, name: str, said: str) -> None:
    code, _, err = pack(name, *IMAGE)
    assert code == 1
    assert said in err


def test_inputs_of_another_shape_are_not_taken_for_a_fixed_batch(pack: Pack) -> None:
    code, _, err = pack("Good", "--example", "3,8,8")
    assert code == 1
    assert "does not run on inputs of shape [3, 3, 8, 8]" in err
    assert "one example alone" not in err


def test_a_network_of_two_inputs_is_told_its_way_out(pack: Pack) -> None:
    code, out, _ = pack("TwoInputs", *IMAGE, *IMAGE)
    assert code == 1
    assert "REFUSED (signature_refused): The model takes 2 tensors (x, y)" in out
    assert "Pack a module around the network" in out


def test_what_is_pinned_is_said_with_its_operator(pack: Pack) -> None:
    code, out, _ = pack("Pinned", "--example", "5,16")
    assert code == 0
    assert "by lstm" in out
    assert "nothing can be pruned" in out


def test_dropout_inside_attention_is_kept_on_demand(pack: Pack) -> None:
    lost = "dropout inside attention is not in an export made in evaluation mode"
    assert any(lost in note for note in pack.json("Tagger", "--example", "6:int64")["notes"])
    found = pack.json("Tagger", "--example", "6:int64", "--training")
    assert found["accepted"]
    assert not any(lost in note for note in found["notes"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_are_loaded_from_a_checkpoint(pack: Pack, tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(5)
    network, path = Good().eval(), tmp_path / f"weights{suffix}"
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    if suffix == ".pt":
        torch.save({"state_dict": state}, path)
    else:
        safetensors.torch.save_file(state, path)
    assert pack("Good", *IMAGE, "--weights", str(path))[0] == 0
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(lift(read_pt2(pack.archive))(x), network(x))


def test_weights_of_another_network_are_compared_key_by_key(pack: Pack, tmp_path: Path) -> None:
    safetensors.torch.save_file(Tagger().state_dict(), tmp_path / "w.safetensors")
    code, _, err = pack("Good", *IMAGE, "--weights", str(tmp_path / "w.safetensors"))
    assert code == 2
    assert "missing: conv.weight [8, 1, 3, 3]" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("broken", *IMAGE), "could not be called without arguments: FileNotFoundError: weights.bin is missing"),
        (("number", *IMAGE), "gives int; expected module:function"),
        (("nothing", *IMAGE), "has no nothing; it has"),
        (("nowhere:Net", *IMAGE), "there is no module nowhere"),
        (("nowhere.py:Net", *IMAGE), "there is no file nowhere.py"),
        (("json:", *IMAGE), "is not understood; expected module:function"),
        (("Good",), "--example is missing"),
        (("Good", "--example", "1x8"), "--example '1x8' is not understood"),
        (("Good", "--example", "1,8:complex64"), "there is no type complex64"),
        (("Good", "--example", "none.npy"), "there is no such file"),
        (("Good", *IMAGE, "--weights", "none.pt"), "--weights none.pt: there is no such file"),
        (("Good", *IMAGE, "--output", "model.bin"), "expected one that ends in .pt2"),
    ],
)
def test_a_wrong_command_is_one_message_and_exit_code_two(pack: Pack, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = pack(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_a_module_object_and_a_file_will_do_too(pack: Pack) -> None:
    assert pack("ready", *IMAGE)[0] == 0
    assert pack(f"{Path(__file__).with_name('networks.py')}:Good", *IMAGE)[0] == 0


def test_the_traceback_is_there_for_those_who_ask(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["stillhouse-pack", f"{NETWORKS}:broken", *IMAGE, "--traceback"])
    with pytest.raises(Mistake, match=r"weights\.bin") as raised:
        command.main()
    assert isinstance(raised.value.__cause__, FileNotFoundError)


def test_examples_come_from_shapes_and_files(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((1, 4), dtype=np.float32))
    np.savez(tmp_path / "xs.npz", b=np.zeros((6, 2)), a=np.arange(5))
    found = example_inputs(["3,2", "7:int64", str(tmp_path / "x.npy"), str(tmp_path / "xs.npz")], 3)
    assert [tuple(tensor.shape) for tensor in found] == [(3, 3, 2), (3, 7), (3, 4), (3, 2), (3,)]
    assert [tensor.dtype for tensor in found[:2]] == [torch.float32, torch.int64]
    assert torch.equal(found[4], torch.arange(3))
