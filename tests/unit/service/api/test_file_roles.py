"""Files of a Hugging Face folder by their names: which there must be, which may be, and what the others are told."""

import pytest

from service.api.file_roles import check_model
from service.contract.errors import Invalid
from service.contract.specs import ModelDeclaration

UPLOAD = "upl_" + "0" * 26
FOLDER = ("config.json", "model.safetensors")


def check(*names: str, architecture: object = None) -> None:
    document = {"name": "m", "files": dict.fromkeys(names, UPLOAD), "architecture": architecture}
    check_model(ModelDeclaration.model_validate(document))


def refused(*names: str, architecture: object = None) -> Invalid:
    with pytest.raises(Invalid) as caught:
        check(*names, architecture=architecture)
    return caught.value


def test_a_folder_is_a_configuration_and_weights_and_may_have_a_tokenizer() -> None:
    check(*FOLDER)
    check(*FOLDER, "tokenizer.json")


@pytest.mark.parametrize("names", [("config.json",), ("tokenizer.json",), ("tokenizer.json", "model.safetensors")])
def test_a_part_of_a_folder_is_told_what_is_missing(names: tuple[str, ...]) -> None:
    assert "is missing" in refused(*names).detail


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("pytorch_model.bin", "pickles can run code and are not read; save it with model.save_pretrained"),
        ("training_args.bin", "pickles can run code"),
        ("model-00001-of-00002.safetensors", "max_shard_size"),
        ("model.safetensors.index.json", "max_shard_size"),
        ("modeling_mine.py", "Python code is not run"),
        ("tf_model.h5", "TensorFlow"),
        ("flax_model.msgpack", "Flax"),
        ("tokenizer_config.json", "leave it out"),
        ("vocab.txt", "leave it out"),
        ("model.pt2", "not a known name"),
    ],
)
def test_what_folders_hold_besides_is_refused_with_the_way_out(name: str, phrase: str) -> None:
    error = refused(*FOLDER, name)
    assert error.errors[0].pointer == f"/files/{name}"
    assert phrase in error.errors[0].detail
    assert "allowed are config.json, model.safetensors, tokenizer.json" in error.errors[0].detail


def test_a_folder_says_itself_what_it_is() -> None:
    resnet = {"name": "resnet8", "options": {"input_shape": [3, 8, 8], "num_classes": 4}}
    assert refused(*FOLDER, architecture=resnet).errors[0].pointer == "/architecture"
    check("model.safetensors", architecture=resnet)
