"""Tests a few links that break within snapshots; `python -m tests.workers.broken_links` breaks two hundred."""

import asyncio

import pytest

from tests.workers.broken_links import run


@pytest.mark.process
@pytest.mark.timeout(600)
def test_no_broken_link_ends_a_rank_or_leaves_half_a_snapshot() -> None:
    report = asyncio.run(run(times=6, seed=1))
    assert report.broken == 6
    assert report.whole > 0
    assert report.failed.total() > 0
