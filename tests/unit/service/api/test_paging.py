import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.paging import decode_token, encode_token
from service.contract.errors import Invalid


@given(st.one_of(st.text(max_size=40), st.integers(0, 2**63 - 1)))
def test_a_token_holds_its_position(position: str | int) -> None:
    token = encode_token(position)
    assert decode_token(token) == position
    assert token.isascii()


@pytest.mark.parametrize("token", ["", "x", "W10", "WzIsICJhIl0", "e30", "é", "=" * 9])
def test_tokens_of_another_make_are_refused(token: str) -> None:
    with pytest.raises(Invalid):
        decode_token(token)
