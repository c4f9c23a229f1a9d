"""Selects the log-probabilities of the tokens that make up an answer's content."""

from collections import deque
from dataclasses import dataclass

from router.text.tokenizer import Tokenizer
from wire.protocol import TokenLogprob


@dataclass(frozen=True, slots=True)
class ShownLogprob:
    """A token's log-probability, and the bytes [start, stop) of it that are shown. stop: None for its end."""

    item: TokenLogprob
    start: int = 0
    stop: int | None = None


@dataclass(slots=True)
class _Token:
    """A token's place in the output, in characters, and its part of the content.

    A token that only begins a character has no text of its own and is shown with the next. carry: bytes of a character
    that earlier tokens began.
    """

    item: TokenLogprob
    text: str
    carry: int
    at: int
    begin: int = -1  # first character in the output that is content; -1: none is
    end: int = -1
    content: int = 0  # place of that character in the content

    @property
    def stop(self) -> int:
        return self.at + max(1, len(self.text))


class ContentLogprobs:
    """Takes tokens in order, learns which of their characters are content, and returns those tokens' log-probabilities.

    The returned bytes joined are the content: a token that is partly content is returned with that part.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: deque[_Token] = deque()  # tokens of which more may become content
        self._ready: deque[_Token] = deque()
        self._at = 0  # number of characters of the output so far
        self._content = 0  # number of characters of the content so far
        self._carry = 0

    def token(self, item: TokenLogprob, text: str) -> None:
        """Add the next token and its text. `content` says at once or later which part of the text is content."""
        self._tokens.append(_Token(item, text, self._carry, self._at))
        self._at += len(text)
        data = self._tokenizer.piece(item.token_id).data
        self._carry = max(0, self._carry + len(data) - len(text.encode()))

    def text(self, text: str) -> None:
        """Add text that belongs to no token with a log-probability."""
        self._at += len(text)

    def content(self, at: int, count: int) -> None:
        """Mark the output's characters [at, at + count) as content, which continues the earlier content."""
        while self._tokens and self._tokens[0].stop <= at:
            self._pass()
        for token in self._tokens:
            if token.at >= at + count:
                break
            if token.begin < 0:
                token.begin = max(token.at, at)
                token.content = self._content + token.begin - at
            token.end = min(token.stop, at + count)
        self._content += count
        while self._tokens and self._tokens[0].stop <= at + count:
            self._pass()

    def take(self, shown: int) -> list[ShownLogprob]:
        """Take the tokens that are certain by now and lie wholly in the content's first `shown` characters."""
        out = []
        while self._ready and self._ready[0].content + self._ready[0].end - self._ready[0].begin <= shown:
            out.append(self._shown(self._ready.popleft(), shown))
        return out

    def close(self, shown: int) -> list[ShownLogprob]:
        """Take the rest of the content's first `shown` characters. Nothing further becomes content."""
        while self._tokens:
            self._pass()
        return [self._shown(token, shown) for token in self._ready if token.content < shown]

    def _pass(self) -> None:
        token = self._tokens.popleft()
        if token.begin >= 0:
            self._ready.append(token)

    def _shown(self, token: _Token, shown: int) -> ShownLogprob:
        end = min(token.end, token.begin + shown - token.content)
        if not token.text or (token.begin == token.at and end == token.stop):
            return ShownLogprob(token.item)

        def in_bytes(chars: int) -> int:
            return max(0, len(token.text[:chars].encode()) - token.carry)

        start = in_bytes(token.begin - token.at) if token.begin > token.at else 0
        return ShownLogprob(token.item, start, None if end == token.stop else in_bytes(end - token.at))
