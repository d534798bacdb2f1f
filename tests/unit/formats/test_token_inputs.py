"""Token ids: datasets that hold them, and networks exported with torch.export that read them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from service.contract.errors import InputRejected
from service.contract.specs import ModelDeclaration
from tests.unit.formats.declared import UPLOAD, read_arrays, read_model_in
from workers.evaluation.cost import measure_cost
from workers.formats.artifacts import export_program
from workers.formats.datasets import load_dataset
from workers.formats.models import load_model
from workers.training.data import Split

pytestmark = pytest.mark.usefixtures("one_thread")

DECLARED = ModelDeclaration.model_validate({"name": "m", "files": {"model.pt2": UPLOAD}})
CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 50, (60, 7))
LABELS = np.arange(60) % 3


# Datasets --------------------------------------------------------------------------------------------------------


def everything(split: Split | None) -> Tensor:
    assert split is not None
    x, _ = split.batch(np.arange(len(split)), CPU)
    return x


@pytest.mark.parametrize("dtype", ["i4", "i8", ">i8"])
def test_wide_integers_in_rows_are_token_ids(tmp_path: Path, dtype: str) -> None:
    facts, out = read_arrays(tmp_path, x=IDS.astype(dtype), y=LABELS)
    dataset = load_dataset(out)
    batch = everything(dataset.train)
    assert batch.dtype == torch.int64
    assert dataset.train is not None
    assert torch.equal(batch, torch.from_numpy(IDS[dataset.train.rows]))
    assert (facts["input_dtype"], facts["dtype"], facts["input_shape"]) == ("int64", f"int{8 * int(dtype[-1])}", [7])
    assert (facts["scaling"], facts["range"]) == (None, [int(IDS.min()), int(IDS.max())])


@pytest.mark.parametrize(("dtype", "shape"), [("u1", (60, 7)), ("i2", (60, 7)), ("f4", (60, 7)), ("i8", (60, 7, 7))])
def test_whatever_else_is_numbers(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    facts, out = read_arrays(tmp_path, x=RNG.integers(0, 50, shape).astype(dtype), y=LABELS)
    assert everything(load_dataset(out).train).dtype == torch.float32
    assert facts["input_dtype"] == "float32"
    assert facts["scaling"] is not None


@pytest.mark.parametrize("normalize", ["auto", {"mean": [0.5], "std": [2.0]}])
def test_token_ids_are_not_normalised(tmp_path: Path, normalize: Any) -> None:
    with pytest.raises(InputRejected, match="astype") as caught:
        read_arrays(tmp_path, {"transform": {"normalize": normalize}}, x=IDS, y=LABELS)
    assert caught.value.specific_code == "tokens_refused"


@pytest.mark.parametrize("value", [-1, 2**31, 2**62])
def test_integers_that_cannot_be_token_ids_are_refused(tmp_path: Path, value: int) -> None:
    x = IDS.copy()
    x[41, 3] = value
    with pytest.raises(InputRejected, match=str(value)) as caught:
        read_arrays(tmp_path, x=x, y=LABELS)
    assert caught.value.specific_code == "tokens_refused"


# Networks --------------------------------------------------------------------------------------------------------


class Bag(nn.Module):
    """The mean of embeddings, classified; `look` says how ids reach their table."""

    def __init__(self, look: Callable[[Tensor], Tensor] = lambda ids: ids) -> None:
        super().__init__()
        self.words, self.head, self.look = nn.Embedding(50, 6, padding_idx=0), nn.Linear(6, 3), look

    def forward(self, ids: Tensor) -> Tensor:
        there = (ids != 0).float().unsqueeze(-1)
        words = self.words(self.look(ids)).reshape(ids.shape[0], ids.shape[1], 6)
        logits: Tensor = self.head((words * there).sum(1) / there.sum(1).clamp(min=1.0))
        return logits


def bag(look: Callable[[Tensor], Tensor] = lambda ids: ids) -> Bag:
    torch.manual_seed(0)
    return Bag(look).eval()


def exported(model: nn.Module, folder: Path, *, free: bool, largest: int | None = 16) -> Path:
    sizes: dict[int, Any] = {0: Dim("batch")} | ({1: Dim("tokens", max=largest)} if free else {})
    program = torch.export.export(model, (torch.ones(2, 7, dtype=torch.int64),), dynamic_shapes=(sizes,))
    torch.export.save(program, folder / "model.pt2")
    return folder


def test_a_network_of_token_ids_is_read_with_its_vocabulary(tmp_path: Path) -> None:
    model = bag()
    facts, out = read_model_in(exported(model, tmp_path, free=False), DECLARED)
    assert facts["inputs"] == [{"name": "ids", "shape": ["batch", 7], "dtype": "int64"}]
    assert (facts["vocabulary"], facts["max_tokens"], facts["notes"]) == (50, 7, [])
    x = torch.from_numpy(IDS)
    torch.testing.assert_close(load_model(out)(x), model(x), rtol=0, atol=0)


def test_a_length_may_be_free_as_the_batch_is(tmp_path: Path) -> None:
    model = bag()
    facts, out = read_model_in(exported(model, tmp_path, free=True), DECLARED)
    assert facts["inputs"][0]["shape"] == ["batch", "tokens"]
    assert (facts["vocabulary"], facts["max_tokens"]) == (50, 16)
    assert facts["notes"] == ["its MACs and activations are those of 7 tokens"]
    loaded = load_model(out)
    assert facts["macs"] == measure_cost(loaded, (7,), dtype=torch.int64).macs
    for length in (1, 5, 16):
        x = torch.from_numpy(RNG.integers(0, 50, (3, length)))
        torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)


def test_a_length_without_bound_has_none(tmp_path: Path) -> None:
    facts, _ = read_model_in(exported(bag(), tmp_path, free=True, largest=None), DECLARED)
    assert facts["max_tokens"] is None


def test_a_free_length_stays_free_in_what_is_written(tmp_path: Path) -> None:
    _, out = read_model_in(exported(bag(), tmp_path, free=True), DECLARED)
    loaded, example = load_model(out), torch.from_numpy(IDS)
    export_program(loaded, example, tmp_path / "free.pt2")
    again = torch.export.load(tmp_path / "free.pt2").module()
    x = example[:, :4].contiguous()
    torch.testing.assert_close(again(x), loaded(x), rtol=0, atol=0)


def test_a_fixed_length_stays_fixed(tmp_path: Path) -> None:
    _, out = read_model_in(exported(bag(), tmp_path, free=False), DECLARED)
    export_program(load_model(out), torch.from_numpy(IDS), tmp_path / "fixed.pt2")
    again = torch.export.load(tmp_path / "fixed.pt2").module()
    with pytest.raises((AssertionError, RuntimeError), match="shape"):
        again(torch.from_numpy(IDS[:, :4].copy()))


LOOKS: dict[str, tuple[Callable[[Tensor], Tensor], int | None]] = {
    "in another shape": (lambda ids: ids.flatten(), 50),
    "as another type": (lambda ids: ids.to(torch.int32), 50),
    "as the rest of a division": (lambda ids: ids % 50, None),
}


@pytest.mark.parametrize("how", LOOKS)
def test_a_vocabulary_is_known_where_ids_are_looked_up_as_they_are(tmp_path: Path, how: str) -> None:
    look, expected = LOOKS[how]
    facts, _ = read_model_in(exported(bag(look), tmp_path, free=False), DECLARED)
    assert facts["vocabulary"] == expected


def test_a_network_of_numbers_has_no_vocabulary(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(4, 3), (torch.zeros(2, 4),), dynamic_shapes=({0: Dim("batch")},))
    torch.export.save(program, tmp_path / "model.pt2")
    facts, _ = read_model_in(tmp_path, DECLARED)
    assert "vocabulary" not in facts
