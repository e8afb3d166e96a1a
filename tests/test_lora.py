"""LoRAs: fused as diffusers does, proved whole, part of what a dataset is, and what is refused."""

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import REPO_ID, REVISION, hub_server
from safetensors.torch import load_file, save_file
from test_family import FLUX, KINDS, PIXART, QWEN, SD, SDXL, Z_IMAGE, load, pixels, request
from test_family import copied as copied
from test_family import model as model
from test_family_jobs import made, make_job, objects, records
from test_family_jobs import prompts as prompts
from tiny_loras import ALPHA, as_kohya, make_lora

from ldm_batch.commands.dataset_view import open_dataset
from ldm_batch.commands.verify.regenerate import Sample
from ldm_batch.commands.verify.verification import EXIT_CANNOT_TELL, EXIT_RIGHT, verify
from ldm_batch.config import (
    JobConfig,
    LoraConfig,
    ModelConfig,
    SinkConfig,
    SourceConfig,
    UpscaleConfig,
    parse_loras,
)
from ldm_batch.diffusion.family import load as family_load
from ldm_batch.diffusion.family.table import FAMILIES
from ldm_batch.diffusion.models.loras import ADAPTER, find_loras, lock_loras
from ldm_batch.errors import JobError
from ldm_batch.generate.choose import validate_job
from ldm_batch.made_as import MadeAs, how_made
from ldm_batch.plan.command_line import settings_of
from ldm_batch.run import compose_job
from ldm_batch.storage import Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, of numpy

WITH_LORAS = [kind for kind in KINDS if FAMILIES[kind].loras]
SHA = "0123456789" * 4


