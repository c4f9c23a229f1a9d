"""Predicts the times of decode steps of the released FP8 model on one H200, as tables in Markdown.

`python -m benchmarks.kernels --floors` prints them.
"""

from dataclasses import replace

from benchmarks.ceilings import H200, LAUNCH
from benchmarks.decode import MODELS, QUANTIZATION, limit_s
from benchmarks.kernel_case import STREAMING
from benchmarks.launches import step_launches
from planner.model import RELEASED, load_model
from planner.work import Step, work
from workers.model.config import LingConfig

# Seconds between two steps: the leader's, measured on a CPU with a rank that answers at once, and the rank's, in which
# it fills a graph's inputs and reads its tokens.
_LOOP = 0.4e-3
# The number of experts changes no count of launches; few of them make counting fast.
_EXPERTS = 16
_COUNTED = ((1, 1), (4, 1), (1, 8), (1, 32), (1, 64), (1, 128))
_CONTEXTS = {1024: (1, 8, 32, 64, 128), 32768: (1, 8, 32, 64, 128), 131072: (1, 8, 32)}


def expected() -> None:
    """Print a table of the launches of each part of a step, then a table of the expected times."""
    config = replace(
        LingConfig.load(MODELS / RELEASED, {"quantization_config": QUANTIZATION["fp8"]}), num_experts=_EXPERTS
    )
    counts = {
        at: {name: seen.total() for name, seen in step_launches(config, *at).items() if name != "all"}
        for at in _COUNTED
    }
    print("| launches of | " + " | ".join(f"TP {tp}, batch {batch}" for tp, batch in _COUNTED) + " |")
    print("|---" * (1 + len(_COUNTED)) + "|")
    for name in counts[_COUNTED[0]]:
        print(f"| {name} | " + " | ".join(str(counts[at][name]) for at in _COUNTED) + " |")
    totals = {at: sum(parts.values()) for at, parts in counts.items()}
    print("| a step | " + " | ".join(str(totals[at]) for at in _COUNTED) + " |")
    print()

    model = load_model(RELEASED, "fp8")
    print("| batch | context | weights, GB | states, GB | latents, GB | limit, ms | tokens/s at it ", end="")
    print("| launches | expected, ms | tokens/s |")
    print("|---" * 10 + "|")
    for context, batches in _CONTEXTS.items():
        for batch in batches:
            done = work(model, Step(batch, 1, context, batch), 1)
            limit = limit_s(done, H200)
            took = limit / STREAMING + totals[1, batch] * LAUNCH + _LOOP
            sizes = " | ".join(f"{size / 1e9:.2f}" for size in (done.weights, done.states, done.latents))
            print(
                f"| {batch} | {context} | {sizes} | {limit * 1e3:.2f} | {batch / limit:.0f} "
                f"| {totals[1, batch]} | {took * 1e3:.2f} | {batch / took:.0f} |"
            )
    print()
