"""Tests that the memory that pages leave free on a GPU suffices, by what the model's code allocates."""

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.launches import recorded
from tests.workers.test_graphs import RELEASED, Nowhere
from workers.collectives.base import Solo
from workers.config import WorkerConfig
from workers.memory import GIB, activation_bytes, pages_beside, reserve
from workers.model.batch import Batch
from workers.model.config import LingConfig
from workers.model.ling import LingModel, make_caches
from workers.model.loader import Loader
from workers.sizes import staging, staging_of

META = torch.device("meta")
FP8 = {"quantization_config": {"quant_method": "fp8"}}


class Peak(TorchDispatchMode):
    """Measures the largest total size of the meta tensors that exist at once while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self._users: dict[int, int] = {}
        self._now = 0
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                self._note(tensor)
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        memory, size = tensor.untyped_storage()._cdata, tensor.untyped_storage().nbytes()
        if memory not in self._users:
            self._users[memory] = 0
            self._now += size
            self.bytes = max(self.bytes, self._now)
        self._users[memory] += 1
        weakref.finalize(tensor, self._gone, memory, size)

    def _gone(self, memory: int, size: int) -> None:
        self._users[memory] -= 1
        if not self._users[memory]:
            del self._users[memory]
            self._now -= size


class Rank(Solo):
    """Rank 0 of a group whose other ranks do not exist."""

    def __init__(self, size: int) -> None:
        self.size = size


@pytest.mark.parametrize(
    ("tp", "tokens", "context"), [(1, 1024, 1024), (1, 8192, 131072), (4, 1024, 131072), (4, 8192, 8192)]
)
def test_activations_of_the_released_model(tp: int, tokens: int, context: int) -> None:
    # Both kinds of attention, and experts: layers are alike beyond that.
    config = LingConfig.load(RELEASED, FP8 | {"num_hidden_layers": 8})
    with torch.inference_mode(), recorded():
        model = LingModel(config, Rank(tp), META, torch.bfloat16)
        loader = Loader(Nowhere(config.quantization))
        model.load(loader)
        loader.run()
        caches = make_caches(config, tp, context // 64 + 1, 64, 2, META, torch.bfloat16)
        at = torch.empty(tokens, dtype=torch.int64, device=META)
        table = torch.empty(2, context // 64 + 1, dtype=torch.int32, device=META)
        slots = torch.empty(1, dtype=torch.int64, device=META)
        with Peak() as peak:
            model.forward(Batch(at, at, slots, (context - tokens,), (tokens,), table), caches)
    kept = activation_bytes(config, tp, tokens, context)
    assert peak.bytes <= kept <= 2.5 * peak.bytes + GIB / 2


def test_a_card_is_filled_and_no_more() -> None:
    config = WorkerConfig("", device="cuda", dtype="bfloat16", max_step_tokens=8192)
    model = LingConfig.load(RELEASED, {})
    card, free = 141 * 10**9, 36 * 10**9  # an H200, FP8 weights loaded
    kept = reserve(config, model, card)
    # 8,192 tokens a step, and 128k-token snapshots coming and going.
    assert kept.activations > 2.5e9
    assert kept.staging >= 2 * 131072 * model.mla_layers * model.latent_width * 2
    heads, key, value = model.state_shape(1)
    states = 65 * model.linear_layers * heads * key * value * 4
    page = 64 * model.mla_layers * model.latent_width * 2
    pages = pages_beside(free, states, page, kept)
    left = free - states - pages * page
    assert kept.total <= left < kept.total + page


def test_the_error_of_a_full_card_says_what_takes_its_memory() -> None:
    model = LingConfig.load(RELEASED, {})
    kept = reserve(WorkerConfig("", device="cuda", dtype="bfloat16"), model, 80 * 10**9)
    with pytest.raises(MemoryError, match=r"5\.00 GB are free .* 4\.00 GB are for states, .* lower slots"):
        pages_beside(5 * 10**9, 4 * 10**9, 1 << 20, kept)


@pytest.mark.parametrize("tp", [1, 4])
def test_staging_holds_a_window_of_usual_snapshots_and_any_single_one(tp: int) -> None:
    model = LingConfig.load(RELEASED, {})
    found = staging_of(WorkerConfig("", tp=tp, dtype="bfloat16"), model)
    # 58.7 MB of state and 4.6 kB a token, split among the ranks.
    assert found.bytes_of(0) == 58_720_256 // tp
    assert found.bytes_of(8192) - found.bytes_of(0) == 8192 // tp * 4608
    assert found.budget == 16 * found.bytes_of(8192)
    longest = staging(model, tp, model.max_model_len, window=1)
    assert longest.budget == longest.bytes_of(model.max_model_len)


def test_which_snapshot_waits_for_memory() -> None:
    found = staging(LingConfig.load(RELEASED, {}), 1, 131072)
    assert not found.full([], 131072)
    assert not found.full([8192] * 15, 8192)
    assert found.full([8192] * 16, 8192)
    assert found.full([131072] * 2, 131072)
