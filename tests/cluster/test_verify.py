"""Tests damage inside tensors: bytes that differ from their checksums, and impossible values."""

import json
import re
import shutil
import zlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from benchmarks.loading import write_checkpoint
from cluster.cli import app
from cluster.convert.to_format import to_format
from cluster.convert.to_ranks import to_ranks
from tests.workers.model_rig import CPU, GOLDEN
from workers.collectives import Solo
from workers.config import WorkerConfig
from workers.model.config import LingConfig
from workers.model.files import WeightError, read_header, weight_files
from workers.model.ling import LingModel
from workers.model.loader import Progress
from workers.model.verify import verify
from workers.model.weights import load_weights
from workers.rank.build import build_rank

pytestmark = pytest.mark.process

SHARD = "model-00001-of-00001.safetensors"


def _written(how: str, folder: Path) -> Path:
    """A checkpoint as one of our tools writes it, with checksums."""
    raw = json.loads((GOLDEN / "tp4/config.json").read_text()) | {"num_nextn_predict_layers": 0}
    made = folder / "made"
    made.mkdir()
    write_checkpoint(raw, made, shards=2)
    if how == "ranks":
        to_ranks(2, made, folder / how)
    elif how == "fp8":
        to_format("fp8", made, folder / how)
    return made if how == "synthetic" else folder / how


@pytest.mark.parametrize("how", ["synthetic", "fp8", "ranks"])
def test_a_flipped_bit_is_reported_by_file_and_tensor(how: str, tmp_path: Path) -> None:
    folder = _written(how, tmp_path)
    found = verify(folder)
    assert found.files == 2
    assert found.summed == found.tensors == sum(len(read_header(folder / f)) for f in weight_files(folder))
    file = weight_files(folder)[1]
    whole = (folder / file).read_bytes()
    entries = read_header(folder / file)
    for name in (next(iter(entries)), list(entries)[-1]):
        for at in (0, entries[name].bytes // 2, entries[name].bytes - 1):
            damaged = bytearray(whole)
            damaged[entries[name].start + at] ^= 1
            (folder / file).write_bytes(damaged)
            with pytest.raises(WeightError) as raised:
                verify(folder)
            assert str(raised.value) == (
                f"{name} in {folder / file} does not match its checksum; copy or convert the file again"
            )


def test_checksums_are_of_the_bytes_and_in_the_way_of_no_other_reader(tmp_path: Path) -> None:
    folder = _written("synthetic", tmp_path)
    for file in weight_files(folder):
        with safe_open(folder / file, "pt") as opened:
            known = opened.metadata()
        tensors = load_file(folder / file)
        sums = {
            f"crc32.{n}": f"{zlib.crc32(t.contiguous().view(-1).view(torch.uint8).numpy()):08x}"
            for n, t in tensors.items()
        }
        assert known == {"format": "pt"} | sums


def test_ranks_share_the_reading(tmp_path: Path) -> None:
    folder = _written("ranks", tmp_path)
    assert sum(verify(folder, rank, 3).tensors for rank in range(3)) == verify(folder).tensors
    file = folder / weight_files(folder)[0]
    (*_, last) = read_header(file).values()
    damaged = bytearray(file.read_bytes())
    damaged[last.start] ^= 128
    file.write_bytes(damaged)
    refused = 0
    for rank in range(3):
        try:
            verify(folder, rank, 3)
        except WeightError:
            refused += 1
    assert refused == 1


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    seen: list[Progress] = []
    found = verify(_written("synthetic", tmp_path), progress=seen.append)
    assert seen[-1] == found.progress
    assert found.progress.done == found.progress.total
    assert [p.done for p in seen] == sorted(p.done for p in seen)


def test_only_a_verifying_worker_refuses_a_flipped_bit(tmp_path: Path) -> None:
    folder = _written("synthetic", tmp_path)
    file = folder / weight_files(folder)[0]
    entry = read_header(file)["model.word_embeddings.weight"]
    damaged = bytearray(file.read_bytes())
    damaged[entry.start] ^= 1
    file.write_bytes(damaged)
    said: list[str] = []
    config = {"model": str(folder), "slots": 2, "pages": 4, "max_model_len": 100}
    build_rank(WorkerConfig(**config), Solo(), None, print, said.append)
    with pytest.raises(WeightError, match=r"^model\.word_embeddings\.weight in .*does not match its checksum"):
        build_rank(WorkerConfig(**config, verify=True), Solo(), None, print, said.append)
    assert not any(line.startswith("verifying") for line in said)
    build_rank(WorkerConfig(**config | {"model": str(GOLDEN / "tp4")}, verify=True), Solo(), None, print, said.append)
    assert said[-2].startswith("verifying tp4, rank 0 of 1: ")


def _released(name: str, folder: Path, tensor: str, place: int, value: float) -> Path:
    """A copy of a checkpoint without checksums in which one tensor has another value at a place."""
    shutil.copytree(GOLDEN / name, folder / name)
    tensors = load_file(folder / name / SHARD)
    if tensors[tensor].dtype == torch.float8_e4m3fn:
        tensors[tensor].view(torch.uint8).view(-1)[place] = int(value)
    else:
        tensors[tensor].view(-1)[place] = value
    save_file(tensors, folder / name / SHARD)
    return folder / name


NAN, INF = float("nan"), float("inf")
EXPERT = "model.layers.1.mlp.experts.3.down_proj"


@pytest.mark.parametrize(
    ("name", "tensor", "value", "told"),
    [
        ("fp8", f"{EXPERT}.weight_scale_inv", 0.0, "holds a scale of 0"),
        ("fp8", f"{EXPERT}.weight_scale_inv", -0.5, "holds a scale of -0.5"),
        ("fp8", "model.layers.0.attention.query_key_value.weight_scale_inv", NAN, "holds NaN or infinity"),
        ("fp8", "model.layers.0.attention.query_key_value.weight_scale_inv", INF, "holds NaN or infinity"),
        ("int4", f"{EXPERT}.weight_scale", NAN, "holds NaN or infinity"),
        ("int4", f"{EXPERT}.weight_scale", -1.0, "holds a scale of -1"),
        ("base", "model.layers.2.input_layernorm.weight", NAN, "holds NaN or infinity"),
        ("base", "model.layers.1.mlp.gate.expert_bias", -INF, "holds NaN or infinity"),
    ],
)
def test_impossible_scales_and_vectors_are_refused_by_every_load(
    name: str, tensor: str, value: float, told: str, tmp_path: Path
) -> None:
    folder = _released(name, tmp_path, tensor, 1 if "query_key_value" in tensor else 0, value)
    model = LingModel(LingConfig.load(folder, {}), Solo(), CPU, torch.float32)
    expected = f"{tensor} in {folder / SHARD} {told}; copy or convert the file again"
    with pytest.raises(WeightError) as raised:
        load_weights(model, folder)
    assert str(raised.value) == expected
    with pytest.raises(WeightError) as raised:
        verify(folder)
    assert str(raised.value) == expected


@pytest.mark.parametrize(
    ("name", "tensor", "value", "told"),
    [
        ("fp8", f"{EXPERT}.weight", 0x7F, "holds NaN"),
        ("fp8", f"{EXPERT}.weight", 0xFF, "holds NaN"),
        ("base", f"{EXPERT}.weight", NAN, "holds NaN or infinity"),
    ],
)
def test_impossible_weights_are_reported(name: str, tensor: str, value: float, told: str, tmp_path: Path) -> None:
    assert verify(GOLDEN / name).summed == 0
    folder = _released(name, tmp_path, tensor, 77, value)
    with pytest.raises(WeightError) as raised:
        verify(folder)
    assert str(raised.value) == f"{tensor} in {folder / SHARD} {told}; copy or convert the file again"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("name", "value"), [("fp8", 0x7F), ("base", NAN)])
