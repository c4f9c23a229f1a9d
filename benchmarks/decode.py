"""Measures a whole model's decode and prefill steps on one GPU, without Ray.

`python -m benchmarks.decode --config ling-2.6-flash --dtype fp8 --load synthetic`

It gives a worker's runner the step plans that a leader would give it, and starts each step before it reads the tokens
of the one before; "read first" is the time of steps that wait for them. Contexts are not computed: latent pages and
linear states hold random numbers, and sequences begin to decode after them. What does not fit in memory is left out and
listed. Fractions are of the limit that the step's bytes and operations set, with the bandwidth and rates measured in
the same run. `--device cpu` runs small configs, without fractions.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.ceilings import LAUNCH, Ceilings, measure_ceilings, seconds
from benchmarks.decode_parts import parts
from benchmarks.decode_report import Decoded, Prefilled, Report, Split, markdown
from benchmarks.kernel_case import STREAMING
from benchmarks.launches import step_launches
from planner.counts import weight_bytes
from planner.errors import PlanError
from planner.model import FORMATS, RELEASED, Model, load_model
from planner.work import Step, Work, work
from wire.protocol import SamplingParams
from workers.collectives.base import Solo
from workers.config import WorkerConfig
from workers.rank.build import BuiltRank, build_rank
from workers.schedule.step import Admit, Ahead, Row, StepPlan, StepResult

PAGE = 64
_WARM = 8
_PREFILLS = 3
MODELS = Path(__file__).parent.parent / "planner/models"
# `quantization_config` of a checkpoint in each format.
QUANTIZATION: dict[str, dict[str, Any] | None] = {
    "bf16": None,
    "fp8": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
    "int4": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "experts": {
                "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
            }
        },
    },
    "fp8-channel": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {
            "all": {"weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}}
        },
    },
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128},
}


def limit_s(done: Work, ceilings: Ceilings) -> float:
    """The shortest time of a step, in seconds. done: its work. ceilings: the GPU's limits."""
    computing = done.bf16_flops / ceilings.rates["bf16"] + done.fp8_flops / ceilings.rates["fp8"]
    return max(done.bytes / ceilings.bandwidth, computing)


