"""`ling snapshot` against a router with fake workers, whose answers depend on the prompt and the seed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from tests.router.conftest import Stage, pair, staged, write_checkpoint
from wire.protocol import SamplingParams
from wire.session_file import SessionFile, SessionFileError, unpack
from wire.tokens import TokenIds

pytestmark = pytest.mark.process
SAVED = SessionFile("tiny", "w", 2, SamplingParams(9, seed=5, logit_bias=((3, 1.5),)), TokenIds.of((4, 5, 6, 7)))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    with staged(checkpoint, pair(), data_dir=str(tmp_path_factory.mktemp("data"))) as started:
        body = {"model": "auto", "prompt": "Once", "max_tokens": 9, "temperature": 0.7, "session_id": "s"}
        assert started.http.post(f"{started.url}/v1/completions", json=body).status_code == 200
        yield started


def ling(*words: str) -> tuple[int, str]:
    ended = CliRunner().invoke(app, ["snapshot", *words])
    return ended.exit_code, ended.output


def test_a_session_is_saved_shown_and_replayed(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    code, told = ling("save", "s", str(file), "--url", stage.url)
    assert code == 0, told
    assert file.stat().st_mode & 0o777 == 0o600
    code, told = ling("show", str(file))
    assert code == 0
    assert "a prompt of 4 tokens and an answer of 9, temperature 0.7" in told
    code, told = ling("replay", str(file), "--url", stage.url)
    assert (code, told.strip()) == (0, "equal: 9 tokens")


def _changed(**fields: Any) -> Callable[[SessionFile], bytes]:
    def change(saved: SessionFile) -> bytes:
        return replace(saved, **fields).pack()

    return change


def _flipped(saved: SessionFile) -> bytes:
    content = bytearray(saved.pack())
    content[-1] ^= 1
    return bytes(content)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda saved: saved.pack()[:-4], "cut short"),
        (lambda saved: saved.pack()[:5], "cut short"),
        (_flipped, "the checksum of its tokens does not match"),
        (lambda saved: b"PK\x03\x04" * 50, "cut short, or no safetensors"),
        (_changed(weights_id="other"), "is of the weights other"),
        (_changed(token_ids=TokenIds.of((2, 3, 4, 5, 6, 7))), "differ from token"),
    ],
)
def test_what_can_not_be_replayed_says_why(
    stage: Stage, tmp_path: Path, change: Callable[[SessionFile], bytes], told: str
) -> None:
    file = tmp_path / "s.safetensors"
    ling("save", "s", str(file), "--url", stage.url)
    file.write_bytes(change(unpack(file.read_bytes())))
    code, output = ling("replay", str(file), "--url", stage.url)
    assert code == 1
    assert told in output.replace("\n", " ")


def test_no_session_no_file_no_server(stage: Stage, tmp_path: Path) -> None:
    for words, told in (
        (("save", "nobody", str(tmp_path / "n"), "--url", stage.url), "there is no session 'nobody'"),
        (("show", str(tmp_path / "n")), "can't be read"),
        (("save", "s", str(tmp_path / "n"), "--url", "http://127.0.0.1:1"), "nothing answers"),
    ):
        code, output = ling(*words)
        assert code == 1
        assert told in output.replace("\n", " ")
    assert not (tmp_path / "n").exists()


def test_a_file_comes_back_as_it_was() -> None:
    assert unpack(SAVED.pack()) == SAVED
    assert SAVED.answer == (6, 7)
    for cut in range(0, len(SAVED.pack()), 7):
        with pytest.raises(SessionFileError):
            unpack(SAVED.pack()[:cut])
