"""`ling snapshot` against routers with fake workers, whose answers depend on the prompt and the seed and which keep no
states; `tests/integration/test_snapshots.py` has files with states."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from typer.testing import CliRunner

from cluster.cli import app
from router.access.keys import hashed, make_key
from router.app import Pools
from tests.router.conftest import Stage, pair, staged, write_checkpoint
from tests.router.fake_worker import FakeWorker
from wire.protocol import Grammar, SamplingParams
from wire.snapshot_file import (
    SnapshotFile,
    SnapshotFileError,
    Turn,
    join,
    pack,
    read,
    token_hash,
    unpack,
    without_state,
)
from wire.tokens import TokenIds

pytestmark = pytest.mark.process
SAMPLING = SamplingParams(9, seed=5, logit_bias=((3, 1.5),), grammar=Grammar("start: /a+/"))
SAVED = without_state("w", "l", Turn("tiny", 2, SAMPLING), TokenIds.of((4, 5, 6, 7)))
BODY = {"model": "auto", "prompt": "Once", "max_tokens": 9, "temperature": 0.7}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def stage(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(checkpoint, pair(), data_dir=str(tmp_path_factory.mktemp("data"))) as started:
        assert started.http.post(f"{started.url}/v1/completions", json={**BODY, "session_id": "s"}).status_code == 200
        yield started


def ling(*words: str) -> tuple[int, str]:
    ended = CliRunner().invoke(app, ["snapshot", *words])
    return ended.exit_code, ended.output.replace("\n", " ")


def test_a_session_is_saved_shown_and_replayed(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    code, told = ling("save", "s", str(file), "--url", stage.url)
    assert code == 0, told
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]
    code, told = ling("show", str(file))
    assert code == 0
    assert "a prompt of 4 tokens and an answer of 9, temperature 0.7" in told
    assert "no state" in told
    code, told = ling("replay", str(file), "--url", stage.url)
    assert (code, told.strip()) == (0, "equal: 9 tokens; 3 of 4 prompt tokens were not computed")
    code, told = ling("load", str(file), "t", "--url", stage.url)
    assert (code, told.strip()) == (0, "t: 13 tokens, none from a state")
    code, told = ling("load", str(file), "t", "--url", stage.url)
    assert code == 1
    assert "there is a session 't' already" in told
    sessions = stage.http.get(f"{stage.url}/v1/sessions").json()["data"]
    assert [one["id"] for one in sessions] == ["t", "s"]


def _changed(**fields: Any) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        saved = unpack(content)
        ids = fields.get("token_ids", saved.token_ids)
        return pack(replace(saved.head, **{k: v for k, v in fields.items() if k != "token_ids"}), {}, ids)

    return change


def _head(**described: Any) -> Callable[[bytes], bytes]:
    """The header's own JSON changed, whatever it then means. text: its beginning instead."""

    def change(content: bytes) -> bytes:
        size = int.from_bytes(content[:8], "little")
        head = {**json.loads(content[8 : 8 + size]), **described}
        encoded = described["text"] if "text" in described else json.dumps(head).encode()
        return len(encoded).to_bytes(8, "little") + encoded + content[8 + size :]

    return change


def _sampled(**fields: Any) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        turn = unpack(content).head.turn
        assert turn is not None
        return _changed(turn=replace(turn, sampling=structs.replace(turn.sampling, **fields)))(content)

    return change


