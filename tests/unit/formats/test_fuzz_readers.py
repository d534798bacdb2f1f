"""Short fuzzing of every reader, the same on every run; benchmarks/fuzz.py goes on for as long as one likes."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.formats.fuzz_targets import TARGETS

EXAMPLES = {"pt2": 120, "pt2_convolutions": 20, "pt2_attention": 20}


@pytest.mark.parametrize("name", TARGETS)
def test_the_honest_upload_is_read(name: str) -> None:
    assert TARGETS[name].read(TARGETS[name].honest()) == ""


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore")  # numpy and Pillow remark on what they are about to refuse
def test_broken_uploads_are_refused_in_words_or_read(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=EXAMPLES.get(name, 150))
    @given(seed=st.integers(0, 2**32 - 1))
    def broken(seed: int) -> None:
        try:
            assert target.read(target.mutated(Random(seed))) != "internal"
        except (MemoryError, RuntimeError) as error:  # the jailed reader says it in words, as its own tests show
            if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
                raise

    broken()
