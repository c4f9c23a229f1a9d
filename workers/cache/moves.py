"""What a step plan says of kept snapshots. Plain data."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy a state slot, and a latent page where `page` is not -1, within a rank's caches."""

    slot: int
    to_slot: int
    page: int = -1
    to_page: int = -1


@dataclass(frozen=True, slots=True)
class Store:
    """Copy latents [start, stop) and the state in `slot` to host memory under `key`.

    `pages` are those that hold [start, stop), the first at start // page_size.
    """

    key: int
    slot: int
    pages: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Free what host memory holds under `key`: all of it, or the state alone."""

    key: int
    latents: bool = True


@dataclass(frozen=True, slots=True)
class Lend:
    """Send a kept snapshot of `position` tokens from host memory or a file to `peer`, beside the steps.

    keys, file: as of `Fetch`. The peer has its first `start` latents: what leaves begins there, or
    earlier where an entry does. ranks: of the peer. `Sent`, `LinkLost` or `FetchFailed` says how it ended.
    """

    request_id: str
    peer: str
    keys: tuple[int, ...]
    start: int
    position: int
    file: str | None = None
    ranks: int = 0


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring a kept snapshot of `position` tokens to the device, beside the steps.

    keys: what holds its latents in host memory from `start` on one after another, the last its state too. file: of a
    snapshot on disk, which then has no keys. `Received` or `FetchFailed` says when it has come, and `Install` takes it.
    """

    request_id: str
    keys: tuple[int, ...]
    start: int
    position: int
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """Write a kept snapshot from host memory to a file, beside the steps; `Written` or `WriteFailed` tells.

    file: its path, but for the rank. keys: what holds it in host memory, from its first token on. token_ids: packed.
    states: positions on the way whose states are written too, as far as they lie there. The rest as in `SnapshotHead`.
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


@dataclass(frozen=True, slots=True)
class Erase:
    """Remove a snapshot's file."""

    file: str
