"""`config.json`: what of a stranger's configuration is believed, dropped or refused, before transformers sees it."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from service.contract.errors import InputRejected
from workers.formats.transformers_config import MAX_CONFIG_BYTES, check_rest, read_config
from workers.formats.transformers_fields import CLASSES, GPT2, Llama, Roberta

BERT = {
    "architectures": ["BertForSequenceClassification"], "model_type": "bert", "vocab_size": 60, "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 40,
    "pad_token_id": 0, "id2label": {"0": "no", "1": "yes", "2": "perhaps"},
}  # fmt: skip


def read(folder: Path, text: str | None = None, **changes: Any) -> Any:
    document = {name: value for name, value in {**BERT, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(document) if text is None else text)
    return read_config(folder / "config.json")


def rejected(folder: Path, text: str | None = None, **changes: Any) -> InputRejected:
    start = time.monotonic()
    with pytest.raises(InputRejected) as caught:
        read(folder, text, **changes)
    assert time.monotonic() - start < 10  # what must be refused is refused at once, however much it claims
    return caught.value


def test_what_is_known_is_read(tmp_path: Path) -> None:
    config = read(tmp_path, hidden_act="relu", classifier_dropout=None, torch_dtype="float16")
    assert (config.architecture, config.model_type, config.num_labels) == ("BertForSequenceClassification", "bert", 3)
    assert config.fields.arguments() == {
        "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 40, "pad_token_id": 0, "hidden_act": "relu", "classifier_dropout": None,
    }  # fmt: skip
    assert config.fields.max_tokens == 40


HOSTILE: dict[str, tuple[dict[str, Any], str, str]] = {
    "a huge width": ({"hidden_size": 10**9}, "config_refused", "hidden_size"),
    "a huge number": ({"hidden_size": 10**4000}, "config_refused", "hidden_size"),
    "a million layers": ({"num_hidden_layers": 10**6}, "config_refused", "num_hidden_layers"),
    "a negative width": ({"intermediate_size": -64}, "config_refused", "intermediate_size"),
    "no heads": ({"num_attention_heads": 0}, "config_refused", "num_attention_heads"),
    "a word for a number": ({"hidden_size": "32"}, "config_refused", "hidden_size"),
    "a truth for a number": ({"num_hidden_layers": True}, "config_refused", "num_hidden_layers"),
    "a fraction for a number": ({"hidden_size": 32.5}, "config_refused", "hidden_size"),
    "a list for a number": ({"vocab_size": [60]}, "config_refused", "vocab_size"),
    "an object for a number": ({"vocab_size": {"__class__": 1}}, "config_refused", "vocab_size"),
    "an activation by path": ({"hidden_act": "os.system"}, "config_refused", "hidden_act"),
    "a rate of one": ({"hidden_dropout_prob": 1.0}, "config_refused", "hidden_dropout_prob"),
    "no vocabulary": ({"vocab_size": ...}, "config_refused", "vocab_size"),
    "padding beyond the vocabulary": ({"pad_token_id": 60}, "config_refused", "pad_token_id is 60"),
    "too few positions": ({"max_position_embeddings": 3}, "config_refused", "max_position_embeddings"),
    "one label": ({"id2label": {"0": "only"}}, "config_refused", "1 labels"),
    "many labels": ({"id2label": ..., "num_labels": 10**12}, "config_refused", "labels"),
    "labels in words": ({"id2label": ..., "num_labels": "3"}, "config_refused", "labels"),
    "code to import": ({"auto_map": {"AutoModel": "modeling.Evil"}}, "code_refused", "auto_map"),
    "a pipeline to import": ({"custom_pipelines": {"x": {"impl": "evil.py"}}}, "code_refused", "custom_pipelines"),
    "trust": ({"trust_remote_code": True}, "code_refused", "trust_remote_code"),
    "quantized weights": ({"quantization_config": {"quant_method": "gptq"}}, "quantized_refused", "unquantized"),
    "no class": ({"architectures": ...}, "class_refused", "expected one of"),
    "two classes": ({"architectures": ["BertForSequenceClassification"] * 2}, "class_refused", "expected one of"),
    "another class": ({"architectures": ["BertForMaskedLM"]}, "class_refused", "model.pt2"),
    "an attribute for a class": ({"architectures": ["__builtins__"]}, "class_refused", "expected one of"),
    "a class of another type": ({"model_type": "gpt2"}, "config_refused", "model_type"),
    "relative positions": ({"position_embedding_type": "relative_key"}, "config_refused", "position_embedding_type"),
    "pruned heads": ({"pruned_heads": {"0": [1]}}, "config_refused", "pruned_heads"),
    "many fields": ({f"x{i}": i for i in range(2000)}, "too_large", "fields"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_configuration_is_refused_by_its_field(tmp_path: Path, what: str) -> None:
    changes, code, phrase = HOSTILE[what]
    error = rejected(tmp_path, **changes)
    assert (error.specific_code, phrase in error.detail) == (code, True), error.detail
    assert len(error.detail) < 4000


TEXTS = {
    "no JSON": "{'hidden_size': 32}",
    "a list": "[1, 2]",
    "a number that is none": json.dumps(BERT).replace("32", "NaN"),
    "a name twice": json.dumps(BERT)[:-1] + ', "vocab_size": 61}',
    "deep nesting": '{"x":' * 200_000,
    "many digits": '{"x": ' + 50_000 * "9" + "}",
    "no text": "\x00\x01",
}


@pytest.mark.parametrize("what", TEXTS)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, what: str) -> None:
    assert rejected(tmp_path, TEXTS[what]).specific_code == "config_refused"


def test_a_large_file_is_not_parsed(tmp_path: Path) -> None:
    assert rejected(tmp_path, " " * (MAX_CONFIG_BYTES + 1)).specific_code == "too_large"


def test_fields_that_nobody_knows_are_dropped_and_noted(tmp_path: Path) -> None:
    config = read(tmp_path, reticulation=7, _name_or_path="../../secrets", use_cache=True)
    assert check_rest(config, {**config.fields.arguments(), "use_cache": True}) == [
        "config.json: unknown fields left out: reticulation"
    ]
    assert "_name_or_path" not in config.fields.arguments()


def test_a_field_that_the_class_knows_is_never_passed_over(tmp_path: Path) -> None:
    config = read(tmp_path, is_decoder=True)
    check_rest(config, {"is_decoder": True})
    with pytest.raises(InputRejected, match=r"is_decoder = true \(expected false\)"):
        check_rest(config, {"is_decoder": False})


def test_positions_are_counted_as_the_classes_count_them() -> None:
    few = {"vocab_size": 60, "max_position_embeddings": 24}
    assert Roberta.model_validate({**few, "pad_token_id": 1}).max_tokens == 22
    assert GPT2.model_validate({"vocab_size": 60, "n_positions": 24, "pad_token_id": 0}).max_tokens == 24


def test_a_network_of_masks_by_positions_has_few_of_them(tmp_path: Path) -> None:
    gpt = {"architectures": ["GPT2ForSequenceClassification"], "model_type": "gpt2", "n_positions": 131_072}
    assert "n_positions" in rejected(tmp_path, **gpt, max_position_embeddings=...).detail


def test_a_decoder_without_a_padding_token_is_told_so(tmp_path: Path) -> None:
    llama = {"architectures": ["LlamaForSequenceClassification"], "model_type": "llama", "pad_token_id": None}
    assert "pad_token_id" in rejected(tmp_path, **llama).detail


def test_older_files_say_the_base_of_rotation_by_itself() -> None:
    known = {"vocab_size": 60, "pad_token_id": 0}
    assert Llama.model_validate({**known, "rope_theta": 5e5}).arguments()["rope_parameters"]["rope_theta"] == 5e5
    for odd in ({"rope_type": "yarn"}, {"rope_type": "default", "factor": 4.0}):
        with pytest.raises(ValueError, match="rope_parameters"):
            Llama.model_validate({**known, "rope_parameters": odd})


# By older names, or of use to us alone.
OWN = {"rope_theta", "image_size"}
# What we compute with ourselves; of all else the class has its own defaults.
USED = {"max_position_embeddings", "pad_token_id", "num_channels"}


@pytest.mark.parametrize("name", CLASSES)
def test_each_schema_has_fields_of_its_class_with_the_same_defaults(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    model_type, schema = CLASSES[name]
    kind = getattr(transformers, name)
    assert kind.config_class.model_type == model_type
    defaults = kind.config_class().to_dict()
    fields = {info.serialization_alias or field: info for field, info in schema.model_fields.items()}
    assert set(fields) - OWN <= set(defaults)
    for field in (USED | {"n_positions"}) & set(fields):
        if not fields[field].is_required():
            assert fields[field].default == defaults[field], field
    if "image_size" in defaults:
        assert schema.model_fields["image_size"].default == defaults["image_size"]
