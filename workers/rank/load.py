"""Loads a rank's weights from a live worker that holds them, from the checkpoint's files, or makes them up."""

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from workers.config import Lender, WorkerConfig
from workers.model.files import WeightError, weights_id
from workers.model.ling import LingModel
from workers.model.load_plan import lacks_mtp
from workers.model.loader import Loader, Progress, raise_problems
from workers.model.shared import Borrowed, Recorded, plan_of
from workers.model.synthetic import Synthetic
from workers.model.verify import verify
from workers.model.weights import load_from, open_checkpoint
from workers.transfer.endpoint import Transfers
from workers.transfer.lending import Weights

Say = Callable[[str], None]
# Arguments: the stage of loading, the bytes loaded so far, and the total bytes.
Tell = Callable[[str, int, int], None]
_PROGRESS_S = 2.0


def silent(stage: str, done: int, total: int) -> None:
    """For callers that show no progress."""


class _Shown:
    """Reports progress every few seconds and at the end: each rank tells it, and rank 0 also writes a line."""

    def __init__(self, say: Say | None, tell: Tell, stage: str, what: str) -> None:
        self._say, self._tell, self._stage, self._what = say, tell, stage, what
        self._next = time.monotonic() + _PROGRESS_S

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now >= self._next or progress.done == progress.total:
            self._next = now + _PROGRESS_S
            self._tell(self._stage, progress.done, progress.total)
            if self._say is not None:
                self._say(f"{self._what}: {progress}")


def load_weights(
    config: WorkerConfig, model: LingModel, transfers: Transfers | None, say: Say, tell: Tell = silent
) -> None:
    """Fill the model, then lend what it holds to others. Rank 0 tells `say` how it goes, a line at a time; all `tell`.

    WeightError for what the files hold, LinkBroken if the lender is gone.
    """

    def shown(stage: str, what: str) -> _Shown:
        return _Shown(None if model.rank else say, tell, stage, f"{what}, rank 0 of {model.tp}")

    if config.load == "synthetic":
        source = Synthetic(model.config.quantization)
        load_from(model, source, shown("making weights", "synthetic weights"))
    elif config.lender is not None and transfers is not None:
        _borrow(config.lender, model, transfers, shown)
    else:
        _read(config, model, transfers, say, shown)


def _read(
    config: WorkerConfig, model: LingModel, transfers: Transfers | None, say: Say, shown: Callable[[str, str], _Shown]
) -> None:
    folder = Path(config.model)
    if config.verify:
        verify(folder, model.rank, model.tp, shown("verifying weights", f"verifying {folder.name}"))
    with closing(Recorded(open_checkpoint(folder, model.rank, model.tp))) as source:
        if lacks_mtp(source, model.config):
            promised = f"{folder}: config.json promises {model.config.mtp_layers} MTP layer(s), its files hold none"
            if isinstance(config.speculate, int):
                raise WeightError(f"{promised}: set speculate to auto or off")
            model.forgo_drafts()
            if model.rank == 0:
                say(f"{promised}: serving without speculation")
        loader = Loader(source)
        model.load(loader)
        loader.run(shown("loading weights", f"weights of {folder.name}"))
    if transfers is not None:
        _lend(weights_id(folder, version=config.version), loader, source.catalogue(), transfers)


def _borrow(lender: Lender, model: LingModel, transfers: Transfers, shown: Callable[[str, str], _Shown]) -> None:
    progress = shown("taking weights from a worker", f"weights from {lender.worker_id}")
    host, port = lender.addresses[model.rank]
    start = time.monotonic()
    with closing(transfers.borrow(host, port, lender.weights_id)) as link:
        source = Borrowed(link.catalogue)
        if lacks_mtp(source, model.config):
            model.forgo_drafts()
        loader = Loader(source)
        model.load(loader)
        raise_problems(loader.problems)
        if plan_of(loader.reads) != link.plan:
            raise WeightError(f"{lender.worker_id} lays its weights out otherwise: it runs another version")
        done = 0
        for read in loader.reads:
            link.fill(read.out)
            done += read.bytes
            progress(Progress(done, link.total, time.monotonic() - start))
    loader.finish()
    _lend(lender.weights_id, loader, link.catalogue, transfers)


def _lend(identity: str, loader: Loader, catalogue: bytes, transfers: Transfers) -> None:
    tensors = tuple(read.out for read in loader.reads)
    transfers.lending.weights = Weights(identity, plan_of(loader.reads), catalogue, tensors)
