"""What clients may rely on from each server; what one lacks is said in its `Server`."""

import obstore
import pytest

from .server import Bucket
from .servers import ALL, WRITABLE

writable = pytest.mark.parametrize("server", WRITABLE, indirect=True)
DATA = bytes(range(256)) * 1000


@pytest.mark.parametrize("server", ALL, indirect=True)
def test_whole_objects_and_their_sizes(bucket: Bucket) -> None:
    bucket.write("a/b/one.bin", DATA)
    store = bucket.open_store()
    assert bytes(obstore.get(store, "a/b/one.bin").bytes()) == DATA
    found = obstore.head(store, "a/b/one.bin")
    assert found["size"] == len(DATA)
    with pytest.raises(FileNotFoundError):
        obstore.get(store, "a/b/absent")