def _flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: content[:-4], "cut short"),
        (lambda content: content[:5], "cut short"),
        (lambda content: content + b"more", "it has"),
        (_flipped, "the checksum of its token ids does not match"),
        (lambda content: b"PK\x03\x04" * 50, "no safetensors"),
        (lambda content: content.replace(b"ling-snapshot/2", b"ling-snapshot/9"), "its format is 'ling-snapshot/9'"),
        (_changed(position=3), "its header contradicts itself"),
        (_changed(weights_id="other"), "it is of the weights other (tiny); this cluster serves w"),
        (_changed(turn=None), "it does not say what was asked"),
        (_changed(token_ids=TokenIds.of((2, 3, 4, 5, 6, 7))), "differ from token"),
        (_changed(token_ids=TokenIds.of((2, 3, -4, 5, 6, 7))), "a token id is outside the vocabulary"),
        (_changed(start=2, before="x"), "its header contradicts itself"),
        (_head(text=b"[" * 200_000), "its header can't be read"),
        (_head(text=b"[]"), "its header can't be read"),
        (_head(__metadata__=[]), "its header can't be read"),
        (_head(token_ids={"dtype": "I32", "shape": [1], "data_offsets": [0, float("inf")]}), "cut short"),
        (_head(token_ids={"dtype": "I32", "shape": [1], "data_offsets": [0, 15]}), "no whole ids"),
        (_head(token_ids={"dtype": "I32", "shape": [1], "data_offsets": [-8, 8]}), "names bytes that can't be"),
        (_sampled(logit_bias=((10**7, 1.0),)), "its sampling's logit_bias can't be"),
        (_sampled(stop_token_ids=(-1,)), "its sampling's stop_token_ids can't be"),
        (_sampled(temperature=float("nan")), "can't be read"),
        (_sampled(temperature=-1.0), "its sampling's temperature can't be"),
        (_sampled(repetition_penalty=0.0), "its sampling's repetition_penalty can't be"),
        (_sampled(top_k=-1), "its sampling's top_k can't be"),
        (_sampled(logprobs=10**6), "its sampling's logprobs can't be"),
        (_sampled(grammar=Grammar("start: ((")), "its grammar can't be enforced"),
    ],
)
def test_a_session_that_can_not_be_replayed_gives_the_reason(
    stage: Stage, tmp_path: Path, change: Callable[[bytes], bytes], told: str
) -> None:
    file = tmp_path / "s.safetensors"
    ling("save", "s", str(file), "--url", stage.url)
    file.write_bytes(change(file.read_bytes()))
    before = stage.http.get(f"{stage.url}/v1/sessions").json()["data"]
    code, output = ling("replay", str(file), "--url", stage.url)
    assert code == 1
    assert told in output
    # As is what is sent past the command; nothing is left of it.
    answer = stage.http.post(f"{stage.url}/v1/sessions/odd/snapshot", content=file.read_bytes())
    if "differ" not in told:
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_snapshot")
        assert stage.http.get(f"{stage.url}/v1/sessions").json()["data"] == before
    else:
        stage.http.delete(f"{stage.url}/v1/sessions/odd")


def test_a_missing_session_file_or_server_is_named(stage: Stage, tmp_path: Path) -> None:
    for words, told in (
        (("save", "nobody", str(tmp_path / "n"), "--url", stage.url), "there is no session 'nobody'"),
        (("save", "--request", "r", str(tmp_path / "n"), "--url", stage.url), "no request 'r' is known to have failed"),
        (("show", str(tmp_path / "n")), "can't be read"),
        (("save", "s", str(tmp_path / "n"), "--url", "http://127.0.0.1:1"), "nothing answers at http://127.0.0.1:1"),
        (("save", "s", str(tmp_path / "no" / "n"), "--url", stage.url), "can't be written"),
    ):
        code, output = ling(*words)
        assert code == 1
        assert told in output
    assert not list(tmp_path.iterdir())


