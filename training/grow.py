"""Gives a trained checkpoint more heads and a wider latent, without changing what it computes.

`python -m training.grow SOURCE DESTINATION` multiplies the heads of every attention layer and the latent's rank by
`--factor`. Head h becomes head factor * (h + 1) - 1, where the linear layers' decay stays the same. The new heads
between begin with an old head's queries and keys plus noise, and with an output of zero; training changes them.
"""

import argparse
import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from training.export import export
from training.layout import load
from training.model import Latent, Linear, Nano

# Standard deviation of the noise on a new head's weights, relative to that of all heads' weights.
_AWAY = 0.5


@torch.no_grad()
def grow(model: Nano, factor: int, seed: int = 0) -> Nano:
    """A model with `factor` times the heads and the latent rank that gives the same logits.

    seed: of the new weights. ValueError for a model with a low rank of queries.
    """
    shape = model.shape
    if shape.q_lora_rank is not None:
        raise ValueError("only models without a query low rank can be grown: q_lora_rank is set")
    torch.manual_seed(seed)
    grown = Nano(
        dataclasses.replace(
            shape,
            num_attention_heads=factor * shape.num_attention_heads,
            group_norm_size=factor * shape.group_norm_size,
            kv_lora_rank=factor * shape.kv_lora_rank,
        )
    )
    wide = dict(grown.named_modules())
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            _linear(module, wide[name], factor)
        elif isinstance(module, Latent):
            _latent(module, wide[name], factor)
    state = grown.state_dict()
    for name, tensor in model.state_dict().items():
        if state[name].shape == tensor.shape:
            state[name].copy_(tensor)
    return grown


def _linear(old: Linear, new: torch.nn.Module, factor: int) -> None:
    assert isinstance(new, Linear)
    hidden, dim = old.dense.weight.shape[0], old.dim
    qkv = old.query_key_value.weight.view(3, old.heads, dim, hidden)
    for part, target in zip(qkv, new.query_key_value.weight.view(3, new.heads, dim, hidden), strict=True):
        target.copy_(_between(part, factor))
    gate = old.g_proj.weight.view(old.heads, dim, hidden)
    new.g_proj.weight.view(new.heads, dim, hidden).copy_(_between(gate, factor))
    new.g_norm.copy_(old.g_norm.view(old.heads, dim).repeat_interleave(factor, 0).flatten())
    _silent(old.dense.weight, new.dense.weight, old.heads, factor)


def _latent(old: Latent, new: torch.nn.Module, factor: int) -> None:
    assert isinstance(new, Latent)
    heads, rank = old.heads, old.rank
    query = old.q_proj.weight
    new.q_proj.weight.view(new.heads, -1, query.shape[1]).copy_(_between(query.view(heads, -1, query.shape[1]), factor))
    # New rows of the latent are zero. They change the norm's mean square, which the norm's weight compensates.
    down = new.kv_a_proj_with_mqa.weight.zero_()
    down[:rank], down[-old.rope :] = old.kv_a_proj_with_mqa.weight[:rank], old.kv_a_proj_with_mqa.weight[rank:]
    new.kv_a_layernorm.weight.fill_(1.0)[:rank] = old.kv_a_layernorm.weight * factor**-0.5
    up = new.kv_b_proj.weight.view(new.heads, -1, new.rank).normal_(std=rank**-0.5)
    up[:, :, :rank] = _between(old.kv_b_proj.weight.view(heads, -1, rank), factor)
    up[factor - 1 :: factor, :, rank:] = 0
    _silent(old.dense.weight, new.dense.weight, heads, factor)


def _between(rows: Tensor, factor: int) -> Tensor:
    """Weights [factor * heads, ...]: each head of rows [heads, ...] after its factor - 1 noisy copies."""
    wide = rows.repeat_interleave(factor, 0)
    wide = wide + _AWAY * wide.std() * torch.randn_like(wide)
    wide[factor - 1 :: factor] = rows
    return wide


def _silent(old: Tensor, new: Tensor, heads: int, factor: int) -> None:
    """Fill output weights [hidden, factor * heads * dim]: old heads' columns at their new places, new ones zero."""
    new.zero_()
    hidden = len(old)
    new.view(hidden, factor * heads, -1)[:, factor - 1 :: factor] = old.view(hidden, heads, -1)


def main() -> None:
    """Parse the command line, grow the checkpoint and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path, help="the checkpoint's folder")
    parser.add_argument("destination", type=Path, help="the folder to write")
    parser.add_argument("--factor", type=int, default=2, help="by which heads and latent rank are multiplied")
    parser.add_argument("--seed", type=int, default=0, help="of the new heads' weights")
    args = parser.parse_args()
    grown = grow(load(args.source), args.factor, args.seed)
    export(grown, args.source / "tokenizer.json", args.destination)
    print(f"{args.destination}: {grown.shape.num_attention_heads} heads, latent rank {grown.shape.kv_lora_rank}")


if __name__ == "__main__":
    main()
