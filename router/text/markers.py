"""A tokenizer's markers, which are the added tokens that structure a conversation."""

import json
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Tokenizer

from wire.tokens import TokenIds

# Added to a marker's name in the vocabulary without markers. No text contains it.
_UNSAID = "\0\U0010ffff"


class Markers:
    """Special tokens, and other added tokens of the form `<this>`.

    texts: the markers as text. plain: a tokenizer that encodes markers as ordinary text, and everything else like the
    original.
    """

    def __init__(self, inner: Tokenizer) -> None:
        """ValueError for a vocabulary that is no table of tokens, such as Unigram's."""
        added = inner.get_added_tokens_decoder()
        tokens = {i: t for i, t in added.items() if t.special or (t.content[0] == "<" and t.content[-1] == ">")}
        self._ids = {t.content: (i, TokenIds.of((i,)).packed) for i, t in tokens.items()}
        self.texts = tuple(self._ids)
        longest_first = sorted(tokens.values(), key=lambda t: len(t.content), reverse=True)
        self._search = re.compile(f"({'|'.join(map(_pattern, longest_first))})") if tokens else None
        self.plain = _without(inner, self._ids) if tokens else inner

    def cut(self, text: str) -> list[str]:
        """Cut a text into text and markers alternately, first and last text.

        If several markers match, the longest counts.
        """
        return self._search.split(text) if self._search is not None else [text]

    def id_of(self, marker: str) -> tuple[int, bytes]:
        """The token of a marker that `cut` found with the white space it includes: as a number and packed."""
        return self._ids[marker] if marker in self._ids else self._ids[marker.strip()]


def _pattern(token: AddedToken) -> str:
    """A pattern that matches where the tokenizer's library finds an added token."""
    found = re.escape(token.content)
    if token.single_word:
        found = rf"(?<!\w){found}(?!\w)"
    before, after = (r"\s*" if takes else "" for takes in (token.lstrip, token.rstrip))
    return before + found + after


def _without(inner: Tokenizer, markers: Iterable[str]) -> Tokenizer:
    """The tokenizer with its markers renamed so that no text matches them."""
    content: dict[str, Any] = json.loads(inner.to_str())
    model = content["model"]
    if not isinstance(model["vocab"], dict):
        raise ValueError(f"a {model['type']} vocabulary is not supported; it must give each token an id")
    hidden = set(markers)
    others = [t for t in content["added_tokens"] if t["content"] not in hidden]
    vocab = model["vocab"] | {t["content"]: t["id"] for t in content["added_tokens"]}
    model["vocab"] = {t + _UNSAID if t in hidden else t: i for t, i in vocab.items()}
    if model.get("unk_token") in hidden:
        model["unk_token"] += _UNSAID
    if "merges" in model:
        model["merges"] = [m for m in model["merges"] if not hidden.intersection((*m, "".join(m)))]
    return Tokenizer.from_str(json.dumps(content | {"added_tokens": others, "post_processor": None}))