def test_a_quarantined_request_is_saved_and_completes_where_it_does_not_fail(checkpoint: Path, tmp_path: Path) -> None:
    workers = [FakeWorker(f"d{n}", "decode") for n in range(3)]
    body = {**BODY, "prompt": [77, 78], "seed": 3}
    with staged(checkpoint, workers, pools=Pools(0, 3), data_dir=str(tmp_path / "data")) as stage:
        right = stage.http.post(f"{stage.url}/v1/completions", json={**body, "return_token_ids": True}).json()
        for worker in workers:
            worker.poison = 77
        refused = stage.http.post(f"{stage.url}/v1/completions", json=body, headers={"x-request-id": "bad"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "request_quarantined")
        file = tmp_path / "bad.safetensors"
        code, told = ling("save", "--request", "bad", str(file), "--url", stage.url)
        assert code == 0, told
        assert "a prompt of 2 tokens and an answer of 0" in told
        assert "it failed: the request is quarantined" in told
        (left,) = [worker for worker in workers if not worker.ended.is_set()]
        left.poison = None
        code, told = ling("replay", str(file), "--url", stage.url)
        assert code == 0, told
        assert "equal: 0 tokens, then 9 more without a failure" in told
        assert unpack(file.read_bytes()).head.turn is not None
        assert left.received[-1].sampling.seed == 3
        assert len(right["choices"][0]["token_ids"]) == 9


def test_only_operators_load_files_and_save_other_tenants_requests(checkpoint: Path, tmp_path: Path) -> None:
    keys = {name: make_key() for name in ("ops", "one", "two")}
    listed = tmp_path / "keys"
    listed.write_text("".join(f"{name} sha256:{hashed(key)}\n" for name, key in keys.items()))
    workers = [FakeWorker("d0", "decode", refuse="it broke")]
    options = {"api_keys": str(listed), "operators": ("ops",), "data_dir": str(tmp_path / "data")}
    with staged(checkpoint, workers, pools=Pools(0, 1), **options) as stage:

        def asked(name: str, method: str, path: str, **sent: Any) -> int:
            headers = {"authorization": f"Bearer {keys[name]}", "x-request-id": "r"}
            return stage.http.request(method, stage.url + path, headers=headers, **sent).status_code

        assert asked("one", "POST", "/v1/completions", json=BODY) == 500
        path = "/v1/requests/r/snapshot"
        assert [asked(name, "GET", path) for name in ("one", "two", "ops")] == [200, 404, 200]
        load = "/v1/sessions/s/snapshot"
        assert [asked(name, "POST", load, content=SAVED) for name in ("one", "ops", "ops")] == [403, 200, 409]


def test_a_file_comes_back_as_it_was() -> None:
    saved = unpack(SAVED)
    assert (saved.head.turn, list(saved.token_ids)) == (Turn("tiny", 2, SAMPLING), [4, 5, 6, 7])
    for cut in range(0, len(SAVED), 7):
        with pytest.raises(SnapshotFileError):
            unpack(SAVED[:cut])


def test_the_files_of_all_ranks_become_one() -> None:
    whole = unpack(SAVED)

    def part(rank: int, start: int = 0, before: str = "") -> io.BytesIO:
        ids = TokenIds.of((4, 5, 6, 7)[start : start + 2])
        head = replace(
            whole.head, position=start + 2, token_hash=token_hash(ids, 2), parts=(2,), states=(0,), split=2,
            ranks=(rank,), turn=None, scope="tenant", start=start, before=before,
        )  # fmt: skip
        tensors = {
            f"rank{rank}.rows.0": ("U8", (3,), 3, "aa"), f"rank{rank}.state.0.0": ("U8", (2,), 2, "bb"),
        }  # fmt: skip
        return io.BytesIO(pack(head, tensors, ids) + bytes([start + rank] * 3) + bytes([10 + start + rank] * 2))

    turn = Turn("tiny", 2, SAMPLING)
    lined = b"".join(join([[part(0), part(0, 2, "a")]], turn, TokenIds.of((4, 5, 6, 7, 8))))
    head = unpack(lined).head
    assert (head.position, head.start, head.before, head.parts, head.states, head.positions) == (
        4, 0, "", (2, 2), (1,), (4,),
    )  # fmt: skip
    assert lined.endswith(bytes([0] * 3 + [2] * 3 + [12] * 2))
    content = b"".join(join([[part(0)], [part(1)]], turn, TokenIds.of((4, 5, 6))))
    joined: SnapshotFile = read(io.BytesIO(content))
    assert (joined.head.ranks, joined.head.scope, joined.head.turn) == ((0, 1), "", turn)
    assert joined.bytes == len(content)
    assert list(joined.token_ids) == [4, 5, 6]
    got = {name: content[entry.begin : entry.end] for name, entry in joined.tensors.items() if name != "token_ids"}
    assert got == {
        "rank0.rows.0": b"\0\0\0", "rank0.state.0.0": b"\x0a\x0a", "rank1.rows.0": b"\1\1\1",
        "rank1.state.0.0": b"\x0b\x0b",
    }  # fmt: skip
