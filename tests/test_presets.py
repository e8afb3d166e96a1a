"""Presets: the same values from Python and `conf/`; the batch size that suits a machine."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ldm_batch.config import ModelConfig, SchedulerConfig
from ldm_batch.diffusion import batch_size
from ldm_batch.diffusion.batch_size import find_batch_size, find_largest, find_quickest
from ldm_batch.diffusion.load import load
from ldm_batch.diffusion.models.find import find_model
from ldm_batch.diffusion.presets import PRESETS
from ldm_batch.diffusion.schedulers import NAMES
from ldm_batch.diffusion.text_to_image import TextToImage
from ldm_batch.errors import ShardError
from ldm_batch.records import Call, Request

CONF = Path(__file__).parents[1] / "conf"


@pytest.mark.parametrize("name", PRESETS)
def test_conf_holds_the_same_presets(name: str) -> None:
    document = yaml.safe_load((CONF / "speed" / f"{name}.yaml").read_text())
    scheduler = SchedulerConfig(**document["scheduler"])
    assert asdict(scheduler) == asdict(PRESETS[name].scheduler)
    assert document["call"] == {"num_inference_steps": PRESETS[name].num_inference_steps}


def test_every_scheduler_of_conf_is_known() -> None:
    for path in (CONF / "scheduler").glob("*.yaml"):
        document = yaml.safe_load(path.read_text())
        assert document["name"] in {"from_model", *NAMES}
        assert document["name"] == path.stem


def test_find_quickest_takes_the_smallest_of_those_that_are_close() -> None:
    seconds = {1: 1.0, 2: 0.6, 4: 0.5, 8: 0.49, 16: 0.52, 32: 0.51, 64: 0.1}
    assert find_quickest(seconds.__getitem__, seconds) == 4  # 64 is never tried


def test_find_largest_stops_where_memory_ends() -> None:
    def measure(size: int) -> float:
        if size > 8:
            raise ShardError("out of memory")
        return 1.0

    assert find_largest(measure, (1, 2, 4, 8, 16, 32)) == 8
    assert find_quickest(measure, (8, 16)) == 8
    for find in (find_largest, find_quickest):
        with pytest.raises(ShardError):
            find(measure, (16, 32))


def test_batch_size_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, memory = ModelConfig(path="demo:text_to_image"), tmp_path / "cache" / "sizes.json"
    arguments = (
        model,
        SchedulerConfig(),
        Call(num_inference_steps=50, guidance_scale=2.0, eta=0.0, height=64, width=64),
    )
    size = find_batch_size(*arguments, candidates=(1, 4), memory=memory)
    (key, value), *_ = json.loads(memory.read_text()).items()
    assert value == size
    assert key.endswith(f"64x64 guided float32 cpu {torch.get_num_threads()} threads")
    monkeypatch.setattr(TextToImage, "from_config", None)  # a second search would load the model
    assert find_batch_size(*arguments, memory=memory) == size
    assert not [path for path in memory.parent.iterdir() if path != memory]


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "null", '"64"', "[" * 10_000, '{"a": 0, "b": "8", "c": true}']
)
def test_a_damaged_memory_of_batch_sizes_is_none(damage: str, tmp_path: Path) -> None:
    memory = tmp_path / "batch_sizes.json"
    memory.write_text(damage)
    assert batch_size._known(memory) == {}
    memory.write_bytes(b"\xff")
    assert batch_size._known(memory) == {}
    memory.unlink()
    memory.mkdir()
    assert batch_size._known(memory) == {}


def test_fast_runs_a_fifth_of_the_references_unet_and_draws_nearly_the_same() -> None:
    folder = find_model(ModelConfig(path="demo:text_to_image"))
    first = TextToImage(load(folder), SchedulerConfig(), batch_size=2)
    rows: list[int] = []
    images = {}
    first._unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    for name in ("reference", "fast"):
        rows.append(0)
        call = Call(
            num_inference_steps=PRESETS[name].num_inference_steps,
            guidance_scale=2.0,
            eta=0.0,
            height=64,
            width=64,
        )
        prompts = ("a red circle on a blue background", "a small blue star on a red background")
        batch = [
            Request(inputs={"prompt": prompt, "negative_prompt": ""}, seed=1, call=call)
            for prompt in prompts
        ]
        images[name] = np.array(
            first.with_scheduler(PRESETS[name].scheduler).generate(batch), float
        )
    split = rows.index(0, 1)
    assert sum(rows[split:]) * 5 < sum(rows[:split])
    assert np.sqrt(((images["fast"] - images["reference"]) ** 2).mean()) / 255 < 0.2
