import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.byte_ranges import requested_range
from service.contract.errors import RangeNotSatisfiable


@given(content=st.binary(max_size=40), first=st.integers(0, 50), length=st.integers(1, 50))
def test_a_range_is_what_slicing_gives_or_lies_outside(content: bytes, first: int, length: int) -> None:
    expected = content[first : first + length]
    if expected:
        asked = requested_range(f"bytes={first}-{first + length - 1}", len(content))
        assert asked is not None
        assert content[slice(*asked)] == expected
    else:
        with pytest.raises(RangeNotSatisfiable):
            requested_range(f"bytes={first}-{first + length - 1}", len(content))


@given(content=st.binary(min_size=1, max_size=40), length=st.integers(1, 50))
def test_a_suffix_is_the_end_of_the_file(content: bytes, length: int) -> None:
    asked = requested_range(f"bytes=-{length}", len(content))
    assert asked is not None
    assert content[slice(*asked)] == content[-length:]


@pytest.mark.parametrize(
    "field", [None, "", "bytes", "bytes=-", "bytes=a-b", "bytes=1-2,3-4", "bytes=9-1", "items=0-1"]
)
def test_everything_else_is_the_whole_file(field: str | None) -> None:
    assert requested_range(field, 10) is None
