"""`python -m ldm_batch import` of what is in diffusers' layout already: a folder, a repository."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import Ended
from hub_server import REPO_ID, REVISION, Refusal, hub_server
from pickled_model import DEMO, HUBS, assert_same_weights, pickled
from safetensors.torch import load_file

from ldm_batch.commands.import_model import Import, import_model
from ldm_batch.config import ModelConfig
from ldm_batch.diffusion.models.find import find_model
from ldm_batch.errors import JobError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The demo model with pickled weights, described as the hub describes the paper's model."""
    folder = pickled(tmp_path / "source")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **HUBS}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_with_pickles_becomes_one_that_is_drawn_by(tmp_path: Path, source: Path) -> None:
    before = contents(source)
    told = import_model(Import(str(source), tmp_path / "target"))
    assert "python -m ldm_batch run model=local model.path=" in told
    assert contents(source) == before
    target = tmp_path / "target"
    assert find_model(ModelConfig(path=str(target))) == target  # nothing to convert any more
    assert_same_weights(target, DEMO)
    settings = json.loads((target / "scheduler" / "scheduler_config.json").read_text())
    assert settings["beta_schedule"] == "scaled_linear"
    assert (settings["steps_offset"], settings["set_alpha_to_one"]) == (1, False)
    assert settings["beta_end"] == HUBS["beta_end"]
    readme = (target / "README.md").read_text()
    assert "said beta_schedule: linear" in readme
    assert "unet/diffusion_pytorch_model.bin" in readme
    import_model(Import(str(source), tmp_path / "again"))
    assert contents(tmp_path / "again") == contents(target)
    assert not [p for p in contents(target) if p.endswith(".bin")]


def test_tied_weights_are_there_by_each_name(tmp_path: Path, source: Path) -> None:
    path = source / "unet" / "diffusion_pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    alike = [key for key, value in state.items() if value.shape == state["conv_in.bias"].shape][:2]
    torch.save({**state, **dict.fromkeys(alike, state[alike[0]])}, path)
    import_model(Import(str(source), tmp_path / "target"))
    unet = load_file(tmp_path / "target" / "unet" / "diffusion_pytorch_model.safetensors")
    assert unet.keys() == state.keys()
    assert all(torch.equal(unet[key], state[alike[0]]) for key in alike)


def run_import(folder: Path, *arguments: str, **env: str) -> Ended:
    command = [sys.executable, "-m", "ldm_batch", "import", *arguments]
    kept = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        command, cwd=folder, env={**kept, **env}, capture_output=True, text=True, timeout=300
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def test_a_repository_is_imported_at_its_main_of_now(tmp_path: Path, source: Path) -> None:
    with hub_server(source) as hub:
        env = {**hub.environment, "HF_HOME": str(tmp_path / "home")}
        done = run_import(tmp_path, REPO_ID, "target", **env)
        assert done.code == 0, done
        assert f"- {REPO_ID} at commit {REVISION}" in done.out
        hub.refusals = [Refusal(404, path="revision/main")]
        refused = run_import(tmp_path, REPO_ID, "other", **env)
    assert refused.code == 2
    assert refused.err.startswith(f"error: {REPO_ID} is no folder here, and of the hub: ")
    assert not (tmp_path / "other").exists()
    assert_same_weights(tmp_path / "target", DEMO)
    import_model(Import(str(tmp_path / "target"), tmp_path / "next"))
    assert_same_weights(tmp_path / "next", DEMO)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"source": "no_such"}, "no_such: there is no such folder; SOURCE is a checkpoint"),
        ({"source": "model.ckpt"}, "model.ckpt: there is no such file"),
        ({"config": Path("x.yaml")}, "--config x.yaml: is for an original checkpoint"),
        ({"tokenizer": Path("x")}, "--tokenizer x: is for an original checkpoint"),
        ({"revision": "0" * 40}, "is no repository of a hub"),
        ({"source": REPO_ID, "revision": "main"}, "--revision main: must be a full commit sha"),
        ({"source": "source/model_index.json"}, "is no checkpoint; SOURCE is"),
        ({"target": Path("source/target")}, "is in .*source; name a TARGET outside of it"),
        ({"variant": "fp16"}, r"model\.variant=fp16: .* no weights of this variant"),
        ({"variant": "../fp16"}, r"--variant \.\./fp16: is no name of a variant"),
        ({"target": Path()}, r"\.: "),
    ],
)
def test_what_cannot_be_imported_leaves_nothing(
    tmp_path: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: dict[str, object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"source": str(source), "target": tmp_path / "target", **wanted}
    with pytest.raises(JobError, match=message):
        import_model(Import(**options))  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_pickle_with_code_leaves_nothing(tmp_path: Path, source: Path) -> None:
    path = source / "unet" / "diffusion_pytorch_model.bin"
    torch.save({"a": torch.nn.ReLU()}, path)
    with pytest.raises(JobError, match=r"names torch\.nn\.modules\.activation\.ReLU"):
        import_model(Import(str(source), tmp_path / "target"))
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {**state, "conv_in.bias": state["conv_in.bias"] / 0}, "is not finite"),
        (lambda state: {**state, "more": state["conv_in.bias"]}, "1 unexpected keys: more"),
        (lambda state: dict(list(state.items())[1:]), "1 missing keys: "),
    ],
)
def test_weights_that_could_not_be_drawn_by_are_refused(
    tmp_path: Path,
    source: Path,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    message: str,
) -> None:
    path = source / "unet" / "diffusion_pytorch_model.bin"
    torch.save(change(torch.load(path, weights_only=True)), path)
    with pytest.raises(JobError, match=message) as raised:
        import_model(Import(str(source), tmp_path / "target"))
    assert str(source) in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_folder_with_an_original_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "celeba").mkdir()
    (tmp_path / "celeba" / "model.ckpt").write_bytes(b"")
    with pytest.raises(JobError, match=r"it holds model\.ckpt: `python -m ldm_batch import`"):
        import_model(Import(str(tmp_path / "celeba"), tmp_path / "target"))
