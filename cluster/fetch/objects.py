"""The objects under one prefix of an object store or web server, through the store library."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.fetch.errors import FetchError, brief
from cluster.fetch.guard import disk_error
from cluster.fetch.location import Store

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import ObjectStore

_CHUNK_BYTES = 8 << 20
_HEADS = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored object. tag: its ETag, which changes with the content; "" where a server gives none."""

    size: int
    tag: str
    modified: datetime


class Objects:
    """A prefix's objects, through the store library. Credentials come from the clouds' usual variables."""

    def __init__(self, store: Store) -> None:
        from obstore.store import from_url  # noqa: PLC0415 - `ling` commands that fetch nothing don't wait for it

        self._listable = not store.url.startswith("http")
        self._store: ObjectStore = from_url(
            store.url,
            # `timeout` is for a whole request, which may be a file of 5 GB; `read_timeout` ends a silent connection.
            client_options={
                "allow_http": True, "connect_timeout": "10s", "timeout": "1day", "read_timeout": "60s"
            },
            retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=60)},
        )  # fmt: skip
        self._listed: dict[str, Entry] | None = None

    def entries(self, names: Sequence[str]) -> dict[str, Entry]:
        """The entries of those names that exist."""
        if self._listable:
            listed = self._list()
            return {name: listed[name] for name in names if name in listed}
        with ThreadPoolExecutor(_HEADS, thread_name_prefix="fetch") as pool:
            found = dict(zip(names, pool.map(self._head, names), strict=True))
        return {name: entry for name, entry in found.items() if entry is not None}

    def read(self, name: str) -> bytes | None:
        """Read a small object; None if it does not exist."""
        import obstore  # noqa: PLC0415

        if self._listable and name not in self._list():
            return None
        try:
            return bytes(obstore.get(self._store, name).bytes())
        except FileNotFoundError:
            return None

    def stream(self, name: str, entry: Entry, start: int) -> Iterator[memoryview]:
        """Stream an object's bytes from `start` on, while it is still the object that was listed."""
        import obstore  # noqa: PLC0415

        options: GetOptions = {"range": {"offset": start}} if start else {}
        # A weak tag (W/) does not identify exact bytes.
        if entry.tag and not entry.tag.startswith("W/"):
            options["if_match"] = entry.tag
        whole = obstore.get(self._store, name, options=options)
        for chunk in whole.stream(min_chunk_size=_CHUNK_BYTES):
            yield memoryview(chunk)

    def _list(self) -> dict[str, Entry]:
        import obstore  # noqa: PLC0415

        if self._listed is None:
            found = obstore.list_with_delimiter(self._store)["objects"]
            self._listed = {o["path"].rpartition("/")[2]: _entry(o) for o in found}
        return self._listed

    def _head(self, name: str) -> Entry | None:
        import obstore  # noqa: PLC0415

        try:
            return _entry(obstore.head(self._store, name))
        except FileNotFoundError:
            return None


def _entry(found: "ObjectMeta") -> Entry:
    return Entry(found["size"], found["e_tag"] or "", found["last_modified"])


_CHECK = {
    "s3": "AWS_REGION, AWS_ENDPOINT_URL for a store that is not Amazon's, and the credentials: AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, the pod's role, or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or the pod's service account",
}


@contextmanager
def told(store: Store, root: Path) -> Iterator[None]:
    """Raise the store library's errors as FetchError, with what to check."""
    from obstore import exceptions  # noqa: PLC0415

    check = _CHECK.get(store.url.partition(":")[0], "the server's access rules")
    try:
        yield
    except exceptions.PreconditionError as error:
        raise FetchError(f"model: a file at {store} changed while it was fetched; fetch again") from error
    except FileNotFoundError as error:
        raise FetchError(f"model: {store} does not exist; check the address, and {check}") from error
    except exceptions.BaseError as error:
        # The library has no class for a refused listing.
        refused = isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError))
        if refused or any(status in str(error) for status in ("403 Forbidden", "401 Unauthorized")):
            raise FetchError(f"model: {store} may not be read; check {check}") from error
        if "404 Not Found" in str(error):
            raise FetchError(f"model: {store}: there is no such bucket; check the address, and {check}") from error
        raise FetchError(f"model: {store} can't be reached: {brief(error)}; check the address, and {check}") from error
    except OSError as error:
        raise disk_error(error, root) from error
