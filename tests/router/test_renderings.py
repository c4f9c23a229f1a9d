"""Tests that routers remember renderings of conversations, and notice a different rendering."""

from hypothesis import given, settings
from hypothesis import strategies as st

from router.text.renderings import Renderings, beginnings
from wire.tokens import TokenIds

HEAD, FIRST, SECOND = "You are.", ("user", "a"), ("assistant", "b")


def look(known: Renderings, turns: tuple[object, ...], rendered: list[list[int]], scope: str = "") -> int:
    """Look a conversation up. rendered: the tokens of its head, and of each turn."""
    ids = [i for part in rendered for i in part]
    ends = [sum(map(len, rendered[: n + 1])) for n in range(len(rendered))]
    return known.look(scope, beginnings(HEAD, turns), TokenIds.of([*ids, 999]), ends)


def test_another_rendering_of_the_same_turns_is_reported_once() -> None:
    known = Renderings(100)
    assert look(known, (FIRST,), [[1, 2], [3, 4, 5]]) == 0
    assert look(known, (FIRST, SECOND), [[1, 2], [3, 4, 5], [6]]) == 0
    assert look(known, (FIRST, SECOND), [[1, 2], [3, 4, 5], [7]]) == 6
    assert look(known, (FIRST, SECOND), [[1, 2], [3, 4, 5], [7]]) == 0


def test_a_changed_beginning_is_reported_with_the_next_turn() -> None:
    known = Renderings(100)
    look(known, (FIRST,), [[1, 2], [3, 4, 5]])
    assert look(known, (FIRST, SECOND), [[1, 9], [3, 4, 5], [6]]) == 5


def test_instructions_and_tools_are_known_by_themselves() -> None:
    known = Renderings(100)
    look(known, (FIRST,), [[1, 2], [3, 4, 5]])
    assert look(known, (SECOND,), [[1, 2], [3]]) == 0
    assert look(known, (("user", "c"),), [[8, 8], [3]]) == 2
    assert look(known, (("user", "d"),), [[8, 8], [3]]) == 0


def test_a_shorter_rendering_is_another_one() -> None:
    known = Renderings(100)
    look(known, (FIRST,), [[1, 2], [3, 4, 5]])
    assert look(known, (FIRST,), [[1], [3]]) == 5


def test_instructions_that_end_no_turn_of_their_own_are_not_taken_for_one() -> None:
    known = Renderings(100)
    for n, turn in enumerate((FIRST, SECOND, ("user", "c"))):
        assert known.look("", beginnings(HEAD, (turn,)), TokenIds.of([1, 2, n, 9]), [3]) == 0


def test_scopes_are_separate_and_the_oldest_are_forgotten() -> None:
    known = Renderings(2)
    look(known, (FIRST,), [[1, 2], [3]])
    assert look(known, (FIRST,), [[9, 9], [3]], "other") == 0
    assert look(known, (FIRST,), [[5, 5], [3]]) == 0  # two of the other scope came after it
    assert known.look("", beginnings(HEAD, (FIRST,)), TokenIds.of([1]), []) == 0


@settings(max_examples=40)
@given(st.lists(st.tuples(st.text(max_size=2), st.none() | st.text(max_size=2)), max_size=3), st.integers(0, 3))
def test_equal_beginnings_are_of_equal_contents(turns: list[tuple[str, str | None]], at: int) -> None:
    whole = beginnings(HEAD, turns)
    assert beginnings(HEAD, turns[:at]) == whole[: min(at, len(turns)) + 1]
    assert len(set(whole)) == len(whole)
    assert beginnings(f"{HEAD}!", turns)[-1] not in whole


def test_integers_beyond_64_bits_are_distinguished() -> None:
    assert beginnings({"minimum": 10**40}, ()) != beginnings({"minimum": 10**40 + 1}, ())
