"""Trains one model on several processes: each takes its share of the batches, and their gradients are averaged."""

import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

from training.batches import Batch
from training.model import Nano


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's rank, and the number of processes."""

    rank: int = 0
    count: int = 1

    def share(self, batches: list[Batch]) -> list[Batch]:
        """This process's share of the batches. All processes get the same number; left-over batches are dropped."""
        whole = len(batches) // self.count * self.count
        return batches[self.rank : whole : self.count]

    def reduce(self, model: Nano, tokens: int, stopping: bool) -> tuple[int, bool]:
        """Average the gradients and add up the experts' loads over all processes.

        tokens: of this process's batch. stopping: whether this process is to stop. Returns all processes' tokens, and
        whether any process is to stop.
        """
        if self.count == 1:
            return tokens, stopping
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        told = torch.tensor([float(tokens), float(stopping)])
        every = [*grads, *(experts.load for experts in model.experts()), told]
        together = torch.cat([t.flatten() for t in every])
        dist.all_reduce(together)
        together[: sum(g.numel() for g in grads)] /= self.count
        for target, part in zip(every, torch.split(together, [t.numel() for t in every]), strict=True):
            target.copy_(part.view_as(target))
        return int(told[0]), bool(told[1])


def on_each(count: int, work: Callable[..., None], *args: object) -> None:
    """Run work(ranks, *args) on `count` processes, or in this process if count is 1. SIGTERM is passed on to all.

    RuntimeError if one of them failed; the others end with it.
    """
    if count == 1:
        work(Ranks(), *args)
        return
    spawn = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as folder:
        started = [spawn.Process(target=_enter, args=(i, count, folder, work, args)) for i in range(count)]
        for process in started:
            process.start()

        def stop(*_: object) -> None:
            for process in started:
                process.terminate()

        signal.signal(signal.SIGTERM, stop)
        for process in started:
            process.join()
    if any(process.exitcode for process in started):
        raise RuntimeError(f"training processes ended with {[process.exitcode for process in started]}")


def _enter(rank: int, count: int, folder: str, work: Callable[..., None], args: tuple[object, ...]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
    work(Ranks(rank, count), *args)
    dist.destroy_process_group()
