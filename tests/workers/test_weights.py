"""Tests reading weights: only a rank's own slices, and errors that say what is wrong."""

import json
import shutil
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.workers.model_rig import CPU, GOLDEN, ThreadCollectives, ThreadGroup, known_sequences
from workers.collectives import Solo
from workers.model.batch import Batch
from workers.model.config import LingConfig
from workers.model.files import WeightError, sample_starts, weight_map, weights_id
from workers.model.ling import LingModel, make_caches
from workers.model.load_plan import check
from workers.model.loader import Loader, Progress, Read
from workers.model.weights import Checkpoint, load_weights

# Everything else is split over the ranks.
REPLICATED = (
    "input_layernorm", "post_attention_layernorm", "query_layernorm", "key_layernorm", "q_a_", "kv_a_", "mlp.gate.",
    "model.norm.",
)  # fmt: skip
SHARD = "model-00001-of-00001.safetensors"


def _load(folder: Path, rank: int = 0, tp: int = 1) -> LingModel:
    collectives = Solo() if tp == 1 else ThreadCollectives(ThreadGroup(tp), rank)
    model = LingModel(LingConfig.load(folder, {}), collectives, CPU, torch.float32)
    load_weights(model, folder)
    return model


@pytest.mark.parametrize(("name", "tp"), [("base", 2), ("tp4", 4)])
def test_ranks_read_their_own_slices_and_nothing_else(name: str, tp: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: dict[str, list[torch.Tensor]] = defaultdict(list)
    fill = Checkpoint.fill

    def recording(self: Checkpoint, read: Read) -> int:
        count = fill(self, read)
        reads[read.name].append(read.out.clone())
        return count

    monkeypatch.setattr(Checkpoint, "fill", recording)
    for rank in range(tp):
        _load(GOLDEN / name, rank, tp)

    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(set(weight_map(GOLDEN / name).values())):
        tensors |= load_file(GOLDEN / name / file)
    wanted = {n: t for n, t in tensors.items() if not n.startswith("model.layers.8.")}
    assert set(reads) == set(wanted)
    for tensor, whole in wanted.items():
        copies = tp if any(part in tensor for part in REPLICATED) else 1
        got = torch.cat([piece.flatten() for piece in reads[tensor]]).sort().values
        assert torch.equal(got, whole.float().flatten().repeat(copies).sort().values), tensor


def test_a_single_file_without_an_index_loads(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "base/config.json", tmp_path)
    shutil.copy(GOLDEN / "base" / SHARD, tmp_path / "model.safetensors")
    model, known = _load(tmp_path), known_sequences(GOLDEN / "base")[2]
    tokens = torch.tensor(known.tokens[: known.prompt])
    count = len(tokens)
    caches = make_caches(model.config, 1, 1, 16, 1, CPU, torch.float32)
    table = torch.zeros(1, 1, dtype=torch.int32)
    batch = Batch(tokens, torch.arange(count), torch.zeros(1, dtype=torch.int64), (0,), (count,), table)
    with torch.inference_mode():
        logits = model.logits(model.forward(batch, caches))
    torch.testing.assert_close(logits, known.logits[:count], rtol=0, atol=1e-3)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A copy of a checkpoint to damage."""
    return Path(shutil.copytree(GOLDEN / "base", tmp_path / "base"))


def _rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    tensors = load_file(folder / SHARD)
    for name, tensor in change.items():
        tensors.pop(name)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / SHARD)


def test_tensor_missing_from_the_index(base: Path) -> None:
    index = json.loads((base / "model.safetensors.index.json").read_text())
    del index["weight_map"]["model.norm.weight"]
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightError, match=r"^model\.norm\.weight is in no file of "):
        _load(base)


def test_tensor_missing_from_its_file(base: Path) -> None:
    _rewrite(base, {"lm_head.weight": None})
    with pytest.raises(WeightError, match=rf"lm_head\.weight should be in .*{SHARD}, and is not"):
        _load(base)


def test_wrong_shape(base: Path) -> None:
    _rewrite(base, {"model.layers.1.mlp.experts.5.up_proj.weight": torch.zeros(16, 63)})
    expected = r"experts\.5\.up_proj\.weight in .* has shape \[16, 63\], expected \[16, 64\]"
    with pytest.raises(WeightError, match=expected):
        _load(base)


def test_missing_shard(base: Path) -> None:
    (base / SHARD).unlink()
    with pytest.raises(WeightError, match=rf"{SHARD} is missing, though the checkpoint's index names it"):
        _load(base)


@pytest.mark.parametrize("size", [3, 100, 100_000])
def test_truncated_shard(base: Path, size: int) -> None:
    (base / SHARD).write_bytes((base / SHARD).read_bytes()[:size])
    with pytest.raises(WeightError, match=rf"{SHARD} \({size} bytes\) is cut off or damaged"):
        _load(base)


def test_unreadable_index(base: Path) -> None:
    (base / "model.safetensors.index.json").write_text('{"weights": {}}')
    with pytest.raises(WeightError, match=r"index\.json can't be read: KeyError\('weight_map'\)"):
        _load(base)


def test_no_weights_at_all(base: Path) -> None:
    (base / "model.safetensors.index.json").unlink()
    with pytest.raises(WeightError, match="holds neither"):
        _load(base)


def test_a_dtype_that_is_not_served_is_named(base: Path) -> None:
    name = "model.layers.0.attention.g_proj.weight"
    tensors = load_file(base / SHARD)
    _rewrite(base, {name: tensors[name].to(torch.float8_e5m2)})
    with pytest.raises(WeightError, match=r"g_proj\.weight is stored as F8_E5M2; served are F32, BF16, F16"):
        _load(base)


def test_all_problems_are_reported_before_weights_are_read(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "fill", _no_read)
    _rewrite(
        base,
        {
            "lm_head.weight": None,
            "model.layers.1.mlp.experts.5.up_proj.weight": torch.zeros(16, 63),
            "model.norm.weight": torch.zeros(64, dtype=torch.int8),
        },
    )
    config = LingConfig.load(base, {})
    for look in (lambda: _load(base), lambda: check(base, config), lambda: check(base, config, tp=2)):
        with pytest.raises(WeightError) as raised:
            look()
        lines = sorted(str(raised.value).splitlines())
        assert len(lines) == 3
        assert lines[0].startswith("lm_head.weight should be in")
        assert lines[1].startswith("model.layers.1.mlp.experts.5.up_proj.weight in")
        assert lines[2].startswith("model.norm.weight is stored as I8")


def _no_read(self: Checkpoint, read: Read) -> int:
    raise AssertionError(read.name)


def test_ten_of_many_problems_are_reported(base: Path) -> None:
    names = [n for n in load_file(base / SHARD) if n.endswith("norm.weight")]
    _rewrite(base, dict.fromkeys(names))
    with pytest.raises(WeightError) as raised:
        check(base, LingConfig.load(base, {}))
    lines = str(raised.value).splitlines()
    used = [n for n in names if not n.startswith("model.layers.8.")]
    assert len(lines) == 11
    assert lines[-1] == f"and {len(used) - 10} more"


def test_a_correct_checkpoint_passes_the_check() -> None:
    for name, tp in (("base", 2), ("fp8", 2), ("int4", 1), ("tp4", 4)):
        check(GOLDEN / name, LingConfig.load(GOLDEN / name, {}), tp)


def test_a_tensor_larger_than_a_piece_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.model.loader._PIECE_BYTES", 1000)
    monkeypatch.setattr("workers.model.mapped._BLOCK_BYTES", 500)
    whole = torch.randn(37, 29)
    save_file({"t": whole}, tmp_path / "model.safetensors")
    source = Checkpoint(tmp_path)
    loader = Loader(source)
    outs = [torch.full((20, 29), -1.0), torch.full((20, 7), -1.0), torch.full((29, 20), -1.0, dtype=torch.float64).T]
    parts = [(slice(5, 25), slice(None)), (slice(5, 25), slice(3, 10)), (slice(5, 25), slice(None))]
    for out, part in zip(outs, parts, strict=True):
        loader.read(out, "t", (37, 29), *part)
    seen: list[Progress] = []
    end = loader.run(seen.append)
    source.close()
    for out, part in zip(outs, parts, strict=True):
        assert torch.equal(out.float(), whole[part])
    assert len(seen) > 5
    assert seen[-1] == end
    assert end.done == end.total == sum(o.numel() * o.element_size() for o in outs)
    assert [p.done for p in seen] == sorted(p.done for p in seen)


def test_a_shard_cut_off_while_loading_is_named(base: Path) -> None:
    source = Checkpoint(base)
    loader = Loader(source)
    loader.read(torch.empty(256, 64), "lm_head.weight", (256, 64))
    (base / SHARD).write_bytes((base / SHARD).read_bytes()[:100])
    with pytest.raises(WeightError, match=rf"{SHARD} ends at byte \d+: it was cut off while loading"):
        loader.run()
    source.close()


def test_weights_id_names_the_content(base: Path) -> None:
    original = weights_id(GOLDEN / "base")
    assert weights_id(base) == original
    tensors = load_file(base / SHARD)
    changed = tensors["model.layers.5.attention.dense.weight"]
    changed[3, 3] += 1
    save_file(tensors, base / SHARD)
    assert weights_id(base) != original


def test_weights_id_names_the_config(base: Path) -> None:
    text = (base / "config.json").read_text()
    (base / "config.json").write_text(text.replace("6000000.0", "600000.0"))
    assert weights_id(base) != weights_id(GOLDEN / "base")


def test_weights_id_refuses_a_cut_off_shard(base: Path) -> None:
    (base / SHARD).write_bytes((base / SHARD).read_bytes()[:5])
    with pytest.raises(WeightError, match=f"{SHARD} is cut off"):
        weights_id(base)


@pytest.mark.parametrize("span", [0, 10, 4096, 5000, 256 * 4096, 256 * 4096 + 1, 10**9])
def test_samples_reach_from_end_to_end(span: int) -> None:
    starts = sample_starts(span)
    assert len(starts) <= 256
    if span:
        assert starts[0] == 0
        assert starts[-1] + 4096 >= span
    if span <= 256 * 4096:
        assert starts == list(range(0, span, 4096))
    else:
        assert max(b - a for a, b in pairwise(starts)) <= span // 255 + 1
