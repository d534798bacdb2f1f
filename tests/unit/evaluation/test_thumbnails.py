import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from workers.evaluation.thumbnails import LONGEST_SIDE, thumbnails
from workers.training.data import Scaling, Split


def split(x: npt.NDArray[np.generic], scaling: Scaling | None = Scaling()) -> Split:  # noqa: B008  it is frozen
    return Split(x=x, y=None, rows=np.arange(len(x))[::-1].copy(), scaling=scaling)


def opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file))


def test_bytes_are_shown_as_they_are_by_their_place_in_the_split() -> None:
    x = np.arange(3 * 64, dtype=np.uint8).reshape(3, 1, 8, 8)
    found = thumbnails(split(x), [0, 2])
    assert list(found) == [0, 2]
    np.testing.assert_array_equal(np.asarray(opened(found[0])), x[2, 0])
    np.testing.assert_array_equal(np.asarray(opened(found[2])), x[0, 0])


def test_colours_stay_where_they_are() -> None:
    x = np.random.default_rng(0).integers(0, 256, (1, 3, 6, 5), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(opened(thumbnails(split(x), [0])[0])), x[0].transpose(1, 2, 0))


def test_other_values_are_stretched_between_the_lowest_and_the_highest_of_all() -> None:
    x = np.zeros((2, 1, 4, 4), np.float32)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = -1.0, 3.0
    found = thumbnails(split(x), [0, 1])
    assert np.asarray(opened(found[1])).min() == 0
    assert np.asarray(opened(found[0])).max() == 255
    assert np.asarray(opened(found[0]))[1, 1] == 64


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_constant_and_broken_inputs_have_a_picture_too(value: float) -> None:
    assert thumbnails(split(np.full((1, 1, 4, 4), value, np.float32)), [0])


def test_a_large_image_becomes_small() -> None:
    found = opened(thumbnails(split(np.zeros((1, 3, 300, 200), np.uint8)), [0])[0])
    assert max(found.size) == LONGEST_SIDE


@pytest.mark.parametrize("shape", [(1, 64), (1, 2, 8, 8), (1, 1, 2, 8), (1, 8, 8)])
def test_what_is_no_image_has_no_picture(shape: tuple[int, ...]) -> None:
    assert thumbnails(split(np.zeros(shape, np.float32)), [0]) == {}


def test_token_ids_have_no_picture() -> None:
    assert thumbnails(split(np.zeros((1, 1, 8, 8), np.int64), None), [0]) == {}
