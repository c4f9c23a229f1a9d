"""Tests that a long answer's state is copied to another worker, which continues it when the first one dies."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from router.app import Pools
from tests.integration.test_structured_served import RealWorker
from tests.router.conftest import served

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

NANO = Path(__file__).parents[2] / "checkpoints" / "ling-nano"
EACH = 48
BODY: dict[str, Any] = {
    "model": "auto", "prompt": "Once upon a time", "max_tokens": 400, "temperature": 0, "ignore_eos": True,
    "stream": True, "return_token_ids": True,
}  # fmt: skip


def test_an_answer_continues_from_its_latest_copy() -> None:
    async def run() -> None:
        workers = [RealWorker(name, cache_states=16, cache_answer_tokens=EACH) for name in ("d0", "d1")]
        async with served(NANO, workers, Pools(0, 2)) as stage, stage.client() as client:  # type: ignore[arg-type]
            copies = stage.gateway._dispatcher._copies

            async def answer(*, kill: bool) -> list[int]:
                ids: list[int] = []
                killed = False
                async with client.stream("POST", "/v1/completions", json=BODY) as response:
                    async for line in response.aiter_lines():
                        if not line.startswith("data: {"):
                            continue
                        event = json.loads(line[6:])
                        assert "error" not in event, event
                        ids += event["choices"][0].get("token_ids") or []
                        if kill and not killed and len(ids) > 4 * EACH and (left := list(copies._at)):
                            (stream,) = left
                            assert stream.copied is not None
                            if stream.known - stream.copied.position > EACH + EACH // 2:
                                continue  # the next copy is under way
                            killed = True
                            dead, alive = sorted(
                                workers, key=lambda w: w.ref.worker_id != stream.legs[-1].info.worker_id
                            )
                            before.append((alive, alive.recomputed))
                            await dead.die()
                assert killed == kill
                return ids

            before: list[tuple[RealWorker, int]] = []
            ids = await answer(kill=True)
            ((alive, missed),) = before
            assert alive.recomputed - missed <= 3 * EACH
            assert len(ids) == BODY["max_tokens"]
            assert ids == await answer(kill=False)

    asyncio.run(run())
