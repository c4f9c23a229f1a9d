"""Fetches checkpoints from object stores and web servers, each state of a prefix into its own folder."""

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.fetch.errors import FetchError
from cluster.fetch.guard import alone, check_room, is_whole, record_whole
from cluster.fetch.location import Store
from cluster.fetch.objects import Entry, Objects, told
from cluster.fetch.selection import CONFIG, DESCRIPTION, weight_names
from cluster.fetch.sums import check_sums
from cluster.fetch.watch import Size, Tell, watched
from workers.model.files import INDEX, MANIFEST

# An optional file of a prefix, as `sha256sum * > SHA256SUMS` writes it, because stores have no common kind of checksum.
SUMS = "SHA256SUMS"
# The number of files fetched in parallel: one stream from a store reaches about 100 MB/s, and a network more.
_STREAMS = 16
# Attempts in a row without a byte, in addition to the library's own for each request.
_ATTEMPTS = 3


def fetch_store(store: Store, cache: Path | None, state: str | None, weights: bool, tell: Tell) -> tuple[Path, str]:
    """The folder of a prefix's files on this host, and the name of their state.

    state: the one that the cluster uses; FetchError if the prefix has changed since. None takes the present one.
    """
    root = (cache or _user_cache()).expanduser().absolute() / "stores" / store.slug
    what = "weights" if weights else "description"
    if state is not None and is_whole(_record(root / state, what), root / state):
        return root / state, state
    with told(store, root):
        objects = Objects(store)
        names = weight_names(objects.read(INDEX), objects.read(MANIFEST))
        found = objects.entries((*DESCRIPTION, SUMS, *names))
        if CONFIG not in found:
            raise FetchError(f"model: {store} holds no {CONFIG}; give the prefix under which a release's files lie")
        if missing := [name for name in names if name not in found]:
            raise FetchError(f"model: {store} holds no {missing[0]}, though its index names it; upload it again")
        now = _state(found)
        if state not in (None, now):
            raise FetchError(
                f"model: the files at {store} changed since the cluster was deployed; deploy again, so that all nodes "
                "take the same"
            )
        folder = root / now
        wanted = {name: e for name, e in found.items() if weights or name not in names}
        # Routers need only the description, and must not wait for the weights.
        with alone(root / f".{what}.lock"):
            if not is_whole(_record(folder, what), folder):
                _fetch(objects, folder, wanted, str(store), tell)
                check_sums(_sums(folder, wanted), f"verifying {store}", tell)
                record_whole(_record(folder, what), folder, list(wanted))
    return folder, now


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ling-cluster"


def _record(folder: Path, what: str) -> Path:
    return folder / f".{what}.json"


def _state(found: dict[str, Entry]) -> str:
    """A name that identifies exactly these contents."""
    lines = [f"{name} {e.size} {e.tag or e.modified.isoformat()}" for name, e in sorted(found.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _fetch(objects: Objects, folder: Path, wanted: dict[str, Entry], what: str, tell: Tell) -> None:
    folder.mkdir(parents=True, exist_ok=True)

    def measure() -> Size:
        whole = [name for name in wanted if (folder / name).exists()]
        partial = sum(_size(_partial(folder, name)) for name in wanted)
        return Size(len(whole), sum(wanted[name].size for name in whole) + partial)

    total = sum(entry.size for entry in wanted.values())
    check_room(folder, total - measure().bytes, what)
    failed = threading.Event()

    def bring(name: str) -> None:
        try:
            _download(objects, folder, name, wanted[name], failed)
        except BaseException:
            failed.set()
            raise

    with (
        watched(f"fetching {what}", Size(len(wanted), total), measure, tell),
        ThreadPoolExecutor(_STREAMS, thread_name_prefix="fetch") as pool,
    ):
        # The largest first, so that the last stream is a short one.
        order = sorted(wanted, key=lambda name: -wanted[name].size)
        for future in [pool.submit(bring, name) for name in order]:
            future.result()


def _download(objects: Objects, folder: Path, name: str, entry: Entry, failed: threading.Event) -> None:
    """Fetch one file, continuing where an earlier attempt of any process stopped; stop if another file has failed."""
    from obstore.exceptions import BaseError, NotSupportedError  # noqa: PLC0415

    if (folder / name).exists():
        return
    idle = 0
    with _partial(folder, name).open("ab") as out:
        while (at := out.tell()) < entry.size:
            try:
                for chunk in objects.stream(name, entry, at):
                    if failed.is_set():
                        return
                    out.write(chunk)
            except NotSupportedError:
                # This web server can't send parts of a file.
                out.truncate(0)
                out.seek(0)
            except BaseError:
                if idle == _ATTEMPTS:
                    raise
            idle = idle + 1 if out.tell() <= at else 0
            if idle > _ATTEMPTS:
                raise FetchError(f"model: {name} ends after {at} of {entry.size} bytes; upload it again")
        if out.tell() != entry.size:
            out.truncate(0)
            raise FetchError(f"model: {name} brought more than its {entry.size} bytes; upload it again")
    _partial(folder, name).rename(folder / name)


def _partial(folder: Path, name: str) -> Path:
    return folder / f".{name}.partial"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _sums(folder: Path, wanted: dict[str, Entry]) -> dict[Path, str]:
    """Return the SHA-256 digest of each wanted file that the prefix's checksum file lists."""
    if SUMS not in wanted:
        return {}
    pairs = [line.split(maxsplit=1) for line in (folder / SUMS).read_text().splitlines()]
    known = {name.lstrip("*").removeprefix("./"): digest for digest, name in (p for p in pairs if len(p) == 2)}
    return {folder / name: known[name] for name in wanted if name in known}
