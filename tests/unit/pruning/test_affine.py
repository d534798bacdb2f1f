"""Every layer is its rows times its matrix."""

import pytest
import torch
from torch import nn

from workers.pruning.repair.affine import Affine, Dense, convolution, picked
from workers.pruning.repair.readers import layer_options

CONVOLUTIONS = {
    "plain": (nn.Conv2d(4, 6, 3), (7, 6)),
    "strided": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (7, 6)),
    "grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (5, 5)),
    "depthwise": (nn.Conv1d(4, 8, 3, groups=4), (9,)),
    "same": (nn.Conv1d(4, 6, 5, padding="same", dilation=2), (9,)),
    "valid": (nn.Conv3d(4, 6, 2, padding="valid"), (3, 4, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (4, 5)),
    "transposed, grouped": (nn.ConvTranspose1d(4, 6, 4, stride=3, padding=2, dilation=2, groups=2), (5,)),
    "transposed, cropped": (nn.ConvTranspose3d(4, 6, 2, padding=2, stride=(2, 1, 1)), (4, 5, 4)),
}


def check(layer: nn.Module, affine: Affine, x: torch.Tensor) -> None:
    """Rows times the matrix, plus the bias, are what the layer says; a matrix becomes the weight that it came from."""
    columns, matrix = affine.columns(x), affine.matrix(layer.weight)
    expected = affine.outputs(layer(x))
    axes = affine.row_axes(x)
    assert columns.shape[:axes] == expected.shape[:-1]
    assert tuple(matrix.shape) == affine.sizes(layer.weight.shape)
    rows = torch.arange(0, expected.shape[:-1].numel(), 3)
    x_RGK = picked(columns, axes, rows).reshape(len(rows), len(matrix), -1)
    said = torch.einsum("rgk,gkn->rgn", x_RGK, matrix).flatten(1) + layer.bias
    torch.testing.assert_close(said, expected.flatten(0, -2)[rows], rtol=1e-9, atol=1e-9)
    assert torch.equal(affine.weight(matrix, layer.weight.shape), layer.weight)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    layer, sizes = CONVOLUTIONS[name]
    layer = layer.double()
    transposed = isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    affine = convolution(layer.kernel_size, layer_options(layer), transposed=transposed)
    x = torch.randn((3, 4, *sizes), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check(layer, affine, x)
    check(layer, affine, x.transpose(0, 1).contiguous().transpose(0, 1))


@pytest.mark.parametrize("shape", [(5, 4), (3, 2, 4)])
def test_dense_layers(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    check(nn.Linear(4, 6).double(), Dense(), x)
