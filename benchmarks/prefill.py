"""Measures how fast one thread computes ling-nano's prompts, in CPU seconds: `python -m benchmarks.prefill`.

The bare engine computes each prompt several times, in steps of 1,024 tokens; the fastest time is printed. CPU seconds
are nearly the same on a busy machine. The file needs only the engine, so it also runs in older commits:
`cd OLD && PYTHONPATH=. python -P NEW/benchmarks/prefill.py NEW/checkpoints/ling-nano`.
"""

import random
import sys
import time
from pathlib import Path

import torch

from wire.protocol import SamplingParams
from workers.config import WorkerConfig
from workers.rank.engine import Engine

_PROMPTS = (552, 8327)
_TIMES = 3
_STEP = 1024
NANO = Path(__file__).parent.parent / "checkpoints" / "ling-nano"


def main(arguments: list[str]) -> None:
    """Measure each prompt length and print a line for it. arguments: optionally the checkpoint's folder."""
    torch.set_num_threads(1)
    engine = Engine(WorkerConfig(arguments[0] if arguments else str(NANO), slots=4, max_step_tokens=_STEP, pages=300))
    made = random.Random(1)
    sampling = SamplingParams(max_tokens=1, temperature=0.0, seed=1)
    for length in _PROMPTS:
        took = []
        for _ in range(_TIMES):
            prompt = tuple(made.randrange(4, 480) for _ in range(length))
            begun = time.process_time()
            engine.generate([prompt], [sampling])
            took.append(time.process_time() - begun)
        print(f"{length:>6} tokens: {min(took):.2f} CPU s, {length / min(took):,.0f} tokens a CPU second")


if __name__ == "__main__":
    main(sys.argv[1:])
