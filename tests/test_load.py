"""Finding, locking and loading models: what is damaged, missing or foreign is refused by name."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm_batch.config import ModelConfig
from ldm_batch.diffusion.load import load, pick_device
from ldm_batch.diffusion.models.files import lock_model, verify_lock
from ldm_batch.diffusion.models.find import find_model
from ldm_batch.errors import JobError

DEMO = ModelConfig(path="demo:text_to_image")
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Copy the demo model, so that a test may damage it."""
    return Path(shutil.copytree(find_model(DEMO), tmp_path / "model"))


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_files_is_imported_without_torch() -> None:
    code = "import sys, ldm_batch.diffusion.models.files; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ModelConfig(), "model.path"),
        (ModelConfig(path="/no/such/folder"), "no such folder"),
        (ModelConfig(path="demo:no_such"), "there are: .*text_to_image"),
        (ModelConfig(path="demo:../../.."), "no such demo model"),
        (ModelConfig(path=str(Path(__file__).parent)), "no model_index.json"),
        (ModelConfig(repo_id="a/b"), "full commit sha"),
        (ModelConfig(repo_id="a/b", revision="main"), "full commit sha"),
    ],
)
def test_find_model_refuses(model: ModelConfig, message: str) -> None:
    with pytest.raises(JobError, match=message):
        find_model(model)


def test_lock_names_every_file_that_is_loaded(folder: Path) -> None:
    files = {str(p.relative_to(folder)) for p in folder.rglob("*.*") if p.suffix != ".md"}
    assert set(lock_model(folder)) == files
    (folder / "unet" / "readme.md").write_text("not loaded")
    assert set(lock_model(folder)) == files


def test_verify_lock_names_the_file_that_differs(folder: Path) -> None:
    lock = lock_model(folder)
    verify_lock(folder, lock)
    data = bytearray((folder / UNET).read_bytes())
    data[-1] ^= 1
    (folder / UNET).write_bytes(data)
    with pytest.raises(JobError, match=UNET):
        load(folder, lock=lock)
    with pytest.raises(JobError, match=r"tokenizer/vocab\.txt"):
        verify_lock(folder, {**lock_model(folder), "tokenizer/vocab.txt": "0" * 64})
    (folder / "tokenizer" / "vocab.txt").write_text("more")
    with pytest.raises(JobError, match=r"tokenizer/vocab.txt .* not part"):
        verify_lock(folder, lock)


def test_missing_weights_are_refused_before_torch(folder: Path) -> None:
    (folder / UNET).unlink()
    with pytest.raises(JobError, match=r"safetensors is missing .* so is .*\.bin"):
        lock_model(folder)
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(JobError, match="pickled"):
        load(folder)


def test_sharded_weights_load_and_cannot_leave_their_folder(folder: Path) -> None:
    weights = load_file(folder / UNET)
    parts = [dict(list(weights.items())[i::2]) for i in range(2)]
    for i, part in enumerate(parts):
        save_file(part, folder / "unet" / f"part-{i}.safetensors")
    (folder / UNET).unlink()
    index = folder / (UNET + ".index.json")
    weight_map = {key: f"part-{i}.safetensors" for i, part in enumerate(parts) for key in part}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    unet = load(folder, lock=lock_model(folder))["unet"]
    assert all(torch.equal(value, weights[key]) for key, value in unet.state_dict().items())
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(JobError, match="not a file beside it"):
        lock_model(folder)


def test_load_leaves_the_global_generator_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    load(folder)
    assert torch.equal(before, torch.get_rng_state())


def test_weights_that_are_missing_unexpected_or_nan_are_refused(folder: Path) -> None:
    weights = load_file(folder / UNET)
    key = "conv_in.weight"
    damaged = {
        "missing keys: conv_in.weight": {k: v for k, v in weights.items() if k != key},
        "unexpected keys: extra": {**weights, "extra": torch.zeros(1)},
        "conv_in.weight is not finite": {**weights, key: weights[key] * float("nan")},
        r"mismatched keys: conv_in.weight \(1, ": {**weights, key: weights[key][:1].clone()},
    }
    for message, values in damaged.items():
        save_file(values, folder / UNET)
        with pytest.raises(JobError, match=message):
            load(folder)
    (folder / UNET).write_bytes(b"\x00" * 100)
    with pytest.raises(JobError, match=f"{UNET} is damaged, or no safetensors"):
        load(folder)


@pytest.mark.parametrize(
    ("path", "changes", "message"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "is none of"),
        ("model_index.json", {"unet": ["diffusers", "FluxTransformer2DModel"]}, "supported are"),
        ("model_index.json", {"unet": None}, "lacks the component unet"),
        ("model_index.json", {"safety": ["a", "B"]}, "unknown component 'safety'"),
        ("unet/config.json", {"auto_map": {"AutoModel": "evil.py"}}, "auto_map"),
        ("bert/config.json", {"quantization_config": {}}, "quantization_config"),
    ],
)
def test_foreign_code_and_classes_are_refused(
    folder: Path, path: str, changes: dict[str, object], message: str
) -> None:
    edit_json(folder / path, **changes)
    with pytest.raises(JobError, match=message):
        load(folder)


def test_components_can_be_shared(folder: Path) -> None:
    first = load(folder)
    second = load(folder, shared={"unet": first["unet"]})
    assert second["unet"] is first["unet"]
    assert second["bert"] is not first["bert"]


def test_pick_device() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(JobError, match=r"model\.device=gpu"):
        pick_device("gpu")
