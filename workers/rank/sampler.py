"""Rank 0's sampler: turns a step's logits into tokens and log-probabilities, by each slot's own settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from kernels.sampling.bitmask import apply_bitmask
from kernels.sampling.sampling import penalize, sample
from wire.protocol import SamplingParams, TokenLogprob
from workers.rank.grammar import GrammarError, Grammars, Matcher
from workers.schedule.step import Admit


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

    def may_end(self, position: int) -> bool:
        """Whether a stop token is allowed at a position."""
        return position - self.prompt_tokens >= self.sampling.min_tokens

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


class Sampler:
    """Per-slot sampling state of one worker."""

    def __init__(self, vocab: int, slots: int, device: torch.device, grammars: Grammars) -> None:
        self.vocab = vocab
        self.device = device
        self._grammars = grammars
        self._slots: dict[int, SlotSampler] = {}
        # Settings stay on the device, so that a step sends it no more than which slots: temperature, top_p and min_p,
        # then top_k and seed of every slot.
        self._floats = torch.zeros(3, slots, device=device)
        self._integers = torch.zeros(2, slots, dtype=torch.int64, device=device)
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
        self._integers[:, admit.slot] = self._sent(torch.tensor((s.top_k, s.seed)))
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

    def __call__(self, logits: Tensor, runs: Sequence[Run], drafts: Tensor | None = None) -> Sampled:
        """Sample the runs' tokens: of each as many as one by one, without drafts, would come out the same.

        logits [R, V] fp32: the runs' rows, one run's behind the other's. drafts: [runs that have some, most drafts]
        int64; these runs are the first. A draft stands if it is what was sampled in its place, so each token is drawn
        from the model's own distribution by the noise of its seed and position. (That is rejection sampling where a
        draft is a single guess: it stands with the probability the model gives it.)
        """
        sampled = Sampled([[] for _ in runs], [[] for _ in runs], {}, [])
        firsts = list(accumulate((1 + run.drafts for run in runs), initial=0))
        drafted: list[list[int]] | None = None
        # A run whose next token depends on earlier ones, by penalties or a grammar, is sampled token by token.
        wave = [(i, n) for i, run in enumerate(runs) for n in range(1 + (0 if self._depends(run) else run.drafts))]
        ended: set[int] = set()
        while wave:
            rows = [firsts[i] + n for i, n in wave]
            places = [(runs[i].slot, runs[i].position + n) for i, n in wave]
            some = logits if len(rows) == len(logits) else logits[self._sent(torch.tensor(rows))]
            tokens, failures = self._choose(some, places)
            if drafted is None and drafts is not None:
                # Read after the tokens, because reading them waits for the device.
                drafted = drafts.tolist()
            goes_on = []
            for at, ((i, n), token) in enumerate(zip(wave, tokens, strict=True)):
                if at in failures:
                    ended.add(i)
                    # Earlier tokens are valid; the next step meets the failure again.
                    if not sampled.tokens[i]:
                        sampled.failures[i] = failures[at]
                if i in ended:
                    continue
                run = runs[i]
                sampled.tokens[i].append(token)
                stops = self._slots[run.slot].sampling.stop_token_ids
                if n == run.drafts or drafted is None or token != drafted[i][n] or token in stops:
                    ended.add(i)
                elif self._depends(run):
                    goes_on.append((i, n + 1))
            wave = goes_on
        for i in sampled.failures:
            sampled.tokens[i] = [0]
        for i, (run, tokens) in enumerate(zip(runs, sampled.tokens, strict=True)):
            slot = self._slots[run.slot]
            if tokens[-1] in slot.sampling.stop_token_ids and slot.may_end(run.position + len(tokens) - 1):
                sampled.stopped.append(i)
        self._tell_logprobs(logits, runs, firsts, sampled)
        return sampled

    def _depends(self, run: Run) -> bool:
        slot = self._slots[run.slot]
        return slot.penalized or slot.matcher is not None

    def _tell_logprobs(self, logits: Tensor, runs: Sequence[Run], firsts: list[int], sampled: Sampled) -> None:
        asked = [
            (i, firsts[i] + n, token, top)
            for i, run in enumerate(runs)
            if (top := self._slots[run.slot].sampling.logprobs) is not None
            for n, token in enumerate(sampled.tokens[i])
        ]
        if asked:
            which, at, ids, tops = map(list, zip(*asked, strict=True))
            for i, item in zip(which, token_logprobs(logits[at], ids, tops), strict=True):
                sampled.logprobs[i].append(item)

    def _choose(self, logits: Tensor, places: list[tuple[int, int]]) -> tuple[list[int], dict[int, str]]:
        """One token a row of logits [R, V], and which rows' sequences can't go on. places: their (slot, position)."""
        slots, positions = map(list, zip(*places, strict=True))
        rows = [self._slots[s] for s in slots]
        # Before anything waits for the device: on a GPU the logits are still being computed.
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
        out: list[int] = tokens.tolist()
        self._advance(rows, out, failures)
        return out, failures

    def _mask(self, rows: list[SlotSampler], positions: list[int]) -> tuple[Tensor | None, dict[int, str]]:
        if all(r.matcher is None for r in rows):
            return None, {}
        words, failures = self._grammars.masks(
            [r.matcher for r in rows],
            [r.sampling.stop_token_ids for r in rows],
            [r.may_end(at) for r, at in zip(rows, positions, strict=True)],
        )
        return torch.from_numpy(words).to(self.device, non_blocking=True), failures

    def _advance(self, rows: list[SlotSampler], tokens: list[int], failures: dict[int, str]) -> None:
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if row.matcher is None or i in failures or token in row.sampling.stop_token_ids:
                continue
            try:
                row.matcher.advance((token,))
            except GrammarError as error:
                failures[i] = str(error)

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
        top_k, seeds = self._integers.index_select(1, slots)
        return sample(logits, temperature, top_k, top_p, min_p, seeds, self._sent(torch.tensor(positions)))

    def _sent(self, values: Tensor) -> Tensor:
        """Copy to the device without waiting for its earlier work."""
        return values.to(self.device, non_blocking=True)


def token_logprobs(logits: Tensor, token_ids: list[int], tops: list[int]) -> list[TokenLogprob]:
    """The log-probabilities of one id per row and of its `tops` best. logits [R, V] fp32, before any setting."""
    logp = torch.log_softmax(logits, dim=-1)
    chosen = logp.gather(-1, torch.tensor(token_ids, device=logits.device)[:, None])[:, 0].tolist()
    width = max(tops)
    best = torch.topk(logp, width, dim=-1) if width else None
    values = best.values.tolist() if best else [[]] * len(tops)
    ids = best.indices.tolist() if best else [[]] * len(tops)
    return [
        TokenLogprob(token, value, tuple(top_ids[:k]), tuple(top_values[:k]))
        for token, value, top_ids, top_values, k in zip(token_ids, chosen, ids, values, tops, strict=True)
    ]
