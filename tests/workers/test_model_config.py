"""Tests reading a checkpoint's config, and refusing what can't be served."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.workers.model_rig import GOLDEN
from workers.model.config import LingConfig, ModelConfigError, Yarn
from workers.model.rope import Rope, rope_frequencies

YARN_256K = {
    "rope_type": "yarn",
    "factor": 2.0,
    "rope_theta": 6000000,
    "partial_rotary_factor": 0.5,
    "original_max_position_embeddings": 131072,
}


def _write(folder: Path, change: dict[str, Any], generation: dict[str, Any] | None = None) -> Path:
    raw = json.loads((GOLDEN / "base/config.json").read_text()) | change
    kept = {key: value for key, value in raw.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(kept))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_sizes_of_a_checkpoint() -> None:
    config = LingConfig.load(GOLDEN / "base", {})
    assert [i for i in range(8) if config.is_mla(i)] == [3, 7]
    assert [config.cache_index(i) for i in range(8)] == [0, 1, 2, 0, 3, 4, 5, 1]
    assert (config.mla_layers, config.linear_layers, config.latent_width) == (2, 6, 40)
    assert config.state_shape(2) == (2, 16, 16)
    assert (config.rotary_dim, config.max_model_len, config.torch_dtype) == (8, 1024, "float32")
    assert config.yarn is None


def test_a_trailing_incomplete_group_is_all_mla(tmp_path: Path) -> None:
    config = LingConfig.load(_write(tmp_path, {"num_hidden_layers": 10}), {})
    assert [i for i in range(10) if config.is_mla(i)] == [3, 7, 8, 9]
    assert config.cache_index(9) == 3


def test_end_ids_come_from_both_files(tmp_path: Path) -> None:
    assert LingConfig.load(_write(tmp_path, {"eos_token_id": 9}, {"eos_token_id": [7, 9]}), {}).eos_token_ids == (7, 9)
    assert LingConfig.load(_write(tmp_path, {"eos_token_id": 9}, {}), {}).eos_token_ids == (9,)


def test_yarn_by_override_widens_the_context() -> None:
    config = LingConfig.load(GOLDEN / "base", {"rope_scaling": YARN_256K, "max_position_embeddings": 131072})
    assert config.yarn == Yarn(2.0, 131072, 32.0, 1.0, None)
    assert config.max_model_len == 262144


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["BailingMoeV3ForCausalLM"]}, "BailingMoeV3ForCausalLM is not served"),
        ({"architectures": "absent"}, "architecture none is not served"),
        ({"hidden_size": "absent"}, "hidden_size must be an integer of at least 1, found None"),
        ({"kv_lora_rank": 0}, "kv_lora_rank must be an integer"),
        ({"num_experts": True}, "num_experts must be an integer"),
        ({"rope_theta": "absent"}, "rope_theta must be a number"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', found 'gelu'"),
        ({"norm_topk_prob": False}, "norm_topk_prob must be True"),
        ({"num_key_value_heads": 2}, "num_key_value_heads 2 must equal num_attention_heads 4"),
        ({"num_attention_heads": 6, "num_key_value_heads": 6}, "num_attention_heads 6 must be a power of two"),
        ({"group_norm_size": 3}, "group_norm_size 3"),
        ({"n_group": 3}, "num_experts 8 must be a multiple of n_group 3"),
        ({"topk_group": 5}, "topk_group 5 exceeds n_group 4"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok 5 exceeds"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2}}, "'linear' is not served"),
        ({"rope_scaling": YARN_256K | {"low_freq_factor": 1}}, "not served: low_freq_factor"),
        ({"rope_scaling": YARN_256K | {"factor": -1}}, "rope_scaling.factor must be a number above 0"),
        ({"rope_scaling": "yarn"}, "rope_scaling must be an object"),
        ({"torch_dtype": "float16"}, "torch_dtype 'float16' is not served"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be an integer"),
    ],
)
def test_refused_configs_name_the_key(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelConfigError) as refused:
        LingConfig.load(_write(tmp_path, change), {})
    assert message in str(refused.value)


def test_unknown_overrides_are_refused() -> None:
    with pytest.raises(ModelConfigError, match="rope_scalling is no key"):
        LingConfig.load(GOLDEN / "base", {"rope_scalling": {}})


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError, match=r"config\.json is missing"):
        LingConfig.load(tmp_path, {})
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelConfigError, match=r"config\.json can't be read"):
        LingConfig.load(tmp_path, {})
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelConfigError, match="holds no JSON object"):
        LingConfig.load(tmp_path, {})


@pytest.mark.parametrize(("name", "fits"), [("base", [1, 2]), ("tp4", [1, 2, 4])])
def test_tp_sizes_that_fit(name: str, fits: list[int]) -> None:
    config = LingConfig.load(GOLDEN / name, {})
    for tp in (0, 1, 2, 3, 4, 8):
        if tp in fits:
            config.check_tp(tp)
        else:
            with pytest.raises(ModelConfigError) as refused:
                config.check_tp(tp)
            assert f"sizes that work: {', '.join(map(str, fits))}" in str(refused.value)


def test_tp_error_names_the_fields(tmp_path: Path) -> None:
    config = LingConfig.load(_write(tmp_path, {"vocab_size": 255}), {})
    with pytest.raises(ModelConfigError) as refused:
        config.check_tp(2)
    assert str(refused.value) == "tp 2 does not divide vocab_size 255; sizes that work: 1"


def test_config_needs_no_torch() -> None:
    code = "import sys, workers.model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_plain_frequencies() -> None:
    frequencies, factor = rope_frequencies(8, 6e6, None)
    assert factor == 1.0
    torch.testing.assert_close(frequencies, torch.tensor([6e6 ** (-i / 4) for i in range(4)]))


def test_yarn_keeps_fast_dims_slows_slow_ones_and_scales_cos_and_sin() -> None:
    yarn = Yarn(2.0, 131072, 32.0, 1.0, None)
    plain, _ = rope_frequencies(64, 6e6, None)
    slowed, factor = rope_frequencies(64, 6e6, yarn)
    ratio = plain / slowed
    assert factor == pytest.approx(1.06931, abs=1e-5)
    # 13 and 21: where 32 turns and 1 turn over 131072 positions fall, 64 ln(131072 / 2πn) / 2 ln 6e6.
    assert ratio[:14] == pytest.approx(torch.ones(14).tolist())
    assert ratio[21:] == pytest.approx((2 * torch.ones(11)).tolist())
    assert all(1 < r < 2 for r in ratio[14:21].tolist())
    cos, sin = Rope(64, 6e6, yarn, torch.device("cpu"))(torch.tensor([0, 3]))
    assert cos[0, 0].item() == pytest.approx(factor)
    assert sin[1, 0].item() == pytest.approx(factor * math.sin(3), rel=1e-5)


def test_a_mistyped_rope_type_is_named() -> None:
    with pytest.raises(ModelConfigError, match=r"rope_scaling has no rope_type, and keys that need one: .*rope_typ"):
        LingConfig.load(GOLDEN / "base", {"rope_scaling": {"rope_typ": "yarn", "factor": 2.0}})


def test_rope_parameters_are_those_of_transformers_5() -> None:
    parameters = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 7.0, "partial_rotary_factor": 0.25}
    config = LingConfig.load(GOLDEN / "base", {"rope_parameters": parameters})
    assert config.yarn is not None
    assert (config.yarn.factor, config.rope_theta) == (2.0, 7.0)
    assert config.rotary_dim == config.head_dim // 4


@pytest.mark.parametrize(
    ("given", "rotary", "softmax"),
    [
        ({}, 0.1 * math.log(4) + 1, 1.0),
        ({"mscale": 2.0, "mscale_all_dim": 0.5}, (0.2 * math.log(4) + 1) / (0.05 * math.log(4) + 1),
         (0.05 * math.log(4) + 1) ** 2),
        ({"mscale": 2.0}, 0.1 * math.log(4) + 1, 1.0),
        ({"attention_factor": 1.5, "mscale": 2.0, "mscale_all_dim": 2.0}, 1.5, (0.2 * math.log(4) + 1) ** 2),
    ],
    ids=["unset", "both", "mscale alone", "attention_factor goes first"],
)  # fmt: skip
def test_mscale_grows_attention_as_the_official_code_has_it(
    given: dict[str, float], rotary: float, softmax: float
) -> None:
    config = LingConfig.load(GOLDEN / "base", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, **given}})
    assert config.yarn is not None
    assert config.yarn.on_rotary == pytest.approx(rotary)
    assert config.yarn.on_softmax == pytest.approx(softmax)
