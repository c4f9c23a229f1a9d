"""Runs scheduler and runner in one process, without sockets or Ray, for tests and benchmarks."""

import array
import itertools
import queue
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path

from wire.protocol import Finish, SamplingParams, SeqOutput, TokenLogprob
from workers.cache.opening import open_disk
from workers.collectives.base import Solo
from workers.config import WorkerConfig
from workers.model.files import weights_id
from workers.rank.build import build_rank
from workers.schedule.builder import InFlight
from workers.schedule.scheduler import Scheduler
from workers.schedule.sequence import Sequence
from workers.schedule.step import FetchFailed, Received, StepPlan, StepResult, WriteFailed, Written
from workers.sizes import limits_of


@dataclass(frozen=True, slots=True)
class Completion:
    """One request's whole answer."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    prompt_logprobs: tuple[TokenLogprob | None, ...]
    finish: Finish


class Engine:
    """A worker's decisions and computation, called directly. One rank: `config.tp` must be 1."""

    def __init__(self, config: WorkerConfig) -> None:
        if config.tp != 1:
            raise ValueError(f"the bare engine runs one rank in this process, tp is {config.tp}")
        self._events: queue.SimpleQueue[Received | FetchFailed | Written | WriteFailed] = queue.SimpleQueue()
        built = build_rank(config, Solo(), None, self._events.put)
        self.model_config = built.model.config
        self.scheduler = Scheduler(limits_of(config, built.model.config, built.pages))
        self.disk = open_disk(config, built.model.config, weights_id(Path(config.model)), self.scheduler.cache)
        self._runner = built.runner
        self._grammars = built.grammars
        self.host = built.host
        self._ids = itertools.count()
        # The next step, if it was planned ahead. The plan is None once the runner has started it.
        self._next: tuple[StepPlan | None, InFlight] | None = None
        self._told: list[StepResult] = []

    def generate(self, prompts: Seq[Seq[int]], sampling: Seq[SamplingParams]) -> list[Completion]:
        """Run all prompts together, each with its own sampling; returns the answers in the same order."""
        ids = [self.add(p, s) for p, s in zip(prompts, sampling, strict=True)]
        outputs: dict[str, list[SeqOutput]] = {i: [] for i in ids}
        while self.scheduler.sequences:
            for output in self.step():
                outputs[output.request_id].append(output)
        return [_join(outputs[i]) for i in ids]

    def add(self, prompt: Seq[int], sampling: SamplingParams, boundaries: tuple[int, ...] = ()) -> str:
        """Queue one prompt; its id. GrammarError if its grammar can't be compiled.

        boundaries: positions at which its turns end, for the prefix cache.
        """
        if sampling.grammar is not None:
            self._grammars.compile(sampling.grammar)
        request_id = str(next(self._ids))
        self.scheduler.add(
            Sequence(
                request_id=request_id, tokens=array.array("i", prompt), prompt_tokens=len(prompt), sampling=sampling,
                priority=0, order=0, handoff=False, source=None, arrived=time.monotonic(), boundaries=boundaries,
            )
        )  # fmt: skip
        return request_id

    def step(self) -> list[SeqOutput]:
        """Run one step over all queued and running sequences; the next one is planned meanwhile, as a leader does."""
        self._take_events(wait=False)
        if self._next is None:
            step = self.scheduler.plan(time.monotonic())
            if step.plan.empty:
                # All sequences wait for host memory.
                self._take_events(wait=bool(self.scheduler.sequences))
                return []
            self._next = step.plan, step
        plan, step = self._next
        if plan is not None:
            self._runner.start(plan, self._told.append)
        ahead = self.scheduler.plan_ahead(step, time.monotonic())
        started = ahead is not None and self._runner.runs_ahead
        if ahead is not None and started:
            self._runner.start(ahead.plan, self._told.append)
        else:
            self._runner.finish()
        result = self._told.pop(0)
        outputs = self.scheduler.update(step, result, time.monotonic())
        if ahead is None:
            self._next = None
            return outputs
        self._next = None if started else ahead.plan, self.scheduler.follow(ahead, step, result)
        if not self.scheduler.sequences:
            outputs += self.step()
        return outputs

    def _take_events(self, wait: bool) -> None:
        while wait or not self._events.empty():
            event = self._events.get()
            wait = False
            if isinstance(event, Received):
                self.scheduler.install(event.request_id, (), time.monotonic())
            elif isinstance(event, WriteFailed):
                self.scheduler.cache.write_failed(event.file)
            elif isinstance(event, FetchFailed):
                self.scheduler.not_coming(event.request_id, damaged=True)


def _join(outputs: list[SeqOutput]) -> Completion:
    finish = outputs[-1].finish
    assert finish is not None
    return Completion(
        token_ids=tuple(t for o in outputs for t in o.token_ids),
        logprobs=tuple(p for o in outputs for p in o.logprobs),
        prompt_logprobs=tuple(p for o in outputs for p in o.prompt_logprobs),
        finish=finish,
    )
