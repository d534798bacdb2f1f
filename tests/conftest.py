"""What holds for every floor: the same examples on every run, and one thread for tests that compare bits."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# A property test draws its examples from the test's own name: what fails here fails everywhere.
settings.register_profile("reproducible", derandomize=True, deadline=None, database=None)
settings.load_profile("reproducible")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: the order of a sum depends on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
