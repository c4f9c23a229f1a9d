"""The model's size from its config alone, against the published figures and real files."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.planner.counts import active_parameters, checkpoint_bytes, main_parameters, parameters, weight_bytes
from cluster.planner.errors import PlanError
from cluster.planner.memory import GIB
from cluster.planner.model import FORMATS, RELEASED, Format, Model, load_model
from cluster.planner.tensors import tensors

GOLDEN = Path(__file__).parents[1] / "golden"
FLASH = load_model(RELEASED)


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
    """(dtype, shape) of every tensor in a folder's safetensors files, and the files' bytes."""
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
    """The list is the checkpoint: names, dtypes and shapes, in each format, and the files' size within 1 %."""
    model = load_model(str(GOLDEN / name))
    planned = {
        tensor_name + entry.suffix: (entry.dtype, entry.shape)
        for tensor in tensors(model, model.has_mtp)
        for entry in tensor.stored(model.weights)
        for tensor_name in tensor.names()
    }
    real, size = entries(GOLDEN / name)
    assert planned == real
    assert checkpoint_bytes(model) == pytest.approx(size, rel=0.01)


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
    """A split tensor's shares add up to it; a tensor no rank splits is whole on each."""
    for tensor in tensors(FLASH, mtp=True):
        share = tensor.rank_bytes(weights, tp)
        if tensor.split == "none":
            assert share == tensor.rank_bytes(weights, 1)
        else:
            assert share * tp == tensor.rank_bytes(weights, 1)


def test_format_by_config() -> None:
    assert [load_model(str(GOLDEN / name)).weights for name in ("base", "fp8", "int4")] == ["bf16", "fp8", "int4"]
    assert load_model(str(GOLDEN / "fp8"), "int4").weights == "int4"
    assert not load_model(str(GOLDEN / "int4")).has_mtp


def broken(tmp_path: Path, **changes: object) -> str:
    config = json.loads((GOLDEN / "base" / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architectures": ["BailingMoeV3ForCausalLM"]}, "architecture BailingMoeV3ForCausalLM is not served"),
        ({"hidden_size": None}, "hidden_size must be an integer"),
        ({"num_nextn_predict_layers": "1"}, "num_nextn_predict_layers must be an integer"),
        ({"quantization_config": {"quant_method": "gptq"}}, "'gptq' is not served"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "say --dtype bf16, fp8 or int4"),
    ],
)
def test_refused_configs(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        load_model(broken(tmp_path, **changes))


def test_unknown_quantization_with_a_format_said(tmp_path: Path) -> None:
    model: Model = load_model(broken(tmp_path, quantization_config={"quant_method": "awq"}), "int4")
    assert model.weights == "int4"


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"config\.json is missing.*give a checkpoint folder or ling-2.6-flash"):
        load_model(str(tmp_path / "nowhere"))
