"""Tests grammars at rank 0 and at the leader: allowed tokens, compiling, and caching."""

import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from wire.protocol import Grammar, SamplingParams
from workers.leader.grammars import GrammarDesk
from workers.rank.grammar import GrammarError, Grammars, Matcher
from workers.schedule.sequence import Sequence
from workers.schedule.step import Compile, Compiled, Forget

NANO = Path(__file__).parents[2] / "checkpoints" / "ling-nano"
VOCAB = 1280
END, NEWLINE, DIGIT_0 = 1269, 198, 15
DIGITS = Grammar("start: /[0-9]{2}/")


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    made = Grammars(NANO, VOCAB)
    made.compile(DIGITS)
    return made


def allowed(words: NDArray[np.int32], row: int) -> set[int]:
    bits = np.unpackbits(words[row].view(np.uint8), bitorder="little")[:VOCAB]
    return set(np.flatnonzero(bits).tolist())


def masks(
    grammars: Grammars, matcher: Matcher | None, stops: tuple[int, ...] = (END,), may_end: bool = True
) -> tuple[set[int], dict[int, str]]:
    words, failed = grammars.masks([matcher], [stops], [may_end])
    return allowed(words, 0), failed


def test_a_text_follows_its_grammar_and_ends_when_it_is_complete(grammars: Grammars) -> None:
    digits = set(range(DIGIT_0, DIGIT_0 + 10))
    matcher = grammars.start(DIGITS, ())
    assert masks(grammars, matcher) == (digits, {})
    matcher.advance([DIGIT_0])
    assert masks(grammars, matcher) == (digits, {})
    matcher.advance([DIGIT_0 + 1])
    assert masks(grammars, matcher) == ({END}, {})
    assert masks(grammars, matcher, stops=(END, 7)) == ({END, 7}, {})


def test_rows_are_masked_apart_from_each_other(grammars: Grammars) -> None:
    first, second = grammars.start(DIGITS, ()), grammars.start(DIGITS, (DIGIT_0, DIGIT_0))
    words, failed = grammars.masks([first, None, second], [(END,)] * 3, [True] * 3)
    assert [len(allowed(words, row)) for row in range(3)] == [10, VOCAB, 1]
    assert not failed


def test_a_stop_token_of_the_clients_is_held_back_until_the_text_is_whole(grammars: Grammars) -> None:
    assert DIGIT_0 not in masks(grammars, grammars.start(DIGITS, ()), stops=(DIGIT_0,))[0]


def test_a_row_without_an_allowed_token_is_reported(grammars: Grammars) -> None:
    whole = grammars.start(DIGITS, (DIGIT_0, DIGIT_0))
    for stops, may_end in (((), True), ((END,), False)):
        tokens, failed = masks(grammars, whole, stops, may_end)
        assert (len(tokens), failed) == (VOCAB, {0: "its text is whole, but it may not end"})
    one = Grammar("start: /[0-9]/")
    grammars.compile(one)
    every_digit = tuple(range(DIGIT_0, DIGIT_0 + 10))
    assert masks(grammars, grammars.start(one, ()), every_digit)[1] == {0: "its grammar allows no token here"}


def test_tokens_that_do_not_fit_end_in_an_error(grammars: Grammars) -> None:
    matcher = grammars.start(DIGITS, ())
    matcher.advance([NEWLINE])
    for started in (matcher, grammars.start(DIGITS, (NEWLINE,))):
        assert "can't go on" in masks(grammars, started)[1][0]


def test_a_grammar_that_does_not_compile_gives_the_reason(grammars: Grammars, tmp_path: Path) -> None:
    with pytest.raises(GrammarError, match=r"can't be compiled: .*regex"):
        grammars.compile(Grammar("start: /a{/"))
    with pytest.raises(GrammarError, match=r"no tokenizer\.json"):
        Grammars(tmp_path, VOCAB).compile(DIGITS)
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(GrammarError, match=f"tokenizer of {tmp_path}"):
        Grammars(tmp_path, VOCAB).compile(DIGITS)


