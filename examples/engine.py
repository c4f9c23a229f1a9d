"""The engine alone, in one process without Ray or HTTP: `python examples/engine.py [FOLDER]`; default ling-nano."""

import sys
from pathlib import Path

from router.text.tokenizer import Tokenizer
from wire.protocol import SamplingParams
from workers.config import WorkerConfig
from workers.rank.engine import Engine

NANO = Path(__file__).parents[1] / "checkpoints" / "ling-nano"


def main(folder: str) -> None:
    """Answer two prompts in one batch, greedily, and print the answers."""
    tokenizer = Tokenizer(folder)
    engine = Engine(WorkerConfig(model=folder))
    turns = [f"<role>HUMAN</role>{said}<|role_end|><role>ASSISTANT</role>" for said in ("Hello", "Who are you?")]
    prompts = [tokenizer.encode(turn, False) for turn in turns]
    greedy = SamplingParams(max_tokens=32, seed=0, temperature=0, stop_token_ids=tokenizer.eos_ids)
    for answer in engine.generate(prompts, [greedy] * len(prompts)):
        print(f"{tokenizer.decode(answer.token_ids)!r} ({answer.finish})")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(NANO))
