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
    """Free what host memory holds under `key`."""

    key: int


@dataclass(frozen=True, slots=True)
class Lend:
    """Send a kept snapshot of `position` tokens from host memory to `peer`, beside the steps.

    keys: as of `Fetch`. The peer has its first `start` latents: what leaves begins there, or earlier where an entry
    does. `Sent`, `LinkLost` or `FetchFailed` says how it ended.
    """

    request_id: str
    peer: str
    keys: tuple[int, ...]
    start: int
    position: int


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring a kept snapshot of `position` tokens to the device, beside the steps.

    keys: what holds its latents from `start` on one after another, the last its state too. `Received` or
    `FetchFailed` says when it has come, and `Install` takes it.
    """

    request_id: str
    keys: tuple[int, ...]
    start: int
    position: int
