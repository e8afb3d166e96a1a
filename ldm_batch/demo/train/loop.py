"""The training loop: steps, checkpoints and a CSV log, the same for every stage.

What a step does depends on the seed and the step's number alone, so a run that was killed and
resumed from its last checkpoint ends in the same weights as one that was not.
"""

import csv
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ldm_batch.demo.train.optim import LearningRate, MuonAndAdamW, WeightAverage


class Training(Protocol):
    """One thing to train: `model` is what is optimised, averaged and checkpointed."""

    @property
    def name(self) -> str:
        """Name of the stage in checkpoints and log."""
        ...

    @property
    def model(self) -> nn.Module:
        """The module whose parameters are trained."""
        ...

    def loss(self, step: int) -> Tensor:
        """Draw the step's batch and give its scalar loss."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Measure the model, which holds the averaged weights at that moment."""
        ...


@dataclass(frozen=True)
class Settings:
    """How a stage is run. Steps, never time: a run is the same on a fast and on a slow machine."""

    schedule: LearningRate
    evaluate_every: int
    checkpoint_every: int = 250
    average_decay: float = 0.995
    weight_decay: float = 1e-4


def train(stage: Training, settings: Settings, folder: Path) -> None:
    """Train a stage to the end of its schedule, going on from `folder`'s checkpoint if it has one.

    The model is left with the averaged weights; `folder`/log.csv has a row per metric.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{stage.name}.pt"
    log = folder / "log.csv"
    stage.model.train()
    optimiser = MuonAndAdamW(stage.model, weight_decay=settings.weight_decay)
    average = WeightAverage(stage.model, settings.average_decay)
    step, cpu_s, running_loss = _restore(checkpoint, stage.model, optimiser, average)
    _forget_rows(log, stage.name, after_step=step)
    started = time.process_time() - cpu_s
    while step < settings.schedule.num_steps:
        loss = stage.loss(step)
        optimiser.step(loss, settings.schedule(step))
        average.update(stage.model)
        step += 1
        weight = max(0.01, 1 / step)
        running_loss += weight * (loss.item() - running_loss)
        is_last = step == settings.schedule.num_steps
        if step % settings.evaluate_every == 0 or is_last:
            metrics = {"loss": running_loss, **_evaluate(stage, average)}
            _append_rows(log, stage.name, step, time.process_time() - started, metrics)
        if step % settings.checkpoint_every == 0 or is_last:
            state = (step, time.process_time() - started, running_loss)
            _save(checkpoint, state, stage.model, optimiser, average)
    average.swap(stage.model)
    stage.model.eval()


def step_generator(seed: int, step: int) -> torch.Generator:
    """Make the torch generator of one step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def _evaluate(stage: Training, average: WeightAverage) -> dict[str, float]:
    average.swap(stage.model)
    stage.model.eval()
    with torch.no_grad():
        metrics = stage.evaluate()
    average.swap(stage.model)
    stage.model.train()
    return metrics


def _save(
    path: Path,
    state: tuple[int, float, float],
    model: nn.Module,
    optimiser: MuonAndAdamW,
    average: WeightAverage,
) -> None:
    content = {
        "state": state,
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "average": average.values,
        "num_updates": average.num_updates,
    }
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    os.replace(partial, path)


def _restore(
    path: Path, model: nn.Module, optimiser: MuonAndAdamW, average: WeightAverage
) -> tuple[int, float, float]:
    if not path.exists():
        return 0, 0.0, 0.0
    content = torch.load(path, weights_only=True)
    model.load_state_dict(content["model"])
    optimiser.load_state_dict(content["optimiser"])
    average.values = content["average"]
    average.num_updates = content["num_updates"]
    step, cpu_s, running_loss = content["state"]
    print(f"{path.name}: going on from step {step}", flush=True)
    return step, cpu_s, running_loss


def _append_rows(log: Path, stage: str, step: int, cpu_s: float, metrics: dict[str, float]) -> None:
    is_new = not log.exists()
    with log.open("a", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(("stage", "step", "cpu_s", "metric", "value"))
        for metric, value in metrics.items():
            writer.writerow((stage, step, f"{cpu_s:.1f}", metric, f"{value:.4f}"))
    shown = ", ".join(f"{metric} {value:.3f}" for metric, value in metrics.items())
    print(f"{stage} step {step}, {cpu_s:.0f} CPU-s: {shown}", flush=True)


def _forget_rows(log: Path, stage: str, *, after_step: int) -> None:
    """Drop the rows that a killed run wrote after its last checkpoint."""
    if not log.exists():
        return
    with log.open(newline="") as file:
        header, *rows = list(csv.reader(file))
    kept = [row for row in rows if row[0] != stage or int(row[1]) <= after_step]
    with log.open("w", newline="") as file:
        csv.writer(file).writerows([header, *kept])
