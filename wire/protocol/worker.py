"""The first messages of a connection, and those in which a worker describes itself and its load."""

from typing import Literal

from wire.protocol.data import Data

Role = Literal["prefill", "decode"]
# The tiers of memory in which a worker keeps snapshots, fastest first.
Tier = Literal["device", "host", "disk"]
# Why prompt tokens had to be computed. new: no earlier sequence had this prefix. no_state: their latents were computed
# before, but no state was kept there. evicted: a snapshot was kept there and evicted. weights: a snapshot of other
# weights or of another layout is there, on disk or at another worker. template: their text was rendered to other tokens
# before. peer: another worker should have had the snapshot, but could not give it.
Miss = Literal["new", "no_state", "evicted", "weights", "template", "peer"]


class Hello(Data, frozen=True):
    """The first message of every connection: who the caller is."""

    name: str
    kind: Literal["router", "worker", "file"]


class PeerRef(Data, frozen=True):
    """A worker's id and its leader's address."""

    worker_id: str
    host: str
    port: int


class RankInfo(Data, frozen=True):
    """One rank's process, and the address at which it accepts transfer links."""

    rank: int
    pid: int
    node: str
    device: str
    transfer_host: str
    transfer_port: int


class WorkerInfo(Data, frozen=True):
    """The description of a worker, which does not change during its life.

    `layout` names the meaning of a snapshot's bytes (see Header).

    state_bytes, token_bytes: bytes of one kept state and of one token's latents, over all ranks, as host memory and
    disk hold them.
    """

    worker_id: str
    role: Role
    host: str
    port: int
    node: str
    pid: int
    weights_id: str
    layout: str
    vocab_size: int
    page_size: int
    pages: int
    slots: int
    max_model_len: int
    ranks: tuple[RankInfo, ...]
    state_bytes: int = 0
    token_bytes: int = 0


class Load(Data, frozen=True):
    """A worker's figures, as of the step whose outputs they come with.

    token_s: seconds a prompt token takes to compute, smoothed; decode_s: seconds a sequence waits for each token in
    steps that compute no prompt, smoothed; decode_rows: sequences in those steps, smoothed. kept: snapshots in the
    prefix cache; tiers: their number on each tier, in the order of `Tier` (a snapshot may be on several). hit_tokens,
    missed_tokens: prompt tokens that a kept snapshot saved, and that were computed, since the worker's start; saved_s:
    seconds that computing the hit_tokens would have taken. hits: prompts that began from a snapshot; misses: prompts of
    which tokens were computed, one count per reason, in the order of `Miss`. unreachable: workers to which it can't
    connect now, so that it can't pull snapshots from them. answering: running sequences whose answers this worker
    generates. behind: prompts submitted with `Submit.behind` that are not computed yet.
    """

    queued: int
    queued_tokens: int
    running: int
    free_pages: int
    free_slots: int
    transferring: int
    step_s: float
    token_s: float = 0.0
    kept: int = 0
    hit_tokens: int = 0
    missed_tokens: int = 0
    decode_s: float = 0.0
    decode_rows: float = 0.0
    hits: int = 0
    misses: tuple[int, ...] = ()
    tiers: tuple[int, ...] = ()
    saved_s: float = 0.0
    unreachable: tuple[str, ...] = ()
    answering: int = 0
    behind: int = 0


class Beat(Data, frozen=True):
    """A sign of life, sent every `wire.liveness.BEAT_S` seconds to workers that pull from this one."""


class Drain(Data, frozen=True):
    """Drain the worker, because an operator wants it to end; its sequences continue at other workers."""
