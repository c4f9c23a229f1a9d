"""Lists what a rank would read without reading it, to check a checkpoint and to order pre-sharded copies."""

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
    """A rank's number in a group without the other ranks: enough to know its share."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size


def rank_reads(config: LingConfig, source: Source, rank: int, tp: int) -> Loader:
    """All reads of rank `rank` of `tp`, without memory for them, and the problems found."""
    loader = Loader(source)
    LingModel(config, _Seat(rank, tp), _NOWHERE, torch.bfloat16).load(loader)
    return loader


def check(folder: Path, config: LingConfig, tp: int = 1) -> None:
    """Check that the folder's weights can be served, from headers alone; WeightError lists the problems."""
    problems: list[str] = []
    # All ranks read the same files of a whole checkpoint, whose headers are long; each has its own file of a
    # pre-sharded copy.
    owners = range(tp if is_sharded(folder) else 1)
    with ExitStack() as opened:
        sources = [opened.enter_context(closing(open_checkpoint(folder, rank, tp))) for rank in owners]
        for rank in range(tp):
            source = sources[rank % len(sources)]
            problems += rank_reads(with_mtp(config, source), source, rank, tp).problems
    raise_problems(list(dict.fromkeys(problems)))


def lacks_mtp(source: Source, config: LingConfig) -> bool:
    """Whether the config names MTP layers that the weights lack."""
    first = config.num_hidden_layers
    return config.mtp_layers > 0 and source.find(f"model.layers.{first}.input_layernorm.weight") is None


def with_mtp(config: LingConfig, source: Source) -> LingConfig:
    """The config, set to load the MTP layer if the weights have one."""
    return replace(config, drafts=config.mtp_layers > 0 and not lacks_mtp(source, config))