@pytest.fixture(scope="session")
def lora(
    model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`lora(kind, seed)` -> the file of a tiny LoRA for the tiny pipeline of a class, made once."""
    root, files = tmp_path_factory.mktemp("loras"), dict[tuple[Any, ...], Path]()

    def make(kind: str, seed: int = 1, says_alpha: bool = True) -> Path:
        key = (kind, seed, says_alpha)
        if key not in files:
            folder = root / "-".join(map(str, key))
            files[key] = make_lora(kind, model(kind), folder, seed, says_alpha=says_alpha)
        return files[key]

    return make


def state(pipeline: Any, kind: str) -> dict[str, torch.Tensor]:
    """Weights of the parts that a LoRA may change."""
    pipe = pipeline._call.loaded.pipe
    return {
        f"{part}.{name}": value
        for part in FAMILIES[kind].loras
        for name, value in getattr(pipe, part).state_dict().items()
    }


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def drawn(pipeline: Any, kind: str) -> list[bytes]:
    return pixels(pipeline.generate([request(number, kind) for number in (0, 1)]))


# Fused


def test_the_table_names_what_diffusers_fuses_into() -> None:
    import diffusers

    for kind, family in FAMILIES.items():
        parts = getattr(getattr(diffusers, kind), "_lora_loadable_modules", [])
        assert {*family.loras} == {*parts}
    assert KINDS != WITH_LORAS


@pytest.mark.parametrize("kind", WITH_LORAS)
def test_a_lora_is_fused_as_diffusers_does(
    kind: str, model: Callable[[str], Path], lora: Callable[..., Path]
) -> None:
    plain, other = load(model(kind)), load(model(kind))
    pipe = other._call.loaded.pipe
    pipe.load_lora_weights(lora(kind).parent, weight_name=lora(kind).name)
    pipe.fuse_lora([*FAMILIES[kind].loras], lora_scale=0.7)
    pipe.unload_lora_weights()
    fused = load(model(kind), loras=[LoraConfig(str(lora(kind)), scale=0.7)])
    assert same(state(fused, kind), state(other, kind))
    assert not same(state(fused, kind), state(plain, kind))
    first = drawn(fused, kind)
    assert first == drawn(other, kind) == drawn(fused, kind)
    assert not {*first} & {*drawn(plain, kind)}
    for part in FAMILIES[kind].loras:
        now, before = (getattr(p._call.loaded.pipe, part) for p in (fused, plain))
        assert [type(m) for m in now.modules()] == [type(m) for m in before.modules()]
        assert not any(weight.requires_grad for weight in now.parameters())
        assert not now.training


def test_several_count_in_their_order_each_by_its_scale(
    model: Callable[[str], Path], lora: Callable[..., Path]
) -> None:
    """As diffusers fuses adapters that are loaded together; every part has a share of it."""
    files, scales = [lora(SDXL), lora(SDXL, 2)], [0.7, -1.5]
    other = load(model(SDXL))
    pipe = other._call.loaded.pipe
    for name, file in zip("ab", files, strict=True):
        pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    pipe.set_adapters(["a", "b"], scales)
    pipe.fuse_lora([*FAMILIES[SDXL].loras])
    pipe.unload_lora_weights()
    given = [LoraConfig(str(f), scale=s) for f, s in zip(files, scales, strict=True)]
    fused = load(model(SDXL), loras=given)
    assert same(state(fused, SDXL), state(other, SDXL))
    plain = state(load(model(SDXL)), SDXL)
    changed = {n.partition(".")[0] for n, v in state(fused, SDXL).items() if not v.equal(plain[n])}
    assert changed == {*FAMILIES[SDXL].loras}
    one = load(model(SDXL), loras=given[:1])
    assert not same(state(one, SDXL), state(fused, SDXL))


@pytest.mark.parametrize(("kind", "prefix"), [(SD, "lora_te"), (SDXL, "lora_te1")])
def test_kohyas_form_and_its_alpha_make_the_same(
    kind: str,
    prefix: str,
    model: Callable[[str], Path],
    lora: Callable[..., Path],
    tmp_path: Path,
) -> None:
    file = as_kohya(lora(kind), tmp_path / "kohya.safetensors", prefix)
    one, two = (load(model(kind), loras=[{"path": str(f)}]) for f in (lora(kind), file))
    assert same(state(one, kind), state(two, kind))
    unsaid = load(model(kind), loras=[{"path": str(lora(kind, 1, False)), "scale": 2.0}])
    assert same(state(unsaid, kind), state(one, kind))
    weights = {
        name: value.reshape(1) if name.endswith(".alpha") else value
        for name, value in load_file(file).items()
    }
    save_file(weights, tmp_path / "lists.safetensors")
    lists = load(model(kind), loras=[{"path": str(tmp_path / "lists.safetensors")}])
    assert same(state(lists, kind), state(one, kind))


@pytest.mark.parametrize("kind", [Z_IMAGE, QWEN])
def test_other_names_of_the_transformer_make_the_same(
    kind: str, model: Callable[[str], Path], lora: Callable[..., Path], tmp_path: Path
) -> None:
    """As ComfyUI has them, with alphas."""
    weights, sides = {}, {"lora_A": "lora_down", "lora_B": "lora_up"}
    for name, one in load_file(lora(kind)).items():
        stem, side, _ = name.replace("transformer.", "diffusion_model.", 1).rsplit(".", 2)
        weights[f"{stem}.{sides[side]}.weight"] = one
        weights[f"{stem}.alpha"] = torch.tensor(float(ALPHA))
    save_file(weights, tmp_path / "comfy.safetensors")
    files = (lora(kind), tmp_path / "comfy.safetensors")
    one, two = (load(model(kind), loras=[{"path": str(file)}]) for file in files)
    for name, value in state(one, kind).items():  # alpha is laid on the weights: last bits differ
        assert torch.allclose(value, state(two, kind)[name], rtol=1e-5, atol=1e-5)


def test_half_precision_is_fused_too_and_drawn_again_in_float32(
    model: Callable[[str], Path], lora: Callable[..., Path]
) -> None:
    loras = [LoraConfig(str(lora(SDXL)))]
    pipeline = load(model(SDXL), dtype="bfloat16", loras=loras)
    whole = load(model(SDXL), loras=loras)
    plain = load(model(SDXL), dtype="bfloat16")
    assert {*drawn(pipeline, SDXL)}.isdisjoint(drawn(plain, SDXL))
    for weight in pipeline._call.loaded.pipe.vae.parameters():
        weight.data.fill_(float("nan"))
    again = pipeline.generate([request(0, SDXL), request(1, SDXL)])
    assert [how_made(one) for one in again] == [MadeAs(is_float32=True)] * 2
    assert pixels(again) == drawn(whole, SDXL)


def test_to_fuse_draws_nothing_from_torchs_generator(
    model: Callable[[str], Path], lora: Callable[..., Path]
) -> None:
    before = torch.get_rng_state()
    load(model(SD), loras=[LoraConfig(str(lora(SD)))])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_folder_stands_for_its_only_file(
    model: Callable[[str], Path], lora: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copy(lora(SD), tmp_path / "any.safetensors")
    usual, only = (
        find_loras(ModelConfig(loras=[LoraConfig(str(folder))]))
        for folder in (lora(SD).parent, tmp_path)
    )
    assert usual[0].path == lora(SD)
    assert only[0].path == tmp_path / "any.safetensors"
    assert usual[0].sha256 == only[0].sha256


# Refused: the file, before anything is built


def write(path: Path, **weights: torch.Tensor) -> Path:
    save_file({name.replace("__", "."): value for name, value in weights.items()}, path)
    return path


def said(path: Path, lora: Path, **settings: Any) -> Path:
    """The LoRA with other settings of peft in its header."""
    values = {f"unet.{name}": value for name, value in settings.items()}
    save_file(load_file(lora), path, {"format": "pt", ADAPTER: json.dumps(values)})
    return path


DAMAGED: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "missing": (lambda path, _: path.with_name("absent.safetensors"), "no such file on"),
    "bin": (lambda path, _: path.with_suffix(".bin"), r"\.bin is no \.safetensors file"),
    "pickle": (lambda path, _: path.write_bytes(pickle.dumps({"a": 1})), "is damaged, or no safe"),
    "truncated": (lambda path, ok: path.write_bytes(ok.read_bytes()[:-4]), "is damaged, or no saf"),
    "empty": (lambda path, _: path.write_bytes(b""), "is damaged, or no safetensors"),
    "long header": (
        lambda path, _: path.write_bytes((2**40).to_bytes(8, "little") + b"{}"),
        "is damaged, or no safetensors",
    ),
    "no weights": (lambda path, _: write(path), "holds no weights"),
    "whole numbers": (
        lambda path, _: write(path, unet__a__lora_A__weight=torch.ones(2, 2, dtype=torch.int8)),
        "unet.a.lora_A.weight is I8; weights must be F64, F32, F16, BF16",
    ),
    "DoRA": (lambda path, _: write(path, a__dora_scale=torch.ones(2)), "a.dora_scale, which is Do"),
    "LoKr": (lambda path, _: write(path, a__lokr_w1=torch.ones(2, 2)), "a.lokr_w1, which is LoKr"),
    "a name of two lines": (
        lambda path, _: write(path, **{"unet\nlora": torch.ones(2)}),
        "names a weight in no printable text of 500 characters",
    ),
    "folder": (lambda path, _: path.parent, "holds no .safetensors file; name one file"),
    "code": (
        lambda path, ok: said(path, ok, r=3, megatron_config={"a": 1}, megatron_core="os"),
        r"says unet.megatron_config=\{'a': 1\}; plain LoRA is taken only",
    ),
    "begun otherwise": (
        lambda path, ok: said(path, ok, init_lora_weights="pissa"),
        "says unet.init_lora_weights='pissa'",
    ),
    "a slow pattern": (
        lambda path, ok: said(path, ok, rank_pattern={"(a+)+$": 3}),
        "rank_pattern=.*which is not taken",
    ),
    "no half of a pair": (
        lambda path, _: write(path, unet__a__lora_A__weight=torch.ones(2, 2)),
        "unet.a.lora_A.weight without unet.a.lora_B.weight; was the file cut",
    ),
    "no half of kohya's": (
        lambda path, _: write(path, lora_unet_a__lora_up__weight=torch.ones(2, 2)),
        "lora_unet_a.lora_up.weight without lora_unet_a.lora_down.weight; was the file cut",
    ),
    "a rank of yes": (lambda path, ok: said(path, ok, r=True), "unet.r=True, which is not taken"),
    "an alpha of yes": (
        lambda path, ok: said(path, ok, alpha_pattern={"a": True}),
        "unet.alpha_pattern={'a': True}, which is not taken",
    ),
    "a switch of 1": (lambda path, ok: said(path, ok, use_rslora=1), "use_rslora=1, which is not"),
    "a huge rank": (lambda path, ok: said(path, ok, r=10**6), "unet.r=1000000, which is not taken"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_is_judged_before_anything_is_built(
    name: str,
    model: Callable[[str], Path],
    lora: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def built(*_: object) -> None:
        raise AssertionError("a part was built")

    monkeypatch.setattr(family_load, "load_part", built)
    make, told = DAMAGED[name]
    path = tmp_path / "lora.safetensors"
    given = make(path, lora(SD))
    loras = [LoraConfig(str(given if isinstance(given, Path) else path))]
    with pytest.raises(JobError, match=rf"^model\.loras\[0\]\.path: .*{told}") as refused:
        load(model(SD), loras=loras)
    assert len(str(refused.value).splitlines()) == 1


def test_weights_that_are_not_finite_are_refused(
    model: Callable[[str], Path], lora: Callable[..., Path], tmp_path: Path
) -> None:
    weights = load_file(lora(SD))
    name = min(weights)
    weights[name][0] = float("inf")
    save_file(weights, tmp_path / "lora.safetensors")
    with pytest.raises(JobError, match=f"weight {name} is not finite"):
        load(model(SD), loras=[LoraConfig(str(tmp_path / "lora.safetensors"))])


# Refused: what does not fit the model


def renamed(path: Path, lora: Path, count: int, names: dict[str, str]) -> Path:
    """The LoRA with parts of the names of its first weights changed, of so many."""
    weights = load_file(lora)
    for name in sorted(weights):
        new = name
        for old, other in names.items():
            new = new.replace(old, other)
        if new != name and count:
            weights[new], count = weights.pop(name), count - 1
    save_file(weights, path)
    return path


@pytest.mark.parametrize(
    ("kind", "count", "names", "told"),
    [
        (
            SD,
            99,
            {"unet": "transformer", "text_encoder": "transformer"},
            r"\d+ of \d+ weights have",
        ),
        (SD, 99, {"text_encoder": "text_encoder_2"}, r"text_encoder_2\.\S+; was it made for"),
        (FLUX, 2, {"to_k": "to_other"}, r"2 of \d+ weights have no place in this model's transfo"),
        (FLUX, 2, {"transformer": "prior"}, r"2 of \d+ weights have no place .* prior\.\S+"),
        (SDXL, 99, {"unet.": ""}, "no place|does not fit"),
        (
            SD,
            1,
            {"lora_A": "lora_B"},
            r"1 weights stand alone.* \S+lora_B.weight without \S+lora_A.we",
        ),
        (
            SD,
            1,
            {"lora": "other"},
            r"1 weights stand alone.* \S+lora_B.weight without \S+lora_A.we",
        ),
        (SD, 2, {"lora_": "other_"}, "does not fit a StableDiffusionPipeline"),
        (SD, 99, {"lora_A": "x"}, r"34 weights stand alone"),
    ],
)
def test_every_weight_must_find_its_place(
    kind: str,
    count: int,
    names: dict[str, str],
    told: str,
    model: Callable[[str], Path],
    lora: Callable[..., Path],
    tmp_path: Path,
) -> None:
    path = renamed(tmp_path / "lora.safetensors", lora(kind, 1, False), count, names)
    with pytest.raises(JobError, match=rf"^model\.loras\[0\]\.path: {path}.*({told})") as refused:
        load(model(kind), loras=[LoraConfig(str(path))])
    assert len(str(refused.value).splitlines()) == 1


def test_weights_that_diffusers_leaves_out_without_a_word_are_named(
    model: Callable[[str], Path], lora: Callable[..., Path], tmp_path: Path
) -> None:
    """A text encoder's queries where there is no projection of its outputs; of Flux all but the
    transformer where names are of two kinds."""
    path = as_kohya(lora(SD), tmp_path / "sd.safetensors", "lora_te")
    weights = load_file(path)
    save_file({name: one for name, one in weights.items() if "out_proj" not in name}, path)
    with pytest.raises(JobError, match=r"4 of \d+ weights .* text_encoder\.\S+to_q_lora\.down"):
        load(model(SD), loras=[LoraConfig(str(path))])
    path = tmp_path / "flux.safetensors"
    for name, one in load_file(lora(FLUX)).items():
        weights[name.replace("lora_A", "lora_down").replace("lora_B", "lora_up")] = one
    weights = {name: one for name, one in weights.items() if not name.startswith("lora_")}
    save_file(weights, path)
    with pytest.raises(JobError, match=r"12 of \d+ weights .*: text_encoder\.\S+lora_down"):
        load(model(FLUX), loras=[LoraConfig(str(path))])
    for name, one in weights.items():
        one.mul_(not name.startswith("text_encoder"))
    save_file(weights, path)
    load(model(FLUX), loras=[LoraConfig(str(path))])


@pytest.mark.parametrize("kind", [SD, FLUX])
def test_a_lora_for_other_widths_is_refused(
    kind: str, model: Callable[[str], Path], lora: Callable[..., Path], tmp_path: Path
) -> None:
    weights = {}
    for name, value in load_file(lora(kind)).items():
        weights[name] = torch.cat([value, value], 1) if "lora_A" in name else value
    save_file(weights, tmp_path / "lora.safetensors")
    with pytest.raises(JobError, match=r"does not fit a|changes the shape") as refused:
        load(model(kind), loras=[LoraConfig(str(tmp_path / "lora.safetensors"))])
    assert len(str(refused.value).splitlines()) == 1


def test_a_lora_of_another_model_is_refused(
    model: Callable[[str], Path], lora: Callable[..., Path]
) -> None:
    with pytest.raises(JobError, match=r"does not fit a|have no place in this"):
        load(model(SD), loras=[LoraConfig(str(lora(SDXL)))])


# Jobs


def test_a_job_is_made_verified_and_resumed_with_the_same_loras(
    model: Callable[[str], Path],
    lora: Callable[..., Path],
    prompts: Callable[..., str],
    tmp_path: Path,
) -> None:
    file = Path(shutil.copy(lora(SDXL), tmp_path / "style.safetensors"))
    source = prompts(SDXL)
    plain = make_job(model(SDXL), source, tmp_path / "plain")
    made(plain)
    job = make_job(model(SDXL), source, tmp_path / "out", model__loras=[LoraConfig(str(file), 0.8)])
    made(job)
    before = objects(job)
    digests = [{row["pixel_sha256"] for row in records(j).values()} for j in (plain, job)]
    assert not digests[0] & digests[1]
    found = verify(Store(str(job.sink.uri)), Sample(4))
    assert (found.problems, found.exit_code) == ([], EXIT_RIGHT)
    lives = file.rename(tmp_path / "elsewhere.safetensors")
    lost = verify(Store(str(job.sink.uri)), Sample(1))
    assert (lost.num_images, lost.problems, lost.exit_code) == (6, [], EXIT_CANNOT_TELL)
    assert lost.not_regenerated.startswith("model.loras[0].path: no such file")
    found = verify(Store(str(job.sink.uri)), Sample(1, lora_paths=(str(lives),)))
    assert (found.problems, found.exit_code) == ([], EXIT_RIGHT)
    view = open_dataset(str(job.sink.uri))
    [key, *_] = records(job)
    assert view.regenerate(key, lora_paths=[lives]).is_equal
    with pytest.raises(JobError, match=r"^lora_path\[0\]: .* is none of the 1 LoRAs that were pla"):
        view.regenerate(key, lora_paths=[lora(SDXL, 2)])
    with pytest.raises(JobError, match=r"^lora_paths='a': must be a list of files"):
        view.regenerate(key, lora_paths="a")
    lives.rename(file)
    receipts = Path(str(job.sink.uri), ".ldm_batch", "receipts")
    told = [json.loads(path.read_text())["pipeline"]["loras"] for path in receipts.iterdir()]
    sha = find_loras(job.model)[0].sha256
    assert told == [[{"file": file.name, "sha256": sha, "scale": 0.8}]] * 2

    (tmp_path / "out" / "data" / "00001.parquet").unlink()
    moved = Path(shutil.copy(file, tmp_path / "moved.safetensors"))
    made(
        make_job(
            model(SDXL), source, tmp_path / "out", model__loras=[{"path": str(moved), "scale": 0.8}]
        )
    )
    assert objects(job) == before

    (tmp_path / "out" / "data" / "00001.parquet").unlink()
    for loras, field in {
        (LoraConfig(str(file), 0.9),): "model.lora_scales",
        (LoraConfig(str(lora(SDXL, 2)), 0.8),): r"model.files: 1 of \d+ are others: loras/0",
        (): "model.",
        (LoraConfig(str(file), 0.8), LoraConfig(str(lora(SDXL, 2)))): "model.",
    }.items():
        other = make_job(model(SDXL), source, tmp_path / "out", model__loras=[*loras])
        with pytest.raises(JobError, match=field):
            made(other)


def test_a_worker_holds_a_lora_to_the_plan(
    model: Callable[[str], Path], lora: Callable[..., Path]
) -> None:
    from ldm_batch.config import SchedulerConfig
    from ldm_batch.diffusion.models.files import lock_model

    planned, other = (
        ModelConfig(engine="diffusers", path=str(model(SD)), loras=[LoraConfig(str(lora(SD, n)))])
        for n in (1, 2)
    )
    lock = lock_model(model(SD)) | lock_loras(planned)
    assert family_load.load_family(planned, SchedulerConfig(), lock=lock).loras
    with pytest.raises(JobError, match=r"^model\.loras\[0\]\.path: .* is not the planned one"):
        family_load.load_family(other, SchedulerConfig(), lock=lock)
    with pytest.raises(JobError, match=r"^model\.loras: 0 of them, planned are 1"):
        family_load.load_family(
            dataclasses.replace(planned, loras=[]), SchedulerConfig(), lock=lock
        )


def test_what_cannot_be_fused_is_refused_when_it_is_planned(
    model: Callable[[str], Path],
    lora: Callable[..., Path],
    prompts: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loras = [LoraConfig(str(lora(SD)))]
    pixart = make_job(model(PIXART), prompts(PIXART), tmp_path / "out", model__loras=loras)
    with pytest.raises(JobError, match=r"^model\.loras: diffusers fuses none into a PixArtSigma"):
        made(pixart)
    foreign = make_job(
        model(SDXL), prompts(SDXL), tmp_path / "out", model__loras=[LoraConfig(str(lora(FLUX)))]
    )
    with pytest.raises(JobError, match=r"no place in this model's unet or text_encoder or text_e"):
        made(foreign)
    monkeypatch.setitem(sys.modules, "peft", None)
    job = make_job(model(SD), prompts(SD), tmp_path / "out", model__loras=loras)
    with pytest.raises(JobError, match=r"needs peft, .*: pip install 'ldm-batch\[lora\]'$"):
        made(job)
    assert not [path for path in tmp_path.rglob("out/**/*") if path.is_file()]


@pytest.mark.parametrize("section", ["model", "upscale"])
def test_our_own_loop_has_no_use_for_loras(section: str) -> None:
    loras = [LoraConfig("a.safetensors")]
    own = ModelConfig(path="demo:text_to_image", loras=loras if section == "model" else [])
    second = ModelConfig(path="demo:super_resolution", loras=loras if section != "model" else [])
    job = JobConfig(
        model=own,
        upscale=UpscaleConfig(model=second if section == "upscale" else ModelConfig()),
        source=SourceConfig(uri="in"),
        sink=SinkConfig(uri="out"),
    )
    with pytest.raises(JobError, match=r"model\.loras: only engine diffusers knows it"):
        validate_job(job)


# The document


def test_a_command_and_python_say_the_same() -> None:
    settings = [
        "model=local",
        "model.engine=diffusers",
        "model.path=m",
        "source.uri=in",
        "sink.uri=out",
    ]
    told = compose_job([*settings, "model.loras=[{path: my.safetensors, scale: .8}, {path: b}]"])
    loras = [LoraConfig("my.safetensors", 0.8), LoraConfig("b")]
    assert parse_loras("model.loras", told.model.loras) == loras
    own = dataclasses.replace(told, model=dataclasses.replace(told.model, loras=loras))
    again = compose_job(settings_of(own, compose_job([])))
    assert parse_loras("model.loras", again.model.loras) == loras
    validate_job(own)


@pytest.mark.parametrize(
    ("loras", "told"),
    [
        ("a", "model.loras: 'a' is not a list; write"),
        (["a"], r"model.loras\[0\]: 'a' is not of the form"),
        ([{"path": "a", "scal": 1}], r"model.loras\[0\].scal: no such field; did you mean 'scale'"),
        ([{"path": "a"}, {"path": 3}], r"model.loras\[1\].path: 3 is not a text"),
        ([{"path": "a", "scale": "x"}], r"model.loras\[0\].scale: 'x' is not a number"),
        ([{"path": "a", "scale": True}], r"model.loras\[0\].scale: True is not a number"),
        ([{"path": "a", "scale": float("nan")}], r"scale: nan is not between -10 and 10"),
        ([{"path": "a", "scale": 11}], r"scale: 11.0 is not between -10 and 10"),
        ([{"path": "a", "scale": 0}], r"scale: 0 leaves the model as it is"),
        ([{}], r"model.loras\[0\].path: not set"),
        ([{"path": "a", "repo_id": "b/c"}], r"path: set together with model.loras\[0\].repo_id"),
        ([{"path": "a", "file": "b"}], r"file: set together with"),
        ([{"repo_id": "b/c", "revision": "main", "file": "a.safetensors"}], "'main' is not a full"),
        ([{"repo_id": "b/c", "revision": SHA, "file": "../a.safetensors"}], "is not the name of a"),
        (
            [{"repo_id": "b/c", "revision": SHA, "file": "a.bin"}],
            "'a.bin' is not the name of a .sa",
        ),
        ([{"path": "a"}] * 65, "model.loras: 65 of them; at most 64"),
    ],
)
def test_a_wrong_document_is_refused_by_name(loras: Any, told: str) -> None:
    job = JobConfig(
        model=ModelConfig(engine="diffusers", path="m", loras=loras),
        source=SourceConfig(uri="in"),
        sink=SinkConfig(uri="out"),
    )
    with pytest.raises(JobError, match=told):
        validate_job(job)


def test_a_lora_of_the_hub_is_one_file_of_one_commit(
    copied: Callable[[str], Path], lora: Callable[..., Path], tmp_path: Path
) -> None:
    given = {"repo_id": REPO_ID, "revision": REVISION, "file": "styles/a[1].safetensors"}
    program = (
        "from ldm_batch.config import ModelConfig\n"
        "from ldm_batch.diffusion.models.loras import lock_loras\n"
        f"print(lock_loras(ModelConfig(loras=[{given!r}])))"
    )

    def fetched() -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)

    with hub_server(copied(SD)) as hub:
        absent = fetched()
        hub.files |= {given["file"]: lora(SD).read_bytes(), "styles/b.safetensors": b"x"}
        shutil.rmtree(tmp_path / "home", ignore_errors=True)
        done = fetched()
        asked = {name for way, name in hub.requests if way == "GET"}
    assert "model.loras[0].repo_id=" in absent.stderr
    assert "none of the files named styles/a[1].safetensors" in absent.stderr
    assert done.returncode == 0, done.stderr
    path = ModelConfig(loras=[LoraConfig(str(lora(SD)))])
    assert done.stdout.strip() == str(lock_loras(path))
    assert "styles/b.safetensors" not in asked
    assert np.all([not name.endswith(".json") for name in asked])
