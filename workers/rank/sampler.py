"""Rank 0's sampler: turns a step's logits into tokens and log-probabilities, by each slot's own settings."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.sampling.bitmask import apply_bitmask
from kernels.sampling.sampling import penalize, sample
from wire.protocol import SamplingParams, TokenLogprob
from workers.rank.grammar import GrammarError, Grammars, Matcher
from workers.schedule.step import Admit


@dataclass(slots=True)
class SlotSampler:
    """What one slot's sequence needs.

    penalized: penalties read its history. bias: token ids and what is added to their logits; stops: its stop tokens;
    both on the device, None where it has none.
    """

    sampling: SamplingParams
    prompt_tokens: int
    penalized: bool
    bias: tuple[Tensor, Tensor] | None
    stops: tuple[Tensor, Tensor] | None
    matcher: Matcher | None = None

    def may_end(self, position: int) -> bool:
        """Whether a stop token may stand at a position."""
        return position - self.prompt_tokens >= self.sampling.min_tokens

    def added(self, position: int) -> list[tuple[Tensor, Tensor]]:
        """What is added to the logits of a token at a position."""
        stops = None if self.may_end(position) else self.stops
        return [part for part in (self.bias, stops) if part is not None]


@dataclass(frozen=True, slots=True)
class Sampled:
    """One item a row. failures: rows whose sequences can't go on, and why; their tokens mean nothing."""

    token_ids: list[int]
    logprobs: list[TokenLogprob | None]
    failures: dict[int, str]


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
        """How many alternatives the slot's prompt log-probabilities list."""
        return self._slots[slot].sampling.prompt_logprobs or 0

    def __call__(self, logits: Tensor, slots: list[int], positions: list[int]) -> Sampled:
        """Sample one token a row.

        logits [R, V] fp32; slots: each row's slot; positions: each new token's position in its sequence.
        """
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
            # Rows without penalties never read theirs.
            self._history[at, tokens] = (self._history[at, tokens] | 1) + 2
        out: list[int] = tokens.tolist()
        self._advance(rows, out, failures)
        asked = [i for i, r in enumerate(rows) if r.sampling.logprobs is not None]
        logprobs: list[TokenLogprob | None] = [None] * len(rows)
        if asked:
            tops = [rows[i].sampling.logprobs or 0 for i in asked]
            for i, item in zip(asked, token_logprobs(logits[asked], [out[i] for i in asked], tops), strict=True):
                logprobs[i] = item
        return Sampled(out, logprobs, failures)

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
        """Without waiting for the device's earlier work."""
        return values.to(self.device, non_blocking=True)


def token_logprobs(logits: Tensor, token_ids: list[int], tops: list[int]) -> list[TokenLogprob]:
    """Log-probabilities of one id a row and of its `tops` best. logits [R, V] fp32, before any setting."""
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
