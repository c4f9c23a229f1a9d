"""A small checkpoint in the released layout, made on the spot. Its weights are random: its answers are noise."""

import hashlib
import json
import os
import shutil
import string
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from cluster import demo_tokenizer
from cluster.demo_tokenizer import END_OF_TEXT, ROLE_END, make_tokenizer, write_tokenizer

_SEED = 20260
_SHARD = "model-00001-of-00001.safetensors"
_CONFIG: dict[str, Any] = {
    "architectures": ["BailingMoeV2_5ForCausalLM"],
    "model_type": "bailing_hybrid",
    "torch_dtype": "float32",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 16,
    "layer_group_size": 4,
    "group_norm_size": 4,
    "q_lora_rank": 64,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "partial_rotary_factor": 0.5,
    "rope_theta": 6000000.0,
    "rope_scaling": None,
    "rope_interleave": True,
    "max_position_embeddings": 8192,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "num_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "num_nextn_predict_layers": 0,
    "rms_norm_eps": 1e-06,
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "use_bias": False,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
# How strongly outputs lean to plain letters, in standard deviations of a logit.
_LEAN = 6.0
_LETTERS = string.ascii_lowercase * 2 + string.ascii_uppercase[:4] + ".,"


def demo_checkpoint(cache: Path | None = None) -> Path:
    """The checkpoint's folder, made in `cache` (default: the user's cache folder) unless it is there already."""
    if cache is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ling"
    folder = cache / f"demo-{_version()}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=".demo-", dir=cache))
    try:
        _write(making)
        making.chmod(0o755)
        try:
            making.rename(folder)
        except OSError:
            # Another process was faster; what it made is the same.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def _version() -> str:
    """What decides the content: the files that write it."""
    sources = (Path(__file__), Path(demo_tokenizer.__file__))
    return hashlib.sha256(b"".join(s.read_bytes() for s in sources)).hexdigest()[:12]


def _write(folder: Path) -> None:
    tokenizer = make_tokenizer()
    write_tokenizer(folder, tokenizer)
    ids = {name: tokenizer.encode(name).ids[0] for name in (END_OF_TEXT, ROLE_END)}
    config = _CONFIG | {
        "vocab_size": tokenizer.get_vocab_size(),
        "pad_token_id": ids[END_OF_TEXT],
        "eos_token_id": ids[ROLE_END],
    }
    generation = {"eos_token_id": list(ids.values()), "pad_token_id": ids[END_OF_TEXT]}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1))
    liked = [tokenizer.encode(text).ids[0] for text in {*_LETTERS, " "}] + [ids[ROLE_END]]
    tensors = _Weights(config, sorted(liked)).tensors
    save_file(tensors, folder / _SHARD, {"format": "pt"})
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
        "weight_map": dict.fromkeys(tensors, _SHARD),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


class _Weights:
    """Every tensor of the layout, scaled so that each projection keeps the size of what it reads."""

    def __init__(self, config: dict[str, Any], liked: list[int]) -> None:
        self._c = config
        self._random = np.random.default_rng(_SEED)
        self.tensors: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}
        hidden, vocab = config["hidden_size"], config["vocab_size"]
        # All embeddings share one component; the head reads it as a liking for some tokens.
        shared = np.zeros(hidden, np.float32)
        shared[0] = hidden**0.5
        self._put("model.word_embeddings.weight", self._normal(vocab, hidden) + shared)
        head = self._normal(vocab, hidden) * np.float32(hidden**-0.5)
        head[:, 0] = 0
        head[liked, 0] = _LEAN * 2 / shared[0]
        self._put("lm_head.weight", head)
        self._ones("model.norm", hidden)
        for layer in range(config["num_hidden_layers"]):
            self._layer(f"model.layers.{layer}", layer)

    def _layer(self, name: str, layer: int) -> None:
        c = self._c
        hidden = c["hidden_size"]
        self._ones(f"{name}.input_layernorm", hidden)
        self._ones(f"{name}.post_attention_layernorm", hidden)
        if (layer + 1) % c["layer_group_size"] == 0:
            self._mla(f"{name}.attention")
        else:
            self._linear_attention(f"{name}.attention")
        if layer < c["first_k_dense_replace"]:
            self._mlp(f"{name}.mlp", c["intermediate_size"])
            return
        self._dense(f"{name}.mlp.gate", c["num_experts"], hidden)
        self._put(f"{name}.mlp.gate.expert_bias", self._normal(c["num_experts"]) * np.float32(0.01))
        for expert in range(c["num_experts"]):
            self._mlp(f"{name}.mlp.experts.{expert}", c["moe_intermediate_size"])
        self._mlp(f"{name}.mlp.shared_experts", c["moe_intermediate_size"] * c["num_shared_experts"])

    def _linear_attention(self, name: str) -> None:
        hidden, width = self._c["hidden_size"], self._c["num_attention_heads"] * self._c["head_dim"]
        self._dense(f"{name}.query_key_value", 3 * width, hidden)
        self._ones(f"{name}.query_layernorm", self._c["head_dim"])
        self._ones(f"{name}.key_layernorm", self._c["head_dim"])
        self._dense(f"{name}.g_proj", width, hidden)
        self._ones(f"{name}.g_norm", width)
        self._dense(f"{name}.dense", hidden, width, gain=0.5)

    def _mla(self, name: str) -> None:
        c = self._c
        hidden, heads = c["hidden_size"], c["num_attention_heads"]
        nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        self._dense(f"{name}.q_a_proj", c["q_lora_rank"], hidden)
        self._ones(f"{name}.q_a_layernorm", c["q_lora_rank"])
        self._dense(f"{name}.q_b_proj", heads * (nope + rope), c["q_lora_rank"])
        self._dense(f"{name}.kv_a_proj_with_mqa", c["kv_lora_rank"] + rope, hidden)
        self._ones(f"{name}.kv_a_layernorm", c["kv_lora_rank"])
        self._dense(f"{name}.kv_b_proj", heads * (nope + value), c["kv_lora_rank"])
        self._dense(f"{name}.dense", hidden, heads * value, gain=0.5)

    def _mlp(self, name: str, width: int) -> None:
        hidden = self._c["hidden_size"]
        self._dense(f"{name}.gate_proj", width, hidden)
        self._dense(f"{name}.up_proj", width, hidden)
        self._dense(f"{name}.down_proj", hidden, width, gain=0.5)

    def _dense(self, name: str, rows: int, columns: int, gain: float = 1.0) -> None:
        self._put(f"{name}.weight", self._normal(rows, columns) * np.float32(gain * columns**-0.5))

    def _ones(self, name: str, width: int) -> None:
        self._put(f"{name}.weight", np.ones(width, np.float32))

    def _normal(self, *shape: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
        return self._random.standard_normal(shape, np.float32)

    def _put(self, name: str, tensor: "np.ndarray[Any, np.dtype[np.float32]]") -> None:
        self.tensors[name] = np.ascontiguousarray(tensor, np.float32)
