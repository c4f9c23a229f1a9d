"""Trains ling-nano: `python -m training.train --run build/nano --steps 6000`. A second call goes on where it stopped.

`--ranks 2` trains on two processes, each with its own batches, and averages their gradients.
"""

import argparse
import json
import os
import shutil
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from training import tokenizer as nano_tokenizer
from training.batches import KIND_NAMES, Batch, Encoder, pool
from training.layout import load
from training.model import Nano, Shape
from training.optimizer import Optimizer
from training.ranks import Ranks, on_each
from training.start import initialise

_PROMPT_UNTIL, _PROMPT_SHARE, _PROMPT_WEIGHT = 0.3, 0.25, 0.3
# The MTP layer learns fast, so only one step in three trains it.
_MTP_FROM, _MTP_WEIGHT, _MTP_EVERY = 0.33, 0.3, 3


def rate(step: int, steps: int) -> float:
    """The factor of the learning rates at a step: it rises for 50 steps, stays 1, and falls from 0.3 of the run on."""
    if step < 50:
        return (step + 1) / 50
    return min(1.0, max(0.02, (1 - step / steps) / 0.7))


def losses(
    model: Nano, batch: Batch, progress: float, draft: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Compute a batch's losses.

    progress: the part of the run, 0 to 1. Before 0.3 a random quarter of the prompts' tokens counts too, with a small
    weight, because they teach copying. draft: whether to add the MTP layer's loss, which happens only after a third of
    the run, when hidden states mean something. Returns the loss to minimise, the loss of each token that the assistant
    says, that token's row in the batch, and the MTP loss (0 without).
    """
    hidden = model(batch.ids)
    share = _PROMPT_SHARE if progress < _PROMPT_UNTIL else 0.0
    drawn = torch.rand(batch.ids.shape, generator=generator) < share
    wanted = batch.spoken | (batch.real & drawn)
    wanted[:, 0] = False
    wanted = wanted[:, 1:]
    target = batch.ids[:, 1:][wanted]
    spoken = batch.spoken[:, 1:][wanted]
    each = F.cross_entropy(model.lm_head(hidden[:, :-1][wanted]), target, reduction="none")
    weight = torch.where(spoken, 1.0, _PROMPT_WEIGHT)
    loss = (each * weight).sum() / weight.sum()
    mtp = 0.0
    if draft and progress >= _MTP_FROM:
        later = batch.spoken[:, 2:]
        drafted = model.ahead(batch.ids, hidden)[:, :-1][later]
        mtp_loss = F.cross_entropy(model.lm_head(drafted), batch.ids[:, 2:][later])
        loss = loss + _MTP_WEIGHT * mtp_loss
        mtp = float(mtp_loss.detach())
    rows = torch.arange(len(batch.ids))[:, None].expand_as(wanted)[wanted]
    return loss, each.detach()[spoken], rows[spoken], mtp


class Run:
    """A training run in a folder, which holds its tokenizer, its log and its last checkpoint."""

    def __init__(self, folder: Path, args: argparse.Namespace, ranks: Ranks) -> None:
        self.folder, self.args, self.ranks = folder, args, ranks
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "tokenizer.json"
        if args.start is not None:
            shutil.copyfile(args.start / "tokenizer.json", file)
            self.model = load(args.start)
        else:
            shape = Shape()
            if not file.is_file():
                nano_tokenizer.save(nano_tokenizer.build(shape.vocab_size), file)
            self.model = Nano(shape)
            initialise(self.model, args.seed)
        self.encoder = Encoder(Tokenizer.from_file(str(file)))
        self.optimizer = Optimizer(self.model)
        self.step, self.pool, self.tokens = 0, 0, 0
        if (folder / "last.pt").is_file():
            self._load(torch.load(folder / "last.pt", weights_only=True))
        self.stopping = False
        self.generator = torch.Generator().manual_seed(args.seed + self.step + ranks.rank)

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.state = state["optimizer"]
        self.step, self.pool, self.tokens = state["step"], state["pool"], state["tokens"]

    def stop(self, *_: object) -> None:
        """Make `train` finish the current pool, save, and return. It is a signal handler."""
        self.stopping = True

    def save(self) -> None:
        """Replace the last checkpoint by the present one, at once, so that the file is always whole. Only rank 0."""
        if self.ranks.rank:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state,
            "shape": asdict(self.model.shape),
            "step": self.step,
            "steps": self.args.steps,
            "pool": self.pool,
            "tokens": self.tokens,
        }
        torch.save(state, self.folder / "next.pt")
        os.replace(self.folder / "next.pt", self.folder / "last.pt")

    def train(self) -> None:
        """Train until the run's last step, or until `stop`. It ends after a whole pool, so a restart repeats none."""
        args, started, saved = self.args, time.monotonic(), time.monotonic()
        sums, counts = torch.zeros(len(KIND_NAMES)), torch.zeros(len(KIND_NAMES))
        mtp_mean, drafts, seen, stopping = 0.0, 0, 0, self.stopping
        while self.step < args.steps and not stopping:
            progress = args.begin + (1 - args.begin) * self.step / args.steps
            batches = pool(self.encoder, f"train-{args.seed}", self.pool, progress, args.tokens, args.longest)
            for batch in self.ranks.share(batches):
                draft = self.step % _MTP_EVERY == 0
                loss, each, rows, mtp = losses(self.model, batch, progress, draft, self.generator)
                torch.autograd.backward(loss)
                real, stopping = self.ranks.reduce(self.model, int(batch.real.sum()), self.stopping)
                factor = rate(self.step, args.steps)
                self.optimizer.step(args.rate * factor, args.rate * 0.4 * factor)
                for experts in self.model.experts():
                    experts.rebalance(args.bias_rate * factor)
                kinds = batch.kinds[rows]
                sums.index_add_(0, kinds, each)
                counts.index_add_(0, kinds, torch.ones_like(each))
                mtp_mean, drafts, seen = mtp_mean + mtp, drafts + draft, seen + real
                self.step += 1
                self.tokens += real
                if self.step % 20 == 0 and self.ranks.rank == 0:
                    means = {
                        k: round(float(s / max(c, 1)), 3) for k, s, c in zip(KIND_NAMES, sums, counts, strict=True)
                    }
                    speed = seen / (time.monotonic() - started)
                    line = {
                        "step": self.step,
                        "tokens": self.tokens,
                        "rate": round(factor, 3),
                        "tok/s": round(speed),
                    }
                    line |= means | {"mtp": round(mtp_mean / drafts, 3)}
                    print(json.dumps(line), flush=True)
                    with (self.folder / "log.jsonl").open("a") as log:
                        log.write(json.dumps(line) + "\n")
                    sums.zero_(), counts.zero_()
                    mtp_mean, drafts, seen, started = 0.0, 0, 0, time.monotonic()
            self.pool += 1
            if time.monotonic() - saved > args.save_every:
                self.save()
                saved = time.monotonic()
        self.save()


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("build/nano"), help="the run's folder")
    parser.add_argument("--start", type=Path, help="folder of a checkpoint with whose weights a new run begins")
    parser.add_argument("--steps", type=int, default=6000, help="steps of the whole run")
    parser.add_argument(
        "--begin", type=float, default=0.0, help="share of the curriculum to skip, 0 to 1, with --start"
    )
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a step in each process")
    parser.add_argument("--longest", type=int, default=6000, help="tokens of the longest haystack")
    parser.add_argument(
        "--rate", type=float, default=0.006, help="learning rate of matrices; that of others is 0.4 of it"
    )
    parser.add_argument("--bias-rate", type=float, default=0.005, help="step by which experts' biases are moved")
    parser.add_argument("--save-every", type=float, default=240, help="seconds between checkpoints")
    parser.add_argument("--ranks", type=int, default=1, help="number of processes")
    parser.add_argument("--threads", type=int, default=2, help="threads of each process")
    parser.add_argument("--seed", type=int, default=1, help="of the weights and the corpus")
    args = parser.parse_args()
    on_each(args.ranks, _train, args)


def _train(ranks: Ranks, args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    run = Run(args.run, args, ranks)
    signal.signal(signal.SIGTERM, run.stop)
    run.train()


if __name__ == "__main__":
    main()
