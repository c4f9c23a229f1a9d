"""A step plan's orders about kept snapshots. Plain data."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy a state slot, and a latent page unless `page` is -1, within a rank's caches."""

    slot: int
    to_slot: int
    page: int = -1
    to_page: int = -1


@dataclass(frozen=True, slots=True)
class Store:
    """Copy latents [start, stop) and the state in `slot` (-1: none) to host memory under `key`.

    `pages` are those that hold [start, stop), the first at start // page_size.
    """

    key: int
    slot: int
    pages: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Free the entry `key` of host memory, or its state alone."""

    key: int
    latents: bool = True


@dataclass(frozen=True, slots=True)
class Lend:
    """Send a kept snapshot of `position` tokens from host memory or a file to `peer`, beside the steps.

    keys, files: as in `Fetch`. start: the peer has the latents before it; those sent begin there, or earlier if an
    entry does. ranks: of the peer. `Sent`, `LinkLost` or `FetchFailed` reports how it ended.
    """

    request_id: str
    peer: str
    keys: tuple[int, ...]
    start: int
    position: int
    files: tuple[str, ...] = ()
    ranks: int = 0


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring a kept snapshot of `position` tokens to the device, beside the steps.

    keys: the entries in host memory with its latents from `start` on, in order; the last one also has its state. files:
    the same of a snapshot on disk, which has no keys. `Received` or `FetchFailed` reports the end, and `Install` takes
    the snapshot.
    """

    request_id: str
    keys: tuple[int, ...]
    start: int
    position: int
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Write:
    """Write a kept snapshot from host memory to a file, beside the steps; `Written` or `WriteFailed` reports the end.

    file: its path without the rank. keys: its entries in host memory, from token `start` on. token_ids: packed, from
    there on. states: positions before its end whose states are written too, if these entries have them. age_s: seconds
    since it was last used. The rest as in `SnapshotHead`.
    """

    file: str
    keys: tuple[int, ...]
    position: int
    token_ids: bytes
    scope: str
    weights_id: str
    layout: str
    state_dtype: str
    states: tuple[int, ...] = ()
    start: int = 0
    before: str = ""
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Erase:
    """Remove a snapshot's file, or the state in it alone."""

    file: str
    latents: bool = True
