"""Tests the model's size by its config against published figures and real files."""

import json
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.loading import write_checkpoint
from planner.counts import active_parameters, checkpoint_bytes, main_parameters, parameters, weight_bytes
from planner.errors import PlanError
from planner.memory import GIB
from planner.model import FORMATS, RELEASED, Format, Model, load_model
from planner.tensors import tensors
from workers.model.load_plan import rank_reads
from workers.model.quantization import Quantization
from workers.model.synthetic import Synthetic

GOLDEN = Path(__file__).parents[1] / "golden"
FLASH = load_model(RELEASED)
# Matrices whose shares on four ranks are whole groups and blocks of 8.
SMALL = {"moe_intermediate_size": 32, "num_nextn_predict_layers": 0}
# Both kinds of layer, and experts enough to route to: as many as a fast test needs of the released shapes.
FEWER: dict[str, Any] = {"num_hidden_layers": 8, "num_experts": 16}
_CHANNEL = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
SCHEMES: dict[Format, dict[str, Any] | None] = {
    "bf16": None,
    "fp8": {"quant_method": "fp8", "weight_block_size": [8, 8]},
    "fp8-channel": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"weights": _CHANNEL}},
    },
    "int4": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 16}}},
    },
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 8},
}


def test_parameters() -> None:
    assert main_parameters(FLASH) == 104_186_915_584
    assert parameters(FLASH)["MTP"] == 3_307_493_632
    assert sum(parameters(FLASH).values()) == 104_186_915_584 + 3_307_493_632
    assert active_parameters(FLASH) == 7_449_488_128
    assert parameters(FLASH)["routed experts"] == 31 * 256 * 3 * 1024 * 4096


def test_state_and_latent() -> None:
    assert FLASH.state_bytes() == 58_720_256
    assert FLASH.state_bytes(4) == 14 << 20
    assert FLASH.latent_bytes() == 4_608
    assert FLASH.latent_bytes(mtp=True) == 4_608 + 1_152
    assert FLASH.allowed_tp() == [1, 2, 4]


@pytest.mark.parametrize(("weights", "files"), [("bf16", 200.23), ("fp8", 101.48), ("int4", 60.38)])
def test_released_files(weights: Format, files: float) -> None:
    """The sizes of the three releases; BF16 and FP8 hold the MTP layer, INT4 does not."""
    assert round(checkpoint_bytes(replace(FLASH, weights=weights)) / GIB, 2) == files


@pytest.mark.parametrize(("weights", "main", "mtp"), [("bf16", 194.06, 6.16), ("fp8", 98.37, 3.10), ("int4", 60.38, 0)])
def test_weights_in_memory(weights: Format, main: float, mtp: float) -> None:
    model = replace(FLASH, weights=weights)
    held = weight_bytes(model, model.has_mtp)
    last = held.pop("MTP", 0)
    assert round(sum(held.values()) / GIB, 2) == main
    assert round(last / GIB, 2) == mtp


def entries(folder: Path) -> tuple[dict[str, tuple[str, tuple[int, ...]]], int]:
    """The (dtype, shape) of every tensor in a folder's safetensors files, and the files' bytes."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    size = 0
    for path in folder.glob("model*.safetensors"):
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
        found |= {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
        size += len(content)
    return found, size


@pytest.mark.parametrize("name", ["tp4", "fp8", "int4"])
def test_every_tensor_of_a_real_checkpoint(name: str) -> None:
    """The list has the checkpoint's names, dtypes and shapes in each format, and the files' size within 1 %."""
    model = load_model(str(GOLDEN / name))
    planned = {
        f"{module}.{entry.suffix}": (entry.dtype, entry.shape)
        for tensor in tensors(model, model.has_mtp)
        for entry in tensor.stored(model.scheme)
        for module in tensor.modules()
    }
    real, size = entries(GOLDEN / name)
    assert planned == real
    assert checkpoint_bytes(model) == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize("weights", SCHEMES)
def test_bytes_of_a_synthetic_checkpoint(weights: Format, tmp_path: Path) -> None:
    """In each format config.json alone gives the files' size and the bytes that each rank reads."""
    folder = Path(broken(tmp_path, "tp4", **SMALL, quantization_config=SCHEMES[weights]))
    written = write_checkpoint(json.loads((folder / "config.json").read_text()), folder, shards=1)
    model = load_model(str(folder))
    assert model.weights == weights
    kept = [(t.copies, e) for t in tensors(model, mtp=False) for e in t.stored(model.scheme) if e.held]
    assert sum(copies * entry.bytes for copies, entry in kept) == written
    _check_ranks(model, (1, 2, 4))


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("weights", FORMATS)
def test_the_released_shapes_are_served_in_every_format(weights: Format, group: int) -> None:
    """At each tp the model allows, no share cuts a group, and the memory is the planned one."""
    model = replace(FLASH, weights=weights)
    config = replace(FLASH.config, quantization=replace(model.scheme, group=group), **FEWER)
    _check_ranks(replace(model, config=config), FLASH.allowed_tp())


