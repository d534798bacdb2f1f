import pytest
import torch

from tests.unit.training.blobs import CPU
from workers.training.precision import Precision, autocast, gradient_scaler, resolve_precision


def test_auto_is_float32_where_nothing_is_gained() -> None:
    assert resolve_precision("auto", CPU) == "float32"


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_what_is_asked_for_is_used(precision: Precision) -> None:
    assert resolve_precision(precision, CPU) == precision
    with autocast(precision, CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def test_only_float16_needs_its_gradients_scaled() -> None:
    assert gradient_scaler("float16", CPU).is_enabled()
    assert not gradient_scaler("bfloat16", CPU).is_enabled()
    assert not gradient_scaler("float32", CPU).is_enabled()
