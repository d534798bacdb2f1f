"""Hugging Face folders: each class of the list becomes the same network without it, and nothing is fetched or run."""

import json
import os
import shutil
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from service.contract.errors import InputRejected
from service.contract.specs import ModelDeclaration
from tests.unit.formats.declared import UPLOAD, read_model_in
from tests.unit.formats.transformers_folders import (
    CLASSES,
    POSITIONS,
    SMALL,
    VOCABULARY,
    declared,
    network_of,
    save,
    token_ids,
)
from workers.formats import transformers_fields, transformers_folder
from workers.formats.artifacts import export_program, write_safetensors
from workers.formats.models import load_architecture, load_model
from workers.graph.layer_graph import LayerGraph

pytestmark = pytest.mark.usefixtures("one_thread")

transformers = pytest.importorskip("transformers")
BERT = "BertForSequenceClassification"
QUICK = {BERT, "ViTForImageClassification"}  # one that reads tokens, one whose parts transformers has renamed
EACH = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SMALL]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        yield


def inputs_of(network: Any, length: int = 12, seed: int = 0) -> Tensor:
    config = network.config
    if type(network).__name__.endswith("ForSequenceClassification"):
        return token_ids(4, length, config.pad_token_id, seed)
    side = getattr(config, "image_size", 224)
    return torch.randn(4, config.num_channels, side, side, generator=torch.Generator().manual_seed(seed))


def logits_of(network: Any, x: Tensor) -> Tensor:
    """As its owner would compute them, with the mask that goes with the padding."""
    with torch.no_grad():
        if x.dtype == torch.int64:
            attended = (x != network.config.pad_token_id).long()
            logits: Tensor = network(input_ids=x, attention_mask=attended).logits
        else:
            logits = network(pixel_values=x).logits
    return logits


