"""The messages with which a worker sends what its steps gave."""

from typing import Literal

from wire.protocol.data import Data
from wire.protocol.kept import KeptEvent
from wire.protocol.worker import Load

# Why a sequence ended at a worker. "handoff": its snapshot left for the decode worker. "moved": the worker is about to
# end, and the sequence continues at another one. "abort": at a decode worker, that the prefill worker ended the request
# and has told the router how.
Finish = Literal["stop", "length", "abort", "error", "handoff", "moved"]


class TokenLogprob(Data, frozen=True):
    """Natural-log probability of `token_id` under the model, before any sampling setting.

    top_ids, top_logprobs: the most likely tokens and their log probabilities, the most likely first.
    """

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
    `token_ids`. retry: a snapshot did not arrive, so another try may succeed. unservable: the request contradicts
    itself. With the first output come `cached_tokens`, the prompt tokens that were not computed, and `cached_from`,
    where their snapshot was: "device", "host" or "disk" of the worker, or "peer". kept_tokens: the number of tokens of
    the sequence of which this worker keeps a snapshot for the next worker; sent when the sequence moves, and at times
    while it runs. leaving: the sequence moves as soon as the next worker has that snapshot; until `Move` it runs here.
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
