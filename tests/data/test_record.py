"""What is public about an encryption: of whose key it is."""

import pytest

from hf_neuracrypt import SecretKey
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.errors import KeyMismatchError
from tests.helpers import SMALL


def test_another_key_is_refused_with_both_ids(insecure_key):
    record, other = Record(SMALL, insecure_key.id), SecretKey.generate()
    record.check_key(insecure_key, "photos/")
    with pytest.raises(KeyMismatchError) as caught:
        record.check_key(other, "photos/")
    assert str(caught.value) == f"photos/ was encrypted under the key {insecure_key.id}; this key is {other.id}"
