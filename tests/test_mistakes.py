"""Mistakes that people make in settings, in files of configuration and in what a job reads: each
ends in one message with the thing and the remedy, stores nothing, and waits for no model."""

import pyarrow as pa
import pytest
from mistakes import (
    JOB,
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

OWN = "run --config-dir mine conf=bad cluster=in_process source.uri=in sink.uri=out"
HEADER = "# @package _global_\n"
AWAY = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/nowhere"}
DEAD = "source.s3.endpoint=http://127.0.0.1:9 source.s3.retry_s=0"


def setting(words: str, *told: str) -> Mistake:
    """A mistake in a setting, beside an input that is right."""
    return Mistake(f"{JOB} {words}", told, (prompts(),))


def own(content: str | bytes, *told: str) -> Mistake:
    """A mistake in a file of somebody's own."""
    return Mistake(OWN, told, (prompts(), file("mine/conf/bad.yaml", content)))


def source(*told: str, columns: dict[str, object], words: str = "") -> Mistake:
    """A mistake in the table that a job reads."""
    return Mistake(f"{JOB} {words}", told, (prompts(**columns),))


COMMAND_LINES = [
    Mistake("", ("no command", "usage: python -m ldm_batch COMMAND")),
    Mistake("stats out", ("stats", "did you mean 'status'?")),
    Mistake("--helpp", ("--helpp: no such option", "behind a command")),
    Mistake("conf=demo", ("did you mean `python -m ldm_batch run conf=demo`?",)),
    Mistake("run in out", ("did you mean source.uri=in sink.uri=out?",), (prompts(),)),
    Mistake("run machinery", ("machinery", "did you mean conf=machinery?")),
    Mistake("run --batch-size 4", ("did you mean batch_size=4?",)),
    Mistake("run conf=my/file.yaml", ("move it to my/conf/file.yaml", "--config-dir my conf=file")),
    Mistake("run config=machinery", ("config=machinery", "did you mean conf=machinery?")),
    Mistake("run scheduler=kdmp2", ("scheduler", "did you mean 'kdpm2'?")),
    Mistake("run scheduler=DDIMScheduler", ("did you mean scheduler.name=DDIMScheduler?",)),
    Mistake("run --config-name x", ("--config-name: refused", "conf=NAME")),
    Mistake("run --experimental-rerun x", ("--experimental-rerun: refused", "pickle")),
    Mistake("run --cfg nothing", ("--cfg", "choose from 'job'")),
    Mistake("run --help nosuch", ("--help nosuch", "--help alone lists")),
    Mistake("run conf=machinery", ("sink.uri: not set; name", "source.uri: not set; name")),
    Mistake(
        f"{JOB} --config-dir nowhere", ("--config-dir: nowhere is no folder", "conf/NAME.yaml")
    ),
]
SETTINGS = [
    setting("conf=machinry", "conf: no option", "did you mean 'machinery'?"),
    setting("cluster=in_proces", "cluster", "did you mean 'in_process'?"),
    setting("task=txt2img", "task", "did you mean 'text_to_image'?"),
    setting("modle=demo", "modle: no such field", "did you mean 'model'?"),
    setting("call.num_inference_step=5", "did you mean 'call.num_inference_steps'?"),
    setting("source.column.prompt=a", "source.column: no such", "did you mean 'source.columns'?"),
    setting("source.columns.promt=a", "source.columns.promt", "did you mean 'prompt'?"),
    setting("+foo=1", "foo: no such field", "--help lists all fields"),
    setting("model.pth=x", "model.pth: no such field; did you mean 'model.path'?"),
    setting("scheduler.settings._target_=os.system", "scheduler.settings._target_: refused"),
    setting("source.columns.prompt=captoin", "no column 'captoin' for prompt"),
    setting("num_threads=many", "num_threads: 'many' is no whole number"),
    setting("cluster=null", "cluster: no option 'null'", "known: address, auto, in_process"),
    setting("scheduler=", "scheduler: no option ''; known: "),
    setting("sink.uri=null", "sink.uri: not set"),
    setting("seed 3", "seed: is no setting", "did you mean seed=3?"),
    setting("seed= 3", "did you mean seed=3, without a space?"),
    setting("batch_size=four", "batch_size: 'four' is neither a whole number nor 'auto'"),
    setting("batch_size=0", "batch_size: 0 is not between 1 and 4096"),
    setting("batch_size=4,8", "batch_size=4,8", "put -m before all settings"),
    setting("max_object_bytes=100GB", "'100GB' is no whole", "max_object_bytes=100000000000?"),
    setting("source.max_image_bytes=5MiB", "'5MiB'", "source.max_image_bytes=5242880?"),
    setting(
        "max_object_bytes=1e9", "max_object_bytes", "did you mean max_object_bytes=1000000000?"
    ),
    setting("max_object_bytes=99999999999", "max_object_bytes", "is not between 65536 and"),
    setting("max_rejected_fraction=10%", "'10%'", "did you mean max_rejected_fraction=0.1?"),
    setting("max_rejected_fraction=10", "max_rejected_fraction: 10.0 is not between 0 and 1"),
    setting("seed=-1", "seed: -1 is not between 0 and"),
    setting("dry_run=yep", "dry_run: 'yep' is neither true nor false"),
    setting("call.guidance_scale=high", "call.guidance_scale: 'high' is no number"),
    setting("call.guidance_scale=nan", "call.guidance_scale: nan is not between"),
    setting("call.height=100", "call.height: 100 is not a multiple of 8"),
    setting("call.num_inference_steps=0", "call.num_inference_steps: 0 is not between 1 and"),
    setting("image.format=jpg", "image.format", "did you mean 'jpeg'?"),
    setting("image.format=tiff", "image.format", "known: webp, png, jpeg"),
    setting("shards=[7", "'shards=[7'", "brackets and quotes need their other half"),
    setting("shards=9-3", "shards: '9-3' ends before it begins"),
    setting("shards=99", "shards: no shard 99", "the plan has 0 to 0"),
    setting("overwrite=true", "overwrite: needs the shards", "shards=[17]"),
    setting("name='my job'", "name: 'my job' may hold letters"),
    setting("source.long_prompts=cut", "source.long_prompts", "known: truncate, reject"),
    setting("cluster.labels=h100", "cluster.labels: must be", "cluster.labels.NAME=VALUE"),
    setting("cluster.resources.GPU=1", "cluster.resources.GPU", "use cluster.gpus_per_worker"),
    setting("cluster.num_workers=2 cluster.min_workers=2", "cluster.num_workers", "leave"),
]
FILES = [
    own(f"{HEADER}call:\n\tx: 1\n", "mine/conf/bad.yaml: line 3", "'\\t' that cannot start"),
    own(f"{HEADER}name: a\nname: b\n", "mine/conf/bad.yaml: line 3", "duplicate key name"),
    own(f"{HEADER}name: caf\xe9\n".encode("latin-1"), "mine/conf/bad.yaml", "save it as UTF-8"),
    own(f"{HEADER}call:\n  guidence: 1\n", "conf/bad.yaml", "call.guidence: no such field"),
    own(
        "call:\n  guidance_scale: 1\n", "conf/bad.yaml", "first line must be '# @package _global_'"
    ),
    own("- a\n", "conf/bad.yaml", "first line must be"),
    own(f"{HEADER}a: &a [*a]\n", "mine/conf/bad.yaml: line 2", "used again by an alias"),
    own(f"{HEADER}batch_size: four\n", "batch_size: 'four'", "neither a whole number nor 'auto'"),
    own(f"{HEADER}_target_: os.system\n", "_target_: no such field"),
    own(f"{HEADER}name: !!python/name:os.system\n", "mine/conf/bad.yaml: line 2", "python/name"),
    own(
        f"{HEADER}defaults:\n  - override /model: nosuch\n",
        "model: no option 'nosuch'",
        "known: demo",
    ),
]
INPUTS = [
    Mistake(JOB, ("source.uri: nothing found at", "/in; name a Parquet file, a glob, or a folder")),
    Mistake(JOB, ("source.uri: nothing found", "end with .parquet"), (empty("in"),)),
    Mistake(JOB, ("nothing found", "end with .parquet"), (file("in/a.xlsx", "prompt\na\n"),)),
    Mistake(
        f"{JOB} source.uri=in/a.dat",
        ("in/a.dat: not a Parquet file", "write it anew, as Parquet"),
        (file("in/a.dat", "prompt\na cat\n"),),
    ),
    Mistake(JOB, ("in/a.parquet: not a Parquet file",), (file("in/a.parquet", "prompt\na\n"),)),
    Mistake(JOB, ("a.parquet: not a Parquet", "cut off"), (prompts(), cut("in/a.parquet", 200))),
    Mistake(JOB, ("no rows in", "skipped", "a.parquet: empty"), (file("in/a.parquet", ""),)),
    Mistake(f"{JOB} source.uri=[in,nowhere]", ("nothing found at", "/nowhere; name"), (prompts(),)),
    setting("source.uri=in/*.parqet", "source.uri: nothing found at", "*.parqet; name a Parquet"),
    setting("source.uri=", "source.uri: '' is not a path"),
    setting("source.uri=~nobody_here/x", "~nobody_here/x: no such user", "write the path out"),
    setting("source.uri=ftpx://host/x", "ftpx:// is not supported here", "use a path or s3://"),
    setting("source.uri=http://127.0.0.1:9/x.parquet", "http://127.0.0.1:9/x.parquet: ", "onnect"),
    setting("source.uri=https://t0k3n@host/x", "source.uri: refused, a URL", "use the environment"),
    setting("source.uri=s3:///x", "s3:///x: not an S3 URL", "s3://bucket/path"),
    setting(
        f"source.uri=s3://b/x {DEAD.replace('http://', '')}",
        "endpoint: '127.0.0.1:9'",
        "https://host",
    ),
    setting("source.s3.ca_bundle=nowhere.pem", "source.s3.ca_bundle: there is no file", "(PEM)"),
    Mistake(
        f"{JOB} source.uri=s3://b/x {DEAD}",
        ("s3://b/x: no credentials found", "AWS_ACCESS_KEY_ID", "s3.anonymous=true"),
        environment=AWAY,
    ),
    Mistake(
        f"{JOB} source.uri=hf://datasets/a/b/c.parquet",
        ("hf://datasets/a/b/c.parquet: ", "Cannot reach"),
        environment={"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"},
    ),
    Mistake(
        JOB,
        ("in/a.parquet: Permission denied",),
        (prompts(), closed("in/a.parquet", 0)),
        is_nobody=True,
    ),
    Mistake(JOB, ("/in: Permission denied",), (prompts(), closed("in", 0)), is_nobody=True),
    Mistake(
        JOB,
        ("in/b.parquet: no column 'prompt'", "source.columns.prompt", "known: caption"),
        (prompts(), prompts("in/b.parquet", caption=["a"])),
    ),
    Mistake(
        f"{JOB} source.uri=[in/x,in/y]",
        ("would both be named", "name the folder above them"),
        (prompts("in/x/a.parquet"), prompts("in/y/a.parquet")),
    ),
]
COLUMNS = [
    source("no column 'prompt'", "did you mean 'Prompt'?", columns={"Prompt": ["a"]}),
    source(
        "no column 'capton'",
        "did you mean 'caption'?",
        columns={"caption": ["a"]},
        words="source.columns.prompt=capton",
    ),
    source(
        "no column 'styl' (source.carry)",
        "did you mean 'style'?",
        columns={"prompt": ["a"], "style": ["b"]},
        words="source.carry=[styl]",
    ),
    source(
        "source.carry: 'prompt' is already a column",
        columns={"prompt": ["a"]},
        words="source.carry=[prompt]",
    ),
    source("type list", "needs text; map another column", columns={"prompt": [["a", "b"]]}),
    source("type int64", "needs text; map another column", columns={"prompt": [1]}),
    source("type bool", "or null to ignore it", columns={"prompt": ["a"], "seed": [True]}),
    source("'seed' has type string", "or null to ignore", columns={"prompt": ["a"], "seed": ["x"]}),
    source("no rows in", "a.parquet: no rows", columns={"prompt": pa.array([], pa.string())}),
]
PLANNED = [
    Mistake(f"{JOB} seed=5", ("seed: planned 0, now 5", "new sink"), (dataset,)),
    Mistake(f"{JOB} model=demo", ("random_pixels", "name another sink.uri"), (dataset,)),
    Mistake(f"{JOB} plan_again=true seed=4", ("plan_again", "use the planned"), (dataset,)),
    Mistake(
        JOB,
        ("a.parquet: changed after it was planned", "put the planned file back"),
        (dataset, prompts(num=11)),
    ),
    Mistake(
        JOB,
        ("looks like the planned file", "its planned name"),
        (dataset, gone("in/a.parquet"), prompts("in/b.parquet")),
    ),
]
MISTAKES = [*COMMAND_LINES, *SETTINGS, *FILES, *INPUTS, *COLUMNS, *PLANNED]


@pytest.fixture(scope="module")
def seen() -> list[Seen]:
    return see_all("test_mistakes")


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=named(MISTAKES))
def test_a_mistake_is_told_in_one_message_and_stores_nothing(number: int, seen: list[Seen]) -> None:
    check(MISTAKES[number], seen[number])
