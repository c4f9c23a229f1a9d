"""A checkpoint's config.json and generation_config.json, checked and typed. Without torch."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.model.quantization import Quantization, QuantizationError

ARCHITECTURE = "BailingMoeV2_5ForCausalLM"
_DTYPES = ("float32", "bfloat16")

# Settings that the engine supports with one value only, and this value.
_FIXED: dict[str, Any] = {
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "use_bias": False,
    "rope_interleave": True,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "score_function": "sigmoid",
    "norm_topk_prob": True,
    "linear_silu": False,
    "moe_router_enable_expert_bias": True,
}
_COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "num_experts",
    "num_experts_per_tok",
    "num_shared_experts",
    "n_group",
    "topk_group",
    "moe_intermediate_size",
    "layer_group_size",
    "group_norm_size",
    "kv_lora_rank",
    "qk_rope_head_dim",
    "qk_nope_head_dim",
    "v_head_dim",
)
_KEYS = {
    *_FIXED,
    *_COUNTS,
    "architectures",
    "dtype",
    "eos_token_id",
    "first_k_dense_replace",
    "max_position_embeddings",
    "num_key_value_heads",
    "partial_rotary_factor",
    "q_lora_rank",
    "quantization_config",
    "num_nextn_predict_layers",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "routed_scaling_factor",
    "torch_dtype",
}
_YARN_KEYS = {
    "rope_type",
    "type",
    "factor",
    "original_max_position_embeddings",
    "rope_theta",
    "partial_rotary_factor",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
}
# The rope settings of a checkpoint without YaRN, as transformers 5 writes them.
_PLAIN_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


class ModelConfigError(ValueError):
    """The checkpoint's config can't be served; the message names the key."""


@dataclass(frozen=True, slots=True)
class Yarn:
    """YaRN context extension (Peng et al. 2023). attention_factor multiplies cos and sin.

    mscale, mscale_all_dim: 0 if they are not set; the second one also scales MLA's softmax, as in DeepSeek's code.
    """

    factor: float
    original_max_len: int
    beta_fast: float
    beta_slow: float
    attention_factor: float | None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0

    def magnitude(self, mscale: float) -> float:
        """0.1 * mscale * ln(factor) + 1, the growth of attention with the context."""
        return 0.1 * mscale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    @property
    def on_rotary(self) -> float:
        """The factor on cos and sin."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self.magnitude(self.mscale) / self.magnitude(self.mscale_all_dim)
        return self.magnitude(1.0)

    @property
    def on_softmax(self) -> float:
        """The factor on the softmax's scale."""
        return self.magnitude(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0


@dataclass(frozen=True, slots=True)
class LingConfig:
    """One checkpoint's dimensions, named as in config.json.

    group_norm_size: the number of groups. q_lora_rank: None if queries have no low-rank projection. eos_token_ids: of
    config.json and generation_config.json together. max_model_len: tokens of context, YaRN's if it is longer.
    torch_dtype: "float32" or "bfloat16". mtp_layers: multi-token-prediction layers that config.json promises
    (num_nextn_predict_layers); the files may hold none. drafts: whether the first of them is loaded, to draft tokens;
    its latents are then kept beside those of the other MLA layers.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    num_experts: int
    num_experts_per_tok: int
    num_shared_experts: int
    n_group: int
    topk_group: int
    moe_intermediate_size: int
    layer_group_size: int
    group_norm_size: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_rope_head_dim: int
    qk_nope_head_dim: int
    v_head_dim: int
    first_k_dense_replace: int
    rotary_dim: int
    rope_theta: float
    rms_norm_eps: float
    routed_scaling_factor: float
    yarn: Yarn | None
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    torch_dtype: str
    quantization: Quantization
    mtp_layers: int
    drafts: bool = False

    @classmethod
    def load(cls, folder: Path, overrides: dict[str, Any]) -> "LingConfig":
        """Read a checkpoint folder's config; `overrides` replace keys of config.json.

        ModelConfigError names a key that is missing, wrong or not served.
        """
        raw = _read_json(folder / "config.json")
        unknown = sorted(set(overrides) - _KEYS)
        if unknown:
            raise ModelConfigError(f"model_overrides: {', '.join(unknown)} is no key this model reads")
        raw |= overrides
        _name_rope(raw)
        _check_kind(raw)
        counts = {key: _count(raw, key) for key in _COUNTS}
        rope = raw.get("rope_scaling") or {}
        yarn = _yarn(raw, rope)
        context = _count(raw, "max_position_embeddings")
        if yarn is not None:
            context = max(context, int(yarn.factor * yarn.original_max_len))
        partial = _number(raw, "partial_rotary_factor")
        config = cls(
            **counts,
            q_lora_rank=None if raw.get("q_lora_rank") is None else _count(raw, "q_lora_rank"),
            first_k_dense_replace=_count(raw, "first_k_dense_replace", least=0),
            rotary_dim=int(counts["head_dim"] * float(rope.get("partial_rotary_factor", partial))),
            rope_theta=float(rope.get("rope_theta", _number(raw, "rope_theta"))),
            rms_norm_eps=_number(raw, "rms_norm_eps"),
            routed_scaling_factor=_number(raw, "routed_scaling_factor"),
            yarn=yarn,
            max_model_len=context,
            eos_token_ids=_eos_ids(raw, folder),
            torch_dtype=_dtype(raw),
            quantization=_quantization(raw),
            mtp_layers=_count({"num_nextn_predict_layers": 0} | raw, "num_nextn_predict_layers", least=0),
            drafts=False,
        )
        config._check()
        return config

    def is_mla(self, layer: int) -> bool:
        """MLA closes every group of layers; a trailing, incomplete group is all MLA."""
        whole = self.num_hidden_layers // self.layer_group_size * self.layer_group_size
        return (layer + 1) % self.layer_group_size == 0 or layer >= whole

    def cache_index(self, layer: int) -> int:
        """The layer's index among the layers of its kind, and so in its cache."""
        return sum(self.is_mla(i) == self.is_mla(layer) for i in range(layer))

    @property
    def mla_layers(self) -> int:
        """Layers with a latent cache."""
        return sum(self.is_mla(i) for i in range(self.num_hidden_layers))

    @property
    def latent_layers(self) -> int:
        """Layers whose latents are cached: the MLA layers and, if it drafts, the MTP layer as the last."""
        return self.mla_layers + self.drafts

    @property
    def linear_layers(self) -> int:
        """Layers with a linear state."""
        return self.num_hidden_layers - self.mla_layers

    @property
    def latent_width(self) -> int:
        """The values of a token in each latent cache."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    def state_shape(self, tp: int) -> tuple[int, int, int]:
        """One rank's (heads, key dim, value dim) of a linear layer's state."""
        return self.num_attention_heads // tp, self.head_dim, self.head_dim

    def check_tp(self, tp: int) -> None:
        """ModelConfigError if `tp` ranks can't share the model evenly.

        It names the field and the sizes that would work.
        """
        shared = {
            "num_attention_heads": self.num_attention_heads,
            "group_norm_size": self.group_norm_size,
            "num_experts": self.num_experts,
            "vocab_size": self.vocab_size,
            "intermediate_size": self.intermediate_size,
            "moe_intermediate_size * num_shared_experts": self.moe_intermediate_size * self.num_shared_experts,
        }
        possible = [n for n in range(1, self.group_norm_size + 1) if not any(v % n for v in shared.values())]
        wrong = [f"{name} {value}" for name, value in shared.items() if tp < 1 or value % tp]
        if wrong:
            raise ModelConfigError(
                f"tp {tp} does not divide {', '.join(wrong)}; sizes that work: {', '.join(map(str, possible))}"
            )

    def _check(self) -> None:
        heads = self.num_attention_heads
        channels = heads * self.head_dim
        rules = (
            (heads & (heads - 1) == 0, f"num_attention_heads {heads} must be a power of two"),
            (self.num_hidden_layers > 1, "num_hidden_layers must be at least 2"),
            (
                heads % self.group_norm_size == 0,
                f"group_norm_size {self.group_norm_size} (a number of groups) must divide the {heads} heads "
                f"of {channels} channels",
            ),
            (
                0 < self.rotary_dim <= self.head_dim and self.rotary_dim % 2 == 0,
                f"partial_rotary_factor gives {self.rotary_dim} rotary dims; needs an even number up to head_dim",
            ),
            (self.qk_rope_head_dim % 2 == 0, f"qk_rope_head_dim {self.qk_rope_head_dim} must be even"),
            (
                self.num_experts % self.n_group == 0,
                f"num_experts {self.num_experts} must be a multiple of n_group {self.n_group}",
            ),
            (self.topk_group <= self.n_group, f"topk_group {self.topk_group} exceeds n_group {self.n_group}"),
            (
                self.num_experts_per_tok <= self.topk_group * (self.num_experts // self.n_group),
                f"num_experts_per_tok {self.num_experts_per_tok} exceeds the experts of topk_group groups",
            ),
        )
        for holds, message in rules:
            if not holds:
                raise ModelConfigError(f"config.json: {message}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelConfigError(f"{path} is missing: a checkpoint folder holds config.json") from None
    except NotADirectoryError:
        raise ModelConfigError(f"{path.parent} is a file; give the folder it lies in") from None
    except (OSError, ValueError) as error:
        raise ModelConfigError(f"{path} can't be read: {error}; mend it or copy it again") from error
    if not isinstance(content, dict):
        raise ModelConfigError(f"{path} holds no JSON object; copy it again")
    return content


def _check_kind(raw: dict[str, Any]) -> None:
    names = raw.get("architectures")
    name = names[0] if isinstance(names, list) and names else names or "none"
    if name != ARCHITECTURE:
        raise ModelConfigError(
            f"config.json: architecture {name} is not served, only {ARCHITECTURE}; give a checkpoint of Ling-2.6"
        )
    for key, value in _FIXED.items():
        if raw.get(key, value) != value:
            raise ModelConfigError(f"config.json: {key} must be {value!r}, found {raw[key]!r}")
    heads, kv_heads = raw.get("num_attention_heads"), raw.get("num_key_value_heads")
    if kv_heads not in (None, heads):
        raise ModelConfigError(f"config.json: num_key_value_heads {kv_heads} must equal num_attention_heads {heads}")


def _count(raw: dict[str, Any], key: str, least: int = 1) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ModelConfigError(f"config.json: {key} must be an integer of at least {least}, found {value!r}")
    return value


def _number(raw: dict[str, Any], key: str) -> float:
    value = raw.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise ModelConfigError(f"config.json: {key} must be a number above 0, found {value!r}")
    return float(value)


def _name_rope(raw: dict[str, Any]) -> None:
    """transformers 5 writes `rope_parameters` for `rope_scaling`, `rope_theta` and `partial_rotary_factor`."""
    parameters = raw.pop("rope_parameters", None)
    if parameters is None:
        return
    if not isinstance(parameters, dict):
        raise ModelConfigError(f"config.json: rope_parameters must be an object, found {parameters!r}")
    if raw.get("rope_scaling") is None:
        raw["rope_scaling"] = parameters
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in parameters:
            raw.setdefault(key, parameters[key])


def _yarn(raw: dict[str, Any], rope: Any) -> Yarn | None:
    if not isinstance(rope, dict):
        raise ModelConfigError(f"config.json: rope_scaling must be an object or null, found {rope!r}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        if unknown := sorted(set(rope) - _PLAIN_KEYS):
            raise ModelConfigError(
                f"config.json: rope_scaling has no rope_type, and keys that need one: {', '.join(unknown)}"
            )
        return None
    if kind != "yarn":
        raise ModelConfigError(f"config.json: rope_scaling type {kind!r} is not served, only 'yarn' is")
    if unknown := sorted(set(rope) - _YARN_KEYS):
        raise ModelConfigError(f"config.json: rope_scaling has keys that are not served: {', '.join(unknown)}")
    named = {f"rope_scaling.{key}": value for key, value in rope.items()}
    named.setdefault("rope_scaling.original_max_position_embeddings", raw.get("max_position_embeddings"))
    named.setdefault("rope_scaling.beta_fast", 32)
    named.setdefault("rope_scaling.beta_slow", 1)
    given = rope.get("attention_factor")
    return Yarn(
        factor=_number(named, "rope_scaling.factor"),
        original_max_len=_count(named, "rope_scaling.original_max_position_embeddings"),
        beta_fast=_number(named, "rope_scaling.beta_fast"),
        beta_slow=_number(named, "rope_scaling.beta_slow"),
        attention_factor=None if given is None else _number(named, "rope_scaling.attention_factor"),
        mscale=float(rope.get("mscale") or 0.0),
        mscale_all_dim=float(rope.get("mscale_all_dim") or 0.0),
    )


def _eos_ids(raw: dict[str, Any], folder: Path) -> tuple[int, ...]:
    path = folder / "generation_config.json"
    ids: set[int] = set()
    for source in (raw, _read_json(path) if path.exists() else {}):
        found = source.get("eos_token_id")
        listed = found if isinstance(found, list) else [] if found is None else [found]
        if not all(isinstance(i, int) for i in listed):
            raise ModelConfigError(f"eos_token_id must be an integer or a list of them, found {found!r}")
        ids.update(listed)
    return tuple(sorted(ids))


def _quantization(raw: dict[str, Any]) -> Quantization:
    try:
        return Quantization.read(raw.get("quantization_config"))
    except QuantizationError as error:
        raise ModelConfigError(f"config.json: {error}") from None


def _dtype(raw: dict[str, Any]) -> str:
    name = raw.get("torch_dtype", raw.get("dtype", "bfloat16"))
    if name not in _DTYPES:
        raise ModelConfigError(f"config.json: torch_dtype {name!r} is not served; override it with one of {_DTYPES}")
    return str(name)
