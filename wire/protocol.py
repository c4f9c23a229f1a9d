"""Every message between routers, workers' leaders and their peers.

Directions: router -> worker: `Hello`, `Submit`, `Find`, `Attach`, `Abort`, `Pin`, `Unpin`, `Park`, `Drain`. Worker ->
router: `WorkerInfo`, `StepOutputs`, `Found`, `Parked`. Decode worker -> prefill worker: `Hello`, `Pull`, `CancelPull`.
Back: `WorkerInfo`, `Header` (all of a snapshot is on its way), `PullRefused`, `Beat`.

Only plain data: these messages know neither HTTP nor torch. `wire.codec` frames them.
"""

from typing import Literal

import msgspec

from wire.tokens import TokenIds

Role = Literal["prefill", "decode"]
# Where a worker keeps snapshots, the nearest first.
Tier = Literal["device", "host", "disk"]
# Why prompt tokens had to be computed. new: no sequence began so. no_state: their latents were computed before, but no
# state stands there. evicted: one stood there. weights: one stands there that other weights made, or that is laid out
# otherwise: on disk, or at another worker. template: what they stand for was rendered to other tokens before. peer:
# another worker that was said to hold it could not give it.
Miss = Literal["new", "no_state", "evicted", "weights", "template", "peer"]
# Why a sequence ended at a worker. "handoff": its snapshot left for the decode worker. "moved": the worker is to end,
# and the sequence goes on elsewhere. "abort": at a decode worker,
# that the prefill worker ended the request, and has told the router how.
Finish = Literal["stop", "length", "abort", "error", "handoff", "moved"]


