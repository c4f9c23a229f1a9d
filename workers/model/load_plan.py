"""What a rank would read, without reading it: checks of a checkpoint, and the order pre-sharded copies keep."""

from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import torch

from workers.collectives.base import Solo
from workers.model.config import LingConfig
from workers.model.ling import LingModel
from workers.model.loader import Loader, Source, raise_problems
from workers.model.sharded import is_sharded
from workers.model.weights import open_checkpoint

_NOWHERE = torch.device("meta")


class _Seat(Solo):
    """A rank's place in a group without the others: enough to know its share."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size


def rank_reads(config: LingConfig, source: Source, rank: int, tp: int) -> Loader:
    """All reads of rank `rank` of `tp`, into no memory, and the problems met."""
    loader = Loader(source)
    LingModel(config, _Seat(rank, tp), _NOWHERE, torch.bfloat16).load(loader)
    return loader


def check(folder: Path, config: LingConfig, tp: int = 1) -> None:
    """WeightError that lists what keeps the folder's weights from being served; only headers are read."""
    problems: list[str] = []
    # All ranks read a whole checkpoint's files, whose headers are long; of a pre-sharded copy each has its own.
    owners = range(tp if is_sharded(folder) else 1)
    with ExitStack() as opened:
        sources = [opened.enter_context(closing(open_checkpoint(folder, rank, tp))) for rank in owners]
        for rank in range(tp):
            source = sources[rank % len(sources)]
            problems += rank_reads(with_mtp(config, source), source, rank, tp).problems
    raise_problems(list(dict.fromkeys(problems)))


def lacks_mtp(source: Source, config: LingConfig) -> bool:
    """Whether the config promises MTP layers that the weights don't hold."""
    first = config.num_hidden_layers
    return config.mtp_layers > 0 and source.find(f"model.layers.{first}.input_layernorm.weight") is None


def with_mtp(config: LingConfig, source: Source) -> LingConfig:
    """The config with its MTP layer to be loaded, where the weights hold one."""
    return replace(config, drafts=config.mtp_layers > 0 and not lacks_mtp(source, config))
