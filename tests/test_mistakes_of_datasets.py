"""Mistakes that people make with datasets and models, in every command: each ends in one message
with the thing and the remedy, stores nothing, and imports no more than it needs."""

import json
import shutil
from pathlib import Path

import pytest
from mistakes import (
    JOB,
    Give,
    Mistake,
    Seen,
    check,
    closed,
    cut,
    dataset,
    empty,
    file,
    gone,
    named,
    prompts,
    see_all,
)

import ldm_batch

PLAN, SEGMENT = "out/.ldm_batch/plan.json", "out/.ldm_batch/plan/00000.parquet"
OBJECT, RECEIPT = "out/data/00000.parquet", "out/.ldm_batch/receipts/00000.json"
DRAW = "run cluster=in_process source.uri=in sink.uri=out batch_size=2"
LOCAL = f"{DRAW} model=local"
MODELS = ("torch", "diffusers", "transformers")
OFFLINE = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": "/proc/hub"}
KEYS = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}


def told(words: str, *pieces: str) -> Mistake:
    """A mistake of arguments, beside a whole dataset."""
    return Mistake(words, pieces, (dataset,))


def model(folder: Path) -> None:
    """The demo model as a folder of somebody's own, in `m`."""
    shutil.copytree(Path(ldm_batch.__file__).parent / "demo/models/text_to_image", folder / "m")


def drawn(words: str, *pieces: str, give: tuple[Give, ...] = (), imports: bool = False) -> Mistake:
    """A mistake of a job that draws by a model in `m`."""
    there = (prompts(), model, *give)
    return Mistake(f"{LOCAL} {words}", pieces, there, imports=MODELS if imports else ())


def plan(**changes: object) -> Give:
    """A plan that somebody edited."""

    def give(folder: Path) -> None:
        document = json.loads((folder / PLAN).read_text())
        (folder / PLAN).write_text(json.dumps({**document, **changes}))

    return give


def without_weights(folder: Path) -> None:
    for path in (folder / "m").rglob("*.safetensors"):
        path.unlink()


