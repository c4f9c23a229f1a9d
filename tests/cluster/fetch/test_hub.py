"""Tests fetching from a hub by the hub's library, against a server with its API."""

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.fetch import guard
from cluster.fetch.errors import FetchError
from cluster.fetch.fetch import Fetched, Origin
from cluster.fetch.location import Hub
from cluster.resolve import EMBEDDED
from tests.cluster.fetch.hub_server import COMMIT, Repository, hub_server, of_folder
from wire.progress import Progress

pytestmark = pytest.mark.process

NAME = "org/ling-nano"
SERVED = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "model.safetensors", "model.safetensors.index.json",
}  # fmt: skip
WEIGHTS = "model.safetensors"


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    """ling-nano on a hub that this process is set to use."""
    from huggingface_hub import constants  # noqa: PLC0415 - as the product loads it

    made = of_folder(NAME, EMBEDDED)
    with hub_server(made) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        # Small enough that a file comes in several pieces, so that one that is cut off has brought some.
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
        yield made


def fetch(cache: Path, revision: str | None = None, **more: object) -> Fetched:
    return Origin(Hub(NAME, revision), cache).weights(**more)  # type: ignore[arg-type]


def another(cache: Path, **environment: str) -> "subprocess.Popen[str]":
    """Start another process that fetches into the same cache and prints the folder."""
    from huggingface_hub import constants  # noqa: PLC0415

    code = "import sys; from pathlib import Path; from cluster.fetch.fetch import Origin\n"
    code += (
        "from cluster.fetch.location import Hub; print(Origin(Hub(sys.argv[1]), Path(sys.argv[2])).weights().folder)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, NAME, str(cache)],
        env=os.environ | {"HF_ENDPOINT": constants.ENDPOINT} | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_only_files_that_workers_load_are_fetched_once_and_pinned(repository: Repository, tmp_path: Path) -> None:
    told: list[Progress] = []
    first = fetch(tmp_path, tell=told.append)
    assert {path.name for path in first.folder.iterdir()} == SERVED
    for name in SERVED:
        assert (first.folder / name).read_bytes() == (EMBEDDED / name).read_bytes()
    assert set(repository.sent) == SERVED
    assert first.origin.version == COMMIT
    size = (EMBEDDED / WEIGHTS).stat().st_size
    (last,) = (p for p in told[-2:] if p.stage == f"fetching {NAME}")
    assert (last.done, last.total, last.files_done, last.files) == (size, size, 1, 1)
    asked = repository.asked.total()
    # What the cluster has settled on needs no look at the hub.
    assert first.origin.weights() == first
    assert repository.asked.total() == asked
    # A branch may have moved, so it is asked for, and nothing is sent again.
    sent = repository.sent_bytes
    assert fetch(tmp_path) == first
    assert repository.sent_bytes == sent


def test_describing_a_checkpoint_fetches_no_weights(repository: Repository, tmp_path: Path) -> None:
    described = Origin(Hub(NAME), tmp_path).description()
    assert WEIGHTS not in repository.sent
    assert (described.folder / "tokenizer.json").exists()
    assert described.origin.weights().folder == described.folder


def test_a_moved_branch_is_another_folder_and_a_pinned_one_stays(repository: Repository, tmp_path: Path) -> None:
    first = fetch(tmp_path)
    repository.commits["main"] = "b" * 40
    second = fetch(tmp_path)
    assert second.folder != first.folder
    assert first.origin.weights().folder == first.folder
    # The same content under another commit is not sent again.
    assert repository.sent[WEIGHTS] == (EMBEDDED / WEIGHTS).stat().st_size


def test_nodes_fetch_the_same_commit_or_refuse(repository: Repository, tmp_path: Path) -> None:
    """A node's hub, for example a mirror, may lack the commit that the cluster uses."""
    settled = Origin(Hub(NAME, "v1"), tmp_path / "head")
    repository.commits["v1"] = COMMIT
    settled = settled.description().origin
    repository.commits = {"main": "b" * 40, "v1": "b" * 40}
    refused = rf"^model: http\S+ does not hold commit {COMMIT} of {NAME}, which the cluster was deployed with: give all"
    with pytest.raises(FetchError, match=refused):
        dataclasses.replace(settled, cache=tmp_path / "node").weights()
    assert WEIGHTS not in repository.sent
    # Deployed again, all take what there is now.
    assert Origin(Hub(NAME, "v1"), tmp_path / "node").weights().origin.version == "b" * 40


def test_a_fetch_continues_after_a_broken_connection(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import file_download  # noqa: PLC0415

    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda _: None))
    repository.cut = 3
    fetched = fetch(tmp_path)
    assert (fetched.folder / WEIGHTS).read_bytes() == (EMBEDDED / WEIGHTS).read_bytes()
    starts = repository.starts
    assert len(starts) == 4
    assert starts == sorted(set(starts)), "it began anew"


