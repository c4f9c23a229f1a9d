"""Builds a rank: config, weights, caches, runner."""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from kernels.dispatch import uses_triton
from workers.collectives.base import Collectives
from workers.config import WorkerConfig
from workers.memory import pages_beside, reserve
from workers.model.batch import Caches
from workers.model.config import LingConfig, ModelConfigError
from workers.model.ling import LingModel, make_caches
from workers.rank.grammar import Grammars
from workers.rank.graphs import Capture, captures
from workers.rank.host_store import HostStore
from workers.rank.load import Tell, load_weights, silent
from workers.rank.runner import Runner
from workers.rank.state_codec import StateCodec
from workers.rank.warm import warm
from workers.schedule.step import FetchFailed, Received, WriteFailed, Written
from workers.sizes import dtype_name, max_model_len, most_drafts, wants_drafts
from workers.transfer.endpoint import Transfers

# Without a GPU, pages for this many tokens a slot: laptops hold short conversations.
_CPU_TOKENS_PER_SLOT = 2048
# Ranks read the same files: one from disk and the others from memory, or each its own over a network.
_LOAD_PATIENCE_S = 3600.0


@dataclass(frozen=True, slots=True)
class BuiltRank:
    """A rank ready to step, the grammars its sampler keeps to, and the latent pages it found room for.

    caches: those of the runner, which may hold a page more than sequences are given.
    """

    model: LingModel
    caches: Caches
    runner: Runner
    grammars: Grammars
    host: HostStore
    pages: int


def _pages(config: WorkerConfig, model: LingConfig, dtype: torch.dtype) -> int:
    if config.pages is not None:
        return config.pages
    longest = -(-max_model_len(config, model) // config.page_size)
    if config.device == "cpu":
        return max(longest, config.slots * _CPU_TOKENS_PER_SLOT // config.page_size)
    # Loading leaves buffers with the allocator that nothing needs any more.
    torch.cuda.empty_cache()
    free, card = torch.cuda.mem_get_info()
    heads, key, value = model.state_shape(config.tp)
    states = (config.slots + 1 + config.cache_states) * model.linear_layers * heads * key * value * 4
    page = Caches.bytes_per_page(model.latent_layers, config.page_size, model.latent_width, dtype)
    return pages_beside(free, states, page, reserve(config, model, card))


def _capture(config: WorkerConfig, device: torch.device) -> Capture | None:
    """How decode steps are captured; None where they can't be: references read values on the host."""
    captured = config.cuda_graphs == "auto" and device.type == "cuda" and uses_triton(torch.empty(0, device=device))
    return captures(device) if captured else None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def build_rank(
    config: WorkerConfig,
    collectives: Collectives,
    transfers: Transfers | None,
    notify: Callable[[Received | FetchFailed | Written | WriteFailed], None],
    say: Callable[[str], None] = _say,
    tell: Tell = silent,
) -> BuiltRank:
    """Load this rank's weights and make its caches. say: gets lines about loading from rank 0.

    tell: gets progress from every rank. notify: called from threads about snapshots that came from host memory and
    files.
    """
    model_config = LingConfig.load(Path(config.model), config.model_overrides)
    model_config.check_tp(config.tp)
    device = torch.device(config.device)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype_name(config, model_config)]
    if isinstance(config.speculate, int) and not model_config.mtp_layers:
        raise ModelConfigError(f"speculate {config.speculate}: {config.model} has no MTP layer; use auto or off")
    wanted = dataclasses.replace(model_config, drafts=wants_drafts(config, model_config))
    model = LingModel(wanted, collectives, device, dtype)
    load_weights(config, model, transfers, say, tell)
    model_config = model.config
    collectives.barrier(_LOAD_PATIENCE_S)
    pages = _pages(config, model_config, dtype)
    capture = _capture(config, device)
    states = config.slots + 1 + config.cache_states
    most = most_drafts(config, model_config)
    verified = config.slots * (1 + most) if most else 0
    caches = make_caches(
        model_config, config.tp, pages + int(capture is not None), config.page_size, states, device, dtype, verified
    )
    # One page more than the longest sequence fills, because the token after the last computed one needs a place too.
    table = -(-(max_model_len(config, model_config) + 1) // config.page_size)
    grammars = Grammars(Path(config.model), model_config.vocab_size)
    host = HostStore(collectives.rank, device, StateCodec(config.cache_state_dtype), notify, config.tp)
    runner = Runner(model, caches, collectives, table, transfers, grammars, config.slots, host, capture, most)
    if device.type == "cuda":
        # Nobody owns a page or a slot yet.
        pages_of_all = (torch.arange(table, device=device) % pages).int().expand(states, table)
        warm(model, caches, pages_of_all, config.max_step_tokens)
    return BuiltRank(model, caches, runner, grammars, host, pages)
