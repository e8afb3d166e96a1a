"""What is said where a dataset was planned otherwise: of another model in one sentence."""

from pathlib import Path
from typing import Any

import pytest

from ldm_batch.errors import JobError
from ldm_batch.identity import fingerprint
from ldm_batch.plan.other_settings import MAX_NAMED, refuse_other_fingerprint
from ldm_batch.storage import Store

FILES = {f"unet/{n}.safetensors": f"{n:064x}" for n in range(14)}


def document(names: dict[str, str], **images: Any) -> dict[str, Any]:
    """A plan's document of a task of these models."""
    whole = {
        "task": "text_to_image",
        "model": {"pipeline": "ldm", "dtype": "float32", "files": FILES},
        "scheduler": {"name": "ddim"},
        "seed": 0,
    } | images
    return {"fingerprint": fingerprint(whole), "images": whole, "models": names}


def refusal(folder: Path, planned: dict[str, Any], now: dict[str, Any]) -> str:
    with pytest.raises(JobError) as refused:
        refuse_other_fingerprint(planned, now, Store(str(folder)))
    return str(refused.value)


def fill(folder: Path) -> Path:
    (folder / "data").mkdir()
    (folder / "data/00000.parquet").touch()
    return folder


def other_files(count: int = len(FILES)) -> dict[str, Any]:
    changed = {name: "f" * 64 for name in list(FILES)[:count]}
    return {"pipeline": "ldm", "dtype": "float32", "files": FILES | changed}


def test_another_model_is_one_sentence(tmp_path: Path) -> None:
    planned = document({"": "cats"})
    now = document({"": "dogs"}, model=other_files(), seed=7, scheduler={"name": "heun"})
    assert refusal(fill(tmp_path), planned, now) == (
        f"sink.uri: {tmp_path} holds a dataset made by cats (text_to_image), this job draws by "
        "dogs (text_to_image); name another sink.uri, or choose the planned model."
    )


def test_of_an_empty_dataset_it_says_how_to_plan_again(tmp_path: Path) -> None:
    told = refusal(tmp_path, document({"": "a"}), document({"": "b"}, model=other_files()))
    assert f"{tmp_path} is planned for images made by a (text_to_image)" in told
    assert told.endswith("plan_again=true replaces it.")
    assert "\n" not in told


def test_another_task_and_a_second_stage_are_told(tmp_path: Path) -> None:
    second = {"second_stage": {"model": {"pipeline": "super_resolution", "files": {"x": "1"}}}}
    names = {"": "cats", "upscale.": "large"}
    told = refusal(fill(tmp_path), document(names, **second), document(names))
    assert "made by cats and large (text_to_image), this job draws by cats (text_to_image)" in told
    told = refusal(tmp_path, document({"": "a"}), document({"": "b"}, task="super_resolution"))
    assert "made by a (text_to_image), this job draws by b (super_resolution)" in told


def test_another_content_of_one_model_is_a_line(tmp_path: Path) -> None:
    planned, names = document({"": "cats"}), {"": "cats"}
    lines = refusal(fill(tmp_path), planned, document(names, model=other_files(2), seed=7))
    assert lines.splitlines()[1:3] == [
        "  model.files: 2 of 14 are others: unet/0.safetensors, unet/1.safetensors",
        "  seed: planned 0, now 7",
    ]
    lines = refusal(tmp_path, planned, document(names, model=other_files()))
    assert lines.splitlines()[1].startswith("  model.files: 14 of 14 are others: unet/0.safe")
    assert lines.splitlines()[1].endswith(", ...")


def test_a_renamed_folder_is_no_other_model(tmp_path: Path) -> None:
    told = refusal(fill(tmp_path), document({"": "old"}), document({"": "new"}, seed=7))
    assert "planned with other settings" in told
    assert "  seed: planned 0, now 7\n" in told


def test_many_settings_are_cut_short(tmp_path: Path) -> None:
    call = {f"argument_{n:02d}": n for n in range(MAX_NAMED + 3)}
    now = document({"": "a"}, call={name: -1 for name in call})
    lines = refusal(fill(tmp_path), document({"": "a"}, call=call), now).splitlines()
    assert len(lines) == MAX_NAMED + 3
    assert lines[MAX_NAMED] == "  call.argument_09: planned 9, now -1"
    assert lines[MAX_NAMED + 1] == "  and 3 more"


def test_the_same_plan_is_no_trouble(tmp_path: Path) -> None:
    same = document({"": "a"})
    refuse_other_fingerprint(same, same, Store(str(tmp_path)))