def _check_ranks(model: Model, sizes: Sequence[int]) -> None:
    """Check that each rank, on the meta device, reads the planned bytes without an error."""
    source = Synthetic(model.config.quantization)
    for tp in sizes:
        planned = sum(weight_bytes(model, False, tp).values())
        for rank in range(tp):
            loader = rank_reads(model.config, source, rank, tp)
            assert loader.problems == []
            assert sum(read.out.numel() * read.out.element_size() for read in loader.reads) == planned


def test_query_without_low_rank() -> None:
    model = load_model(str(GOLDEN / "yarn"))
    names = {tensor.name for tensor in tensors(model, mtp=False)}
    assert "model.layers.{layer}.attention.q_proj.weight" in names
    assert model.config.max_model_len == 64
    assert main_parameters(model) + parameters(model)["MTP"] == sum(
        shape[0] * (shape[1] if len(shape) == 2 else 1) for _, shape in entries(GOLDEN / "yarn")[0].values()
    )


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_ranks_hold_every_byte_once_or_all(weights: Format, tp: int) -> None:
    """A split tensor's shares add up to it; unsplit tensors, and scales per channel, are whole on each rank."""
    scheme = replace(FLASH, weights=weights).scheme
    for tensor in tensors(FLASH, mtp=True):
        share, whole = tensor.rank_bytes(scheme, tp), tensor.rank_bytes(scheme, 1)
        if tensor.split == "none":
            assert share == whole
        elif tensor.split == "columns" and weights == "fp8-channel":
            assert share * tp == whole + (tp - 1) * tensor.copies * tensor.shape[0] * 4
        else:
            assert share * tp == whole


def test_groups_are_the_checkpoints_own(tmp_path: Path) -> None:
    """AWQ in groups of 64 has twice the scales and zeros of the usual groups of 128."""
    awq = {"quant_method": "awq", "bits": 4, "group_size": 64}
    model = load_model(broken(tmp_path, quantization_config=awq))
    assert (model.weights, model.scheme.group, replace(FLASH, weights="awq").scheme.group) == ("awq", 64, 128)
    usual = replace(FLASH, weights="awq")
    finer = replace(usual, config=replace(FLASH.config, quantization=model.scheme))
    experts = 31 * 256 * 3 * 1024 * 4096
    sizes = [weight_bytes(each, False)["routed experts"] for each in (usual, finer)]
    assert sizes == [experts // 2 + experts // group * 2 + experts // group // 2 for group in (128, 64)]


def test_format_by_config() -> None:
    assert [load_model(str(GOLDEN / name)).weights for name in ("base", "fp8", "int4")] == ["bf16", "fp8", "int4"]
    assert load_model(str(GOLDEN / "fp8"), "int4").weights == "int4"
    assert not load_model(str(GOLDEN / "int4")).has_mtp


def broken(tmp_path: Path, name: str = "base", **changes: object) -> str:
    config = json.loads((GOLDEN / name / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architectures": ["BailingMoeV3ForCausalLM"]}, "architecture BailingMoeV3ForCausalLM is not served"),
        ({"hidden_size": None}, "hidden_size must be an integer"),
        ({"num_nextn_predict_layers": "1"}, "num_nextn_predict_layers must be an integer"),
        ({"quantization_config": {"quant_method": "gptq"}}, "'gptq' is not served"),
        ({"quantization_config": {"quant_method": "awq", "bits": 8}}, "bits 8 is not served"),
    ],
)
def test_refused_configs(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        load_model(broken(tmp_path, **changes))


def test_a_given_format_overrides_the_config_s(tmp_path: Path) -> None:
    model = load_model(broken(tmp_path, quantization_config={"quant_method": "awq", "group_size": 8}), "int4")
    assert (model.weights, model.scheme) == ("int4", Quantization("int4", group=32))


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"config\.json is missing.*give a checkpoint folder or ling-2.6-flash"):
        load_model(str(tmp_path / "nowhere"))
