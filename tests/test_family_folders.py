"""Folders that are damaged, or made to harm: refused by name, when planned where that is cheap."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_family import FLUX, PIXART, QWEN, SD, SD3, SDXL, Z_IMAGE, draw, load, rewrite
from test_family import copied as copied
from test_family import model as model
from test_family_jobs import made, make_job
from test_family_jobs import prompts as prompts
from tiny_families import CHARACTERS

from ldm_batch.config import ModelConfig
from ldm_batch.diffusion.family import extras, template
from ldm_batch.diffusion.family.components import load_part
from ldm_batch.diffusion.family.files import max_noise_level
from ldm_batch.diffusion.family.limits import size_limit
from ldm_batch.diffusion.family.parts import check_parts
from ldm_batch.diffusion.family.table import FAMILIES
from ldm_batch.diffusion.load import load as load_ours
from ldm_batch.diffusion.models.files import lock_model
from ldm_batch.diffusion.models.find import find_model
from ldm_batch.diffusion.models.headers import check_headers
from ldm_batch.errors import JobError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, of numpy

UNET = "unet/diffusion_pytorch_model.safetensors"
INDEX = f"{UNET}.index.json"
NAN, BILLION = float("nan"), 10**9


def in_parts(folder: Path, name: str = "unet", stem: str = "diffusion_pytorch_model") -> list[Path]:
    """Cut the weights of a component in two."""
    whole = folder / name / f"{stem}.safetensors"
    weights, places = load_file(whole), dict[str, str]()
    paths = [folder / name / f"{stem}-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for number, path in enumerate(paths):
        part = {k: v for n, (k, v) in enumerate(sorted(weights.items())) if n % 2 == number}
        save_file(part, path, {"format": "pt"})
        places |= dict.fromkeys(part, path.name)
    index = {"metadata": {}, "weight_map": places}
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps(index))
    whole.unlink()
    return paths


def without(path: Path, part: str) -> str:
    """Take the weights with a part of a name out of a file; the first of them."""
    weights = load_file(path)
    gone = [name for name in sorted(weights) if part in name]
    save_file({k: v for k, v in weights.items() if k not in gone}, path, {"format": "pt"})
    return gone[0]


def refused(folder: Path, told: str) -> None:
    """Without weights, in one line."""
    with pytest.raises(JobError, match=told) as error:
        check_parts(folder)
    assert len(str(error.value).splitlines()) == 1


# Weights


def test_weights_that_no_file_holds_are_refused_though_the_index_has_them(
    copied: Callable[[str], Path],
) -> None:
    folder = copied(SD)
    paths = in_parts(folder)
    assert load(folder)
    name = without(paths[0], "norm")
    told = rf"index.json says that {paths[0].name} holds {name}, but it does not"
    refused(folder, told)
    with pytest.raises(JobError, match=told):
        load(folder)


def test_of_our_own_loops_models_too(tmp_path: Path) -> None:
    folder = Path(
        shutil.copytree(find_model(ModelConfig(path="demo:text_to_image")), tmp_path / "m")
    )
    paths = in_parts(folder)
    assert load_ours(folder)
    name = without(paths[1], "norm")
    for check in (load_ours, check_headers):
        with pytest.raises(JobError, match=rf"says that {paths[1].name} holds {name}, but it"):
            check(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda index: index.pop("metadata"), "has no metadata"),
        (lambda index: index["weight_map"].pop("conv_in.bias"), "holds conv_in.bias, but diff"),
        (
            lambda index: index["weight_map"].update(dict.fromkeys(index["weight_map"], "a")),
            "names 'a', which is not a file beside it",
        ),
    ],
)
def test_an_index_must_say_what_is_there(
    change: Callable[[Any], None], told: str, copied: Callable[[str], Path]
) -> None:
    folder = copied(SD)
    in_parts(folder)
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, told)


def test_weights_of_a_text_encoder_that_no_file_holds_are_missing(
    copied: Callable[[str], Path],
) -> None:
    folder = copied(SD)
    name = without(in_parts(folder, "text_encoder", "model")[0], "layer_norm")
    with pytest.raises(JobError, match=rf"text_encoder: \d+ missing keys: .*{name}"):
        load(folder)


@pytest.mark.parametrize("path", [UNET, "text_encoder/model.safetensors"])
def test_a_cut_file_is_named(path: str, copied: Callable[[str], Path]) -> None:
    folder = copied(SD)
    raw = (folder / path).read_bytes()
    (folder / path).write_bytes(raw[: len(raw) // 2])
    refused(folder, rf"model file .*{path} is damaged, or no safetensors: .*; fetch it again")


def test_whole_numbers_are_no_weights(copied: Callable[[str], Path]) -> None:
    folder = copied(SD)
    weights = load_file(folder / UNET)
    save_file({k: v.int() for k, v in weights.items()}, folder / UNET, {"format": "pt"})
    refused(folder, r"unet.*weight conv_in.bias is I32; weights must be F64, ")


def test_position_numbers_of_older_files_are_left_alone(copied: Callable[[str], Path]) -> None:
    folder = copied(SD)
    path = folder / "text_encoder" / "model.safetensors"
    numbers = torch.arange(77)[None]
    save_file({**load_file(path), "embeddings.position_ids": numbers}, path, {"format": "pt"})
    assert load(folder)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (UNET, r"conv_in\.weight \(1, 4, 3, 3\) in place of \(16, 4, 3, 3\)"),
        ("text_encoder/model.safetensors", r"position_embedding.weight \(1, 32\) in place of \(77"),
    ],
)
def test_weights_of_another_shape_are_named(
    path: str, told: str, copied: Callable[[str], Path]
) -> None:
    folder = copied(SD)
    weights = load_file(folder / path)
    name = next(n for n in weights if "conv_in.weight" in n or "position_embedding" in n)
    weights[name] = weights[name][:1].clone()
    save_file(weights, folder / path, {"format": "pt"})
    with pytest.raises(JobError, match=rf"1 mismatched keys: .*{told}") as error:
        load(folder)
    assert len(str(error.value).splitlines()) == 1


# Configurations


@pytest.mark.parametrize(
    ("kind", "file", "changes", "told"),
    [
        (SD, "unet", {"layers_per_block": 10**5}, r"layers_per_block is 100000, but only \d+ w"),
        (SD, "unet", {"layers_per_block": [1, 10**5]}, "layers_per_block is 100000, but only"),
        (SD, "unet", {"block_out_channels": [16, BILLION]}, "block_out_channels is 1000000000; at"),
        (SD, "unet", {"sample_size": [4] * 5000}, "sample_size has 5000 entries; at most 4096"),
        (SD, "text_encoder", {"num_hidden_layers": BILLION}, "num_hidden_layers is 1000000000; at"),
        (FLUX, "transformer", {"num_layers": 10**6}, "num_layers is 1000000, but only"),
        (FLUX, "text_encoder_2", {"num_layers": 10**6}, "num_layers is 1000000, but only"),
        (QWEN, "text_encoder", {"text": {"num_hidden_layers": 10**6}}, "layers is 1000000, but"),
        (SD, "text_encoder", {"_attn_implementation": "a/b"}, "_attn_implementation='a/b' is not"),
        (SD, "text_encoder", {"attn_implementation": {"x": "a/b"}}, "attn_implementation={'x'"),
        (QWEN, "text_encoder", {"text": {"_experts_implementation": "a/b"}}, "experts_impl"),
    ],
)
def test_what_never_ends_or_comes_from_elsewhere_is_refused_when_planned(
    kind: str, file: str, changes: dict[str, Any], told: str, copied: Callable[[str], Path]
) -> None:
    folder = copied(kind)
    rewrite(folder / file / "config.json", **changes)
    refused(folder, told)


@pytest.mark.parametrize(
    ("kind", "name", "changes", "told"),
    [
        (SD, "text_encoder", {"hidden_size": 4 * 10**6}, r"CLIPTextModel of \d{10,} numbers, but"),
        (SD, "unet", {"block_out_channels": [16, 8 * 10**6]}, r"Model of \d{10,} numbers, but its"),
        (PIXART, "transformer", {"sample_size": 10**6}, r"PixArt.*Model of \d{10,} numbers, but"),
        (SD3, "transformer", {"pos_embed_max_size": 10**4}, r"SD3.*Model of \d{10,} numbers, but"),
        (SD, "text_encoder", {"hidden_act": "evil"}, "makes no CLIPTextModel: KeyError: 'evil'"),
        (SD, "text_encoder", {"max_position_embeddings": "x"}, "CLIPTextModel: .*max_position_emb"),
        (SD, "unet", {"cross_attention_dim": "many"}, "makes no UNet2DConditionModel: TypeError"),
    ],
)
def test_a_network_that_its_weights_do_not_fill_takes_no_memory(
    kind: str, name: str, changes: dict[str, Any], told: str, copied: Callable[[str], Path]
) -> None:
    folder = copied(kind)
    rewrite(folder / name / "config.json", **changes)
    with pytest.raises(JobError, match=told) as error:
        load_part(folder, name, ModelConfig(path=str(folder)), torch.device("cpu"))
    assert len(str(error.value).splitlines()) == 1


def test_a_vae_without_end_is_refused_when_planned(
    copied: Callable[[str], Path], prompts: Callable[..., str], tmp_path: Path
) -> None:
    folder = copied(SD)
    rewrite(folder / "vae" / "config.json", block_out_channels=[4] * 100)
    job = make_job(folder, prompts(SD), tmp_path / "out", call__height=None)
    with pytest.raises(JobError, match="block_out_channels is no list of 1 to 16 levels"):
        made(job)


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        (FLUX, {"num_train_timesteps": 0}, "model: num_train_timesteps=0; must be 1 to 100000"),
        (FLUX, {"num_train_timesteps": 10**10}, "model: num_train_timesteps=10000000000; must be"),
        (SD, {"num_train_timesteps": 10**10}, "model: num_train_timesteps=10000000000; must be"),
        (FLUX, {"shift": NAN}, "scheduler_config.json of the model: shift=nan is not a finite"),
        (SD, {"trained_betas": [0.1, NAN]}, "trained_betas=.*is not a finite number"),
    ],
)
def test_a_schedule_without_end_or_number_is_refused_when_planned(
    kind: str,
    changes: dict[str, Any],
    told: str,
    copied: Callable[[str], Path],
    prompts: Callable[..., str],
    tmp_path: Path,
) -> None:
    folder = copied(kind)
    rewrite(folder / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(JobError, match=told) as error:
        made(make_job(folder, prompts(kind), tmp_path / "out"))
    assert len(str(error.value).splitlines()) == 1


def test_the_noise_of_an_image_to_enlarge_ends_too(copied: Callable[[str], Path]) -> None:
    folder = copied("StableDiffusionUpscalePipeline")
    path = folder / "low_res_scheduler" / "scheduler_config.json"
    rewrite(path, num_train_timesteps=10**10)
    refused(folder, "num_train_timesteps=10000000000; must be 1 to 100000")


def test_a_setting_that_is_no_number_is_called_so(
    model: Callable[[str], Path], prompts: Callable[..., str], tmp_path: Path
) -> None:
    settings = {"shift": NAN}
    job = make_job(model(SD3), prompts(SD3), tmp_path / "out", scheduler__settings=settings)
    with pytest.raises(JobError, match=r"scheduler.settings: shift=nan is not a finite number"):
        made(job)


@pytest.mark.parametrize("factor", [NAN, 0])
def test_what_draws_no_numbers_is_refused_before_a_plan_is_stored(
    factor: float, copied: Callable[[str], Path], prompts: Callable[..., str], tmp_path: Path
) -> None:
    folder = copied(SD)
    rewrite(folder / "vae" / "config.json", scaling_factor=factor)
    with pytest.raises(JobError, match="draws values that are not finite, in float32"):
        made(make_job(folder, prompts(SD), tmp_path / "out"))
    assert not [path for path in tmp_path.rglob("out/**/*") if path.is_file()]


@pytest.mark.parametrize(
    ("absent", "told"),
    [
        ("text_encoder_3", "has tokenizer_3 but no text_encoder_3; it needs both or neither"),
        ("tokenizer_3", "has text_encoder_3 but no tokenizer_3; it needs both or neither"),
    ],
)
def test_half_a_text_encoder_is_none(absent: str, told: str, copied: Callable[[str], Path]) -> None:
    folder = copied(SD3)
    rewrite(folder / "model_index.json", **{absent: [None, None]})
    refused(folder, told)


def test_a_setting_is_true_or_false(copied: Callable[[str], Path]) -> None:
    folder = copied(SDXL)
    rewrite(folder / "model_index.json", force_zeros_for_empty_prompt="no")
    refused(folder, "force_zeros_for_empty_prompt is 'no', not true or false")


@pytest.mark.parametrize(
    ("kind", "name", "changes", "told"),
    [
        (SD3, "pos_embed_max_size", "x", "pos_embed_max_size is 'x', no numbers of positions"),
        (Z_IMAGE, "axes_lens", [64], "axes_lens is .*, no numbers of positions"),
        (Z_IMAGE, "axes_lens", [8, 64, 64], "8 positions for texts; texts of 512 tokens need 514"),
        (Z_IMAGE, "axes_lens", [10**6, 64, 64], "axes_lens is .*, no numbers of positions"),
    ],
)
def test_positions_are_enough_and_end(
    kind: str, name: str, changes: Any, told: str, copied: Callable[[str], Path]
) -> None:
    folder = copied(kind)
    rewrite(folder / "transformer" / "config.json", **{name: changes})
    with pytest.raises(JobError, match=told):
        size_limit(folder, FAMILIES[kind])


def test_noise_that_a_model_has_no_class_for_is_beyond_its_most(
    copied: Callable[[str], Path],
) -> None:
    kind = "StableDiffusionUpscalePipeline"
    folder = copied(kind)
    assert max_noise_level(folder, FAMILIES[kind]) == 350
    rewrite(folder / "unet" / "config.json", num_class_embeds=100)
    assert max_noise_level(folder, FAMILIES[kind]) == 99
    rewrite(folder / "low_res_scheduler" / "scheduler_config.json", num_train_timesteps=50)
    assert max_noise_level(folder, FAMILIES[kind]) == 49


# Tokenizers


def test_files_that_no_lock_holds_are_not_read(copied: Callable[[str], Path]) -> None:
    folder = copied(SD)
    rewrite(folder / "tokenizer/tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.json"])
    refused(folder, "fast_tokenizer_files is not supported")


def test_a_huge_vocabulary_is_refused(copied: Callable[[str], Path]) -> None:
    folder = copied(SD)
    with (folder / "tokenizer" / "tokenizer.json").open("r+b") as file:
        file.truncate(64 * 1024 * 1024 + 1)
    with pytest.raises(JobError, match=r"tokenizer/tokenizer.json is larger than 67108864 bytes"):
        lock_model(folder)


@pytest.mark.parametrize("limit", ["long", -5, True])
def test_a_length_is_a_number(limit: object, copied: Callable[[str], Path]) -> None:
    folder = copied(SD)
    rewrite(folder / "tokenizer" / "tokenizer_config.json", model_max_length=limit)
    refused(folder, "model_max_length is .*, not a whole number from 1")


def test_a_damaged_vocabulary_is_told_with_its_part(copied: Callable[[str], Path]) -> None:
    folder = copied(SD)
    (folder / "tokenizer" / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')
    with pytest.raises(JobError, match="tokenizer does not load as a CLIPTokenizer: "):
        load(folder)


def only_sentencepiece(folder: Path) -> None:
    """The vocabulary of a tiny T5 as PixArt's makers ship it: a `spiece.model`, nothing beside."""
    from transformers.convert_slow_tokenizer import import_protobuf

    pb = import_protobuf()
    built = pb.ModelProto()
    special = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), ("▁", -2.0, 1)]
    usual = [(c, -3.0 - n, 1) for n, c in enumerate(CHARACTERS)]
    for piece, score, kind in (*special, *usual):
        built.pieces.add(piece=piece, score=score, type=kind)
    built.trainer_spec.model_type, built.trainer_spec.unk_id = 1, 2
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "spiece.model").write_bytes(built.SerializeToString())
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))


