"""Tests `ling convert`: workers and an independent package read back its quantized and pre-sharded copies."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import torch
import typer
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from benchmarks.loading import write_checkpoint
from cluster.convert.command import convert_command
from cluster.convert.errors import ConvertError
from cluster.convert.quantize import Scheme, dequantize, quantize
from cluster.convert.to_format import to_format
from cluster.convert.to_ranks import to_ranks
from tests.workers.model_rig import (
    CPU,
    GOLDEN,
    Driver,
    Known,
    Solo,
    ThreadCollectives,
    ThreadGroup,
    known_sequences,
    one_by_one,
)
from workers.model.config import LingConfig
from workers.model.files import WeightError, read_header, weight_map, weights_id
from workers.model.ling import LingModel
from workers.model.load_plan import check, rank_reads, with_mtp
from workers.model.sharded import RankFiles, rank_file
from workers.model.weights import Checkpoint, load_weights

pytestmark = pytest.mark.process


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A checkpoint like tp4, with experts of width 32."""
    folder = tmp_path / "plain"
    folder.mkdir()
    raw = json.loads((GOLDEN / "tp4/config.json").read_text())
    write_checkpoint(raw | {"moe_intermediate_size": 32, "num_nextn_predict_layers": 0}, folder, shards=3)
    shutil.copy(GOLDEN / "tp4/tokenizer.json", folder)
    return folder


def _tensors(folder: Path) -> dict[str, Tensor]:
    return {n: t for f in sorted(set(weight_map(folder).values())) for n, t in load_file(folder / f).items()}


def _logits(folder: Path, tp: int = 1) -> Tensor:
    """The logits of one short prompt on the first rank."""
    known = [Known(tokens=list(range(3, 20)), prompt=17, logits=torch.empty(0))]
    if tp == 1:
        return Driver(folder, Solo(), known).step([(0, 17)])[0]
    group = ThreadGroup(tp)

    def run(rank: int) -> Tensor:
        return Driver(folder, ThreadCollectives(group, rank), known).step([(0, 17)])[0]

    with ThreadPoolExecutor(tp) as pool:
        return next(iter(pool.map(run, range(tp))))