def test_a_gpu_refuses_impossible_weights(name: str, value: float, tmp_path: Path) -> None:
    folder = _released(name, tmp_path, f"{EXPERT}.weight", 77, value)
    model = LingModel(LingConfig.load(folder, {}), Solo(), torch.device("cuda", 0), torch.bfloat16)
    with pytest.raises(WeightError, match=rf"^{EXPERT}\.weight in .*holds NaN"):
        load_weights(model, folder)


def test_other_extreme_values_are_served(tmp_path: Path) -> None:
    """The largest 8-bit floats and the smallest scale are valid."""
    for place, (tensor, value) in enumerate(((f"{EXPERT}.weight", 0xFE), (f"{EXPERT}.weight_scale_inv", 1e-38))):
        verify(_released("fp8", tmp_path / str(place), tensor, 0, value))


def test_ling_verify(tmp_path: Path) -> None:
    to_ranks(2, GOLDEN / "fp8", tmp_path / "ranks")
    assert "in 2 files, " in (text := _ling_verify(tmp_path / "ranks", code=0))
    assert text.endswith(": all as they were written")
    assert ": no impossible value; there are no checksums (" in (text := _ling_verify(GOLDEN / "fp8", code=0))
    assert re.search(r" tensors in 1 file, (\d+\.\d\d) of \1 MB in ", text)
    assert _ling_verify(tmp_path, code=1) == (
        f"error {tmp_path}/config.json is missing: a checkpoint folder holds config.json"
    )
    given = GOLDEN / "fp8/config.json"
    assert _ling_verify(given, code=1) == f"error {given} is a file; give the folder it lies in"
    file = tmp_path / "ranks/rank-1-of-2.safetensors"
    file.write_bytes(bytes([*file.read_bytes()[:-1], 255]))
    assert f"in {file} does not match its checksum; copy or convert the file again" in _ling_verify(
        tmp_path / "ranks", code=1
    )
    file.unlink()
    assert f"{file} is missing" in _ling_verify(tmp_path / "ranks", code=1)


def _ling_verify(folder: Path, code: int) -> str:
    result = CliRunner().invoke(app, ["verify", str(folder)])
    assert result.exit_code == code
    return result.output.strip().splitlines()[-1]
