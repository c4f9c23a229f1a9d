"""The optimizer: Muon for matrices; Adam for embeddings, head, experts' gates and vectors."""

import torch
from torch import Tensor, nn


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """Approximate the semi-orthogonal matrices nearest to g [..., m, n], by a quintic Newton-Schulz iteration.

    Jordan (2024) gives the coefficients.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[-2] > g.shape[-1]
    x = g.mT if tall else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    out: Tensor = x.mT if tall else x
    return out


class Optimizer:
    """Updates all parameters of a model. `step` takes the learning rates."""

    def __init__(self, model: nn.Module, weight_decay: float = 0.02) -> None:
        self.weight_decay = weight_decay
        self.matrices: list[tuple[str, nn.Parameter]] = []
        self.others: list[tuple[str, nn.Parameter]] = []
        for name, p in model.named_parameters():
            plain = p.ndim < 2 or name.startswith(("word_embeddings", "lm_head")) or name.endswith("mlp.gate.weight")
            (self.others if plain else self.matrices).append((name, p))
        self.state: dict[str, dict[str, Tensor]] = {}
        self.count = 0

    @torch.no_grad()
    def step(self, matrix_rate: float, other_rate: float) -> None:
        """Update all parameters by their gradients, and clear these. The rates are Muon's and Adam's."""
        self.count += 1
        by_shape: dict[torch.Size, list[tuple[str, nn.Parameter]]] = {}
        for name, p in self.matrices:
            if p.grad is not None:
                by_shape.setdefault(p.shape, []).append((name, p))
        for members in by_shape.values():
            updates = []
            for name, p in members:
                assert p.grad is not None
                momentum = self.state.setdefault(name, {"m": torch.zeros_like(p)})["m"]
                momentum.lerp_(p.grad, 0.05)
                updates.append(p.grad.lerp(momentum, 0.95))
            rows, columns = members[0][1].shape[-2:]
            scale = 0.2 * max(rows, columns) ** 0.5
            for (_, p), update in zip(members, orthogonal(torch.stack(updates)).unbind(0), strict=True):
                p.mul_(1 - matrix_rate * self.weight_decay).add_(update, alpha=-matrix_rate * scale)
        for name, p in self.others:
            if p.grad is None:
                continue
            state = self.state.setdefault(name, {"m": torch.zeros_like(p), "v": torch.zeros_like(p)})
            state["m"].lerp_(p.grad, 0.1)
            state["v"].lerp_(p.grad.square(), 0.02)
            # A parameter's bias correction counts its own steps, because the MTP layer is trained in some steps only.
            state["n"] = state.get("n", torch.zeros(())) + 1
            n = float(state["n"])
            denominator = (state["v"] / (1 - 0.98**n)).sqrt_().add_(1e-9)
            # Embeddings have values of about 1, ten times those of the head and of the norms' changes.
            scale = 3 if name.startswith("word_embeddings") else 1
            p.addcdiv_(state["m"] / (1 - 0.9**n), denominator, value=-other_rate * scale)
        for _, p in self.matrices + self.others:
            p.grad = None
