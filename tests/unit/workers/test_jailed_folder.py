"""A Hugging Face folder in the jail of the readers: transformers is imported there, and reads nothing but itself."""

from pathlib import Path
from typing import Any

import pytest
import torch

from service.contract.errors import InputRejected
from tests.unit.formats.transformers_folders import declared, network_of, save, token_ids
from workers import reader
from workers.formats.models import load_model
from workers.limits import GIB

BERT = "BertForSequenceClassification"


def read_in_jail(folder: Path) -> tuple[dict[str, Any], Path]:
    (out := folder / "jailed").mkdir()
    (scratch := folder / "scratch").mkdir()
    order = reader.ReadOrder(
        kind="model", folder=folder / "files", declaration=declared().model_dump(mode="json"), out=out, scratch=scratch,
        memory_bytes=4 * GIB, cpu_seconds=60, max_bytes=1 << 26, log_level="info", log_format="text",
    )  # fmt: skip
    facts, why = reader._attempt(order, lambda: None)
    assert facts is not None, why
    return facts, out


def test_a_folder_is_read_in_the_jail(tmp_path: Path) -> None:
    network = network_of(BERT)
    save(network, tmp_path / "files")
    facts, out = read_in_jail(tmp_path)
    assert (facts["class"], facts["inputs"][0]["dtype"]) == (BERT, "int64")
    x = token_ids(3, 10, 0)
    with torch.no_grad():
        expected = network(input_ids=x, attention_mask=(x != 0).long()).logits
        torch.testing.assert_close(load_model(out)(x), expected, rtol=1e-5, atol=1e-6)
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "model.pt2"]


def test_a_hostile_folder_is_refused_in_the_jail(tmp_path: Path) -> None:
    folder = save(network_of(BERT), tmp_path / "files")
    config = (folder / "config.json").read_text().replace('"hidden_size": 16', '"hidden_size": 65536')
    (folder / "config.json").write_text(config)
    with pytest.raises(InputRejected) as caught:
        read_in_jail(tmp_path)
    assert caught.value.specific_code == "architecture_mismatch"
