"""The training loop: resumable, the same from any stop; and the shortened text path, exact."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ldm_batch.demo.train.compact import (
    cross_attention_mask,
    encode_text,
    expand,
    tie_padding,
    tokenize,
)
from ldm_batch.demo.train.loop import Settings, step_generator, train
from ldm_batch.demo.train.optim import LearningRate, orthogonalise
from ldm_batch.demo.train.text_encoder import make_bert, make_tokenizer
from ldm_batch.demo.train.text_to_image_unet import make_unet
from ldm_batch.demo.world import caption, draw_specs

SETTINGS = Settings(LearningRate(1e-2, 12, 4), evaluate_every=3, checkpoint_every=4)


class Regression:
    """A stage small enough to train in a test."""

    name = "regression"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8))
        self.stop_at: int | None = None

    def loss(self, step: int) -> Tensor:
        if step == self.stop_at:
            raise KeyboardInterrupt
        inputs = torch.randn(4, 8, generator=step_generator(0, step))
        return (self.model(inputs) - inputs.flip(1)).pow(2).mean()

    def evaluate(self) -> dict[str, float]:
        return {"weight": float(self.model[0].weight.sum())}


def test_a_killed_run_resumed_is_the_same_run(tmp_path: Path) -> None:
    whole, killed, resumed = Regression(), Regression(), Regression()
    train(whole, SETTINGS, tmp_path / "whole")
    killed.stop_at = 11
    with pytest.raises(KeyboardInterrupt):
        train(killed, SETTINGS, tmp_path / "killed")
    train(resumed, SETTINGS, tmp_path / "killed")
    for left, right in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(left, right)
    assert _metrics(tmp_path / "whole") == _metrics(tmp_path / "killed")


def test_schedule_warms_up_holds_and_decays() -> None:
    schedule = replace(SETTINGS.schedule, num_steps=1000, num_decay_steps=500)
    assert schedule(0) < schedule(100) == schedule(499) == 1e-2
    assert schedule(999) == pytest.approx(2e-4, rel=0.1)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    matrix = torch.randn(12, 40, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalise(matrix, num_iterations=5))
    assert singular.min() > 0.6
    assert singular.max() < 1.3


def test_21_tokens_give_what_77_give(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer, bert = make_tokenizer(tmp_path), make_bert(width=32).eval()
    tie_padding(bert)
    captions = [caption(spec) for spec in draw_specs(0, 4)]
    unet = make_unet(32).eval()
    nn.init.normal_(unet.conv_out.weight, std=0.1)
    ids = tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt").input_ids
    latents, timestep = torch.randn(4, 8, 8, 8), torch.full((4,), 500)
    with torch.no_grad():
        long = bert(ids)[0]
        short = encode_text(bert, tokenize(tokenizer, captions))
        from_long = unet(latents, timestep, encoder_hidden_states=long).sample
        from_short = unet(
            latents,
            timestep,
            encoder_hidden_states=short,
            encoder_attention_mask=cross_attention_mask(4),
        ).sample
    torch.testing.assert_close(expand(short), long, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(from_short, from_long, atol=1e-3, rtol=1e-3)


def _metrics(folder: Path) -> list[list[str]]:
    """The log without its CPU times."""
    rows = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()]
    return [row[:2] + row[3:] for row in rows]
