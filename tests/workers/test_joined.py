"""Tests linear layers of one input, joined in one matrix or, if formats differ, in several."""

import pytest
import torch

from tests.workers.model_rig import GOLDEN
from workers.collectives import Solo
from workers.model.config import LingConfig
from workers.model.joined import Joined
from workers.model.linear import Linear, Normed, Shard, column_parts
from workers.model.loader import Loader, SourceTensor
from workers.model.quantization import Quantization
from workers.model.synthetic import Synthetic

SIZES = {"a": 256, "b": 128}


class Mixed(Synthetic):
    """Weights in FP8, except for some modules."""

    def __init__(self, plain: set[str]) -> None:
        super().__init__(Quantization("fp8"))
        self._plain = plain

    def find(self, name: str) -> SourceTensor | None:
        module, _, suffix = name.rpartition(".")
        if module in self._plain:
            return SourceTensor("BF16", None) if suffix == "weight" else None
        return super().find(name)


@pytest.mark.parametrize(("plain", "products"), [("", 1), ("ab", 1), ("b", 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_outputs_lie_side_by_side(
    plain: str, products: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = Shard(LingConfig.load(GOLDEN / "fp8", {}), Solo(), torch.device("cpu"), dtype)
    parts = {name: column_parts(shard, [name], size, 384) for name, size in SIZES.items()}
    joined, apart = Joined(shard, *parts.values()), [Linear(shard, part) for part in parts.values()]
    loader = Loader(Mixed(set(plain)))
    for linear in (joined, *apart):
        linear.load(loader)
    loader.run()
    assert joined.rounds_inputs == any(linear.rounds_inputs for linear in apart)
    x = Normed(torch.randn(3, 384).to(dtype))
    expected = torch.cat([linear(x) for linear in apart], 1)
    calls: list[Linear] = []
    call = Linear.__call__
    monkeypatch.setattr(Linear, "__call__", lambda self, x: (calls.append(self), call(self, x))[1])
    torch.testing.assert_close(joined(x), expected)
    assert len(calls) == products
