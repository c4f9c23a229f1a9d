"""Tests quantized weights against plain arithmetic by element, whatever rows and columns a rank holds."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kernels import moe_experts
from kernels.linear.quantized import AWQ_ORDER, BlockFp8, Matrix, dense
from tests.workers.model_rig import CPU, GOLDEN, known_sequences, mixed, one_by_one, rank_errors
from workers.model.config import LingConfig, ModelConfigError
from workers.model.files import WeightError
from workers.model.formats import Part, Target, load_matrix, load_stack
from workers.model.loader import Loader
from workers.model.quantization import Quantization
from workers.model.weights import Checkpoint

pytestmark = pytest.mark.process

OUT, IN = 96, 160


@pytest.mark.parametrize("name", ["fp8", "int4"])
@pytest.mark.parametrize("tp", [1, 2])
def test_golden_logits(name: str, tp: int) -> None:
    sequences = known_sequences(GOLDEN / name)
    for schedule in (one_by_one(sequences), mixed(sequences, seed=tp)):
        errors = rank_errors(name, tp, schedule)
        assert all(error < 2e-3 for error in errors), errors


def _fp8_block(block: tuple[int, int]) -> tuple[dict[str, Tensor], Tensor]:
    q = torch.randn(OUT, IN).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-OUT // block[0]), -(-IN // block[1])) + 0.5
    whole = torch.empty(OUT, IN)
    for i in range(OUT):
        for j in range(IN):
            whole[i, j] = q[i, j].float() * scale[i // block[0], j // block[1]]
    return {"weight": q, "weight_scale_inv": scale}, whole


def _fp8_channel(shape: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor]:
    q = torch.randn(OUT, IN).to(torch.float8_e4m3fn)
    scale = (torch.rand(OUT) + 0.5).bfloat16()
    return {"weight": q, "weight_scale": scale.view(shape)}, q.float() * scale.float()[:, None]


def _int4() -> tuple[dict[str, Tensor], Tensor]:
    q = torch.randint(-8, 8, (OUT, IN))
    scale = (torch.rand(OUT, IN // 32) + 0.5).bfloat16()
    packed = torch.zeros(OUT, IN // 8, dtype=torch.int64)
    for j in range(IN):
        packed[:, j // 8] |= (q[:, j] + 8) << 4 * (j % 8)
    whole = torch.stack([q[:, j] * scale[:, j // 32].float() for j in range(IN)], 1)
    stored = {"weight_packed": _int32(packed), "weight_scale": scale, "weight_shape": torch.tensor([OUT, IN])}
    return stored, whole


def _awq() -> tuple[dict[str, Tensor], Tensor]:
    group = 32
    q, zeros = torch.randint(0, 16, (IN, OUT)), torch.randint(0, 16, (IN // group, OUT))
    scale = (torch.rand(IN // group, OUT) + 0.5).half()
    whole = torch.stack([(q[i] - zeros[i // group]) * scale[i // group].float() for i in range(IN)], 1)

    def pack(values: Tensor) -> Tensor:
        # AutoAWQ packs column 8 c + order[n] into nibble n, with this order.
        packed = torch.zeros(values.shape[0], OUT // 8, dtype=torch.int64)
        for nibble, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            packed |= values[:, column::8] << 4 * nibble
        return _int32(packed)

    return {"qweight": pack(q), "qzeros": pack(zeros), "scales": scale}, whole


def _int32(packed: Tensor) -> Tensor:
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)


FORMATS = {
    "block": (lambda: _fp8_block((128, 128)), Quantization("fp8")),
    "small block": (lambda: _fp8_block((40, 48)), Quantization("fp8", (40, 48))),
    "channel": (lambda: _fp8_channel((OUT, 1)), Quantization("channel fp8")),
    "flat channel": (lambda: _fp8_channel((OUT,)), Quantization("channel fp8")),
    "int4": (_int4, Quantization("int4")),
    "awq": (_awq, Quantization("awq")),
}


def _target(folder: Path, quantization: Quantization) -> Target:
    return Target(Loader(Checkpoint(folder)), quantization, torch.float32, CPU)


def _run(target: Target) -> None:
    try:
        target.loader.run()
    finally:
        target.loader.source.close()


@pytest.mark.parametrize("name", FORMATS)
def test_any_rows_and_columns(name: str, tmp_path: Path) -> None:
    make, quantization = FORMATS[name]
    stored, whole = make()
    save_file({f"m.{k}": t.contiguous() for k, t in stored.items()}, tmp_path / "model.safetensors")
    cuts = [(slice(None), slice(None)), (slice(32, 64), slice(None)), (slice(None), slice(32, 96))]
    if "int4" not in name and name != "awq":
        cuts += [(slice(31, 93), slice(None)), (slice(None), slice(47, 131)), (slice(7, 45), slice(3, 159))]
    for rows, cols in cuts:
        target = _target(tmp_path, quantization)
        matrix = load_matrix(target, [Part("m", (OUT, IN), rows, cols)])
        _run(target)
        assert not isinstance(matrix, Tensor), "must stay quantized in memory"
        torch.testing.assert_close(dense(matrix), whole[rows, cols], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_parts_of_several_modules_are_one_matrix(name: str, tmp_path: Path) -> None:
    make, quantization = FORMATS[name]
    modules = {m: make() for m in ("a", "b", "c", "d")}
    tensors = {f"{m}.{k}": t.contiguous() for m, (stored, _) in modules.items() for k, t in stored.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    spans = [slice(48, 96), slice(0, 8), slice(64, 72)]
    target = _target(tmp_path, quantization)
    parts = [Part(m, (OUT, IN), rows) for m, rows in zip("aab", spans, strict=True)]
    matrix = load_matrix(target, parts)
    stack = load_stack(target, [[Part(m, (OUT, IN), s) for s in spans] for m in "abcd"])
    _run(target)
    expected = torch.cat([modules[m][1][rows] for m, rows in zip("aab", spans, strict=True)])
    torch.testing.assert_close(dense(matrix), expected, rtol=1e-6, atol=1e-6)
    for e, m in enumerate("abcd"):
        of = torch.cat([modules[m][1][s] for s in spans])
        torch.testing.assert_close(stack[e], of, rtol=1e-6, atol=1e-6)
    picked = torch.tensor([3, 0, 3])
    torch.testing.assert_close(stack[picked], torch.stack([stack[3], stack[0], stack[3]]), rtol=0, atol=0)


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("name", FORMATS)
def test_experts_compute_on_quantized_stacks(name: str, tokens: int, tmp_path: Path) -> None:
    make, quantization = FORMATS[name]
    modules = [make() for _ in range(4)]
    tensors = {f"{i}.{k}": t.contiguous() for i, (stored, _) in enumerate(modules) for k, t in stored.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    target = _target(tmp_path, quantization)
    gate_up = load_stack(target, [[Part(str(i), (OUT, IN))] for i in range(4)])
    _run(target)
    x, down = torch.randn(tokens, IN) / 100, torch.randn(4, IN, OUT // 2)
    ids, weights = torch.randint(0, 4, (tokens, 2)), torch.rand(tokens, 2)
    plain = torch.stack([whole for _, whole in modules])
    got, expected = (moe_experts(x, ids, weights, stack, down, 0) for stack in (gate_up, plain))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


def test_memory_holds_what_the_file_holds(tmp_path: Path) -> None:
    matrix = _load_part(tmp_path, _fp8_block((128, 128))[0], Quantization("fp8"), Part("m", (OUT, IN)))
    assert isinstance(matrix, BlockFp8)
    assert matrix.weight.dtype == torch.float8_e4m3fn
    assert matrix.scale.shape == (1, 2)


def _load_part(folder: Path, stored: dict[str, Tensor], quantization: Quantization, *parts: Part) -> Matrix:
    save_file({f"m.{k}": t.contiguous() for k, t in stored.items()}, folder / "model.safetensors")
    target = _target(folder, quantization)
    matrix = load_matrix(target, parts)
    _run(target)
    return matrix


def test_awq_order_is_the_inverse_of_the_packing() -> None:
    assert [AWQ_ORDER[c] for c in (0, 2, 4, 6, 1, 3, 5, 7)] == list(range(8))


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"weight": torch.zeros(OUT, IN).to(torch.float8_e4m3fn)}, "m.weight is stored as F8_E4M3 and has neither"),
        (_fp8_block((128, 128))[0] | {"weight_scale_inv": torch.ones(2, 2)}, r"shape \[2, 2\], expected \[1, 2\]"),
        (_fp8_channel((OUT, 1))[0] | {"weight_scale": torch.ones(1)}, r"m.weight_scale in .* shape \[1\], expected"),
        (_int4()[0] | {"weight_zero_point": torch.zeros(1, dtype=torch.int32)}, "m.weight_zero_point: .* not served"),
        (_int4()[0] | {"weight_scale": torch.ones(OUT, 3)}, r"m.weight_scale of shape \[96, 3\] splits no 160 inputs"),
        (_int4()[0] | {"weight_packed": torch.zeros(OUT, IN // 4).int()}, r"weight_packed in .* expected \[96, 20\]"),
        ({"qweight": _awq()[0]["qweight"], "scales": _awq()[0]["scales"]}, "m.qzeros is in no file"),
    ],
)
def test_malformed_tensors_are_named(stored: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightError, match=message):
        _load_part(tmp_path, stored, Quantization("fp8"), Part("m", (OUT, IN)))


@pytest.mark.parametrize(
    ("name", "suffix", "value"),
    [
        ("channel", "weight_scale", 0.0),
        ("flat channel", "weight_scale", float("nan")),
        ("small block", "weight_scale_inv", -1.0),
        ("int4", "weight_scale", float("inf")),
        ("awq", "scales", -0.25),
        ("awq", "scales", float("nan")),
    ],
)
def test_impossible_scales_are_refused_by_the_rank_that_reads_them(
    name: str, suffix: str, value: float, tmp_path: Path
) -> None:
    make, quantization = FORMATS[name]
    stored = make()[0]
    stored[suffix].view(-1)[0] = value
    rows = slice(0, 48)
    with pytest.raises(WeightError, match=rf"^m\.{suffix} in .*model\.safetensors holds .*; copy or convert the file"):
        _load_part(tmp_path, stored, quantization, Part("m", (OUT, IN), rows))
    _load_part(tmp_path, stored, quantization, Part("m", (OUT, IN), slice(48 + 32, OUT)))


def test_an_awq_scale_may_be_rounded_to_nothing(tmp_path: Path) -> None:
    stored = _awq()[0]
    stored["scales"].view(-1)[0] = 0.0
    _load_part(tmp_path, stored, Quantization("awq"), Part("m", (OUT, IN)))


@pytest.mark.parametrize("name", ["int4", "awq"])
def test_a_share_that_cuts_a_group_is_refused(name: str, tmp_path: Path) -> None:
    make, quantization = FORMATS[name]
    with pytest.raises(WeightError, match=r"m: a rank's columns 0 to 80 of \[96, 160\] cut through 32 "):
        _load_part(tmp_path, make()[0], quantization, Part("m", (OUT, IN), cols=slice(0, 80)))


def test_formats_do_not_mix_in_one_matrix(tmp_path: Path) -> None:
    save_file({"p.weight": torch.zeros(OUT, IN)} | {f"m.{k}": t for k, t in _int4()[0].items()},
              tmp_path / "model.safetensors")  # fmt: skip
    target = _target(tmp_path, Quantization())
    load_matrix(target, [Part("p", (OUT, IN)), Part("m", (OUT, IN))])
    with pytest.raises(WeightError, match="different formats: m is int4, p is plain"):
        _run(target)


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quant_method 'gptq' is not served"),
        ({"quant_method": "awq", "bits": 8}, "bits 8 is not served, only 4"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version 'gemv' is not served, only 'gemm'"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt 'e5m2' is not served"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"weight_block_size must be two sizes, found \[128\]"),
        ({"quant_method": "compressed-tensors"}, "config_groups must name at least one group"),
        (
            {"quant_method": "compressed-tensors", "format": "nvfp4", "config_groups": {"g": {"weights": {}}}},
            "format 'nvfp4' is not served",
        ),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized",
             "config_groups": {"g": {"weights": {"num_bits": 8}}}},
            r"config_groups\.g\.weights\.num_bits 8 is not served, only 4",
        ),
        ("fp8", "must be an object"),
    ],
)  # fmt: skip
def test_schemes_that_are_not_served(scheme: object, message: str, tmp_path: Path) -> None:
    raw = json.loads((GOLDEN / "base/config.json").read_text()) | {"quantization_config": scheme}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelConfigError, match=message):
        LingConfig.load(tmp_path, {})


def test_schemes_are_read() -> None:
    assert LingConfig.load(GOLDEN / "base", {}).quantization == Quantization()
    assert LingConfig.load(GOLDEN / "fp8", {}).quantization == Quantization("fp8", (128, 128))
    assert LingConfig.load(GOLDEN / "int4", {}).quantization == Quantization("int4", group=32)
    awq = {"quant_method": "awq", "bits": 4, "version": "GEMM", "group_size": 64, "zero_point": True}
    config = LingConfig.load(GOLDEN / "base", {"quantization_config": awq})
    assert config.quantization == Quantization("awq", group=64)


def test_fp8_golden_weights_equal_the_file_s() -> None:
    stored = load_file(GOLDEN / "fp8/model-00001-of-00001.safetensors")
    name = "model.layers.0.attention.query_key_value"
    target = _target(GOLDEN / "fp8", Quantization("fp8"))
    matrix = load_matrix(target, [Part(name, (768, 192), slice(100, 300))])
    _run(target)
    scale = stored[f"{name}.weight_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)[:768, :192]
    torch.testing.assert_close(dense(matrix), (stored[f"{name}.weight"].float() * scale)[100:300])
