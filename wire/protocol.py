"""Every message between routers, workers' leaders and their peers.

Directions: router -> worker: `Hello`, `Submit`, `Find`, `Attach`, `Abort`, `Pin`, `Unpin`, `Park`, `Drain`, `Move`.
Worker -> router: `WorkerInfo`, `StepOutputs`, `Found`, `Parked`. Decode worker -> prefill worker: `Hello`, `Pull`,
`CancelPull`. Back: `WorkerInfo`, `Header` (all of a snapshot is on its way), `PullRefused`, `Beat`. On a connection for
one file a router sends `Hello`, then `SaveFile`, which `FilePart`s answer, or `LoadFile` and `FilePart`s, which
`FileKept` answers; or `FileRefused`.

Only plain data: these messages know neither HTTP nor torch. `wire.codec` frames them.
"""

from typing import Literal

import msgspec

from wire.tokens import TokenIds

Role = Literal["prefill", "decode"]
# The tiers of memory in which a worker keeps snapshots, fastest first.
Tier = Literal["device", "host", "disk"]
# Why prompt tokens had to be computed. new: no earlier sequence had this prefix. no_state: their latents were computed
# before, but no state was kept there. evicted: a snapshot was kept there and evicted. weights: a snapshot of other
# weights or of another layout is there, on disk or at another worker. template: their text was rendered to other tokens
# before. peer: another worker should have had the snapshot, but could not give it.
Miss = Literal["new", "no_state", "evicted", "weights", "template", "peer"]
# Why a sequence ended at a worker. "handoff": its snapshot left for the decode worker. "moved": the worker is about to
# end, and the sequence continues at another one. "abort": at a decode worker, that the prefill worker ended the request
# and has told the router how.
Finish = Literal["stop", "length", "abort", "error", "handoff", "moved"]


