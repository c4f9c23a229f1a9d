"""Tests synthetic weights, and what a rank prints while it loads."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from kernels.linear.quantized import dense
from tests.workers.model_rig import CPU, GOLDEN, ThreadCollectives, ThreadGroup
from workers.collectives import Solo
from workers.config import WorkerConfig
from workers.model.config import LingConfig
from workers.model.files import weights_id
from workers.model.formats import Part, Target, load_matrix
from workers.model.ling import LingModel
from workers.model.load_plan import rank_reads
from workers.model.loader import Loader
from workers.model.quantization import Method, Quantization
from workers.model.synthetic import Synthetic
from workers.model.weights import load_from
from workers.rank.build import build_rank
from workers.rank.load import load_weights

METHODS: list[Method] = ["none", "fp8", "channel fp8", "int4", "awq"]


def _matrix(
    quantization: Quantization, module: str, rows: slice, cols: slice, device: torch.device = CPU
) -> torch.Tensor:
    loader = Loader(Synthetic(quantization))
    target = Target(loader, quantization, torch.float32, device)
    matrix = load_matrix(target, [Part(module, (512, 384), rows, cols)])
    loader.run()
    return dense(matrix)


@pytest.mark.parametrize("method", METHODS)
def test_a_synthetic_slice_is_the_same_on_every_rank(method: Method) -> None:
    quantization, name = Quantization(method, group=32), "model.layers.1.mlp.experts.3.up_proj"
    whole = _matrix(quantization, name, slice(None), slice(None))
    assert whole.shape == (512, 384)
    for rows, cols in ((slice(128, 256), slice(None)), (slice(None), slice(96, 192)), (slice(8, 16), slice(32, 64))):
        assert torch.equal(_matrix(quantization, name, rows, cols), whole[rows, cols])
    other = _matrix(quantization, "model.layers.1.mlp.experts.4.up_proj", slice(None), slice(None))
    assert not torch.equal(other, whole)
    assert len(whole[:, 0].unique()) > 8
    assert not any(torch.equal(whole[i], whole[i + 1]) for i in range(511))
    deviation = float(whole.std())
    assert 1 / 128 < deviation < 1 / 32
    assert abs(float(whole.mean())) < deviation / 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_makes_what_a_cpu_makes(method: Method) -> None:
    quantization, part = Quantization(method, group=32), (slice(128, 256), slice(None))
    for name in ("model.layers.1.mlp.experts.3.up_proj", "model.layers.1.attention.dense"):
        made = _matrix(quantization, name, *part, torch.device("cuda", 0))
        torch.testing.assert_close(made.cpu(), _matrix(quantization, name, *part))


def _config(folder: Path, **changes: object) -> Path:
    """A config of a folder without weights."""
    folder.mkdir()
    raw = json.loads((GOLDEN / "tp4/config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


FP8 = {"quant_method": "fp8", "fmt": "e4m3"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 8}


@pytest.mark.parametrize("scheme", [None, FP8])
def test_ranks_share_one_synthetic_model(scheme: dict[str, str] | None, tmp_path: Path) -> None:
    config = LingConfig.load(_config(tmp_path / "m", quantization_config=scheme), {})
    source = Synthetic(config.quantization)
    whole = {}
    for read in rank_reads(config, source, 0, 1).reads:
        out = torch.empty(read.shape)
        source.fill(type(read)(out, read.name, read.shape, tuple((0, n) for n in read.shape)))
        whole[read.name] = out
    for rank in range(4):
        for read in rank_reads(config, source, rank, 4).reads:
            out = torch.empty([b - a for a, b in read.spans])
            source.fill(type(read)(out, read.name, read.shape, read.spans))
            if "scale" not in read.name:
                assert torch.equal(out, whole[read.name][tuple(slice(*s) for s in read.spans)])


def test_a_worker_on_synthetic_weights(tmp_path: Path) -> None:
    folder = _config(tmp_path / "m", quantization_config=AWQ)
    said: list[str] = []
    config = WorkerConfig(model=str(folder), load="synthetic", slots=2, pages=4, max_model_len=100)
    built = build_rank(config, Solo(), None, print, said.append)
    assert built.pages == 4
    # On a busy machine lines come before the last one too.
    assert re.match(r"synthetic weights, rank 0 of 1: (\d\.\d\d) of \1 MB in ", said[-1])
    assert said[-1].endswith("GB/s")
    assert weights_id(folder, synthetic=True) != weights_id(_config(tmp_path / "n"), synthetic=True)


def test_only_rank_0_prints_the_progress_of_loading() -> None:
    group = ThreadGroup(2)
    config = WorkerConfig(model=str(GOLDEN / "fp8"), tp=2, slots=2, pages=4, max_model_len=100)
    model = LingConfig.load(GOLDEN / "fp8", {})
    said: list[str] = []
    told: list[tuple[str, int, int]] = []
    for rank in (1, 0):
        rank_model = LingModel(model, ThreadCollectives(group, rank), CPU, torch.float32)
        load_weights(config, rank_model, None, said.append, lambda *progress: told.append(progress))
        assert bool(said) == (rank == 0)
        # Every rank tells the leader.
        stage, done, total = told[-1]
        assert (stage, done) == ("loading weights", total)
        told.clear()
    assert said[-1].startswith("weights of fp8, rank 0 of 2: ")


def test_a_missing_mtp_layer_is_reported_once() -> None:
    said: list[str] = []
    config = WorkerConfig(model=str(GOLDEN / "int4"), slots=2, pages=4, max_model_len=100)
    build_rank(config, Solo(), None, print, said.append)
    assert [line for line in said if "MTP" in line] == [
        f"{GOLDEN / 'int4'}: config.json promises 1 MTP layer(s), its files hold none: serving without speculation"
    ]


def test_the_model_has_no_memory_before_it_is_checked(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "base", tmp_path / "m")
    config = LingConfig.load(tmp_path / "m", {})
    loader = rank_reads(config, Synthetic(config.quantization), 0, 1)
    assert loader.reads
    assert {read.out.device.type for read in loader.reads} == {"meta"}


def test_synthetic_logits_are_finite(tmp_path: Path) -> None:
    config = LingConfig.load(_config(tmp_path / "m"), {})
    model = LingModel(config, Solo(), CPU, torch.float32)
    load_from(model, Synthetic(config.quantization))
    with torch.inference_mode():
        logits = model.logits(torch.randn(3, config.hidden_size))
    assert torch.isfinite(logits).all()
    assert logits.std() > 0
