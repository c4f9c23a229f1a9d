"""Rank 0's sampler: turns a step's logits into tokens and log-probabilities, by each slot's own settings.

`draw` gives the device its work, `read` waits for the tokens: the next step's forward pass may be launched between.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from kernels.sampling.bitmask import apply_bitmask
from kernels.sampling.sampling import penalize, sample
from wire.protocol import SamplingParams, TokenLogprob
from workers.rank.grammar import Grammars, Matcher
from workers.rank.readback import Readback
from workers.schedule.step import Admit

# Stop tokens a slot has room for at first.
_STOPS = 8


@dataclass(slots=True)
class SlotSampler:
    """The sampling of one slot's sequence.

    penalized: whether penalties read its history. bias: token ids and what is added to their logits. stops: its stop
    tokens. Both are on the device; None if it has none.
    """

    sampling: SamplingParams
    prompt_tokens: int
    penalized: bool
    bias: tuple[Tensor, Tensor] | None
    stops: tuple[Tensor, Tensor] | None
    matcher: Matcher | None = None

    @property
    def first_end(self) -> int:
        """The first position at which a stop token is allowed."""
        return self.prompt_tokens + self.sampling.min_tokens

    @property
    def depends(self) -> bool:
        """Whether what may come next depends on the token before, so that drafts are sampled one by one."""
        return self.penalized or self.matcher is not None

    def may_end(self, position: int) -> bool:
        """Whether a stop token is allowed at a position."""
        return position >= self.first_end

    def take(self, token: int) -> bool:
        """The sequence gains a token; returns whether it is one of its stop tokens."""
        if token in self.sampling.stop_token_ids:
            return True
        if self.matcher is not None:
            self.matcher.advance((token,))
        return False

    def added(self, position: int) -> list[tuple[Tensor, Tensor]]:
        """What is added to the logits of a token at a position."""
        stops = None if self.may_end(position) else self.stops
        return [part for part in (self.bias, stops) if part is not None]


@dataclass(frozen=True, slots=True)
class Run:
    """What is sampled for one slot: the token at `position` and, as far as drafts are accepted, those after it.

    A run has a row of logits for the token at `position` and one after each of its `drafts`.
    """

    slot: int
    position: int
    drafts: int = 0


@dataclass(frozen=True, slots=True)
class Sampled:
    """One item per run: the tokens that it gained, with log-probabilities if asked for.

    failures: runs whose sequences can't continue, with the reason; their tokens mean nothing. stopped: runs whose last
    token is a stop token.
    """

    tokens: list[list[int]]
    logprobs: list[list[TokenLogprob]]
    failures: dict[int, str]
    stopped: list[int]


@dataclass(frozen=True, slots=True)
class _Wave:
    """Tokens that are sampled together. places: the (run, draft) pair of each. failures: places whose sequences can't
    go on, with the reason. asked: (place, number of alternatives) of log-probabilities that are read with the tokens.
    """

    places: list[tuple[int, int]]
    tokens: Tensor
    failures: dict[int, str]
    asked: list[tuple[int, int]]
    read: Readback


@dataclass(frozen=True, slots=True)
class Drawing:
    """A step's sampled tokens, which the host has not read yet.

    slots: each run's sampling state, kept because another sequence may take the slot before the tokens are read. came:
    each run's `Outcome`, [runs, 3] int64 on the device; None if it was not asked for.
    """

    logits: Tensor
    runs: Sequence[Run]
    slots: list[SlotSampler]
    firsts: list[int]
    wave: _Wave
    came: Tensor | None

    @property
    def ready(self) -> bool:
        """Whether `Sampler.read` returns without waiting for the device."""
        return self.wave.read.ready


class Sampler:
    """Per-slot sampling state of one worker."""

    def __init__(self, vocab: int, slots: int, device: torch.device, grammars: Grammars) -> None:
        self.vocab = vocab
        self.device = device
        self._grammars = grammars
        self._slots: dict[int, SlotSampler] = {}
        # Settings stay on the device, so that a step sends it no more than which slots: temperature, top_p and min_p,
        # then top_k, seed and the first position at which it may end, of every slot.
        self._floats = torch.zeros(3, slots, device=device)
        self._integers = torch.zeros(3, slots, dtype=torch.int64, device=device)
        # Stop tokens of every slot, filled up with -1.
        self._stops = torch.full((slots, _STOPS), -1, device=device)
        # `penalize`'s: all slots' from the start, for nothing of their size may be asked for while requests run.
        self._penalties = torch.zeros(3, slots, device=device)
        self._history = torch.zeros(slots, vocab, dtype=torch.int32, device=device)

    def admit(self, admit: Admit) -> None:
        """A sequence takes a slot."""
        s = admit.sampling
        slot = SlotSampler(
            s,
            admit.prompt_tokens,
            penalized=bool(admit.token_ids),
            bias=self._entries([t for t, _ in s.logit_bias], [bias for _, bias in s.logit_bias]),
            stops=self._entries(s.stop_token_ids, [float("-inf")] * len(s.stop_token_ids)) if s.min_tokens else None,
        )
        self._floats[:, admit.slot] = self._sent(torch.tensor((s.temperature, s.top_p, s.min_p)))
        self._integers[:, admit.slot] = self._sent(torch.tensor((s.top_k, s.seed, slot.first_end)))
        if len(s.stop_token_ids) > self._stops.shape[1]:
            more = len(s.stop_token_ids) - self._stops.shape[1]
            self._stops = torch.nn.functional.pad(self._stops, (0, more), value=-1)
        spare = self._stops.shape[1] - len(s.stop_token_ids)
        self._stops[admit.slot] = self._sent(torch.tensor((*s.stop_token_ids, *[-1] * spare)))
        penalties = (s.repetition_penalty, s.presence_penalty, s.frequency_penalty)
        self._penalties[:, admit.slot] = self._sent(torch.tensor(penalties if slot.penalized else (1.0, 0.0, 0.0)))
        if slot.penalized:
            self._begin_history(admit)
        if admit.sampling.grammar is not None:
            slot.matcher = self._grammars.start(admit.sampling.grammar, admit.generated)
        self._slots[admit.slot] = slot

    def prompt_top(self, slot: int) -> int:
        """The number of alternatives in the slot's prompt log-probabilities."""
        return self._slots[slot].sampling.prompt_logprobs or 0

    def draw(
        self, logits: Tensor, runs: Sequence[Run], drafts: Tensor | None = None, *, outcomes: bool = False
    ) -> Drawing:
        """Sample the runs' tokens on the device; the result is what sampling one by one, without drafts, gives.

        logits [R, V] fp32: the rows of each run after those of the run before. drafts: [runs with drafts, most drafts]
        int64; these runs come first. outcomes: make `Drawing.came`, which needs equally many drafts in all runs, and
        none that depend on the token before. A draft is accepted if it is the token sampled at its position, so each
        token is drawn from the model's own distribution with the noise of its seed and position. (That is rejection
        sampling where a draft is a single guess: it is accepted with the probability that the model gives it.)
        """
        slots = [self._slots[run.slot] for run in runs]
        firsts = list(accumulate((1 + run.drafts for run in runs), initial=0))
        # A run whose next token depends on earlier ones, by penalties or a grammar, is sampled token by token.
        places = [(i, n) for i, run in enumerate(runs) for n in range(1 + (0 if slots[i].depends else run.drafts))]
        wave = self._draw_wave(logits, runs, slots, firsts, places, drafts)
        return Drawing(logits, runs, slots, firsts, wave, self._came(runs, wave, drafts) if outcomes else None)

    def read(self, drawing: Drawing) -> Sampled:
        """Wait for the tokens of a drawing and return them. Read every drawing once, in the order they were made."""
        runs, slots, wave = drawing.runs, drawing.slots, drawing.wave
        sampled = Sampled([[] for _ in runs], [[] for _ in runs], {}, [])
        ended: set[int] = set()
        drafted: list[list[int]] | None = None
        while True:
            tokens, logprobs, drafts = _read(wave)
            drafted = drafts or drafted
            goes_on = []
            for at, ((i, n), token) in enumerate(zip(wave.places, tokens, strict=True)):
                if at in wave.failures:
                    ended.add(i)
                    # Earlier tokens are valid; the next step meets the failure again.
                    if not sampled.tokens[i]:
                        sampled.failures[i] = wave.failures[at]
                if i in ended:
                    continue
                sampled.tokens[i].append(token)
                if at in logprobs:
                    sampled.logprobs[i].append(logprobs[at])
                stop = slots[i].take(token)
                if n == runs[i].drafts or drafted is None or token != drafted[i][n] or stop:
                    ended.add(i)
                elif slots[i].depends:
                    goes_on.append((i, n + 1))
            if not goes_on:
                break
            wave = self._draw_wave(drawing.logits, runs, slots, drawing.firsts, goes_on, None)
        for i in sampled.failures:
            sampled.tokens[i] = [0]
        for i, (run, gained) in enumerate(zip(runs, sampled.tokens, strict=True)):
            if gained[-1] in slots[i].sampling.stop_token_ids and slots[i].may_end(run.position + len(gained) - 1):
                sampled.stopped.append(i)
        return sampled

    def _draw_wave(
        self,
        logits: Tensor,
        runs: Sequence[Run],
        slots: list[SlotSampler],
        firsts: list[int],
        places: list[tuple[int, int]],
        drafts: Tensor | None,
    ) -> _Wave:
        rows = [firsts[i] + n for i, n in places]
        some = logits if len(rows) == len(logits) else logits[self._sent(torch.tensor(rows))]
        of = [slots[i] for i, _ in places]
        tokens, failures = self._choose(
            some, of, [runs[i].slot for i, _ in places], [runs[i].position + n for i, n in places]
        )
        asked = [(at, slot.sampling.logprobs) for at, slot in enumerate(of) if slot.sampling.logprobs is not None]
        parts = [tokens] if drafts is None else [tokens, drafts]
        if asked:
            # Rejected drafts included, because the host does not know yet which these are.
            at = self._sent(torch.tensor([at for at, _ in asked]))
            parts += logprob_tensors(some[at], tokens[at], max(top for _, top in asked))
        return _Wave(places, tokens, failures, asked, Readback(parts))

    def _came(self, runs: Sequence[Run], wave: _Wave, drafts: Tensor | None) -> Tensor:
        """Each run's `Outcome`, computed on the device as `read` does on the host. Runs have equally many drafts."""
        slots, positions = self._sent(torch.tensor([(run.slot, run.position) for run in runs])).unbind(1)
        tokens = wave.tokens.view(len(runs), -1)
        stops = (self._stops[slots, None] == tokens[..., None]).any(-1)
        if drafts is None:
            gained = torch.ones_like(positions)
        else:
            goes_on = (tokens[:, :-1] == drafts) & ~stops[:, :-1]
            gained = 1 + goes_on.long().cumprod(1).sum(1)
        at = gained[:, None] - 1
        over = stops.gather(1, at)[:, 0] & (positions + gained > self._integers[2, slots])
        if wave.failures:
            over[self._sent(torch.tensor(list(wave.failures)))] = True
        return torch.stack((gained, tokens.gather(1, at)[:, 0], over.long()), 1)

    def _choose(
        self, logits: Tensor, rows: list[SlotSampler], slots: list[int], positions: list[int]
    ) -> tuple[Tensor, dict[int, str]]:
        """One token a row of logits [R, V], and which rows' sequences can't go on."""
        # Before the device is given more: on a GPU the logits are still being computed.
        mask, failures = self._mask(rows, positions)
        at = self._sent(torch.tensor(slots))
        penalized = any(r.penalized for r in rows)
        adjusted = penalize(logits, self._history, at, self._penalties) if penalized else logits
        adjusted = self._add(adjusted, rows, positions, own=penalized)
        if mask is not None:
            adjusted = apply_bitmask(adjusted, mask)
        if any(r.sampling.temperature > 0 for r in rows):
            tokens = self._draw(adjusted, at, positions)
        else:
            tokens = torch.argmax(adjusted, dim=-1)
        if penalized:
            # Rows without penalties never read their history.
            self._history[at, tokens] = (self._history[at, tokens] | 1) + 2
        return tokens, failures

    def _mask(self, rows: list[SlotSampler], positions: list[int]) -> tuple[Tensor | None, dict[int, str]]:
        if all(r.matcher is None for r in rows):
            return None, {}
        words, failures = self._grammars.masks(
            [r.matcher for r in rows],
            [r.sampling.stop_token_ids for r in rows],
            [r.may_end(at) for r, at in zip(rows, positions, strict=True)],
        )
        masks = torch.from_numpy(words)
        # From pageable memory so large a copy would wait for the device.
        return (masks.pin_memory() if self.device.type == "cuda" else masks).to(
            self.device, non_blocking=True
        ), failures

    def _add(self, logits: Tensor, rows: list[SlotSampler], positions: list[int], own: bool) -> Tensor:
        """Biases, and -inf for stop tokens that come too early: one pass over all rows that have any.

        own: `logits` may be written to.
        """
        parts = [(i, *part) for i, row in enumerate(rows) for part in row.added(positions[i])]
        if not parts:
            return logits
        which, ids, values = zip(*parts, strict=True)
        lengths = [len(i) for i in ids]
        row, times = self._sent(torch.tensor([which, lengths]))
        row = row.repeat_interleave(times, output_size=sum(lengths))
        out = logits if own else logits.clone()
        return out.index_put_((row, torch.cat(ids)), torch.cat(values), accumulate=True)

    def _begin_history(self, admit: Admit) -> None:
        ids = self._sent(torch.tensor(admit.token_ids))
        output = ids[admit.prompt_tokens :]
        row = self._history[admit.slot]
        row.zero_().index_fill_(0, ids, 1)
        row.index_add_(0, output, torch.full_like(output, 2, dtype=torch.int32))

    def _entries(self, ids: Sequence[int], values: Sequence[float]) -> tuple[Tensor, Tensor] | None:
        return (self._sent(torch.tensor(ids)), self._sent(torch.tensor(values))) if ids else None

    def _draw(self, logits: Tensor, slots: Tensor, positions: list[int]) -> Tensor:
        temperature, top_p, min_p = self._floats.index_select(1, slots)
        top_k, seeds, _ = self._integers.index_select(1, slots)
        return sample(logits, temperature, top_k, top_p, min_p, seeds, self._sent(torch.tensor(positions)))

    def _sent(self, values: Tensor) -> Tensor:
        """Copy to the device without waiting for its earlier work."""
        return values.to(self.device, non_blocking=True)