def test_a_vocabulary_of_sentencepiece_alone_draws_the_same(
    model: Callable[[str], Path], copied: Callable[[str], Path]
) -> None:
    folder = copied(PIXART)
    only_sentencepiece(folder)
    pipeline = load(folder)
    assert draw(pipeline, PIXART, 0, 4) == draw(load(model(PIXART)), PIXART, 0, 4)
    assert pipeline.count_tokens(["a cat"]) == load(model(PIXART)).count_tokens(["a cat"])


def test_a_vocabulary_that_nothing_here_reads_is_refused_when_planned(
    copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(PIXART)
    only_sentencepiece(folder)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda _name: None)
    refused(folder, "spiece.model needs sentencepiece, .*: pip install sentencepiece")


# Chat templates

QWEN3 = """{%- if tools %}{{- 'tools' }}{%- else %}
    {%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == 'user' and not(message.content.startswith('<t>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>' }}{%- endif %}
{%- endif %}
"""


@pytest.mark.parametrize(
    "source",
    [QWEN3, "it's \"{{ messages[0].content | trim }}\" 😀 {{ '{{' }}", "{{ messages[0].content }}"],
)
def test_a_template_is_what_it_was(source: str, model: Callable[[str], Path]) -> None:
    """As transformers renders it, for prompts that look like templates, too."""
    tokenizer = load_part(model(Z_IMAGE), "tokenizer", ModelConfig(), torch.device("cpu"))
    tokenizer.chat_template = source
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
    texts = ("a cat", " {{ 7 * 7 }} \n", "{% for %}", "'\"\\n", "")
    wanted = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], **options)
        for text in texts
    ]
    template.freeze_template(tokenizer, Path("tokenizer"))
    assert tokenizer.chat_template != source
    assert wanted == [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], **options)
        for text in texts
    ]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "its chat template does not end",
        ),
        ("{{ 'x' * 10**10 }}", "its chat template cannot be rendered: MemoryError"),
        ("{{ ''.__class__.__mro__ }}", "cannot be rendered: .*SecurityError"),
        ("{% for %}", "cannot be rendered: .*TemplateSyntaxError"),
        ("{{ raise_exception('no') }}", "cannot be rendered: ValueError: no"),
        ("the same for all", "does more than to put a text before and after the prompt"),
        ("{{ messages[0].content | upper }}", "does more than to put a text before and after"),
        ("{{ messages[0].content[:100] }}", "does more than to put a text before and after"),
    ],
)
def test_a_template_that_is_none_is_refused(
    source: str,
    told: str,
    model: Callable[[str], Path],
    copied: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(template, "MAX_SECONDS", 2)
    folder = copied(Z_IMAGE)
    (folder / "tokenizer" / "chat_template.jinja").write_text(source)
    with pytest.raises(JobError, match=f"tokenizer: .*{told}") as error:
        load_part(folder, "tokenizer", ModelConfig(), torch.device("cpu"))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("is_file", [True, False])
def test_a_template_that_tells_the_time_is_refused_when_planned(
    is_file: bool, copied: Callable[[str], Path]
) -> None:
    folder, source = copied(Z_IMAGE), "{{ strftime_now('%H') }}{{ messages[0].content }}"
    (folder / "tokenizer" / "chat_template.jinja").write_text(source if is_file else "{{ 1 }}")
    if not is_file:
        rewrite(folder / "tokenizer" / "tokenizer_config.json", chat_template=source)
    refused(folder, "its chat template asks for strftime_now, so that images would depend on")


def test_no_template_is_told(copied: Callable[[str], Path]) -> None:
    folder = copied(Z_IMAGE)
    (folder / "tokenizer" / "chat_template.jinja").unlink()
    rewrite(folder / "tokenizer" / "tokenizer_config.json", chat_template="absent")
    with pytest.raises(
        JobError, match="the tokenizer has no chat template, which this model needs"
    ):
        load_part(folder, "tokenizer", ModelConfig(), torch.device("cpu"))