@pytest.mark.parametrize(("text", "failed"), [("start: /a/", False), ("start: /a{/", True)])
def test_compiling_in_the_background_answers_once(text: str, failed: bool) -> None:
    made, answered, answers = Grammars(NANO, VOCAB), threading.Event(), []

    def done(grammar: Grammar, error: str | None) -> None:
        answers.append((grammar, error is not None))
        answered.set()

    made.submit(Grammar(text), done)
    assert answered.wait(30)
    made.close()
    assert answers == [(Grammar(text), failed)]


def test_a_matcher_under_way_outlives_its_grammar() -> None:
    made = Grammars(NANO, VOCAB)
    made.compile(DIGITS)
    matcher = made.start(DIGITS, (DIGIT_0,))
    made.forget(DIGITS)
    assert len(masks(made, matcher)[0]) == 10
    with pytest.raises(KeyError):
        made.start(DIGITS, ())


class Desk:
    """A grammar desk, its messages to rank 0, and a fake scheduler."""

    def __init__(self, keep: int = 2) -> None:
        self.told: list[Compile | Forget] = []
        self.admitted: list[Sequence] = []
        self.desk = GrammarDesk(self.told.append, lambda: self.admitted, keep)

    def bring(self, name: str, grammar: str | None) -> bool:
        """Submit a sequence; returns whether it must wait."""
        sampling = SamplingParams(max_tokens=1, seed=0, grammar=Grammar(grammar) if grammar else None)
        seq = Sequence(name, [1], 1, sampling, 0, 0, False, None, 0.0)
        waits = self.desk.holds_back(seq)
        if not waits:
            self.admitted.append(seq)
        return waits

    def ready(self, grammar: str, error: str | None = None) -> list[str]:
        """Report a grammar as compiled; returns the sequences that waited, which are admitted."""
        waited = self.desk.compiled(Compiled(Grammar(grammar), error))
        self.admitted += waited
        return [s.request_id for s in waited]


def test_each_grammar_is_compiled_once_and_only_its_sequences_wait() -> None:
    desk = Desk()
    assert not desk.bring("free", None)
    assert desk.bring("a1", "A")
    assert desk.bring("a2", "A")
    assert desk.bring("b1", "B")
    assert desk.told == [Compile(Grammar("A")), Compile(Grammar("B"))]
    assert "a2" in desk.desk
    assert desk.ready("A") == ["a1", "a2"]
    assert not desk.bring("a3", "A")
    assert not desk.desk.idle
    assert desk.ready("B") == ["b1"]
    assert desk.desk.idle


def test_a_sequence_aborted_while_waiting_is_not_admitted() -> None:
    desk = Desk()
    desk.bring("a1", "A")
    desk.bring("a2", "A")
    desk.desk.drop("a1")
    desk.desk.drop("unknown")
    assert "a1" not in desk.desk
    assert desk.ready("A") == ["a2"]


def test_a_grammar_that_failed_is_tried_again_with_the_next_request() -> None:
    desk = Desk()
    desk.bring("a1", "A")
    assert desk.ready("A", error="no") == ["a1"]
    assert desk.bring("a2", "A")
    assert desk.told == [Compile(Grammar("A"))] * 2


def test_the_longest_unused_are_forgotten_and_never_one_in_use() -> None:
    desk = Desk(keep=2)
    for name in "ABC":
        desk.bring(name.lower(), name)
        desk.ready(name)
    assert Forget(Grammar("A")) not in desk.told  # all three are in use
    desk.admitted = [s for s in desk.admitted if s.request_id == "a"]
    desk.bring("d", "D")
    desk.ready("D")
    forgotten = [m.grammar.text for m in desk.told if isinstance(m, Forget)]
    assert forgotten == ["B", "C"]
    assert not desk.bring("a2", "A")
    assert desk.bring("b2", "B")
