"""Tests which requests outlive their router, and for how long their tokens are kept."""

import array

import pytest

from wire.protocol import Finish, SamplingParams, SeqOutput, Submit
from wire.tokens import TokenIds
from workers.leader.resumable import Resumable

KEY, BODY = b"k" * 16, b"b" * 16


def submit(
    request_id: str = "r", *, key: bytes = KEY, handoff: bool = False, generated: tuple[int, ...] = ()
) -> Submit:
    ids = TokenIds.of([1, 2, 3, *generated])
    return Submit(
        request_id, ids, SamplingParams(9, 0), handoff=handoff, generated=len(generated), key=key, body=BODY
    )  # fmt: skip


def output(offset: int, *tokens: int, finish: Finish | None = None) -> SeqOutput:
    return SeqOutput("r", offset, tokens, finish=finish)


def none(request_id: str, count: int) -> list[int]:
    """The tokens that came with a snapshot: none."""
    return []


def tokens_of(kept: Resumable) -> list[int] | None:
    found = kept.find(KEY)
    return None if found is None else list(found.tokens)


def test_without_a_key_nothing_is_kept() -> None:
    kept = Resumable(10.0)
    kept.submitted(submit(key=b""))
    kept.took(output(0, 7), none, 0.0)
    assert not kept.orphaned("r", 0.0)
    assert len(kept) == 0


def test_a_sequence_runs_on_without_a_router_for_so_long() -> None:
    kept = Resumable(10.0)
    kept.submitted(submit())
    kept.took(output(0, 7), none, 0.0)
    assert kept.orphaned("r", 1.0)
    kept.took(output(1, 8), none, 5.0)
    assert tokens_of(kept) == [7, 8]
    assert kept.expired(10.9) == []
    assert kept.expired(11.0) == ["r"]
    assert tokens_of(kept) is None


def test_a_sequence_that_a_router_takes_over_is_not_ended() -> None:
    kept = Resumable(10.0)
    kept.submitted(submit())
    kept.took(output(0, 7), none, 0.0)
    kept.orphaned("r", 1.0)
    entry = kept.attach("r", 2.0)
    assert entry is not None
    assert (entry.body, entry.tokens, entry.running) == (BODY, array.array("i", [7]), True)
    assert kept.expired(1e9) == []


@pytest.mark.parametrize(("finish", "whole"), [("stop", "stop"), ("length", "length"), ("error", None)])
def test_tokens_outlive_the_end_of_their_sequence(finish: Finish, whole: Finish | None) -> None:
    kept = Resumable(10.0)
    kept.submitted(submit())
    kept.took(output(0, 7), none, 0.0)
    kept.took(output(1, 8, finish=finish), none, 3.0)
    found = kept.find(KEY)
    assert found is not None
    assert (found.whole, found.running, list(found.tokens)) == (whole, False, [7, 8])
    assert kept.expired(12.9) == []
    assert kept.expired(13.0) == []  # there is no sequence to end
    assert tokens_of(kept) is None


def test_tokens_from_a_snapshot_or_another_worker_are_known() -> None:
    kept = Resumable(10.0)
    kept.submitted(submit())
    assert kept.find(KEY) is None  # with no token it is as well begun anew
    kept.took(output(1, 8), lambda _, count: [7][:count], 0.0)
    assert tokens_of(kept) == [7, 8]
    kept.submitted(submit("r.1", generated=(7, 8, 9)))
    assert tokens_of(kept) == [7, 8, 9]


def test_a_sequence_with_unknown_tokens_is_forgotten() -> None:
    kept = Resumable(10.0)
    kept.submitted(submit())
    kept.took(output(1, 8, finish="stop"), none, 0.0)
    assert (kept.find(KEY), len(kept)) == (None, 0)


def test_a_prompt_s_sequence_runs_on_and_is_not_found() -> None:
    kept = Resumable(10.0)
    kept.submitted(submit(handoff=True))
    kept.took(output(0, 7), none, 0.0)
    assert kept.orphaned("r", 0.0)
    assert kept.find(KEY) is None
    kept.took(output(1, finish="handoff"), none, 1.0)
    assert len(kept) == 0


def test_a_later_sequence_ends_an_earlier_one_that_has_no_router() -> None:
    kept = Resumable(10.0)
    kept.submitted(submit())
    kept.took(output(0, 7), none, 0.0)
    assert kept.submitted(submit("other")) is None  # a router still has the first
    kept.orphaned("other", 0.0)
    assert kept.submitted(submit("third")) == "other"
