"""Rank 0's sampler: turns a step's logits into tokens and log-probabilities, by each slot's own settings."""

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
    """What one slot's sequence needs. seen [V] bool and counts [V] fp32 exist where a penalty reads them."""

    sampling: SamplingParams
    prompt_tokens: int
    matcher: Matcher | None = None
    seen: Tensor | None = None
    counts: Tensor | None = None

    @property
    def plain(self) -> bool:
        """The logits are used as they come."""
        s = self.sampling
        return self.seen is None and not s.logit_bias and not (s.min_tokens and s.stop_token_ids)

    def may_end(self, position: int) -> bool:
        """Whether a stop token may stand at a position."""
        return position - self.prompt_tokens >= self.sampling.min_tokens


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

    def admit(self, admit: Admit) -> None:
        """A sequence takes a slot."""
        slot = SlotSampler(admit.sampling, admit.prompt_tokens)
        s = admit.sampling
        self._floats[:, admit.slot] = self._sent(torch.tensor((s.temperature, s.top_p, s.min_p)))
        self._integers[:, admit.slot] = self._sent(torch.tensor((s.top_k, s.seed)))
        if admit.token_ids:
            ids = torch.tensor(admit.token_ids, device=self.device)
            slot.seen = torch.zeros(self.vocab, dtype=torch.bool, device=self.device)
            slot.seen[ids] = True
            slot.counts = torch.bincount(ids[admit.prompt_tokens :], minlength=self.vocab).float()
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
        adjusted = logits
        if not all(r.plain for r in rows):
            adjusted = torch.stack([self._adjust(logits[i], r, positions[i]) for i, r in enumerate(rows)])
        if mask is not None:
            adjusted = apply_bitmask(adjusted, mask)
        if any(r.sampling.temperature > 0 for r in rows):
            tokens = self._draw(adjusted, slots, positions)
        else:
            tokens = torch.argmax(adjusted, dim=-1)
        out: list[int] = tokens.tolist()
        for row, token in zip(rows, out, strict=True):
            if row.seen is not None and row.counts is not None:
                row.seen[token] = True
                row.counts[token] += 1
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

    def _adjust(self, logits: Tensor, row: SlotSampler, position: int) -> Tensor:
        s = row.sampling
        if row.seen is not None and row.counts is not None:
            one = torch.tensor(
                [[s.repetition_penalty], [s.presence_penalty], [s.frequency_penalty]], device=self.device
            )
            logits = penalize(logits[None], row.seen[None], row.counts[None], one[0], one[1], one[2])[0]
        else:
            logits = logits.clone()
        for token, bias in s.logit_bias:
            logits[token] += bias
        if not row.may_end(position):
            logits[list(s.stop_token_ids)] = float("-inf")
        return logits

    def _draw(self, logits: Tensor, slots: list[int], positions: list[int]) -> Tensor:
        at, places = self._sent(torch.tensor((slots, positions)))
        temperature, top_p, min_p = self._floats.index_select(1, at)
        top_k, seeds = self._integers.index_select(1, at)
        return sample(logits, temperature, top_k, top_p, min_p, seeds, places)

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
