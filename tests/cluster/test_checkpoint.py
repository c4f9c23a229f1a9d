"""Tests that each kind of bad checkpoint is refused with its own message before anything starts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cluster.checkpoint import check_files
from cluster.cli import app
from cluster.config import ConfigError
from cluster.parse import parse
from cluster.resolve import EMBEDDED, resolve

pytestmark = pytest.mark.process

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
NORM = "model.norm.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good checkpoint to damage."""
    return Path(shutil.copytree(EMBEDDED, tmp_path / "m"))


def _refusal(folder: Path, **settings: object) -> str:
    """The error message that a user sees."""
    config = parse({"model": str(folder), "prefill.tp": 2, "decode.tp": 2}, settings)
    with pytest.raises(ConfigError) as raised:
        check_files(config, Path(resolve(config, gpus=0).model))
    return str(raised.value)


def _write(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


def _remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def _config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | changes))

    return change


def _index(file: str) -> Callable[[Path], None]:
    """Make the index name another file for one tensor."""

    def change(folder: Path) -> None:
        raw = json.loads((folder / INDEX).read_text())
        raw["weight_map"][NORM] = file
        (folder / INDEX).write_text(json.dumps(raw))

    return change


def _tensor(tensor: torch.Tensor | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        del tensors[NORM]
        save_file(tensors if tensor is None else tensors | {NORM: tensor}, folder / WEIGHTS)

    return change


def _cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])


def _gguf(folder: Path) -> None:
    _remove(WEIGHTS, INDEX)(folder)
    (folder / "ling-Q4_K_M.gguf").write_bytes(b"GGUF")


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4747432\n"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_remove(WEIGHTS), "{m}/model.safetensors is missing, though the checkpoint's index names it; copy it again"),
        (_index("b.safetensors"), "{m}/b.safetensors is missing, though the checkpoint's index names it; copy it"),
        (_cut, "{m}/model.safetensors ({cut} bytes) is cut off or damaged: its header promises {size} bytes"),
        (_write(WEIGHTS, LFS), "{m}/model.safetensors is Git LFS's pointer to the file; fetch the file itself"),
        (_write(INDEX, "{"), "{m}/model.safetensors.index.json can't be read: JSONDecodeError"),
        (_gguf, "{m} holds neither model.safetensors.index.json nor model.safetensors; ling-Q4_K_M.gguf is not read"),
        (_tensor(torch.ones(3)), "model.norm.weight in {m}/model.safetensors has shape [3], expected [128] by "),
        (_tensor(None), "model.norm.weight should be in {m}/model.safetensors, and is not; copy the file again"),
        (_tensor(torch.ones(128).to(torch.int8)), "model.norm.weight is stored as I8; served are F32, BF16, F16"),
        (_config(quantization_config={"quant_method": "gptq"}), "config.json: quantization_config.quant_method 'gptq'"),
        (_config(architectures=["BailingMoeV3ForCausalLM"]), "config.json: architecture BailingMoeV3ForCausalLM is"),
        (_config(architectures=None), "config.json: architecture none is not served"),
        (_write("config.json", '{"hidden_size": 128,}'), "{m}/config.json can't be read: Expecting property name"),
        (_write("config.json", "[]"), "{m}/config.json holds no JSON object; copy it again"),
        (_remove("config.json"), "{m} holds no config.json; give the folder of a release, with config.json "),
        (_remove("tokenizer.json"), "{m} holds no tokenizer.json; copy it from the release of these weights"),
        (_write("tokenizer.json", "{"), "the tokenizer or chat template in {m} can't be read: EOF while parsing"),
        (_write("tokenizer_config.json", "{"), "the tokenizer or chat template in {m} can't be read: Expecting p"),
        (_write("chat_template.jinja", "{% if %}"), "the tokenizer or chat template in {m} can't be read: Expected"),
    ],
)  # fmt: skip
def test_each_damage_has_its_message(damage: Callable[[Path], None], told: str, folder: Path) -> None:
    size = (folder / WEIGHTS).stat().st_size
    damage(folder)
    assert _refusal(folder).startswith("model: " + told.format(m=folder, size=size, cut=size - 1))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere", "no checkpoint folder at {at}; give the folder that holds config.json, or what can be fetched"),
        ("empty", "{at} is empty; give the folder of a release, with config.json and safetensors files"),
        ("model.gguf", "{at} is a file; GGUF files are not read: give the folder of a release, "),
        ("one.safetensors", "{at} is a file; give the folder it lies in"),
        ("quants", "{at} holds no config.json; GGUF files are not read: give the folder of a release, "),
    ],
)
def test_a_folder_that_is_no_checkpoint_has_its_message(name: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "quants").mkdir()
    for file in ("model.gguf", "one.safetensors", "quants/model.gguf"):
        (tmp_path / file).write_bytes(b"GGUF")
    assert _refusal(tmp_path / name).startswith("model: " + told.format(at=tmp_path / name))


def test_synthetic_weights_need_no_files(folder: Path) -> None:
    _remove(WEIGHTS, INDEX)(folder)
    check_files(parse({"model": str(folder), "load": "synthetic"}), folder)
    check_files(parse({"model": str(EMBEDDED)}), EMBEDDED)


def test_ling_serve_checks_the_checkpoint_before_it_starts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.launch._set_environment", lambda: pytest.fail("Ray is about to start"))
    _tensor(torch.ones(3))(folder)
    found = CliRunner().invoke(app, ["serve", "--model", str(folder), "--port", "18437"])
    assert found.exit_code == 2
    assert "model.norm.weight in " in found.stderr
