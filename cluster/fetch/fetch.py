"""Fetches a checkpoint from its origin into a folder of this host."""

from dataclasses import dataclass, replace
from pathlib import Path

from cluster.fetch.hub import fetch_hub
from cluster.fetch.location import Hub, Store
from cluster.fetch.store import fetch_store
from cluster.fetch.watch import Tell, silent


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a cluster's checkpoint.

    cache: folder on each host; None is the user's own. version: the commit, or the state of a prefix, that all nodes
    take; None until the first node has looked it up.
    """

    place: Hub | Store
    cache: Path | None = None
    version: str | None = None

    def description(self) -> "Fetched":
        """Fetch the checkpoint's description and tokenizer, without the weights. FetchError."""
        return self._fetch(False, silent)

    def weights(self, tell: Tell = silent) -> "Fetched":
        """Fetch everything that is served. Returns at once if it is here already; FetchError."""
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
