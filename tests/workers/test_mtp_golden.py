"""Tests the MTP layer against the official code's logits, whole and in pieces, on one and several ranks."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.workers.model_rig import CPU, GOLDEN, ThreadCollectives, ThreadGroup, poisoned
from workers.collectives import Solo
from workers.model.batch import Batch
from workers.model.config import LingConfig
from workers.model.ling import LingModel, make_caches
from workers.model.weights import load_weights

pytestmark = pytest.mark.process

PAGE = 16


def errors(name: str, tp: int, rank: int, group: ThreadGroup) -> list[float]:
    """Each prompt's largest difference from the known logits, the layer's positions computed in three pieces."""
    data = load_file(GOLDEN / name / "golden.safetensors")
    config = replace(LingConfig.load(GOLDEN / name, {}), drafts=True)
    model = LingModel(config, Solo() if tp == 1 else ThreadCollectives(group, rank), CPU, torch.float32)
    load_weights(model, GOLDEN / name)
    out = []
    for i in range(sum(key.endswith(".mtp_logits") for key in data)):
        ids, expected = data[f"{i}.prompt_ids"], data[f"{i}.mtp_logits"]
        pages = -(-len(ids) // PAGE)
        caches = poisoned(make_caches(config, tp, pages, PAGE, 2, CPU, torch.float32))
        table = torch.arange(pages, dtype=torch.int32).expand(2, pages)

        def batch(start: int, stop: int, tokens: Tensor, table: Tensor = table) -> Batch:
            positions = torch.arange(start, stop)
            return Batch(tokens, positions, torch.tensor([1]), (start,), (stop - start,), table)

        with torch.inference_mode():
            hidden = model.forward(batch(0, len(ids), ids), caches)
            last = len(ids) - 1
            got = [
                model.logits(model.ahead(batch(a, b, ids[a + 1 : b + 1]), hidden[a:b], caches))
                for a, b in pairwise(sorted({0, 1, last // 2, last}))
            ]
        out.append(float((torch.cat(got) - expected).abs().max()))
    return out


@pytest.mark.parametrize(("name", "tp"), [("base", 1), ("base", 2), ("yarn", 1), ("tp4", 4), ("fp8", 1)])
def test_its_logits_are_the_official_code_s(name: str, tp: int) -> None:
    group = ThreadGroup(tp)
    with ThreadPoolExecutor(tp) as pool:
        for rank in pool.map(lambda rank: errors(name, tp, rank, group), range(tp)):
            assert rank
            assert all(error < 1e-3 for error in rank), rank
