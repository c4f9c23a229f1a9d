"""Fetches repositories of a hub with the hub library, into the library's own cache."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.fetch.errors import FetchError, brief
from cluster.fetch.guard import alone, check_room, disk_error, is_whole, record_whole
from cluster.fetch.location import Hub
from cluster.fetch.selection import CONFIG, DESCRIPTION, weight_names
from cluster.fetch.sums import check_sums
from cluster.fetch.watch import Size, Tell, watched
from workers.model.files import INDEX, MANIFEST

# A running download writes without pauses; one that was killed leaves its partial file behind.
_STALE_S = 600.0


def fetch_hub(hub: Hub, cache: Path | None, commit: str | None, weights: bool, tell: Tell) -> tuple[Path, str]:
    """The folder of a repository's snapshot on this host, and its commit.

    commit: the one that the cluster uses; None resolves the revision at the hub. FetchError.
    """
    # The import takes a third of a second; other `ling` commands do without the library.
    from huggingface_hub import HfApi, constants  # noqa: PLC0415
    from huggingface_hub.utils.tqdm import disable_progress_bars  # noqa: PLC0415

    disable_progress_bars()
    root = Path(constants.HF_HUB_CACHE if cache is None else cache).expanduser().absolute()
    with _told(hub, root, commit):
        # If the hub can't be reached, use the commit that the revision had at the last request.
        commit = commit or HfApi().resolve_revision(hub.repository, revision=hub.revision, cache_dir=root).resolved
        # In a folder that the library's own scan of the cache ignores.
        record = root / ".locks" / "ling-cluster" / f"{hub.slug}-{commit}.json"
        folder = root / f"models--{hub.slug}" / "snapshots" / commit
        if is_whole(record, folder):
            return folder, commit
        _snapshot(hub, root, commit, DESCRIPTION)
        if not (folder / CONFIG).exists():
            raise FetchError(f"model: {hub} holds no {CONFIG}; give the repository of a release")
        if weights:
            with alone(record.with_name(f"{hub.slug}.lock")):
                _weights(hub, root, folder, record, tell)
    return folder, commit


def _weights(hub: Hub, root: Path, folder: Path, record: Path, tell: Tell) -> None:
    """Fetch and verify the weights, unless another process has done so while this one waited."""
    from huggingface_hub import get_cached_repo_tree  # noqa: PLC0415

    if is_whole(record, folder):
        return
    commit = folder.name
    names = weight_names(_read(folder / INDEX), _read(folder / MANIFEST))
    listed = {f.path: f.size for f in get_cached_repo_tree(hub.repository, revision=commit, cache_dir=root)}
    if missing := [name for name in names if name not in listed]:
        raise FetchError(f"model: {hub} holds no {missing[0]}, though its index names it; tell its owner")
    blobs = folder.parents[1] / "blobs"
    _remove_stale(blobs)
    sizes = {name: listed[name] for name in names}

    def measure() -> Size:
        whole = [name for name in names if (folder / name).exists()]
        partial = sum(_size(p) for p in blobs.glob("*.incomplete"))
        return Size(len(whole), sum(sizes[name] for name in whole) + partial)

    total = sum(sizes.values())
    check_room(root, total - measure().bytes, str(hub))
    with watched(f"fetching {hub}", Size(len(names), total), measure, tell):
        _snapshot(hub, root, commit, tuple(names))
    every = [name for name in (*DESCRIPTION, *names) if (folder / name).exists()]
    if short := [name for name in names if _size(folder / name) != sizes[name]]:
        raise FetchError(f"model: {folder / short[0]} has not the length that the hub says; remove it and fetch again")
    # The library names a blob by its digest at the hub.
    check_sums({folder / name: (folder / name).resolve().name for name in every}, f"verifying {hub}", tell)
    record_whole(record, folder, every)


def _snapshot(hub: Hub, root: Path, commit: str, names: tuple[str, ...]) -> None:
    from huggingface_hub import snapshot_download  # noqa: PLC0415

    snapshot_download(hub.repository, revision=commit, cache_dir=root, allow_patterns=list(names))


@contextmanager
def _told(hub: Hub, root: Path, settled: str | None) -> Iterator[None]:
    """Raise the hub library's errors as FetchError. The most specific come first, as some are subclasses of others.

    settled: the commit that the cluster uses; None if it has none yet.
    """
    from httpx2 import HTTPError  # noqa: PLC0415
    from huggingface_hub import constants, errors  # noqa: PLC0415

    at = constants.ENDPOINT
    try:
        yield
    except errors.GatedRepoError as error:
        raise FetchError(
            f"model: {hub} is gated: accept its terms at {at}/{hub.repository}, and set HF_TOKEN to a token that may "
            "read it"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FetchError(
            f"model: {at} has no repository {hub.repository}, or hides it: check the name, or set HF_TOKEN to a token "
            "that may read it (a folder of this name is not here either)"
        ) from error
    except errors.RevisionNotFoundError as error:
        if settled is not None:
            raise FetchError(
                f"model: {at} does not hold commit {settled} of {hub.repository}, which the cluster was deployed with: "
                "give all hosts the same hub (HF_ENDPOINT), or deploy again, so that all take the same"
            ) from error
        raise FetchError(
            f"model: {hub.repository} has no revision {hub.revision}; give a branch, tag or commit"
        ) from error
    except (
        errors.OfflineModeIsEnabled,
        errors.RevisionResolutionError,
        errors.LocalEntryNotFoundError,
        errors.IncompleteSnapshotError,
    ) as error:
        if constants.is_offline_mode():
            why = "HF_HUB_OFFLINE is set: unset it, or fetch it where there is a network (ling fetch)"
        else:
            why = f"{at} can't be reached: check HF_ENDPOINT and the network's proxy (HTTPS_PROXY)"
        raise FetchError(f"model: {hub} is not wholly in {root}, and {why}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        hint = "check HF_TOKEN" if status in (401, 403) else "try again later"
        raise FetchError(f"model: {at} answers {status} for {hub}: {brief(error)}; {hint}") from error
    except HTTPError as error:
        raise FetchError(
            f"model: {at} can't be reached for {hub} ({brief(error)}): check HF_ENDPOINT and the network's proxy "
            "(HTTPS_PROXY)"
        ) from error
    except errors.HFValidationError as error:
        raise FetchError(f"model: {hub.repository} can't be a repository's name: {brief(error)}") from error
    except OSError as error:
        if error.errno is None:
            raise FetchError(
                f"model: {hub} came incomplete ({brief(error)}); fetch again: complete files are kept"
            ) from error
        raise disk_error(error, root) from error


def _remove_stale(blobs: Path) -> None:
    """Remove partial files of processes that were killed; the library never resumes them."""
    for path in blobs.glob("*.incomplete"):
        try:
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()
        except OSError:
            continue


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
