"""Measures what speculation gains on ling-nano, with 1, 2, 3 and an adaptive number of drafts, against none.

`python -m benchmarks.speculation`.
The bare engine answers held-out dialogues of the corpus greedily, with one stream and with several, and is measured
from their first tokens on. All settings run in turn within each round, so that the machine's state is the same for
them. A table gives the median over rounds of each setting's ratio to no drafts, in CPU time (which other processes
hardly change) and in wall time, and the share of accepted drafts by place. The answers must be the same.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from training import cases
from training.batches import Encoder
from wire.protocol import SamplingParams
from workers.config import WorkerConfig
from workers.rank.engine import Engine

_MODEL = Path(__file__).parents[1] / "checkpoints" / "ling-nano"
_STREAMS = (1, 4, 16)
_SETTINGS: tuple[int | str, ...] = ("off", 1, 2, 3, "auto")
_END = 1269


@dataclass(frozen=True, slots=True)
class Round:
    """One run of all prompts: CPU seconds, wall seconds, number of sampled tokens, and the answers' token ids."""

    cpu: float
    wall: float
    tokens: int
    answers: tuple[tuple[int, ...], ...]


def prompts(count: int) -> list[list[int]]:
    """The prompts of the first assistant turns of `count` held-out dialogues, as token ids."""
    encoder = Encoder(Tokenizer.from_file(str(_MODEL / "tokenizer.json")))
    out = []
    for dialogue in cases.dialogues(count):
        ids, spoken = encoder(dialogue)
        out.append(list(ids[: spoken.index(True)]))
    return out[:count]


def run(engine: Engine, asked: list[list[int]], streams: int, tokens: int) -> Round:
    """Answer all prompts, `streams` at once, and measure from when all of these have their first token."""
    sampling = SamplingParams(max_tokens=tokens, seed=0, temperature=0.0, stop_token_ids=(_END,))
    cpu = wall = 0.0
    sampled = 0
    answers: dict[str, list[int]] = {}
    for at in range(0, len(asked), streams):
        answers |= {engine.add(ids, sampling): [] for ids in asked[at : at + streams]}
        sequences = engine.scheduler.sequences
        while any(not seq.generated for seq in sequences.values()):
            _step(engine, answers)
        began = time.process_time(), time.perf_counter()
        while sequences:
            sampled += _step(engine, answers)
        cpu += time.process_time() - began[0]
        wall += time.perf_counter() - began[1]
    return Round(cpu, wall, sampled, tuple(map(tuple, answers.values())))


def _step(engine: Engine, answers: dict[str, list[int]]) -> int:
    outputs = engine.step()
    for output in outputs:
        answers[output.request_id] += output.token_ids
    return sum(len(output.token_ids) for output in outputs)


def main() -> None:
    """Measure all settings and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128, help="most tokens of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    texts = prompts(asked.prompts)
    print("| streams | drafts | tokens/s of processor | ratio to none, processor | wall | stood, by place |")
    print("|---" * 6 + "|")
    for streams in _STREAMS:
        engines = {
            drafts: Engine(WorkerConfig(str(_MODEL), slots=16, speculate=drafts))  # type: ignore[arg-type]
            for drafts in _SETTINGS
        }
        rounds: dict[int | str, list[Round]] = {drafts: [] for drafts in _SETTINGS}
        for number in range(asked.rounds + 1):
            for drafts, engine in engines.items():
                done = run(engine, texts, streams, asked.tokens)
                if number:  # the first one warms up
                    rounds[drafts].append(done)
        plain = rounds["off"]
        for drafts, mine in rounds.items():
            assert all(a.answers == b.answers for a, b in zip(mine, plain, strict=True)), (
                "speculation changed an answer"
            )
            rate = statistics.median(r.tokens / r.cpu for r in mine)
            cpu, wall = (
                statistics.median(getattr(b, kind) / getattr(a, kind) for a, b in zip(mine, plain, strict=True))
                for kind in ("cpu", "wall")
            )
            totals = engines[drafts].scheduler.drafting.speculation.totals
            stood = ", ".join(f"{a / o:.0%}" for o, a in zip(totals.offered, totals.accepted, strict=True) if o)
            print(f"| {streams} | {drafts} | {rate:.0f} | {cpu:.2f} | {wall:.2f} | {stood} |", flush=True)


if __name__ == "__main__":
    main()
