"""A checkpoint from wherever it lies to a folder of this host."""

from dataclasses import dataclass, replace
from pathlib import Path

from cluster.fetch.hub import fetch_hub
from cluster.fetch.location import Hub, Store
from cluster.fetch.store import fetch_store
from cluster.fetch.watch import Tell, silent


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a cluster's checkpoint comes from. cache: folder of each host; None is the user's own.

    version: the commit, or the state of a prefix, that all nodes take; None until the first of them has looked.
    """

    place: Hub | Store
    cache: Path | None = None
    version: str | None = None

    def description(self) -> "Fetched":
        """What tells about the checkpoint, with its tokenizer; without the weights. FetchError."""
        return self._fetch(False, silent)

    def weights(self, tell: Tell = silent) -> "Fetched":
        """All that is served. Returns at once where it lies here already; FetchError."""
        return self._fetch(True, tell)

    def _fetch(self, weights: bool, tell: Tell) -> "Fetched":
        match self.place:
            case Hub():
                folder, version = fetch_hub(self.place, self.cache, self.version, weights, tell)
            case Store():
                folder, version = fetch_store(self.place, self.cache, self.version, weights, tell)
        return Fetched(folder, replace(self, version=version))


@dataclass(frozen=True, slots=True)
class Fetched:
    """A checkpoint's folder on this host, and its origin with the version that this is."""

    folder: Path
    origin: Origin