def run(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(x)
    return logits


def test_the_list_is_tested() -> None:
    assert set(SMALL) == set(transformers_fields.CLASSES)


@pytest.mark.parametrize("name", EACH)
def test_a_folder_becomes_the_same_network_without_its_class(tmp_path: Path, name: str) -> None:
    network = network_of(name)
    facts, out = read_model_in(save(network, tmp_path / "folder"), declared())
    loaded = load_model(out)
    assert isinstance(loaded, LayerGraph)
    x = inputs_of(network)
    torch.testing.assert_close(run(loaded, x), logits_of(network, x), rtol=0, atol=0)
    assert len(logits_of(network, x).unique(dim=0)) == 4  # or else any network would do
    assert (facts["format"], facts["class"], facts["architecture"]) == ("transformers", name, None)
    assert facts["parameters"] == sum(weight.numel() for weight in network.parameters())
    assert facts["outputs"][0]["shape"] == ["batch", CLASSES]
    assert load_architecture(out) is None
    with safetensors.safe_open(tmp_path / "folder" / "model.safetensors", "pt") as stored:
        assert set(loaded.state_dict()) == set(stored.keys())


@pytest.mark.parametrize("name", EACH)
def test_what_is_trained_loads_into_the_class_it_came_from(tmp_path: Path, name: str) -> None:
    network = network_of(name)
    folder = save(network, tmp_path / "folder")
    _, out = read_model_in(folder, declared())
    trained = load_model(out)
    with torch.no_grad():
        for weight in trained.parameters():
            weight.mul_(1.01)
    back = tmp_path / "back"
    back.mkdir()
    shutil.copy(folder / "config.json", back)
    write_safetensors(trained, back / "model.safetensors", {})
    again, told = type(network).from_pretrained(back, local_files_only=True, output_loading_info=True)  # type: ignore[attr-defined]
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    x = inputs_of(network)
    # Not bit for bit: kernels choose by where in memory weights begin.
    torch.testing.assert_close(logits_of(again.eval(), x), run(trained, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [BERT, pytest.param("GPT2ForSequenceClassification", marks=pytest.mark.slow)])
def test_sequences_may_have_any_length_and_batches_any_size(tmp_path: Path, name: str) -> None:
    network = network_of(name)
    facts, out = read_model_in(save(network, tmp_path / "folder"), declared())
    assert facts["inputs"] == [{"name": "input_ids", "shape": ["batch", "tokens"], "dtype": "int64"}]
    assert (facts["vocabulary"], facts["max_tokens"]) == (VOCABULARY, POSITIONS)
    loaded = load_model(out)
    for length in (1, 2, 9, POSITIONS):
        x = inputs_of(network, length, seed=length)
        torch.testing.assert_close(run(loaded, x), logits_of(network, x), rtol=0, atol=0)
        torch.testing.assert_close(run(loaded, x[:1]), logits_of(network, x[:1]), rtol=0, atol=0)


def test_padding_is_not_attended_to(tmp_path: Path) -> None:
    network = network_of(BERT)
    _, out = read_model_in(save(network, tmp_path / "folder"), declared())
    loaded, x = load_model(out), token_ids(1, 8, 0)
    padded = torch.cat([x, torch.zeros(1, 5, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(run(loaded, padded), run(loaded, x), rtol=1e-5, atol=1e-6)


def test_the_dropout_of_attention_follows_the_mode(tmp_path: Path) -> None:
    network = network_of(BERT, hidden_dropout_prob=0.0, classifier_dropout=0.0, attention_probs_dropout_prob=0.5)
    _, out = read_model_in(save(network, tmp_path / "folder"), declared())
    loaded, x = load_model(out), inputs_of(network)
    assert torch.equal(run(loaded, x), run(loaded, x))
    loaded.train()
    assert not torch.equal(run(loaded, x), run(loaded, x))


def test_the_graph_leaves_with_its_free_length(tmp_path: Path) -> None:
    network = network_of(BERT)
    _, out = read_model_in(save(network, tmp_path / "folder"), declared())
    export_program(load_model(out), inputs_of(network), tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    x = inputs_of(network, length=POSITIONS, seed=3)
    torch.testing.assert_close(again(x), logits_of(network, x), rtol=1e-5, atol=1e-6)
    declaration = ModelDeclaration.model_validate({"name": "m", "files": {"model.pt2": UPLOAD}})
    facts, _ = read_model_in(tmp_path, declaration)
    assert (facts["inputs"][0]["shape"], facts["vocabulary"]) == (["batch", "tokens"], VOCABULARY)


def test_weights_of_half_precision_are_widened(tmp_path: Path) -> None:
    network = network_of(BERT).to(torch.bfloat16)
    facts, out = read_model_in(save(network, tmp_path / "folder"), declared())
    assert any("converted from bfloat16 to float32" in note for note in facts["notes"])
    x = inputs_of(network)
    torch.testing.assert_close(run(load_model(out), x), logits_of(network.float(), x), rtol=0, atol=0)


def test_a_tokenizer_is_kept_and_not_opened(tmp_path: Path) -> None:
    folder = save(network_of(BERT), tmp_path / "folder")
    (folder / "tokenizer.json").write_text("{ no JSON at all")
    facts, _ = read_model_in(folder, declared("tokenizer.json"))
    assert facts["class"] == BERT


# Nothing comes from elsewhere ------------------------------------------------------------------------------------


def test_nobody_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(network_of(BERT), tmp_path / "folder")
    rewrite(folder, _name_or_path="somebody/bert", name_or_path="somebody/bert", _commit_hash="main")

    def dialled(*_: Any, **__: Any) -> Any:
        raise AssertionError("somebody was called")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, dialled)
    monkeypatch.setattr(socket, "getaddrinfo", dialled)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", dialled)
    read_model_in(folder, declared())
    assert {name: os.environ.get(name) for name in transformers_folder.OFFLINE} == transformers_folder.OFFLINE


def test_code_beside_the_weights_is_not_run(tmp_path: Path) -> None:
    folder = save(network_of(BERT), tmp_path / "folder")
    marker = tmp_path / "marker"
    (folder / "modeling.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    rewrite(folder, auto_map={"AutoModelForSequenceClassification": "modeling.Evil"})
    assert rejected(folder).specific_code == "code_refused"
    assert not marker.exists()


def test_where_transformers_is_missing_the_way_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(network_of(BERT), tmp_path / "folder")
    monkeypatch.setattr(transformers_folder.importlib.util, "find_spec", lambda _: None)
    error = rejected(folder)
    assert error.specific_code == "transformers_missing"
    assert "model.pt2" in error.detail


# Refused ---------------------------------------------------------------------------------------------------------


def rewrite(folder: Path, **changes: Any) -> None:
    document = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(document))


def rejected(folder: Path) -> InputRejected:
    start = time.monotonic()
    with pytest.raises(InputRejected) as caught:
        read_model_in(folder, declared())
    assert time.monotonic() - start < 10
    return caught.value


CLAIMS: dict[str, tuple[dict[str, Any], str, str]] = {
    "the widest of all": ({"hidden_size": 65_536, "vocab_size": 4_194_304}, "architecture_mismatch", "expected"),
    "as many layers as are allowed": ({"num_hidden_layers": 256}, "architecture_mismatch", "missing"),
    "more positions than weights": ({"max_position_embeddings": 1_048_576}, "architecture_mismatch", "position"),
    "a width that is no multiple of the heads": ({"num_attention_heads": 3}, "config_refused", "cannot be built"),
    "a decoder": ({"is_decoder": True}, "config_refused", "is_decoder = true"),
    "attention across": ({"add_cross_attention": True, "is_decoder": True}, "config_refused", "add_cross_attention"),
}  # fmt: skip


@pytest.mark.parametrize("what", CLAIMS)
def test_claims_beyond_the_weights_are_refused_without_memory_for_them(tmp_path: Path, what: str) -> None:
    changes, code, phrase = CLAIMS[what]
    folder = save(network_of(BERT), tmp_path / "folder")
    rewrite(folder, **changes)
    error = rejected(folder)
    assert (error.specific_code, phrase in error.detail) == (code, True), error.detail


def test_what_a_class_would_compute_for_itself_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(network_of(BERT), tmp_path / "folder")
    monkeypatch.setattr(transformers_folder, "MAX_BUFFER_BYTES", 8 * POSITIONS - 1)  # BERT numbers its positions
    assert rejected(folder).specific_code == "too_large"


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    folder = save(network_of(BERT), tmp_path / "folder")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["bert.pooler.dense.extra"] = torch.zeros(3)
    del tensors["classifier.bias"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    error = rejected(folder)
    assert error.specific_code == "architecture_mismatch"
    assert "missing: classifier.bias [3]" in error.detail
    assert "unexpected: bert.pooler.dense.extra [3]" in error.detail


def test_what_older_versions_stored_and_newer_compute_is_passed_over(tmp_path: Path) -> None:
    network = network_of(BERT)
    folder = save(network, tmp_path / "folder")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["bert.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    _, out = read_model_in(folder, declared())
    x = inputs_of(network)
    torch.testing.assert_close(run(load_model(out), x), logits_of(network, x), rtol=0, atol=0)


def test_infinite_weights_are_refused(tmp_path: Path) -> None:
    network = network_of(BERT)
    network.classifier.bias.data[0] = float("inf")  # type: ignore[union-attr, index]
    assert rejected(save(network, tmp_path / "folder")).specific_code == "not_finite"


def test_pickled_and_divided_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    for names in (("config.json", "pytorch_model.bin"), ("config.json", "model-00001-of-00002.safetensors")):
        declaration = ModelDeclaration.model_validate({"name": "m", "files": dict.fromkeys(names, UPLOAD)})
        with pytest.raises(InputRejected, match="save_pretrained") as caught:
            transformers_folder.read_transformers(tmp_path, declaration, tmp_path)
        assert caught.value.specific_code == "unexpected_files"
