"""Tests how long the event loop was held up at most within the last minute."""

import asyncio
import re
import time
from pathlib import Path

from router.holds import Holds
from tests.router.conftest import pair, served


def test_the_longest_of_the_last_minute() -> None:
    holds = Holds()
    holds.saw(0.2, 1000.5)
    holds.saw(0.1, 1000.9)
    holds.saw(0.05, 1030.0)
    assert holds.longest(1031.0) == 0.2
    assert holds.longest(1059.9) == 0.2
    assert holds.longest(1060.0) == 0.05
    assert holds.longest(1089.0) == 0.05
    assert holds.longest(1090.0) == 0.0
    holds.saw(0.3, 5000.0)
    assert holds.longest(5000.0) == 0.3


def test_a_block_of_the_event_loop_is_measured(checkpoint: Path) -> None:
    async def run() -> None:
        async with served(checkpoint, pair()) as stage, stage.client() as client:
            time.sleep(0.25)  # holds the loop up
            text = (await client.get("/metrics")).text
            found = re.search(r"^ling_loop_hold_seconds (\S+)$", text, re.MULTILINE)
            assert found is not None
            assert float(found[1]) > 0.2

    asyncio.run(run())