def test_processes_of_a_host_fetch_once(repository: Repository, tmp_path: Path) -> None:
    repository.hold = threading.Event()
    processes = [another(tmp_path) for _ in range(2)]
    repository.hold.set()
    folders = {process.communicate(timeout=60)[0] for process in processes}
    assert len(folders) == 1
    assert folders.pop().strip().endswith(COMMIT)
    assert repository.sent[WEIGHTS] == (EMBEDDED / WEIGHTS).stat().st_size


def test_a_killed_fetch_keeps_its_whole_files(repository: Repository, tmp_path: Path) -> None:
    repository.hold = threading.Event()  # the weights' content waits, all else has come
    process = another(tmp_path)
    assert repository.begun.wait(60)
    process.kill()
    process.communicate()
    (partial,) = tmp_path.rglob("*.incomplete")
    os.utime(partial, (0, 0))
    described = repository.sent["tokenizer.json"]
    repository.hold.set()
    fetched = fetch(tmp_path)
    assert (fetched.folder / WEIGHTS).read_bytes() == (EMBEDDED / WEIGHTS).read_bytes()
    assert repository.sent["tokenizer.json"] == described
    assert not partial.exists()


def test_damage_on_the_way_is_found_and_mended_by_the_next_fetch(repository: Repository, tmp_path: Path) -> None:
    repository.damage = True
    with pytest.raises(FetchError, match=r"^model: model.safetensors came damaged: .* it was removed, fetch again$"):
        fetch(tmp_path)
    repository.damage = False
    assert (fetch(tmp_path).folder / WEIGHTS).read_bytes() == (EMBEDDED / WEIGHTS).read_bytes()


def test_refusals_are_one_line_that_says_what_to_do(repository: Repository, tmp_path: Path) -> None:
    def refusal(hub: Hub) -> str:
        with pytest.raises(FetchError) as raised:
            Origin(hub, tmp_path).weights()
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert f"model: {NAME} has no revision v9" in refusal(Hub(NAME, "v9"))
    assert "has no repository org/other, or hides it: check the name, or set HF_TOKEN" in refusal(Hub("org/other"))
    repository.gated = True
    assert "is gated: accept its terms at " in refusal(Hub(NAME))
    repository.gated = False
    repository.token = "right"
    assert "or hides it: check the name, or set HF_TOKEN to a token" in refusal(Hub(NAME))
    repository.token = None
    del repository.files[WEIGHTS]
    assert "holds no model.safetensors, though its index names it" in refusal(Hub(NAME))
    del repository.files["config.json"]
    repository.commits["main"] = "c" * 40
    assert "holds no config.json; give the repository of a release" in refusal(Hub(NAME))


def test_the_token_comes_from_its_usual_variable(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.token = "right"
    monkeypatch.setenv("HF_TOKEN", "right")
    assert (fetch(tmp_path).folder / WEIGHTS).exists()


@pytest.mark.filterwarnings("ignore:Not enough free disk space")
def test_a_full_disk(repository: Repository, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FetchError, match=r"needs 0.01 GB more in .* has 0.00 GB free; .* set model_cache to a "):
        fetch(small_disk)
    assert WEIGHTS not in repository.sent
    # Others fill it meanwhile.
    monkeypatch.setattr(guard.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 40))
    with pytest.raises(FetchError, match=r"^model: the disk of .* is full; free some, or set model_cache to a "):
        fetch(small_disk)


def test_a_file_that_lost_bytes_later_is_noticed(repository: Repository, tmp_path: Path) -> None:
    fetched = fetch(tmp_path)
    blob = (fetched.folder / WEIGHTS).resolve()
    blob.write_bytes(blob.read_bytes()[:-1])
    with pytest.raises(FetchError, match="has not the length that the hub says"):
        fetched.origin.weights()


def test_without_the_hub_the_cache_serves(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = fetch(tmp_path)

    assert another(tmp_path, HF_HUB_OFFLINE="1").communicate()[0].strip() == str(fetched.folder)
    # A hub that is out of reach, where this process has the refusal's words.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert fetch(tmp_path) == fetched
    with pytest.raises(
        FetchError, match=r"is not wholly in .*, and http://127.0.0.1:9 can't be reached: check HF_ENDP"
    ):
        fetch(tmp_path / "empty")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FetchError, match=r"and HF_HUB_OFFLINE is set: unset it, or fetch it where there is a network"):
        fetch(tmp_path / "empty")
