"""Which rows of a long stream are looked at: all of them, or a sample that is spread evenly over all."""

import numpy as np
import torch
from torch import Tensor


class Sample:
    """At most `most` of about `total` rows, one out of each of as many equal stretches, by seed.

    Which rows they are does not depend on how the stream is cut into batches. Neighbouring stretches may give the
    same row when there are fewer than two rows for each; it counts once.
    """

    def __init__(self, total: int, most: int, seed: int) -> None:
        self.seen = 0
        self.chosen = None
        if total > most:
            jitter = np.random.default_rng([seed, 0x5A3]).random(most)
            drawn = np.floor((np.arange(most) + jitter) * (total / most)).astype(np.int64)
            self.chosen = drawn[np.diff(drawn, prepend=-1) > 0]

    def of_next(self, count: int) -> Tensor:
        """The places, among the next `count` rows of the stream, of those that are looked at: (R,) int64."""
        first, self.seen = self.seen, self.seen + count
        if self.chosen is None:
            return torch.arange(count)
        start, end = np.searchsorted(self.chosen, [first, self.seen])
        return torch.from_numpy(self.chosen[start:end] - first)


def chunks(rows: Tensor, row_elements: int, elements: int) -> tuple[Tensor, ...]:
    """Rows cut into pieces of at most `elements` numbers, or one row each."""
    size = max(1, elements // max(row_elements, 1))
    return torch.split(rows, size) if len(rows) else ()