def _independently(tensors: dict[str, Tensor], scheme: Scheme) -> dict[str, Tensor]:
    """A quantized checkpoint's weights as floats, computed without our code."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, suffix = name.rpartition(".")
        if scheme == "int4" and suffix == "weight_packed":
            shape = torch.Size(tensors[f"{module}.weight_shape"].tolist())
            values = unpack_from_int32(tensor, 4, shape).float()
            scale = tensors[f"{module}.weight_scale"].float().repeat_interleave(32, 1)
            plain[f"{module}.weight"] = values * scale
        elif scheme == "fp8" and tensor.dtype == torch.float8_e4m3fn:
            scale = tensors[f"{name}_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
            plain[name] = tensor.float() * scale[: tensor.shape[0], : tensor.shape[1]]
        elif suffix in ("weight", "expert_bias"):
            plain[name] = tensor
    return plain


# Relative RMS that rounding normal weights costs: half a step of 2^-3, or of the largest of 32 over 7.5.
@pytest.mark.parametrize(("scheme", "most"), [("fp8", 0.035), ("int4", 0.12)])
def test_a_quantized_copy(scheme: Scheme, most: float, plain: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = to_format(scheme, plain, tmp_path / "q", lambda *told: seen.append(told))
    config = LingConfig.load(tmp_path / "q", {})
    assert config.quantization.method == scheme
    check(tmp_path / "q", config, tp=2)
    before, after = _tensors(plain), _independently(_tensors(tmp_path / "q"), scheme)
    assert set(after) == set(before)
    changed = [n for n in before if not torch.equal(before[n], after[n])]
    assert changed
    if scheme == "int4":
        assert all(".mlp.experts." in n for n in changed)
    for n in changed:
        error = (after[n] - before[n].float()).square().sum() / before[n].float().square().sum()
        assert 0 < error.sqrt() < most
    layer = [n for n in changed if n.startswith("model.layers.2.")]
    noise = sum((after[n] - before[n].float()).double().square().sum() for n in layer)
    signal = sum(before[n].double().square().sum() for n in layer)
    assert report.layers[2].matrices == len(layer)
    assert report.layers[2].relative_rms == pytest.approx(float((noise / signal).sqrt()), rel=1e-3)
    assert {doing for doing, *_ in seen} == {"verifying", "converting"}
    assert seen[-1] == ("converting", report.before, report.before)
    assert report.after < report.before
    assert (tmp_path / "q/tokenizer.json").exists()

    same = tmp_path / "same"
    same.mkdir()
    shutil.copy(plain / "config.json", same)
    save_file(after, same / "model.safetensors")
    expected = _logits(same)
    for tp in (1, 2):
        torch.testing.assert_close(_logits(tmp_path / "q", tp), expected, rtol=0, atol=2e-3)


def test_golden_fp8_weights_survive_being_quantized_again(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    raw = json.loads((GOLDEN / "fp8/config.json").read_text())
    del raw["quantization_config"]
    (folder / "config.json").write_text(json.dumps(raw))
    stored = load_file(GOLDEN / "fp8/model-00001-of-00001.safetensors")
    save_file(_independently(stored, "fp8"), folder / "model.safetensors")
    to_format("fp8", folder, tmp_path / "q")
    sequences = known_sequences(GOLDEN / "fp8")[:1]
    assert Driver(tmp_path / "q", Solo(), sequences).errors(one_by_one(sequences)) < 2e-3


@pytest.mark.parametrize("scheme", ["fp8", "int4"])
@pytest.mark.parametrize("weight", [torch.zeros(40, 64), torch.full((40, 64), -3.0), torch.randn(130, 192) * 1e-6])
def test_extremes_round(scheme: Scheme, weight: Tensor) -> None:
    back = dequantize(scheme, quantize(scheme, weight))
    assert torch.isfinite(back).all()
    torch.testing.assert_close(back, weight, rtol=0.15, atol=float(weight.abs().max()) / 10)


@pytest.mark.parametrize(("name", "tp"), [("tp4", 4), ("fp8", 2), ("int4", 2)])
def test_a_pre_sharded_copy(name: str, tp: int, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    size = to_ranks(tp, GOLDEN / name, tmp_path / "ranks", lambda *told: seen.append(told))
    assert seen[-1] == ("converting", size, size)
    torch.testing.assert_close(_logits(tmp_path / "ranks", tp), _logits(GOLDEN / name, tp), rtol=0, atol=0)
    check(tmp_path / "ranks", LingConfig.load(tmp_path / "ranks", {}), tp)
    assert weights_id(tmp_path / "ranks") != weights_id(GOLDEN / name)
    # The MTP layer comes along, where there is one.
    with closing(RankFiles(tmp_path / "ranks", 0, tp)) as copied, closing(Checkpoint(GOLDEN / name)) as whole:
        config = LingConfig.load(GOLDEN / name, {})
        assert with_mtp(config, copied).drafts == with_mtp(config, whole).drafts == (name != "int4")
    # Each rank's reads follow one another in its file from end to end.
    for rank in range(tp):
        _reads_straight(tmp_path / "ranks", rank, tp)
    with pytest.raises(WeightError, match=f"is sharded for tp {tp}, not 1: serve it with tp {tp}"):
        check(tmp_path / "ranks", LingConfig.load(tmp_path / "ranks", {}))
    with pytest.raises(ConvertError, match="is sharded already"):
        to_ranks(tp, tmp_path / "ranks", tmp_path / "again")


def _reads_straight(folder: Path, rank: int, tp: int) -> None:
    source = RankFiles(folder, rank, tp)
    config = with_mtp(LingConfig.load(folder, {}), source)
    starts = [source.order(r)[1] for r in rank_reads(config, source, rank, tp).reads]
    source.close()
    assert starts == sorted(starts)
    assert len(starts) == len(read_header(folder / rank_file(rank, tp)))


def test_a_damaged_rank_file_is_named(tmp_path: Path) -> None:
    to_ranks(2, GOLDEN / "base", tmp_path / "ranks")
    file = tmp_path / "ranks/rank-1-of-2.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    config = LingConfig.load(tmp_path / "ranks", {})
    group = ThreadGroup(2)
    load_weights(LingModel(config, ThreadCollectives(group, 0), CPU, torch.float32), tmp_path / "ranks")
    with pytest.raises(WeightError, match=r"rank-1-of-2\.safetensors \(\d+ bytes\) is cut off or damaged"):
        load_weights(LingModel(config, ThreadCollectives(group, 1), CPU, torch.float32), tmp_path / "ranks")


app = typer.Typer()
app.command()(convert_command)


def _ling_convert(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "200"})
    return result.exit_code, " ".join(result.output.split())


def test_the_command_reports_errors_by_layer(plain: Path, tmp_path: Path) -> None:
    code, text = _ling_convert(plain, tmp_path / "q", "--to", "fp8")
    assert code == 0
    assert "layer matrices relative RMS error worst 0 6 2.6" in text
    assert str(tmp_path / "q") in text.replace(" ", "")


def test_the_command_shards(plain: Path, tmp_path: Path) -> None:
    code, text = _ling_convert(plain, tmp_path / "r", "--shard-for", "tp=2")
    assert code == 0
    assert "for 2 ranks in" in text
    assert (tmp_path / "r/rank-1-of-2.safetensors").exists()


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("base", ["--to", "int4"], "experts.0.down_proj.weight: its 16 inputs are no multiple of the group of 32"),
        ("fp8", ["--to", "int4"], "is quantized already (fp8); convert from plain weights"),
        ("base", ["--shard-for", "tp=3"], "tp 3 does not divide num_attention_heads 4"),
        ("nothing", ["--to", "fp8"], "config.json is missing"),
    ],
)
def test_a_failed_conversion_leaves_no_files(source: str, options: list[str], message: str, tmp_path: Path) -> None:
    code, text = _ling_convert(GOLDEN / source, tmp_path / "q", *options)
    assert code == 1
    assert message in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [[], ["--to", "fp8", "--shard-for", "tp=2"], ["--shard-for", "4"]])
def test_wrong_options(options: list[str], tmp_path: Path) -> None:
    assert _ling_convert(GOLDEN / "base", tmp_path / "q", *options)[0] == 2


def test_a_damaged_source_is_not_given_right_checksums(plain: Path, tmp_path: Path) -> None:
    file = plain / "model-00001-of-00003.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for option in (["--to", "fp8"], ["--shard-for", "tp=2"]):
        code, text = _ling_convert(plain, tmp_path / "q", *option)
        assert code == 1
        assert f"in {file} does not match its checksum" in text
        assert not (tmp_path / "q").exists()


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "q").mkdir()
    code, text = _ling_convert(GOLDEN / "base", tmp_path / "q", "--to", "fp8")
    assert code == 1
    assert "exists already; give a folder that does not" in text


CHANNEL = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}


@pytest.mark.parametrize(
    "scheme",
    [
        {"quant_method": "fp8"},
        {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm"},
        {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {"g": {"weights": CHANNEL}},
        },
    ],
    ids=["fp8", "awq", "channel"],
)
def test_every_format_gives_the_same_logits_on_any_number_of_ranks(scheme: dict[str, object], tmp_path: Path) -> None:
    raw = json.loads((GOLDEN / "tp4/config.json").read_text())
    changes = {"moe_intermediate_size": 32, "num_nextn_predict_layers": 0, "quantization_config": scheme}
    write_checkpoint(raw | changes, tmp_path, shards=2)
    check(tmp_path, LingConfig.load(tmp_path, {}), tp=4)
    expected = _logits(tmp_path)
    assert expected.std() > 0.01
    for tp in (2, 4):
        torch.testing.assert_close(_logits(tmp_path, tp), expected, rtol=0, atol=1e-4)