class Data(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Plain, immutable data that messages are made of; `msgspec.structs.replace` changes one.

    It holds no cycles, so the garbage collector need not look. A token costs several of these: structs are made,
    written and read in a tenth, a fifth and a third of the time that dataclasses take.
    """


class Grammar(Data, frozen=True):
    """What a sequence's text must be, as the grammar engine (llguidance) reads it: Lark, or its JSON of several.

    Equal texts are compiled once a worker.
    """

    text: str


class SamplingParams(Data, frozen=True):
    """How one sequence's next tokens are chosen and when it ends.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 are off. `seed` alone decides the noise,
    with the token's position, so a request gives the same tokens in whatever batch it runs.
    `stop_token_ids` already holds the end-of-sequence ids unless the user asked to ignore them.
    `logprobs` / `prompt_logprobs`: None for none, k for the chosen token and the k most likely.
    `grammar`: stop tokens may follow only where the text is whole by it.
    """

    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None


class Hello(Data, frozen=True):
    """First message of every connection: who calls."""

    name: str
    kind: Literal["router", "worker"]


class PeerRef(Data, frozen=True):
    """Where a worker's leader listens."""

    worker_id: str
    host: str
    port: int


class Prefix(Data, frozen=True):
    """What a prompt begins with, for the prefix cache.

    boundaries: positions at which its system prompt and each of its turns end. scope: whose prefixes it may share.
    kept_tokens: `source` keeps a snapshot of so many of its first tokens; 0 if none is known of. foreign_tokens:
    workers whose snapshots don't fit this one keep one of so many. rewritten_tokens: what it begins with was rendered
    to so many tokens before, and to others than now; 0 if it was not.
    """

    boundaries: tuple[int, ...] = ()
    scope: str = ""
    kept_tokens: int = 0
    source: PeerRef | None = None
    foreign_tokens: int = 0
    rewritten_tokens: int = 0


class Submit(Data, frozen=True):
    """A worker's share of a request: continue `token_ids` by the sampling's rules.

    source: pull the snapshot of `token_ids` from that worker; without one, compute them here. handoff: sample one
    token and keep the snapshot for the worker that pulls it; else generate to the end.
    generated: how many of the last `token_ids` are generated ones, which the client has already got from another
    worker. They count for `max_tokens`, `min_tokens`, penalties and grammar, and outputs are numbered on from there.
    Only with neither source nor handoff. prefix: what the prefix cache may know of them. warm: the router only wants
    their state on the device; the token that is sampled after them means nothing. key: under which its client may come
    back for it, through whatever router; b"" if it does not. body: a digest of what the client asked with.
    """

    request_id: str
    token_ids: TokenIds
    sampling: SamplingParams
    priority: int = 0
    source: PeerRef | None = None
    handoff: bool = False
    generated: int = 0
    prefix: Prefix = Prefix()
    warm: bool = False
    key: bytes = b""
    body: bytes = b""


class Find(Data, frozen=True):
    """Does the worker have a request under this key? It answers with `Found`."""

    key: bytes


class Found(Data, frozen=True):
    """What a worker has under a key: the request's id, or "" for none, and the digest of what it was asked with."""

    key: bytes
    request_id: str
    body: bytes


class Attach(Data, frozen=True):
    """From now on the request is this router's. It gets all its tokens from the first on, and then those to come."""

    request_id: str


class Abort(Data, frozen=True):
    """Forget the request and free what it holds within a step. Unknown ids are ignored."""

    request_id: str


class TokenLogprob(Data, frozen=True):
    """Natural-log probability of `token_id` under the model before any sampling setting, and the best ones."""

    token_id: int
    logprob: float
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class Timings(Data, frozen=True):
    """Seconds a request spent in one worker. A stage that did not happen there is 0."""

    queue_s: float = 0.0
    prefill_s: float = 0.0
    transfer_s: float = 0.0
    decode_s: float = 0.0


class SeqOutput(Data, frozen=True):
    """What one step gave one sequence.

    `offset` is the index of `token_ids[0]` among the generated tokens: outputs of the two workers of a request
    travel on different connections and may overtake each other. `logprobs` is as long as `token_ids`, or empty.
    `prompt_logprobs` comes once, with the first output; its first item is None (nothing precedes it).
    The stop token itself is in `token_ids`. retry: the error is of a snapshot that did not come, so that another try
    may succeed. unservable: the error is of the request, whose own parts contradict each other. With the first output
    come `cached_tokens`, the prompt tokens that were not computed, and `cached_from`, where their snapshot was:
    "device", "host" or "disk" of the worker, or "peer". kept_tokens: the worker keeps a
    snapshot of so many of the sequence's tokens for whoever goes on with it: when it moves, and at times while it runs.
    """

    request_id: str
    offset: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    finish: Finish | None = None
    error: str | None = None
    retry: bool = False
    unservable: bool = False
    timings: Timings | None = None
    cached_tokens: int = 0
    cached_from: str | None = None
    kept_tokens: int = 0


class Load(Data, frozen=True):
    """A worker's figures, as of the step they ride on.

    token_s: seconds a prompt token takes to compute, smoothed; decode_s: seconds a sequence waits for each token in
    steps that compute no prompt, smoothed. kept: snapshots the prefix cache holds; hit_tokens, missed_tokens: prompt
    tokens that were not computed, and that were, since the worker's start. hits: prompts that began from a snapshot;
    misses: those of which tokens were computed, one count a reason, in the order of `Miss`. unreachable: other workers
    that it can't connect to now, so that no snapshot comes from them. answering: of those that run, the sequences whose
    answers are computed here.
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
    hits: int = 0
    misses: tuple[int, ...] = ()
    unreachable: tuple[str, ...] = ()
    answering: int = 0


class KeptEvent(Data, frozen=True):
    """A kept snapshot came to a tier of the worker, or left the last one (`tier` None).

    position: its tokens. digest: `wire.digest` of them.
    """

    position: int
    digest: bytes
    tier: Tier | None


class Mark(Data, frozen=True):
    """Names a kept snapshot: its tokens, and the `wire.digest` of them."""

    position: int
    digest: bytes


class Pin(Data, frozen=True):
    """A session stands at the first of `marks` that the worker keeps, and has left where it stood before.

    For `ttl_s` seconds that snapshot does not age.
    """

    session: str
    marks: tuple[Mark, ...]
    ttl_s: float


class Unpin(Data, frozen=True):
    """The session is over: what it stood at ages from now on."""

    session: str


class Park(Data, frozen=True):
    """Take a snapshot off the device. `Parked` with the same `call` answers."""

    call: int
    mark: Mark


class Drain(Data, frozen=True):
    """An operator wants the worker to end: its sequences go on elsewhere."""


class Parked(Data, frozen=True):
    """The snapshot leaves the device, if the worker had it there; else `reason` says why it stays."""

    call: int
    reason: str | None


class StepOutputs(Data, frozen=True):
    """One message a step to each router: all its sequences' tokens, and the worker's load.

    The first one of a connection lists in `kept` all that the worker keeps, each later one what has changed since.

    `seen` counts the `Submit` messages taken from this router so far, so that the router knows
    which of its own submissions the figures already contain.
    """

    step: int
    seen: int
    load: Load
    outputs: tuple[SeqOutput, ...] = ()
    kept: tuple[KeptEvent, ...] = ()


class RankInfo(Data, frozen=True):
    """One rank's process, and where it takes transfer links."""

    rank: int
    pid: int
    node: str
    device: str
    transfer_host: str
    transfer_port: int


class WorkerInfo(Data, frozen=True):
    """What a worker is; fixed for its life. `layout` names what a snapshot's bytes mean (see Header).

    state_bytes, token_bytes: of a kept state and of a token's latents, over all ranks, as lower tiers hold them.
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


class Pull(Data, frozen=True):
    """The sending worker has room: send it a snapshot but for its first `have` latents, which it holds.

    Without `kept`, the snapshot that this request hands off, as far as there is one yet; with it, the kept snapshot
    of `position` tokens that has this digest. ranks: of the sending worker, by which states and latents are split.
    """

    request_id: str
    have: int = 0
    position: int = 0
    kept: bytes | None = None
    ranks: int = 1


class CancelPull(Data, frozen=True):
    """Send nothing more of a snapshot. kept: it was asked for as a kept one, not as the request's hand-off."""

    request_id: str
    kept: bool = False


class PullRefused(Data, frozen=True):
    """No snapshot will come, and why. `told`: the router knows already how the request ended."""

    request_id: str
    reason: str
    told: bool


class Beat(Data, frozen=True):
    """The worker lives; sent to workers that pull from it, every `wire.liveness.BEAT_S`."""


class Header(Data, frozen=True):
    """A snapshot's identity. A receiver refuses one that differs from what it serves.

    `position`: tokens whose latents and state are inside. `token_hash`: `wire.digest` of the first `position` token
    ids, in hex. `generated`: tokens already sampled, the last of which is not yet computed; () of a kept snapshot.
    `layout`: how the bytes of all ranks together read (shapes, dtypes, rope). `weights_id`: which weights made them.
    """

    request_id: str
    position: int
    token_hash: str
    generated: tuple[int, ...]
    layout: str
    weights_id: str


Message = (
    Hello | Submit | Abort | StepOutputs | WorkerInfo | Pull | CancelPull | PullRefused | Header
    | Pin | Unpin | Park | Parked | Drain | Find | Found | Attach | Beat
)  # fmt: skip
