"""Tests what a worker's replica does when its calls fail or hang."""

import asyncio
import logging

import pytest

from cluster.pool import _within
from wire.logs import describe


class _Silent(Exception):
    """An error without a message."""


async def _fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (_Silent(), "entering the directory: _Silent"),
        (ValueError("no such place"), "entering the directory: no such place"),
        (TimeoutError(), "entering the directory: not done within 7 s"),
    ],
)
def test_a_failed_call_is_logged_in_words(caplog: pytest.LogCaptureFixture, error: Exception, words: str) -> None:
    with caplog.at_level(logging.WARNING):
        asyncio.run(_within(_fail(error), 7, "entering the directory"))
    assert caplog.messages == [words]


def test_a_call_that_does_not_return_is_abandoned(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        asyncio.run(_within(asyncio.sleep(1000), 0.01, "leaving the directory"))
    assert caplog.messages == ["leaving the directory: not done within 0.01 s"]


@pytest.mark.parametrize(
    "error", [TimeoutError(), asyncio.IncompleteReadError(b"", 4), _Silent(), EOFError(), OSError()]
)
def test_every_error_has_a_description(error: Exception) -> None:
    assert describe(error).strip()
