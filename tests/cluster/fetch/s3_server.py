"""A real S3 server (moto) that counts what it sends and can break off answers."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "weights"
KEY, SECRET, REGION = "test", "test", "us-east-1"


@dataclass
class Bucket:
    """The server's one bucket.

    sent: bytes of object content by path. ranges: the Range header of each request for content. cut: the next so many
    answers with more than a megabyte break off in the middle.
    """

    url: str
    sent: Counter[str] = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    cut: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that a client needs."""
        return {
            "AWS_ENDPOINT_URL": self.url, "AWS_REGION": REGION, "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ALLOW_HTTP": "true",
        }  # fmt: skip

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )

    def put(self, prefix: str, folder: Path) -> None:
        """Upload a folder's files."""
        for path in folder.iterdir():
            self.client().put_object(Bucket=BUCKET, Key=f"{prefix}/{path.name}", Body=path.read_bytes())


class _Counting:
    """Counts and breaks off answers, between the server and moto."""

    def __init__(self, app: Callable[..., Iterable[bytes]], bucket: Bucket) -> None:
        self._app, self._bucket = app, bucket

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        content = environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"].count("/") > 1
        if content:
            self._bucket.ranges.append(environ.get("HTTP_RANGE", ""))
        for data in self._app(environ, start_response):
            piece = data
            if content and len(data) > 1 << 20 and self._bucket.cut:
                self._bucket.cut -= 1
                piece = data[: len(data) // 2]
            if content:
                self._bucket.sent[environ["PATH_INFO"]] += len(piece)
            yield piece
            if len(piece) < len(data):
                raise ConnectionResetError("cut by the test")


@contextmanager
def s3_server() -> Iterator[Bucket]:
    """Run the server; yields its bucket."""
    bucket = Bucket("")
    app = _Counting(DomainDispatcherApplication(create_backend_app), bucket)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    bucket.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        bucket.client().create_bucket(Bucket=BUCKET)
        yield bucket
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
