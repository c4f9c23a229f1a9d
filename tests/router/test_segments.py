"""Tests that a next turn encodes only its new texts, and gets the same tokens as the whole text."""

import threading
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from router.text.segments import SegmentCache
from router.text.tokenizer import Tokenizer

NANO = "checkpoints/ling-nano"
TEXTS = st.text("ab <|>\n語é", max_size=12)
TURNS = st.lists(st.tuples(st.sampled_from(("user", "assistant", "tool")), TEXTS), min_size=1, max_size=6)


class Counting:
    """A tokenizer that encodes a text as its length, and records the texts."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: list[str]) -> list[bytes]:
        self.asked += texts
        return [len(text).to_bytes(4, "little") for text in texts]


def test_a_known_text_is_not_encoded_again() -> None:
    encode = Counting()
    cache = SegmentCache(encode, 1 << 20)
    assert cache(["a", "bb", "a", ""]) == [bytes([n, 0, 0, 0]) for n in (1, 2, 1, 0)]
    assert cache(["bb", "ccc", "a"]) == [bytes([n, 0, 0, 0]) for n in (2, 3, 1)]
    assert encode.asked == ["a", "bb", "", "ccc"]


def test_a_full_cache_drops_the_least_recently_used() -> None:
    encode = Counting()
    cache = SegmentCache(encode, 3000)
    for text in ("a" * 700, "b" * 700, "a" * 700, "c" * 700, "d" * 700):
        cache([text])
    assert [text[:1] for text in encode.asked] == list("abcd")
    cache(["a" * 700, "d" * 700])
    assert len(encode.asked) == 4
    cache(["b" * 700])
    assert len(encode.asked) == 5
    huge = "x" * 9000
    assert cache([huge]) == cache([huge])
    assert encode.asked.count(huge) == 2


def test_threads_share_it() -> None:
    """Each thread gets the right ids while others evict its entries."""
    cache = SegmentCache(Counting(), 2000)
    wrong: list[str] = []

    def ask(begin: int) -> None:
        for n in range(begin, begin + 300):
            texts = ["x" * (n % 50), "y" * (n % 7), "x" * (begin % 50)]
            if cache(texts) != [len(t).to_bytes(4, "little") for t in texts]:
                wrong.append(f"{begin} {n}")

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@settings(max_examples=50)
@given(turns=TURNS)
def test_a_conversation_s_tokens_do_not_depend_on_the_cache_s_content(turns: list[tuple[str, str]]) -> None:
    """Compares turn by turn through one cache with each prefix in an empty cache."""
    assert WARM.template is not None
    messages: list[dict[str, Any]] = []
    for role, content in turns:
        messages.append({"role": role, "content": content})
        COLD._segments = SegmentCache(COLD._encode_segments, 1 << 20)
        rendered = WARM.template.render(messages)
        assert WARM.encode_chat(rendered) == COLD.encode_chat(rendered)


WARM, COLD = Tokenizer(NANO), Tokenizer(NANO)
