"""The optimiser, learning-rate schedule and weight average that every training stage shares."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ADAM_ONLY = ("conv_in", "conv_out", "quant", "emb", "judge")
"""Parameters whose names hold one of these are no inner matrices, and get AdamW."""


@dataclass(frozen=True)
class LearningRate:
    """Learning rate by step: linear warm-up, constant, then a cosine down to `final` of it."""

    learning_rate: float
    num_steps: int
    num_decay_steps: int
    num_warm_up_steps: int = 40
    final: float = 0.02

    def __call__(self, step: int) -> float:
        """Give the learning rate of a step, 0 <= step < num_steps."""
        decayed = step - (self.num_steps - self.num_decay_steps)
        if decayed < 0:
            return self.learning_rate * min(1.0, (step + 1) / self.num_warm_up_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * decayed / self.num_decay_steps))
        return self.learning_rate * (self.final + (1 - self.final) * cosine)


@torch.no_grad()
def orthogonalise(matrix: Tensor, num_iterations: int) -> Tensor:
    """Bring a (rows, columns) matrix near the closest orthogonal one (Newton-Schulz)."""
    x: Tensor = matrix / (matrix.norm() + 1e-7)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    for _ in range(num_iterations):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if is_tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised per weight matrix (Jordan et al. 2024), scaled to AdamW's usual RMS.

    Convolutions count as (out, in * height * width) matrices.
    """

    def __init__(self, params: Iterable[nn.Parameter], *, momentum: float = 0.95) -> None:
        super().__init__(list(params), {"lr": 0.0, "momentum": momentum, "num_iterations": 4})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        gradient = parameter.grad
        assert gradient is not None
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        nesterov = gradient.lerp(state["momentum"], group["momentum"])
        update = orthogonalise(nesterov.flatten(1), group["num_iterations"])
        scale = 0.2 * math.sqrt(max(update.shape))
        parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)


class MuonAndAdamW:
    """Muon for inner matrices, AdamW for first and last layers, embeddings, biases and norms."""

    def __init__(self, model: nn.Module, *, weight_decay: float = 1e-4) -> None:
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        matrices = [p for n, p in trained if _is_inner_matrix(n, p)]
        inner = {id(p) for p in matrices}
        others = [p for _, p in trained if id(p) not in inner]
        self.parameters = [p for _, p in trained]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, 0.0, betas=(0.9, 0.99), weight_decay=weight_decay)
        ]
        if matrices:
            self.optimisers.append(Muon(matrices))

    def step(self, loss: Tensor, learning_rate: float) -> None:
        """Back-propagate a scalar loss, clip the gradient's norm to 1, update the parameters."""
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """Everything needed to go on, as tensors and numbers."""
        return [optimiser.state_dict() for optimiser in self.optimisers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Go on from `state_dict`."""
        for optimiser, state in zip(self.optimisers, states, strict=True):
            optimiser.load_state_dict(state)


def _is_inner_matrix(name: str, parameter: nn.Parameter) -> bool:
    return (
        parameter.ndim >= 2
        and min(parameter.shape[0], parameter[0].numel()) >= 8
        and not any(part in name for part in ADAM_ONLY)
    )


class WeightAverage:
    """Exponential moving average of a model's parameters, young averages forgetting faster."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.values = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's parameters."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        # Private: one call for all parameters, as torch's own averages (swa_utils) make it.
        torch._foreach_lerp_(self.values, [p.detach() for p in model.parameters()], 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the average with the model's parameters; a second call undoes the first."""
        for value, parameter in zip(self.values, model.parameters(), strict=True):
            held = value.clone()
            value.copy_(parameter)
            parameter.copy_(held)
