"""Runs a model's ranks as threads of one process on sequences whose logits are known."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from workers.collectives import Collectives, Solo
from workers.collectives.base import SILENT_S
from workers.model.batch import Batch, Caches
from workers.model.config import LingConfig
from workers.model.ling import LingModel, make_caches
from workers.model.weights import load_weights

GOLDEN = Path(__file__).parent.parent / "golden"
CPU = torch.device("cpu")
# Steps of a schedule: (sequence, tokens of it) in batch order.
Step = list[tuple[int, int]]


class ThreadGroup:
    """The group of ranks in one process: what they share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.slots: list[Tensor] = [torch.empty(0)] * size
        self.barrier = threading.Barrier(size, timeout=60)


class ThreadCollectives(Collectives):
    """Collectives between threads; sums in rank order."""

    def __init__(self, group: ThreadGroup, rank: int) -> None:
        self._group = group
        self.rank = rank
        self.size = group.size

    def all_reduce(self, tensor: Tensor) -> Tensor:
        parts = self._exchange(tensor)
        return tensor.copy_(sum(parts[1:], parts[0]))

    def all_gather(self, tensor: Tensor, dim: int) -> Tensor:
        return torch.cat(self._exchange(tensor), dim)

    def barrier(self, patience_s: float = SILENT_S) -> None:
        self._group.barrier.wait(patience_s)

    def close(self) -> None:
        return None

    def _exchange(self, tensor: Tensor) -> list[Tensor]:
        self._group.slots[self.rank] = tensor.clone()
        self._group.barrier.wait()
        parts = list(self._group.slots)
        self._group.barrier.wait()
        return parts


@dataclass(frozen=True)
class Known:
    """A sequence's tokens, prompt then greedy, and the logits after each."""

    tokens: list[int]
    prompt: int
    logits: Tensor


def known_sequences(folder: Path) -> list[Known]:
    """The golden sequences of a checkpoint."""
    data = load_file(folder / "golden.safetensors")
    return [
        Known(
            tokens=torch.cat([data[f"{i}.prompt_ids"], data[f"{i}.greedy_ids"]]).tolist(),
            prompt=len(data[f"{i}.prompt_ids"]),
            logits=torch.cat([data[f"{i}.prompt_logits"], data[f"{i}.greedy_logits"]]),
        )
        for i in range(sum(name.endswith(".prompt_ids") for name in data))
    ]


class Driver:
    """One rank's model with caches full of NaN, and the pages and slots of the sequences on it."""

    def __init__(
        self,
        folder: Path,
        collectives: Collectives,
        sequences: list[Known],
        page_size: int = 16,
        seed: int = 0,
        device: torch.device = CPU,
    ) -> None:
        torch.set_num_threads(1)
        config = LingConfig.load(folder, {})
        self.device = device
        self.model = LingModel(config, collectives, device, torch.float32)
        load_weights(self.model, folder)
        self.known = sequences
        draw = random.Random(seed)
        needs = [-(-len(s.tokens) // page_size) for s in sequences]
        pages = list(range(sum(needs) + 1))
        draw.shuffle(pages)
        # Entries nobody was given point at a page that stays NaN.
        self.spare = pages.pop()
        self.slots = draw.sample(range(len(sequences) + 2), len(sequences))
        self.table = torch.full((len(sequences) + 2, max(needs) + 1), self.spare, dtype=torch.int32)
        for slot, need in zip(self.slots, needs, strict=True):
            self.table[slot, :need] = torch.tensor([pages.pop() for _ in range(need)], dtype=torch.int32)
        self.caches = poisoned(
            make_caches(config, collectives.size, sum(needs) + 1, page_size, len(sequences) + 2, device, torch.float32)
        )
        self.table = self.table.to(device)
        self.done = [0] * len(sequences)

    def step(self, step: Step) -> list[Tensor]:
        """Run one batch; each row's logits [tokens, vocab]."""
        tokens, positions = [], []
        for sequence, count in step:
            at = range(self.done[sequence], self.done[sequence] + count)
            tokens += [self.known[sequence].tokens[i] for i in at]
            positions += at
        counts = tuple(n for _, n in step)
        batch = Batch(
            token_ids=torch.tensor(tokens, device=self.device),
            positions=torch.tensor(positions, device=self.device),
            slots=torch.tensor([self.slots[s] for s, _ in step], device=self.device),
            starts=tuple(self.done[s] for s, _ in step),
            counts=counts,
            page_table=self.table,
        )
        with torch.inference_mode():
            logits = self.model.logits(self.model.forward(batch, self.caches)).cpu()
        for sequence, count in step:
            self.done[sequence] += count
        return list(logits.split(counts))

    def errors(self, schedule: list[Step]) -> float:
        """The largest difference from the known logits over a whole schedule; NaN anywhere makes it NaN."""
        worst = torch.zeros(())
        for step in schedule:
            starts = [self.done[s] for s, _ in step]
            for (sequence, count), start, got in zip(step, starts, self.step(step), strict=True):
                expected = self.known[sequence].logits[start : start + count]
                worst = torch.maximum(worst, (got - expected).abs().max())
        return float(worst)


def poisoned(caches: Caches) -> Caches:
    """Caches whose every value is NaN, as memory used before may be."""
    caches.latent.fill_(float("nan"))
    caches.state.fill_(float("nan"))
    return caches


def rank_errors(name: str, tp: int, schedule: list[Step]) -> list[float]:
    """`Driver.errors` of every rank of a golden checkpoint, ranks being threads."""
    sequences = known_sequences(GOLDEN / name)
    group = ThreadGroup(tp)

    def run(rank: int) -> float:
        collectives = Solo() if tp == 1 else ThreadCollectives(group, rank)
        return Driver(GOLDEN / name, collectives, sequences).errors(schedule)

    with ThreadPoolExecutor(tp) as pool:
        return list(pool.map(run, range(tp)))


def one_by_one(sequences: list[Known]) -> list[Step]:
    """Each prompt whole, then token by token, sequence after sequence."""
    return [
        [(i, n)] for i, known in enumerate(sequences) for n in [known.prompt] + [1] * (len(known.tokens) - known.prompt)
    ]


def mixed(sequences: list[Known], seed: int) -> list[Step]:
    """All sequences in one batch, prompts in uneven chunks, decoding ones beside them, in changing order."""
    draw = random.Random(seed)
    left = [len(s.tokens) for s in sequences]
    done = [0] * len(sequences)
    schedule: list[Step] = []
    while any(left):
        step = []
        for i in draw.sample(range(len(sequences)), len(sequences)):
            prompt_left = max(0, sequences[i].prompt - done[i])
            count = min(draw.choice((0, 1, 2, 5, 11)), prompt_left) if prompt_left else min(1, left[i])
            if count:
                step.append((i, count))
                done[i] += count
                left[i] -= count
        if step:
            schedule.append(step)
    return schedule
