"""The messages with which one worker pulls a snapshot from another."""

from wire.protocol.data import Data


class Pull(Data, frozen=True):
    """Ask for a snapshot, without the first `have` latents, which the asking worker has.

    Without `kept`: the snapshot that this request hands off, as far as it is computed. With `kept`: the kept snapshot
    of `position` tokens with this digest. ranks: the asking worker's number of ranks, over which it splits states and
    latents.
    """

    request_id: str
    have: int = 0
    position: int = 0
    kept: bytes | None = None
    ranks: int = 1


class CancelPull(Data, frozen=True):
    """Stop sending a snapshot. kept: whether it is a kept snapshot, and not the request's hand-off."""

    request_id: str
    kept: bool = False


class PullRefused(Data, frozen=True):
    """The answer to a `Pull` for which no snapshot will come.

    told: whether the prefill worker has already told the router how the request ended.
    """

    request_id: str
    reason: str
    told: bool


class Header(Data, frozen=True):
    """A snapshot's identity. A receiver refuses one that differs from what it serves.

    `position`: number of tokens whose latents and state it holds. `token_hash`: `wire.digest` of the first `position`
    token ids, in hex. `generated`: tokens already sampled, the last of which is not yet computed; () for a kept
    snapshot. `layout`: the meaning of all ranks' bytes (shapes, dtypes, rope). `weights_id`: the weights that computed
    it.
    """

    request_id: str
    position: int
    token_hash: str
    generated: tuple[int, ...]
    layout: str
    weights_id: str