def token_logprobs(logits: Tensor, token_ids: list[int], tops: list[int]) -> list[TokenLogprob]:
    """The log-probabilities of one id per row and of its `tops` best. logits [R, V] fp32, before any setting."""
    parts = logprob_tensors(logits, torch.tensor(token_ids, device=logits.device), max(tops))
    return _logprobs(token_ids, tops, [part.tolist() for part in parts])


def logprob_tensors(logits: Tensor, token_ids: Tensor, width: int) -> list[Tensor]:
    """Log-probabilities of token_ids [R], then values and ids of the `width` best [R, width]; logits [R, V] fp32."""
    logp = torch.log_softmax(logits, dim=-1)
    best = torch.topk(logp, width, dim=-1)
    return [logp.gather(-1, token_ids[:, None])[:, 0], best.values, best.indices]


def _logprobs(token_ids: Sequence[int], tops: Sequence[int], parts: list[Any]) -> list[TokenLogprob]:
    """parts: `logprob_tensors` as lists."""
    return [
        TokenLogprob(token, value, tuple(ids[:k]), tuple(values[:k]))
        for token, value, values, ids, k in zip(token_ids, *parts, tops, strict=True)
    ]


def _read(wave: _Wave) -> tuple[list[int], dict[int, TokenLogprob], list[list[int]] | None]:
    """A wave's tokens, log-probabilities by place, and the drafts read with them."""
    tokens, *more = wave.read.lists()
    parts = [more.pop() for _ in range(3)][::-1] if wave.asked else []
    logprobs = _logprobs([tokens[at] for at, _ in wave.asked], [top for _, top in wave.asked], parts) if parts else []
    return tokens, dict(zip((at for at, _ in wave.asked), logprobs, strict=True)), more[0] if more else None
