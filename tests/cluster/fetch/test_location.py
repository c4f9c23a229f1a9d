"""Tests what the setting `model` can name, and which files of a checkpoint are fetched."""

import json
from pathlib import Path

import pytest

from cluster.config import ConfigError
from cluster.fetch.errors import FetchError
from cluster.fetch.location import Hub, Store, remote
from cluster.fetch.selection import weight_names


@pytest.mark.parametrize(
    ("model", "place"),
    [
        ("inclusionAI/Ling-2.6-flash", Hub("inclusionAI/Ling-2.6-flash")),
        ("inclusionAI/Ling-2.6-flash@v1.0", Hub("inclusionAI/Ling-2.6-flash", "v1.0")),
        ("hf://org/name@refs/pr/1", Hub("org/name", "refs/pr/1")),
        ("s3://bucket/a/b/", Store("s3://bucket/a/b")),
        ("gs://bucket", Store("gs://bucket")),
        ("https://host:8443/a/b", Store("https://host:8443/a/b")),
        ("/models/Ling", None),
        ("./org/name", None),
        ("~/org/name", None),
        ("a/b/c", None),
        ("Ling-2.6-flash", None),
    ],
)
def test_values_of_model_name_folders_repositories_and_prefixes(model: str, place: Hub | Store | None) -> None:
    assert remote(model) == place


def test_a_folder_that_is_there_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/name").mkdir(parents=True)
    assert remote("org/name") is None
    assert remote("hf://org/name") == Hub("org/name")


@pytest.mark.parametrize("model", ["hf://org", "hf://org/name@", "az://a/b", "s3://", "s3://b/a?x=1", "https://h//a#b",
                                   "https://huggingface.co/org/name"])  # fmt: skip
def test_an_unreadable_location_is_refused(model: str) -> None:
    with pytest.raises(ConfigError, match=r"^model: "):
        remote(model)


def test_names_and_file_names() -> None:
    assert (Hub("org/name", "v1").name, Store("s3://b/models/nano").name) == ("name", "nano")
    assert "/" not in Hub("org/name").slug + Store("https://h:1/a/b").slug


def test_the_index_or_the_manifest_names_the_weights() -> None:
    index = json.dumps({"weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}).encode()
    manifest = json.dumps({"tp": 2, "files": ["rank-0-of-2.safetensors"], "tensors": {}}).encode()
    assert weight_names(index, None) == ["1.safetensors", "2.safetensors"]
    assert weight_names(index, manifest) == ["rank-0-of-2.safetensors"]
    assert weight_names(None, None) == ["model.safetensors"]


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", ".ssh", 3])
def test_a_name_that_leads_out_of_the_folder_is_refused(name: object) -> None:
    with pytest.raises(FetchError, match="no plain file name"):
        weight_names(json.dumps({"weight_map": {"a": name}}).encode(), None)


@pytest.mark.parametrize("index", [b"{", b"[]", b"{}"])
def test_an_unreadable_index_is_refused(index: bytes) -> None:
    with pytest.raises(FetchError, match="upload the checkpoint again"):
        weight_names(index, None)
