"""Tests fetching from an S3 server and a web server."""

import functools
import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from cluster.fetch import guard
from cluster.fetch.errors import FetchError
from cluster.fetch.fetch import Fetched, Origin
from cluster.fetch.location import Store
from cluster.resolve import EMBEDDED
from tests.cluster.fetch.s3_server import BUCKET, Bucket, s3_server
from wire.progress import Progress

pytestmark = pytest.mark.process

WEIGHTS = "model.safetensors"
SIZE = (EMBEDDED / WEIGHTS).stat().st_size
SERVED = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS, f"{WEIGHTS}.index.json"
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Bucket]:
    with s3_server() as made:
        made.put("nano", EMBEDDED)
        yield made


@pytest.fixture
def bucket(server: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An S3 server with ling-nano at s3://weights/nano, which has sent nothing yet."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.sent.clear()
    server.ranges.clear()
    server.cut = 0
    return server


def origin(cache: Path, prefix: str = "nano") -> Origin:
    return Origin(Store(f"s3://{BUCKET}/{prefix}"), cache)


def whole(fetched: Fetched) -> None:
    for name in SERVED:
        assert (fetched.folder / name).read_bytes() == (EMBEDDED / name).read_bytes()


def test_only_files_that_workers_load_are_fetched_once(bucket: Bucket, tmp_path: Path) -> None:
    told: list[Progress] = []
    first = origin(tmp_path).weights(told.append)
    whole(first)
    assert {path.name for path in first.folder.iterdir() if not path.name.startswith(".")} == SERVED
    assert not any("README" in path for path in bucket.sent)
    assert (told[-1].done, told[-1].files_done) == (told[-1].total, len(SERVED))
    assert bucket.sent[f"/{BUCKET}/nano/{WEIGHTS}"] == SIZE
    bucket.sent.clear()
    assert first.origin.weights() == first
    assert not bucket.sent
    # Not pinned: looked at again (the index names what else is looked at), and nothing more is sent.
    assert origin(tmp_path).weights() == first
    assert set(bucket.sent) == {f"/{BUCKET}/nano/{WEIGHTS}.index.json"}


def test_describing_a_checkpoint_fetches_no_weights(bucket: Bucket, tmp_path: Path) -> None:
    described = origin(tmp_path).description()
    assert (described.folder / "tokenizer.json").exists()
    assert f"/{BUCKET}/nano/{WEIGHTS}" not in bucket.sent
    assert described.origin.weights().folder == described.folder
    whole(described)


def test_nodes_fetch_the_same_commit_or_refuse(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("moving", EMBEDDED)
    settled = origin(tmp_path / "head", "moving").description().origin
    bucket.client().put_object(Bucket=BUCKET, Key="moving/config.json", Body=b"{}")
    with pytest.raises(FetchError, match=r"^model: the files at s3://weights/moving changed since the cluster was dep"):
        settled.weights()


def test_a_fetch_from_a_store_continues_after_a_broken_connection(bucket: Bucket, tmp_path: Path) -> None:
    bucket.cut = 3
    whole(origin(tmp_path).weights())
    assert bucket.cut == 0
    assert bucket.sent[f"/{BUCKET}/nano/{WEIGHTS}"] == SIZE


def test_a_fetch_from_a_store_continues_after_a_kill(bucket: Bucket, tmp_path: Path) -> None:
    folder = origin(tmp_path).description().folder
    (folder / f".{WEIGHTS}.partial").write_bytes((EMBEDDED / WEIGHTS).read_bytes()[:1_000_000])
    whole(origin(tmp_path).weights())
    assert bucket.sent[f"/{BUCKET}/nano/{WEIGHTS}"] == SIZE - 1_000_000


def test_processes_of_a_host_fetch_from_a_store_once(bucket: Bucket, tmp_path: Path) -> None:
    # Threads stand for processes: the lock is a file's, held by whoever opened it.
    found: list[Fetched] = []
    threads = [threading.Thread(target=lambda: found.append(origin(tmp_path).weights())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert bucket.sent[f"/{BUCKET}/nano/{WEIGHTS}"] == SIZE


def test_checksums_beside_the_files_are_checked(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("summed", EMBEDDED)
    right = hashlib.sha256((EMBEDDED / WEIGHTS).read_bytes()).hexdigest()

    def sums(digest: str) -> None:
        bucket.client().put_object(Bucket=BUCKET, Key="summed/SHA256SUMS", Body=f"{digest} *{WEIGHTS}\n".encode())

    sums("0" * 64)
    with pytest.raises(FetchError, match=rf"{WEIGHTS} came damaged: its checksum is {right}, not 0000"):
        origin(tmp_path, "summed").weights()
    sums(right)
    whole(origin(tmp_path, "summed").weights())


def test_refusals_are_one_line_that_says_what_to_do(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(place: str) -> str:
        with pytest.raises(FetchError) as raised:
            Origin(Store(place), tmp_path).weights()
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "holds no config.json; give the prefix under which" in refusal(f"s3://{BUCKET}/none")
    assert "there is no such bucket; check the address" in refusal("s3://nowhere/nano")
    bucket.client().put_object(Bucket=BUCKET, Key="half/config.json", Body=b"{}")
    assert "holds no model.safetensors, though its index names it" in refusal(f"s3://{BUCKET}/half")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "can't be reached: " in refusal(f"s3://{BUCKET}/nano")


def test_a_full_disk(bucket: Bucket, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FetchError, match=r"needs 0.01 GB more in .* set model_cache to a larger one"):
        origin(small_disk).weights()
    # Others fill it meanwhile.
    monkeypatch.setattr(guard.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 40))
    with pytest.raises(FetchError, match=r"^model: the disk of .* is full; free some, or set model_cache to a "):
        origin(small_disk).weights()


def test_an_object_without_read_permission_is_named(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web_server(lambda handler: handler.send_error(403)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(FetchError, match=r"may not be read; check AWS_REGION, .*AWS_SKIP_SIGNATURE=true for "):
            origin(tmp_path).weights()
        with pytest.raises(FetchError, match="may not be read; check the server's access rules"):
            Origin(Store(f"{url}/nano"), tmp_path).weights()


class Web(http.server.SimpleHTTPRequestHandler):
    """A plain web server without listing, ranges or ETags."""

    answer: ClassVar[Callable[[Any], None] | None] = None

    def do_GET(self) -> None:
        super().do_GET() if self.answer is None else self.answer()

    def do_HEAD(self) -> None:
        super().do_HEAD() if self.answer is None else self.answer()

    def copyfile(self, *files: Any) -> None:
        # Who asked for a part leaves before the whole has come.
        with suppress(OSError):
            super().copyfile(*files)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def web_server(answer: Callable[[Any], None] | None = None) -> Iterator[str]:
    """Run the web server on the folder above the embedded checkpoint; yields its address."""
    handler = functools.partial(type("Handler", (Web,), {"answer": answer}), directory=str(EMBEDDED.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_web_server_needs_no_listing_and_no_ranges(tmp_path: Path) -> None:
    with web_server() as url:
        place = Origin(Store(f"{url}/{EMBEDDED.name}"), tmp_path)
        folder = place.description().folder
        # Of a server that can't send part of a file, an earlier attempt's bytes are no use.
        (folder / f".{WEIGHTS}.partial").write_bytes(bytes(1000))
        whole(place.weights())
        with pytest.raises(FetchError, match=r"holds no config.json"):
            Origin(Store(f"{url}/nothing"), tmp_path).weights()
