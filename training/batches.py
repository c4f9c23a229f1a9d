"""Makes batches of tokens from the corpus, by the curriculum: the share of each skill in each part of a run."""

from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.corpus import KINDS, Dialogue, dialogue, haystack
from training.template import ROLE_END, render

_Row = tuple[list[int], list[bool], int]
KIND_NAMES = tuple(KINDS)
_POOL = 8
_FIRST = {"copying": 0.45, "agent": 0.08, "choosing": 0.1, "json": 0.14, "facts": 0.12, "needle": 0.11}
_LATER = {"copying": 0.05, "agent": 0.34, "choosing": 0.32, "json": 0.17, "facts": 0.07, "needle": 0.05}
_LAST = {"copying": 0.03, "agent": 0.25, "choosing": 0.2, "json": 0.45, "facts": 0.05, "needle": 0.02}


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of dialogues.

    ids [B, T]: token ids, padded at the end. spoken [B, T]: whether the assistant says the token, its end mark
    included. real [B, T]: whether it is not padding. kinds [B]: each dialogue's index in KIND_NAMES.
    """

    ids: Tensor
    spoken: Tensor
    real: Tensor
    kinds: Tensor


class Encoder:
    """Turns a dialogue into its token ids and, for each, whether the assistant says it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._end = tokenizer.token_to_id(ROLE_END)
        self._open: list[int] = tokenizer.encode("<role>ASSISTANT</role>").ids

    def __call__(self, made: Dialogue) -> tuple[list[int], list[bool]]:
        ids: list[int] = self._tokenizer.encode(render(made.messages, made.tools)).ids
        spoken = [False] * len(ids)
        speaking, width = False, len(self._open)
        for i, token in enumerate(ids):
            spoken[i] = speaking
            if token == self._end:
                speaking = False
            elif not speaking and ids[max(0, i - width + 1) : i + 1] == self._open:
                speaking = True
        return ids, spoken


def mixture(progress: float) -> dict[str, float]:
    """The share of each kind at a part of a run, 0 to 1: first mostly copying, then agents, last what is hardest."""
    if progress > 0.85:
        return _LAST
    slide = min(1.0, progress / 0.12)
    return {kind: _FIRST[kind] * (1 - slide) + _LATER[kind] * slide for kind in KIND_NAMES}


def pool(encoder: Encoder, seed: str, number: int, progress: float, tokens: int, longest: int) -> list[Batch]:
    """Pool `number` of a run: about eight batches of up to `tokens` tokens, each of dialogues of similar length.

    progress: the part of the run, 0 to 1. Beyond 0.6 each pool has one more batch, a haystack of up to about `longest`
    tokens.
    """
    random = Random(f"{seed}:pool:{number}")
    shares = mixture(progress)
    held: list[_Row] = []
    total, index = 0, number * 10_000
    while total < _POOL * tokens:
        made = dialogue(seed, index, shares)
        index += 1
        ids, spoken = encoder(made)
        if len(ids) <= tokens:
            held.append((ids, spoken, KIND_NAMES.index(made.kind)))
            total += len(ids)
    held.sort(key=lambda item: len(item[0]))
    batches: list[Batch] = []
    rows: list[_Row] = []
    for item in held:
        if (len(rows) + 1) * len(item[0]) > tokens:
            batches.append(_stack(rows))
            rows = []
        rows.append(item)
    batches.append(_stack(rows))
    if progress > 0.6:
        # A filler sentence has about 10 tokens.
        sentences = int(random.uniform(0.1, 1.0) ** 1.5 * longest / 10.5)
        ids, spoken = encoder(haystack(random, sentences=max(20, sentences)))
        batches.append(_stack([(ids, spoken, KIND_NAMES.index("needle"))]))
    random.shuffle(batches)
    return batches


def _stack(rows: list[_Row]) -> Batch:
    length = max(len(ids) for ids, _, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    spoken, real = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for i, (row, mask, _) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        spoken[i, : len(row)] = torch.tensor(mask)
        real[i, : len(row)] = True
    return Batch(ids, spoken, real, torch.tensor([kind for _, _, kind in rows]))