SINKS = [
    Mistake(JOB, ("/out is no folder", "name another"), (prompts(), file("out"))),
    Mistake(f"{JOB} sink.uri=out/x", ("/out is no folder", "another"), (prompts(), file("out"))),
    Mistake(f"{JOB} sink.uri=/dev/null", ("/dev/null is no folder", "name another"), (prompts(),)),
    Mistake(
        f"{JOB} sink.uri=/proc/out",
        ("sink.uri: /proc/out cannot be written", "name another"),
        (prompts(),),
    ),
    Mistake(f"{JOB} sink.uri=out/{'x' * 300}", ("cannot be written", "too long"), (prompts(),)),
    Mistake(f"{JOB} sink.uri=", ("sink.uri: not set; name the folder",), (prompts(),)),
    Mistake(
        f"{JOB} sink.uri=http://host/out", ("not supported for a dataset", "s3://"), (prompts(),)
    ),
    Mistake(
        f"{JOB} sink.uri=hf://b/out", ("hf:// is not supported", "use a path, s3://"), (prompts(),)
    ),
    Mistake(
        JOB,
        ("cannot be written", "Permission denied", "name another sink"),
        (dataset, gone(OBJECT), closed("out/.ldm_batch"), closed("out/data"), closed("out")),
        is_nobody=True,
    ),
    Mistake(
        JOB,
        ("data/x.parquet: is no object of this dataset", "remove it"),
        (prompts(), file("out/data/x.parquet")),
    ),
    Mistake(JOB, ("it is not ours", "write to another sink"), (prompts(), prompts(OBJECT))),
    Mistake(JOB, ("plan.json: damaged plan", "use a new sink"), (prompts(), file(PLAN))),
    Mistake(JOB, ("plan.json is gone", "put it back"), (dataset, gone(PLAN))),
]
DAMAGED = [
    Mistake(command, (name, *pieces), (dataset, *give))
    for command in ("status out", "verify out", "open_dataset out")
    for name, give, pieces in (
        (PLAN, [file(PLAN, "[]")], ("damaged plan", "put it back")),
        (PLAN, [file(PLAN, "{}")], ("no 'format'", "put it back")),
        (PLAN, [file(PLAN, b"\xff\0")], ("damaged plan", "put it back")),
        (PLAN, [file(PLAN, "[" * 100_000)], ("damaged plan", "put it back")),
        (PLAN, [cut(PLAN, 40)], ("damaged plan", "put it back")),
        (PLAN, [gone(PLAN), empty(PLAN)], ("Is a directory",)),
        (PLAN, [plan(images=3)], ("something of it is missing", "put it back")),
        (PLAN, [plan(images={})], ("no 'seed'", "put it back")),
        (PLAN, [plan(environment={})], ("no 'command'", "put it back")),
        (PLAN, [plan(config=None)], ("something of it is missing", "put it back")),
        (PLAN, [plan(format=9)], ("made by another version", "use that one")),
        (SEGMENT, [cut(SEGMENT, 50)], ("damaged plan", "put it back")),
        (SEGMENT, [prompts(SEGMENT)], ("damaged plan: no 'shard'", "put it back")),
    )
]
READ = [
    Mistake(command, (OBJECT.removeprefix("out/"), *pieces), (dataset, gone(OBJECT), *give))
    for command, pieces in (
        ("sheet out --output x.png", ("cannot be read", "see `verify`")),
        ("open_dataset out image", ("cannot be read",)),
    )
    for give in ([file(OBJECT)], [prompts(OBJECT)])
]
COMMANDS = [
    Mistake("status nowhere", ("/nowhere: no dataset here", "plan.json")),
    Mistake("status in", ("/in: no dataset here",), (prompts(),)),
    told("status out/data/00000.parquet", "00000.parquet: is a file; name the dataset's folder"),
    told("status out --jsno", "unrecognized arguments: --jsno", "--json"),
    Mistake(
        "status s3://b/out --endpoint host:9000",
        ("--endpoint: 'host:9000' is not a URL like",),
        environment=KEYS,
    ),
    Mistake(
        "status s3://b/out --ca-bundle x", ("--ca-bundle: there is no file x",), environment=KEYS
    ),
    Mistake(
        "status s3://b/out",
        ("no credentials found", "AWS_ACCESS_KEY_ID"),
        environment={"AWS_EC2_METADATA_DISABLED": "true"},
    ),
    Mistake("verify nowhere", ("/nowhere: no dataset here",)),
    told("verify out --regenerate -1", "--regenerate: -1 is not a number of images"),
    told("verify out --regenerate ten", "--regenerate: invalid int value: 'ten'"),
    Mistake("sheet nowhere", ("/nowhere: no dataset here",)),
    told("sheet out --images 0", "--images: 0 is not at least 1"),
    told("sheet out --output x.xyz", "--output: x.xyz ends with none of .png"),
    told("sheet out --output nowhere/x.png", "--output: nowhere/x.png", "a folder that is there"),
    Mistake("sweep nowhere", ("/nowhere: no dataset here",)),
    told("sweep out --older-than 24", "'24' is not an age like 30m, 24h or 2d"),
    told("sweep out --older-than tomorrow", "'tomorrow' is not an age like"),
    Mistake("completion powershell", ("invalid choice: 'powershell'", "'bash'")),
    Mistake("init in", ("in: is a folder with something in it", "name one"), (prompts(),)),
    Mistake("init x", ("x: is no folder", "name one that is not there"), (file("x"),)),
    Mistake("init x/y", ("x/y: cannot be written", "name one"), (file("x"),)),
    Mistake(f"init {'x' * 300}", ("too long", "name one that is not there")),
    Mistake("init /proc/x", ("/proc/x: cannot be written", "name one that is not there")),
    Mistake("demo now", ("unrecognized arguments: now",)),
    Mistake("demo", ("demo_output", "in another folder"), (file("demo_output"),)),
    Mistake(
        "demo", ("prompts.parquet", "remove demo_output"), (file("demo_output/prompts.parquet"),)
    ),
    Mistake("import nowhere.ckpt x", ("nowhere.ckpt: there is no such file",)),
    Mistake(
        "import a.ckpt in", ("in: is not empty", "another TARGET"), (file("a.ckpt"), prompts())
    ),
    Mistake(
        "import a.ckpt x --revision main", ("--revision main: is for a repo",), (file("a.ckpt"),)
    ),
    Mistake("import a.ckpt", ("required: TARGET",)),
    Mistake("tradeoff nowhere", ("source.uri: nothing found at nowhere", "name a Parquet file")),
    Mistake("tradeoff in", ("no column 'prompt'", "known: caption"), (prompts(caption=["a"]),)),
    told("tradeoff in --num-prompts 0", "--num-prompts: 0 is not between 1 and"),
    told("tradeoff in --schedulers nosuch", "--schedulers: unknown value 'nosuch'", "ddim"),
    told("tradeoff in --reference dim:9", "--reference: unknown value 'dim'", "'ddim'?"),
    told("tradeoff in --reference ddim", "--reference: 'ddim' is not like ddim:100"),
    told("tradeoff in --steps 0", "--steps: 0 is not between 1 and 1000"),
    told("tradeoff in --steps five", "--steps: 'five' is not like 10,20"),
    told("tradeoff in --guidance-scale nan", "--guidance-scale: nan is not between"),
    told("tradeoff in --output in/a.parquet", "--output: in/a.parquet", "name another"),
    told("tradeoff out", "of our own loop", "random_pixels"),
    told("tradeoff in --model nowhere", "model.path=nowhere: no such folder", "model.repo_id"),
    Mistake(
        "run_job conf=machinery batch_size=0 source.uri=in sink.uri=out", ("batch_size: 0 is not",)
    ),
    Mistake("run_job in out", ("job: 'in' is no setting", "FIELD=VALUE")),
    Mistake("open_dataset nowhere", ("/nowhere: no dataset here",)),
    told("open_dataset out promt", "columns: no column 'promt'", "did you mean 'prompt'?"),
]
MODEL_FOLDERS = [
    drawn("model.path=nowhere", "/nowhere: no such folder", "set model.repo_id"),
    drawn("", "model.path: not set; name a local folder, or set model.repo_id"),
    drawn("model.path=in", "in has no model_index.json", "is it a diffusers pipeline?"),
    drawn(
        "model.path=m.ckpt",
        "m.ckpt is a file",
        "ldm_batch import` makes a folder",
        give=(file("m.ckpt"),),
    ),
    drawn("model.path=demo:text", "demo:text: no such demo model", "there are: super_resolution"),
    drawn("model.path=demo:super_resolution", "task=text_to_image needs a LDMTextToImagePipeline"),
    drawn("model.path=m model.engine=diffusers", "LDMTextToImagePipeline", "draws by Stable"),
    drawn("model.path=m model.repo_id=a/b", "model.path: set together with", "keep one"),
    drawn("model.path=m model.variant=fp16", "model.variant=fp16", "leave it out"),
    drawn("model.path=m model.dtype=fp16", "model.dtype: unknown value 'fp16'", "float16"),
    drawn("model.repo_id=a/b model.revision=main", "model.revision: 'main'", "40 hexadecimal"),
    drawn(
        "model.path=m",
        "model_index.json",
        "cannot be read",
        give=(file("m/model_index.json", "{"),),
    ),
    drawn(
        "model.path=m", "model.safetensors is missing", "pytorch_model.bin", give=(without_weights,)
    ),
    drawn(
        "model.path=m",
        "vqvae/diffusion_pytorch_model.safetensors is missing",
        give=(gone("m/vqvae"),),
    ),
    drawn("model.path=m", "has neither tokenizer.json nor vocab.txt", give=(gone("m/tokenizer"),)),
    Mistake(
        f"{LOCAL} model.repo_id=a/b",
        ("model.repo_id=a/b", "check the network, proxy and HF_ENDPOINT"),
        (prompts(),),
        environment=OFFLINE,
    ),
    Mistake(
        f"{DRAW} model=demo task=super_resolution",
        ("task=super_resolution needs a LDMSuper",),
        (prompts(),),
    ),
]
WITH_TORCH = [
    Mistake(
        "import a.txt x",
        ("a.txt: is no checkpoint", ".safetensors"),
        (file("a.txt"),),
        imports=MODELS,
    ),
    Mistake(
        "import a.ckpt x --config b", ("b: cannot be read",), (file("a.ckpt"),), imports=MODELS
    ),
    Mistake("import nowhere x", ("nowhere: there is no such folder", "ORG/NAME"), imports=MODELS),
    Mistake(
        "import in x",
        ("in has no model_index.json", "diffusers pipeline?"),
        (prompts(),),
        imports=MODELS,
    ),
    Mistake("import a.ckpt x", ("0 yaml files beside it", "--config"), (file("a.ckpt"),)),
    Mistake(
        "import a.ckpt x",
        ("a.yaml: has no section `model`",),
        (file("a.ckpt"), file("a.yaml", "b: 1")),
        imports=MODELS,
    ),
    Mistake(
        f"{DRAW} conf=upscale_4x model=demo_upscale",
        ("no column 'image'", "known: prompt"),
        (prompts(),),
        imports=MODELS,
    ),
    drawn(
        "model.path=m scheduler.name=nosuch", "scheduler.name=nosuch: unknown", "ddim", imports=True
    ),
    drawn(
        "model.path=m scheduler.settings.eta=1",
        "DDIMScheduler has no such setting",
        "it has",
        imports=True,
    ),
    drawn(
        "model.path=m",
        "unet/diffusion_pytorch_model.safetensors",
        "fetch it again",
        give=(cut("m/unet/diffusion_pytorch_model.safetensors", 5000),),
        imports=True,
    ),
    drawn("model.path=m model.device=cuda", "model.device=cuda", "no CUDA", imports=True),
]
MISTAKES = [*SINKS, *DAMAGED, *READ, *COMMANDS, *MODEL_FOLDERS, *WITH_TORCH]


@pytest.fixture(scope="module")
def seen() -> list[Seen]:
    return see_all("test_mistakes_of_datasets")


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=named(MISTAKES))
def test_a_mistake_is_told_in_one_message_and_stores_nothing(number: int, seen: list[Seen]) -> None:
    check(MISTAKES[number], seen[number])
