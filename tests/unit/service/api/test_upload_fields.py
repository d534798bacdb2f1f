import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.upload_fields import promised_sha256, repr_digest
from service.contract.errors import Invalid


@given(st.binary(max_size=20))
def test_a_digest_field_reads_back_what_it_was_made_of(content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    assert promised_sha256(repr_digest(digest)) == digest
    assert promised_sha256(f"md5=:AAAA:, {repr_digest(digest)}") == digest


def test_other_algorithms_and_no_field_promise_nothing() -> None:
    assert promised_sha256(None) is None
    assert promised_sha256("sha-512=:AAAA:") is None


TOO_LONG = f"sha-256=:{base64.b64encode(b'x' * 33).decode()}:"


@pytest.mark.parametrize("field", ["sha-256", "sha-256=abc", "sha-256=::", "sha-256=:AAAA:", TOO_LONG])
def test_a_digest_of_the_wrong_form_is_refused(field: str) -> None:
    with pytest.raises(Invalid, match="Repr-Digest"):
        promised_sha256(field)