class Bench:
    """One model on one device, and its report."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self._asked = asked
        self._cuda = asked.device == "cuda"
        self._begun = time.monotonic()
        self._model: Model = load_model(asked.config, asked.dtype)
        # The limits are measured before the model fills the memory.
        self._ceilings = measure_ceilings() if self._cuda else None
        if self._cuda:
            torch.cuda.empty_cache()
        self.report = Report(
            machine=machine(asked.device),
            model={"config": asked.config, "weights": self._model.weights, "load": asked.load, "graphs": asked.graphs},
            ceilings=asdict(self._ceilings) if self._ceilings else None,
        )
        self._built = self._build()

    def run(self) -> None:
        """Measure everything that was asked for."""
        asked = self._asked
        for context in asked.context:
            for batch in asked.batch:
                self._guarded(f"batch {batch} at {context}", partial(self._decode, batch, context))
        for tokens in asked.prefill:
            self._guarded(f"prefill of {tokens}", partial(self._prefill, tokens))

    def _build(self) -> BuiltRank:
        asked = self._asked
        folder = MODELS / asked.config if asked.config == RELEASED else Path(asked.config)
        slots, longest = max(asked.batch), max(*asked.context, *asked.prefill)
        # Columns of the runner's page table.
        self._width = -(-(longest + 1) // PAGE)
        needed = sum(weight_bytes(self._model, mtp=False).values())
        if self._cuda and needed > (free := torch.cuda.mem_get_info()[0]):
            raise PlanError(f"the weights take {needed / 1e9:.1f} GB, the GPU has {free / 1e9:.1f} GB free")
        self._note(f"weights: {needed / 1e9:.2f} GB in {self._model.weights}")
        config = WorkerConfig(
            model=str(folder),
            device=asked.device,
            page_size=PAGE,
            # On a GPU, as many as fit; on a CPU, enough for the largest measurement.
            pages=None if self._cuda else slots * -(-longest // PAGE),
            slots=slots,
            max_model_len=longest,
            max_step_tokens=max(slots, *asked.prefill),
            model_overrides={"quantization_config": QUANTIZATION[asked.dtype]} if asked.dtype else {},
            load=asked.load,
            cuda_graphs=asked.graphs,
        )
        begun = time.monotonic()

        def say(line: str) -> None:
            self._note(line)
            self.report.loaded = {"seconds": time.monotonic() - begun}
            if self._cuda:
                self.report.loaded |= {
                    "bytes": torch.cuda.memory_allocated(),
                    "peak_bytes": torch.cuda.max_memory_allocated(),
                }

        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        built = build_rank(config, Solo(), None, lambda event: None, say)
        self.report.loaded["ready_seconds"] = time.monotonic() - begun
        with torch.inference_mode():
            built.caches.latent.normal_()
            built.caches.state.normal_()
        self._note(f"{built.pages} pages of {PAGE} tokens beside {slots} slots")
        self._save()
        return built

    def _guarded(self, what: str, measure: Callable[[], None]) -> None:
        """Run a measurement, or note that it is left out because time or memory does not suffice."""
        spent = time.monotonic() - self._begun
        if self._asked.seconds is not None and spent > self._asked.seconds:
            self._skip(what, f"{spent:.0f} s are spent of {self._asked.seconds:.0f}")
        else:
            try:
                measure()
            except torch.cuda.OutOfMemoryError as error:
                torch.cuda.empty_cache()
                self._skip(what, f"out of memory: {str(error).splitlines()[0]}")
        self._save()

    def _prefill(self, tokens: int) -> None:
        pages = tuple(self._pages(1, tokens)[0].tolist())
        ids = torch.randint(self._built.model.config.vocab_size, (tokens,)).tolist()
        row = Row(0, 0, tuple(ids), 0, pages, True)
        plan = StepPlan(step=1, admits=(_admit(0),), rows=(row,))
        times = [self._stepped(plan, 1, ahead=False)[0] for _ in range(1 + _PREFILLS)]
        took = statistics.median(times[1:])
        limit, fraction = self._limit(Step(1, tokens, 0, 1), took)
        self.report.prefilled.append(Prefilled(tokens, took * 1e3, tokens / took, limit, fraction))
        self._note(f"prefill of {tokens}: {tokens / took:.0f} tokens/s{_of_limit(fraction)}")

    def _decode(self, batch: int, context: int) -> None:
        each = -(-context // PAGE)
        if batch * each > self._built.pages:
            self._skip(
                f"batch {batch} at {context}",
                f"needs {batch * each} pages, {self._built.pages} fit beside the weights and states",
            )
            return
        steps = min(self._asked.steps, context - _WARM - 1)
        pages = self._pages(batch, context)
        listed = pages.tolist()
        first = context - _WARM - steps
        rows = tuple(Row(i, first, (i % 7,), 0, tuple(listed[i]), True) for i in range(batch))
        begin = StepPlan(step=1, admits=tuple(_admit(i) for i in range(batch)), rows=rows)
        waiting = self._stepped(begin, _WARM + steps, ahead=False)[_WARM:]
        times = self._stepped(begin, _WARM + steps, ahead=True)[_WARM:]
        took = statistics.median(times)
        limit, fraction = self._limit(Step(batch, 1, context, batch), took)
        slowest = max(times) * 1e3
        expected = None if limit is None else limit / STREAMING + self._launches(batch) * LAUNCH * 1e3
        self.report.decoded.append(
            Decoded(
                batch,
                context,
                steps,
                took * 1e3,
                slowest,
                statistics.median(waiting) * 1e3,
                batch / took,
                expected,
                limit,
                fraction,
            )
        )
        self._note(
            f"batch {batch} at {context}: {batch / took:.1f} tokens/s, {took * 1e3:.3f} ms a step{_of_limit(fraction)}"
        )
        if context == min(self._asked.context):
            self._split(pages, context, took)

    def _stepped(self, begin: StepPlan, steps: int, *, ahead: bool) -> list[float]:
        """Seconds of each of so many steps. ahead: the next one is launched before a step's tokens are read."""
        ends = [time.perf_counter()]

        def told(result: StepResult) -> None:
            ends.append(time.perf_counter())

        runner = self._built.runner
        runner.start(begin, told)
        for step in range(begin.step + 1, begin.step + steps):
            if not (ahead and runner.runs_ahead):
                runner.finish()
            runner.start(StepPlan(step=step, ahead=Ahead((), ())), told)
        runner.finish()
        return [end - begun for begun, end in pairwise(ends)]

    def _split(self, pages: Tensor, context: int, step_s: float) -> None:
        timer = seconds if self._cuda else _host_seconds
        with torch.inference_mode():
            found = {
                name: timer([run]) * 1e3
                for name, run in parts(self._built.model, self._built.caches, context, pages, self._width).items()
            }
        rest = step_s * 1e3 - sum(found.values())
        self.report.splits.append(Split(pages.shape[0], context, found, rest))
        self._note("    " + ", ".join(f"{name} {ms:.3f}" for name, ms in found.items()) + f", rest {rest:.3f} ms")

    def _pages(self, batch: int, context: int) -> Tensor:
        """Page numbers [batch, pages of a sequence], all different and scattered, as in a worker after a while."""
        each = -(-context // PAGE)
        device = self._built.caches.latent.device
        return torch.randperm(self._built.pages)[: batch * each].view(batch, each).to(device, torch.int32)

    def _launches(self, batch: int) -> int:
        """The number of launches of a step, counted on meta tensors. The number of experts does not change it."""
        config = replace(self._built.model.config, num_experts=min(16, self._built.model.config.num_experts))
        counted = step_launches(config, 1, batch)
        return sum(counted[part].total() for part in ("all", "head", "sampling"))

    def _limit(self, step: Step, took_s: float) -> tuple[float | None, float | None]:
        if self._ceilings is None:
            return None, None
        limit = limit_s(work(self._model, step, 1), self._ceilings)
        return limit * 1e3, limit / took_s

    def _skip(self, what: str, why: str) -> None:
        self.report.skipped.append(f"{what}: {why}")
        self._note(f"left out: {what}: {why}")

    def _note(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def _save(self) -> None:
        if self._asked.json is not None:
            self._asked.json.write_text(json.dumps(asdict(self.report), indent=1) + "\n")


def _admit(slot: int) -> Admit:
    return Admit(slot, SamplingParams(max_tokens=1 << 20, seed=slot), (), 1)


def _host_seconds(calls: list[Callable[[], object]]) -> float:
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        for call in calls:
            call()
        times.append((time.perf_counter() - begun) / len(calls))
    return statistics.median(times)


def _of_limit(fraction: float | None) -> str:
    return "" if fraction is None else f", {fraction:.0%} of the limit"


def machine(device: Literal["cpu", "cuda"]) -> dict[str, str]:
    """The device and the versions of torch and triton, for the report."""
    import triton

    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"device": name, "torch": torch.__version__, "triton": triton.__version__}


def main(arguments: list[str]) -> None:
    """Parse the command line, measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=RELEASED, help=f"{RELEASED}, or a folder with a config.json")
    parser.add_argument("--dtype", choices=FORMATS, help="the weights' format; without it, the config's")
    parser.add_argument("--load", choices=("synthetic", "auto"), default="synthetic", help="auto: the folder's weights")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 64, 128])
    parser.add_argument("--context", type=int, nargs="+", default=[1024, 32768, 131072], help="tokens of each sequence")
    parser.add_argument("--prefill", type=int, nargs="+", default=[8192], help="prompts, each in one step")
    parser.add_argument("--steps", type=int, default=64, help="timed decode steps of each")
    parser.add_argument("--graphs", choices=("auto", "off"), default="auto")
    parser.add_argument("--seconds", type=float, help="begin no measurement after so many seconds")
    parser.add_argument("--json", type=Path, help="also write the report to this file, after each measurement")
    asked = parser.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks.decode finds no CUDA device; --device cpu runs small configs without one")
    if min(*asked.batch, *asked.prefill, asked.steps) < 1 or min(asked.context) < _WARM + 2:
        sys.exit(f"benchmarks.decode: sizes begin at 1, contexts at {_WARM + 2}")
    try:
        bench = Bench(asked)
    except (PlanError, ValueError) as error:
        sys.exit(f"benchmarks.decode: {error}")
    bench.run()
    print("\n".join(markdown(asdict(bench.report))))


if __name__ == "__main__":
    main(sys.argv[1:])