class Data(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Plain, immutable data of which messages consist; `msgspec.structs.replace` makes a changed copy.

    It has no cycles, so the garbage collector ignores it. A token costs several of these: structs are made, written and
    read in a tenth, a fifth and a third of the time that dataclasses take.
    """


class Grammar(Data, frozen=True):
    """The grammar of a sequence's text for the grammar engine (llguidance): Lark, or its JSON of several grammars.

    Each worker compiles equal texts once.
    """

    text: str


class SamplingParams(Data, frozen=True):
    """How a sequence's next tokens are sampled and when it ends.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 are off. `seed` alone decides the noise, with the
    token's position, so a request gives the same tokens in whatever batch it runs. `stop_token_ids` already holds the
    end-of-sequence ids unless the user asked to ignore them. `logprobs` / `prompt_logprobs`: None for none, k for the
    chosen token and the k most likely. `grammar`: stop tokens may follow only where it allows the text to end.
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
    """The first message of every connection: who the caller is."""

    name: str
    kind: Literal["router", "worker", "file"]


class PeerRef(Data, frozen=True):
    """A worker's id and its leader's address."""

    worker_id: str
    host: str
    port: int


class Prefix(Data, frozen=True):
    """What the prefix cache needs to know of a prompt.

    boundaries: the positions at which its system prompt and each of its turns end. scope: names the prefixes that it
    may share. kept_tokens: `source` keeps a snapshot of so many of its first tokens; 0 if no worker is known to.
    foreign_tokens: a worker whose snapshots this one can't continue keeps a snapshot of so many. rewritten_tokens: the
    beginning of its text was rendered to so many tokens before, which differ from the present ones; 0 if it was not.
    """

    boundaries: tuple[int, ...] = ()
    scope: str = ""
    kept_tokens: int = 0
    source: PeerRef | None = None
    foreign_tokens: int = 0
    rewritten_tokens: int = 0


class Submit(Data, frozen=True):
    """A worker's share of a request: continue `token_ids` by the sampling's rules.

    source: pull the snapshot of `token_ids` from this worker; None to compute them here. handoff: sample one token and
    keep the snapshot for the worker that pulls it; else generate to the end. generated: how many of the last
    `token_ids` are generated ones, which the client has already got from another worker. They count for `max_tokens`,
    `min_tokens`, penalties and grammar, and outputs are numbered on from there. Only with neither source nor handoff.
    prefix: what the prefix cache may know of them. warm: the router only wants their state on the device, and ignores
    the token sampled after them. key: by which its client may come back through any router; b"" if it can't. body: a
    digest of the client's request. behind: its tenant has more at the routers than its share: its prompt is computed
    after those of other tenants at the same priority.
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
    behind: bool = False


class Find(Data, frozen=True):
    """Ask whether the worker has a request with this key; it answers with `Found`."""

    key: bytes


class Found(Data, frozen=True):
    """The request that a worker has with a key: its id, or "" for none, and the digest of the client's request."""

    key: bytes
    request_id: str
    body: bytes


class Attach(Data, frozen=True):
    """Take a request over. This router gets all its tokens from the first on, and then the future ones."""

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
    """The output of one step for one sequence.

    `offset` is the index of `token_ids[0]` among the generated tokens: the outputs of a request's two workers use
    different connections and may overtake each other. `logprobs` is as long as `token_ids`, or empty. `prompt_logprobs`
    comes once, with the first output; its first item is None (nothing precedes it). The stop token itself is in
    `token_ids`. retry: a snapshot did not come, so that another try may succeed. unservable: the request contradicts
    itself. With the first output come `cached_tokens`, the prompt tokens that were not computed, and `cached_from`,
    where their snapshot was: "device", "host" or "disk" of the worker, or "peer". kept_tokens: the tokens of a
    snapshot of the sequence that the worker keeps for the next worker: when it moves, and at times while it runs.
    leaving: it is to move once the next worker has that snapshot, and goes on until `Move`.
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
    leaving: bool = False


class Load(Data, frozen=True):
    """A worker's figures, as of the step whose outputs they come with.

    token_s: seconds a prompt token takes to compute, smoothed; decode_s: seconds a sequence waits for each token in
    steps that compute no prompt, smoothed; decode_rows: sequences in those steps, smoothed alike. kept: snapshots the
    prefix cache holds; tiers: these by tier, in the order of `Tier`, one maybe on several. hit_tokens, missed_tokens:
    prompt tokens that were not computed, and that were, since the worker's start; saved_s: seconds that computing the
    former would have taken. hits: prompts that began from a snapshot; misses: those of which tokens were computed, one
    count a reason, in the order of `Miss`. unreachable: other workers to which it can't connect now, so that no
    snapshot can come from them. answering: of those that run, the sequences whose answers are computed here. behind:
    prompts here that were submitted so and are not computed yet.
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


class KeptEvent(Data, frozen=True):
    """A kept snapshot came to a tier of the worker, or left the last one (`tier` None).

    position: its number of tokens. digest: their `wire.digest`.
    """

    position: int
    digest: bytes
    tier: Tier | None


class Mark(Data, frozen=True):
    """The name of a kept snapshot: its number of tokens and their `wire.digest`."""

    position: int
    digest: bytes


class Pin(Data, frozen=True):
    """A session now ends at the first of `marks` that the worker keeps.

    For `ttl_s` seconds that snapshot does not age. again: said once more, to a worker that may have started anew: one
    that knows the session passes it over.
    """

    session: str
    marks: tuple[Mark, ...]
    ttl_s: float
    again: bool = False


class Unpin(Data, frozen=True):
    """The session is over: its snapshot ages from now on."""

    session: str


class Park(Data, frozen=True):
    """Move a snapshot off the device; `Parked` with the same `call` answers."""

    call: int
    mark: Mark


class Drain(Data, frozen=True):
    """An operator wants the worker to end; its sequences continue at other workers."""


class Parked(Data, frozen=True):
    """The answer to `Park`. reason: why the snapshot stays on the device; None if it does not."""

    call: int
    reason: str | None


class StepOutputs(Data, frozen=True):
    """One message per step to each router, with the tokens of all its sequences and the worker's load.

    `kept` in the first message of a connection lists all snapshots that the worker keeps; later ones list the changes.
    `seen` is the number of `Submit` messages received from this router, by which the router knows which of its
    submissions the figures already contain.
    """

    step: int
    seen: int
    load: Load
    outputs: tuple[SeqOutput, ...] = ()
    kept: tuple[KeptEvent, ...] = ()


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
    """The sender has room: send it a snapshot without the first `have` latents, which it has.

    Without `kept` it wants the snapshot that this request hands off, as far as it is computed; with `kept`, the kept
    snapshot of `position` tokens that has this digest. ranks: of the sender, over which states and latents are split.
    """

    request_id: str
    have: int = 0
    position: int = 0
    kept: bytes | None = None
    ranks: int = 1


class CancelPull(Data, frozen=True):
    """Stop sending a snapshot. kept: it was pulled as a kept one, not as the request's hand-off."""

    request_id: str
    kept: bool = False


class PullRefused(Data, frozen=True):
    """No snapshot will come. told: whether the router already knows how the request ended."""

    request_id: str
    reason: str
    told: bool


class Beat(Data, frozen=True):
    """A sign of life, sent every `wire.liveness.BEAT_S` seconds to workers that pull from this one."""


class Header(Data, frozen=True):
    """A snapshot's identity. A receiver refuses one that differs from what it serves.

    `position`: tokens whose latents and state are inside. `token_hash`: `wire.digest` of the first `position` token
    ids, in hex. `generated`: tokens already sampled, the last of which is not yet computed; () of a kept snapshot.
    `layout`: the meaning of all ranks' bytes (shapes, dtypes, rope). `weights_id`: the weights that made them.
    """

    request_id: str
    position: int
    token_hash: str
    generated: tuple[int, ...]
    layout: str
    weights_id: str


class Move(Data, frozen=True):
    """What the worker told that it keeps of the request is at another worker: give the request up as soon as may be."""

    request_id: str


class SaveFile(Data, frozen=True):
    """Send the first of `marks` that is kept as a file, with the states of those behind it: they are prefixes of it.

    token_ids: of the request that the snapshot is saved of; turn: what `wire.snapshot_file.Turn` says of it, as JSON.
    """

    marks: tuple[Mark, ...]
    token_ids: TokenIds
    turn: bytes


class LoadFile(Data, frozen=True):
    """Keep the snapshot in the file that follows, for requests of this scope."""

    scope: str


class FilePart(Data, frozen=True):
    """Some of a file's bytes; b"" is its end."""

    data: bytes


class FileKept(Data, frozen=True):
    """The file's snapshot is on the device."""


class FileRefused(Data, frozen=True):
    """There is no such snapshot, or the file can't be kept here, and why."""

    reason: str


Message = (
    Hello | Submit | Abort | StepOutputs | WorkerInfo | Pull | CancelPull | PullRefused | Header
    | Pin | Unpin | Park | Parked | Drain | Find | Found | Attach | Beat | Move
    | SaveFile | LoadFile | FilePart | FileKept | FileRefused
)  # fmt: skip
