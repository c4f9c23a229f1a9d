"""Sizes and names that follow from a worker's settings and its checkpoint's config. Without torch."""

from dataclasses import astuple, replace
from typing import Literal

from workers.cache.budget import Budget
from workers.config import StateDtype, WorkerConfig
from workers.model.config import LingConfig
from workers.schedule.limits import Limits, Staging

# Drafts per sequence and step, as the vendor sets it.
USUAL_DRAFTS = 3

_STATE_BYTES: dict[StateDtype, int] = {"float32": 4, "bfloat16": 2, "int8": 1}
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
# The usual number of tokens of a snapshot: a window of such snapshots is pulled without a wait for memory.
_STAGED_TOKENS = 8192
USUAL_WINDOW = WorkerConfig("").handoff_window


# The default token budgets of a step. A prefill worker on GPUs reads nearly all experts' weights in every step of some
# hundred tokens or more, so wide steps read less per token. A decode worker rarely computes prompts, and then sequences
# wait for the step's end. CPUs are bound by arithmetic at any width.
PREFILL_STEP_TOKENS = 8192
STEP_TOKENS = 1024


def default_step_tokens(role: Literal["prefill", "decode"], device: Literal["cpu", "cuda"], slots: int) -> int:
    """The token budget of a pool's steps where max_step_tokens is not set; at least one for every slot."""
    return max(slots, PREFILL_STEP_TOKENS if (role, device) == ("prefill", "cuda") else STEP_TOKENS)


def dtype_name(config: WorkerConfig, model: LingConfig) -> str:
    """The compute dtype asked for; "auto" is the checkpoint's on a GPU.

    On a CPU it is float32: without matrix units bfloat16 products run about 90 times slower there.
    """
    if config.dtype != "auto":
        return config.dtype
    return "float32" if config.device == "cpu" else model.torch_dtype


def max_model_len(config: WorkerConfig, model: LingConfig) -> int:
    """Tokens of the longest sequence, prompt and answer; ValueError beyond the checkpoint's context."""
    if config.max_model_len is None:
        return model.max_model_len
    if config.max_model_len > model.max_model_len:
        raise ValueError(
            f"max_model_len {config.max_model_len} exceeds the checkpoint's context of {model.max_model_len}: "
            "lower it, or widen the context with rope_scaling in model_overrides"
        )
    return config.max_model_len


def wants_drafts(config: WorkerConfig, model: LingConfig) -> bool:
    """Return whether the MTP layer is to be loaded, if the weights hold it."""
    return config.speculate != "off" and model.mtp_layers > 0


def most_drafts(config: WorkerConfig, model: LingConfig) -> int:
    """Tokens drafted for a sequence in a step at most; 0 if the MTP layer is not loaded."""
    if config.speculate == "off" or not model.drafts:
        return 0
    return USUAL_DRAFTS if config.speculate == "auto" else config.speculate


def limits_of(config: WorkerConfig, model: LingConfig, pages: int) -> Limits:
    """Make the scheduler's limits."""
    return Limits(
        pages=pages,
        page_size=config.page_size,
        slots=config.slots,
        max_model_len=max_model_len(config, model),
        max_step_tokens=config.max_step_tokens,
        window=config.handoff_window,
        hold_s=config.handoff_timeout_s,
        cache=cache_budget(config, model),
        staging=staging_of(config, model),
        drafts=most_drafts(config, model),
        adapts=config.speculate == "auto",
        answer_tokens=config.cache_answer_tokens if config.cache_states else 0,
    )


def staging_of(config: WorkerConfig, model: LingConfig) -> Staging:
    """A rank's memory for snapshots in transfer, by `staging`."""
    value_bytes = _DTYPE_BYTES[dtype_name(config, model)]
    return staging(model, config.tp, max_model_len(config, model), config.handoff_window, value_bytes)


def staging(model: LingConfig, tp: int, longest: int, window: int = USUAL_WINDOW, value_bytes: int = 2) -> Staging:
    """A rank's memory for snapshots in transfer: for a window of usual ones, or one of the longest.

    longest: the tokens of the longest one. value_bytes: bytes of one value of a latent.
    """
    heads, key, value = model.state_shape(tp)
    state = model.linear_layers * heads * key * value * _STATE_BYTES["float32"]
    sizes = Staging(0, state, model.latent_layers * model.latent_width * value_bytes, tp)
    return replace(sizes, budget=max(window * sizes.bytes_of(min(_STAGED_TOKENS, longest)), sizes.bytes_of(longest)))


def cache_budget(config: WorkerConfig, model: LingConfig) -> Budget:
    """The prefix cache's budget, and the size of snapshots on the host."""
    heads, key, value = model.state_shape(config.tp)
    state = model.linear_layers * heads * key * value * config.tp * _STATE_BYTES[config.cache_state_dtype]
    latent = model.latent_layers * model.latent_width * _DTYPE_BYTES[dtype_name(config, model)]
    host = config.cache_host_bytes if config.cache_states else 0
    disk = config.cache_disk_bytes if host and config.cache_disk_dir is not None else 0
    return Budget(config.cache_states, host, state, latent, disk, config.cache_disk_ttl_s)


def layout_of(config: WorkerConfig, model: LingConfig) -> str:
    """A name for the meaning of a snapshot's bytes over all ranks.

    Workers with equal layouts can read each other's snapshots.
    """
    heads, key, value = model.state_shape(1)
    rope = (model.rope_theta, model.rotary_dim, *(astuple(model.yarn) if model.yarn is not None else ()))
    return (
        f"latent[{model.latent_layers}x{model.latent_width}]{dtype_name(config, model)}"
        f"+state[{model.linear_layers}x{heads}x{key}x{value}]float32/rope[{','.join(f'{part:g}' for part in rope)}]"
    )
