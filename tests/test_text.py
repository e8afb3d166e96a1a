"""Text is text: what is typed, and what is printed to be typed, comes back to the character."""

import dataclasses
import os
import shlex
import shutil
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import run, write_prompts
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import ldm_batch
from ldm_batch.config import CallConfig, JobConfig, SinkConfig, SourceConfig
from ldm_batch.config.fields import field_paths
from ldm_batch.config.texts import place_fields, text_fields
from ldm_batch.errors import JobError
from ldm_batch.plan.command_line import (
    resume_at,
    resume_command,
    settings_of,
    shell_line,
    text_word,
    variables_to_set,
)
from ldm_batch.plan.recorded import anchor
from ldm_batch.run.compose import compose_job, compose_jobs, is_group
from ldm_batch.run.texts import as_hydra_reads

ROOT = Path(__file__).parents[1]
SPECIAL = [
    *"$ {}[]()\\'\"`,=~+#@:;&|<>!*?%^-.\n\t",
    "${",
    "\\${",
    "${seed}",
    "null",
    "é",
    "1e3",
    "x",
]
TEXTS = st.one_of(
    st.lists(st.sampled_from(SPECIAL), max_size=8).map("".join),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
).filter(lambda text: text != "???")  # OmegaConf's word for what is missing
ODD = ["", " ", "null", "null,null", "[", "[]", "['a']", "'", "''", "'a','b'", '"a"b"', "'it''s'"]
ODD += ["${", "${x}", "\\${x}", "\\\\${seed}", "$HOME", "\\", "\\'", "a\\", "{a", "~/x", "a\n b"]
FIELDS = [path.replace("*", "some_key") for path in text_fields() if not is_group(path)]
LISTS = [path for path in FIELDS if text_fields().get(path) == "many"]
BASE = compose_job([])


def read_by_hydra(word: str) -> Any:
    """The value that a typed word gives its field, without composing a job of it."""
    read = OverridesParser.create().parse_override(as_hydra_reads(word, is_group))
    assert not read.is_sweep_override()
    return OmegaConf.to_container(OmegaConf.create({"x": read.value()}), resolve=True)["x"]  # type: ignore[index,call-overload]


def value_at(job: Any, path: str) -> Any:
    for name in path.split("."):
        job = job[name] if isinstance(job, dict) else getattr(job, name)
    return job


def with_odd_texts(test: Any) -> Any:
    for text in ODD:
        test = example(text)(test)
    return test


# What is typed


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("sink.uri=~/x", "~/x"),
        ("sink.uri=dt=2026-11-28/", "dt=2026-11-28/"),
        ("source.uri=données.parquet", "données.parquet"),
        ("source.uri=x (1).parquet", "x (1).parquet"),
        ("sink.uri=a,b", "a,b"),
        ("sink.uri=c#d", "c#d"),
        ("call.negative_prompt=blurry, low quality", "blurry, low quality"),
        ("call.negative_prompt= a ", " a "),
        ("call.negative_prompt=", ""),
        ("call.negative_prompt=it's", "it's"),
        ("call.negative_prompt='it''s'", "'it''s'"),
        ('call.negative_prompt="a"b"', '"a"b"'),
        ("call.negative_prompt={a: 1}", "{a: 1}"),
        ("call.negative_prompt=a ${ b", "a ${ b"),
        ("call.negative_prompt=\\${seed} and \\\\${seed}", "${seed} and \\7"),
        ("call.negative_prompt='a, b'", "a, b"),
        ("call.negative_prompt='null'", "null"),
        ("upscale.background=#ff0000", "#ff0000"),
        ("sink.uri=2026_11_01", "2026_11_01"),
        ("name=1e3", "1e3"),
        ("name=true", "true"),
        ("model.revision=0123456", "0123456"),
        ("model.path=null", None),
        ("sink.uri=out/cats_${seed}", "out/cats_7"),
        ("++sink.uri=a,b", "a,b"),
        ("source.uri=[a,b c,données,1e3]", ["a", "b c", "données", "1e3"]),
        ("source.uri=['a,b', \"c\",'d']", ["a,b", "c", "d"]),
        ("source.carry=[]", []),
        ("source.carry=[it's,x (1)]", ["it's", "x (1)"]),
        ("source.carry=a b", ["a b"]),
        ("source.carry='a'", ["a"]),
        ("source.columns.prompt=my caption", "my caption"),
        ("source.columns.seed=null", None),
        ("source.columns={prompt: données, seed: null}", {"prompt": "données", "seed": None}),
        ("cluster.labels.zone=in(a,b)", "in(a,b)"),
        ("cluster.labels={zone: in(a,b)}", {"zone": "in(a,b)"}),
        ("call.negative_prompt=[a][b]", "[a][b]"),
        ("source.uri=[a]x[b]", "[a]x[b]"),
        ("source.carry=[[a],[b]]x[c]", ["[[a],[b]]x[c]"]),
        ("model.loras=[{path: ~/x.safetensors}]", [{"path": "~/x.safetensors"}]),
        (
            "model.loras=[{path: ü é.safetensors, scale: 0.5},{path: 2026_11_01}]",
            [{"path": "ü é.safetensors", "scale": 0.5}, {"path": "2026_11_01"}],
        ),
        ("upscale.model.loras=[{path: 'a, b', scale: 2}]", [{"path": "a, b", "scale": 2}]),
        ("model.loras=[{path: x_${seed}}]", [{"path": "x_7"}]),
        ("cluster.runtime_env.working_dir=~/x y, z", "~/x y, z"),
        ("cluster.runtime_env.pip=[a==1.0,b>=2,2.10]", ["a==1.0", "b>=2", "2.10"]),
        ("cluster.runtime_env.env_vars.A=1_0", "1_0"),
        (
            "cluster.runtime_env={working_dir: ~/é, env_vars: {A: 1}, config: {eager: true}}",
            {"working_dir": "~/é", "env_vars": {"A": "1"}, "config": {"eager": True}},
        ),
        ("cluster.runtime_env.conda=~/env.yml", "~/env.yml"),
    ],
)
def test_a_text_is_what_is_typed(word: str, value: Any) -> None:
    composed = compose_job(["seed=7", word])
    assert value_at(composed, word.lstrip("+").partition("=")[0]) == value


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_of_text_takes_any(path: str) -> None:
    """By the types of the schema: no list of names that a new field would be missing in."""
    for text in ODD:
        word = text_word(path, [text] if path in LISTS else text)
        assert read_by_hydra(word) == ([text] if path in LISTS else text)


def test_which_fields_are_texts() -> None:
    """All whose usual value is a text, and those that may be null; not what may be a number."""
    texts = {path.removesuffix(".*") for path in text_fields()}
    assert {"name", "sink.uri", "source.uri", "source.columns", "source.carry"} <= texts
    usual = {path: value_at(JobConfig(), path) for path in field_paths()}
    by_value = {path for path, value in usual.items() if isinstance(value, str)}
    assert by_value - texts == {"rows_per_shard"}
    assert not {"seed", "batch_size", "shards", "scheduler.settings", "call.height"} & texts


def test_a_key_of_ones_own_may_hold_dots_and_slashes() -> None:
    job = compose_job(["cluster.labels.a.b/c=x y", "++cluster.labels.zone=z"])
    assert job.cluster.labels == {"a.b/c": "x y", "zone": "z"}


def test_other_fields_are_hydras() -> None:
    job = compose_job(["seed=1_000", "call.eta=1e-1", "shards=[1,3-4]", "rows_per_shard=auto"])
    assert (job.seed, job.call.eta, job.shards) == (1000, 0.1, [1, "3-4"])
    settings = compose_job(["scheduler.settings.x=1e3", "task=super_resolution"])
    assert (settings.scheduler.settings, settings.task) == ({"x": 1000.0}, "super_resolution")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sink.uri=[a]", "sink.uri: [a] is a list, but one text is asked for"),
        ("seed=1,2", "seed=1,2: several values are several jobs: put -m before all settings"),
        ("sink.uri='a','b'", "several values are several jobs"),
        ("sink.uri=${sede}", "sink.uri: ${sede}: refused, only fields of the job"),
        ("sink.uri=", "sink.uri: not set"),
        ("source.uri=???", "source.uri: ??? alone stands for a value that is missing"),
        ("sink.uri=\udcff", r"'sink.uri=\udcff': holds what is no text in UTF-8"),
        ("sink.uri=a\0b", r"'sink.uri=a\x00b': holds what is no text in UTF-8"),
    ],
)
def test_what_is_no_text_is_told(word: str, message: str) -> None:
    with pytest.raises(JobError) as raised:
        ldm_batch.run_job(["conf=machinery", "source.uri=in", "sink.uri=out", word])
    assert message in str(raised.value)


def test_a_sweep_over_texts_is_in_quotes() -> None:
    """Commas are text under -m, too; numbers and lists are swept as ever."""

    def made(*words: str) -> list[tuple[Any, ...]]:
        jobs = compose_jobs(["conf=machinery", *words], is_sweep=True)
        return [(j.job.seed, j.job.sink.uri, j.job.call.negative_prompt) for j in jobs]

    assert made("seed=1,2", "sink.uri=o,${seed}") == [(1, "o,1", ""), (2, "o,2", "")]
    swept = made("sink.uri='a,b','it\\'s é'", "call.negative_prompt=x, y")
    assert swept == [(0, "a,b", "x, y"), (0, "it's é", "x, y")]
    carried = compose_jobs(["source.carry=[a,b],[c]", "source.uri='x y',null"], is_sweep=True)
    assert [(j.job.source.carry, j.job.source.uri) for j in carried] == [
        (["a", "b"], "x y"), (["a", "b"], None), (["c"], "x y"), (["c"], None),
    ]  # fmt: skip
    assert len(compose_jobs(["scheduler=ddim,euler", "seed=range(0,3)"], is_sweep=True)) == 6
    basic = ["hydra/launcher=basic", "hydra.sweeper.max_batch_size=2", "seed=1,2"]
    assert len(compose_jobs(basic, is_sweep=True)) == 2


# What is printed


@settings(max_examples=300, deadline=None)
@with_odd_texts
@given(TEXTS)
def test_a_text_is_printed_split_and_read(text: str) -> None:
    (word,) = shlex.split(shell_line([text_word("sink.uri", text)]))
    assert read_by_hydra(word) == text


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXTS, max_size=4))
def test_a_list_of_texts_too(texts: list[str]) -> None:
    (word,) = shlex.split(shell_line([text_word("source.carry", texts)]))
    assert read_by_hydra(word) == texts


@settings(max_examples=25, deadline=None)
@given(st.lists(TEXTS, min_size=len(FIELDS), max_size=len(FIELDS)))
def test_a_job_is_composed_of_what_is_printed(texts: list[str]) -> None:
    """All fields at once: text, printed command, shell, job, the same text."""
    values = {p: [t] if p in LISTS else t for p, t in zip(FIELDS, texts, strict=True)}
    line = shell_line([text_word(path, value) for path, value in values.items()])
    job = compose_job(shlex.split(line))
    assert {path: value_at(job, path) for path in FIELDS} == values


@settings(max_examples=20, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=20))
def test_shells_read_it_alike(texts: list[str]) -> None:
    words = [text_word("sink.uri", text) for text in [*texts, *ODD, string.printable[:95]]]
    for shell in ("bash", "sh"):
        command = [shell, "-c", f"printf '%s\\0' {shell_line(words)}"]
        ended = subprocess.run(command, capture_output=True, check=True)
        assert ended.stdout.decode().split("\0")[:-1] == words


@settings(max_examples=25, deadline=None)
@given(TEXTS, st.lists(TEXTS, min_size=2, max_size=3))
def test_a_document_is_said_in_settings(text: str, texts: list[str]) -> None:
    job = JobConfig(
        source=SourceConfig(uri=texts, carry=texts, columns={"prompt": text}),
        sink=SinkConfig(uri=text),
        call=CallConfig(negative_prompt=text),
    )
    job.cluster.runtime_env = {"working_dir": text, "pip": texts}
    assert compose_job(settings_of(job, BASE)) == job


def test_quotes_are_few() -> None:
    columns = [f"column_{number}" for number in range(70)]
    assert text_word("source.carry", columns) == f"source.carry=[{','.join(columns)}]"
    assert shell_line([text_word("sink.uri", "s3://b/a,b=c")]) == "sink.uri=s3://b/a,b=c"
    assert shell_line([text_word("sink.uri", "/é")]) == "'sink.uri=/é'"
    assert shell_line([text_word("sink.uri", "it's")]) == '"sink.uri=it\'s"'
    assert shell_line([text_word("source.carry", ["a,b", "é"])]) == "'source.carry=[\"a,b\",é]'"


def test_every_place_is_made_independent_of_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever field is marked as a place; `~` is the home folder."""
    monkeypatch.setenv("HOME", "/home/someone")
    words = [f"{path}=~/x" for path in place_fields()]
    job = anchor(compose_job(words))
    for path in place_fields():
        value = value_at(job, path)
        assert value in ("/home/someone/x", ["/home/someone/x"]), path
    command = shlex.split(resume_command(compose_job(words), job, words))
    assert {*command[3:]} == {f"{path}=/home/someone/x" for path in place_fields()}


def test_places_within_a_job_file_are_kept_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoRAs and the folder that Ray takes along, typed or in a file; no variable's value is."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/mine.yaml").write_text(
        "# @package _global_\nmodel: {loras: [{path: my é.safetensors, scale: 0.5}]}\n"
        "upscale: {model: {loras: [{path: /two.safetensors}]}}\n"
        "cluster: {runtime_env: {working_dir: my code, env_vars: {A: secret}}}\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["conf=mine", "source.uri=/in", "sink.uri=/out"]
    [composed] = compose_jobs(words, folder=tmp_path)
    command = resume_command(composed.job, anchor(composed.job), composed.words)
    assert "two.safetensors" not in command
    assert "secret" not in command
    monkeypatch.chdir("/")
    [again] = compose_jobs(shlex.split(command)[4:], folder=tmp_path)
    found = anchor(again.job)
    assert [(lora.path, lora.scale) for lora in found.model.loras] == [
        (f"{tmp_path}/my é.safetensors", 0.5)
    ]
    assert found.cluster.runtime_env["working_dir"] == f"{tmp_path}/my code"
    typed = ["model.loras=[{path: ~/x.safetensors}]", "cluster.runtime_env={working_dir: a b}"]
    job = compose_job([*typed, *words[1:]])
    from_root = anchor(job)
    command = resume_command(job, from_root, [*typed, *words[1:]])
    monkeypatch.chdir(tmp_path)
    assert anchor(compose_job(shlex.split(command)[3:])) == from_root


def test_what_a_command_leaves_out_and_keeps(tmp_path: Path) -> None:
    words = ["--config-dir=/a b", "conf=demo", "shards=17", "dry_run=true", "source.uri=[a b,c]"]
    words += ["sink.uri=o_${seed}", "seed=3", "++scheduler.settings.x=1", "~source.columns"]
    words += ["source.columns.prompt='x y'", "cluster.runtime_env.env_vars.A=b", "model.path=null"]
    given_job = compose_job([w for w in words[1:] if "~" not in w])
    command = resume_command(given_job, anchor(given_job), words)
    here = Path.cwd()
    assert shlex.split(command)[3:] == [
        "--config-dir=/a b",
        "conf=demo",
        "seed=3",
        "++scheduler.settings.x=1",
        "~source.columns",
        "source.columns.prompt=x y",
        "model.path=null",
        f"source.uri=[{here}/a b,{here}/c]",
        f"sink.uri={here}/o_3",
    ]
    assert resume_at(command, "/there") == command.replace(f"{here}/o_3", "/there")
    assert variables_to_set(given_job.cluster.runtime_env).endswith(
        "their values are not recorded: cluster.runtime_env.env_vars.A=VALUE"
    )
    words = ["cluster.runtime_env={env_vars:{A:b},pip:[x]}", "source.uri=a", "sink.uri=b"]
    given_job = compose_job(words)
    command = resume_command(given_job, anchor(given_job), words)
    assert shlex.split(command)[3] == "cluster.runtime_env={pip:[x]}"
    assert variables_to_set({}) == ""
    assert resume_at("an 'open quote", "/there") == "an 'open quote"


# As it is printed, from another folder


def run_in(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a printed command as it is, in a shell."""
    python = Path(sys.executable).parent
    variables = {"PATH": f"{python}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


def test_a_recorded_command_runs_as_printed(tmp_path: Path) -> None:
    """From another folder, of a dataset that was copied; with odd names and a job of one's own."""
    here = tmp_path / "hïer (1)"
    mine = here / "it's mine" / "conf"
    mine.mkdir(parents=True)
    (mine / "cats.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: local\nname: cats\n"
        "model: {engine: random_pixels, path: a model}\nrows_per_shard: 2\n"
    )
    table = {"prompt": ["a", "b", "c"], "größe, x": [1, 2, 3], "it's": [1, 2, 3]}
    pq.write_table(pa.table(table), here / "a=b,c#ü.parquet")
    words = ["--config-dir", "it's mine", "conf=cats", "cluster=in_process", "shards=0"]
    words += ["source.uri=a=b,c#ü.parquet", "sink.uri=2026_11_01", "source.image_root=."]
    words += ["source.carry=['größe, x',it's]"]
    ended = run(here, *words)
    assert ended.code == 0, ended
    assert [path.name for path in sorted((here / "2026_11_01/data").iterdir())] == ["00000.parquet"]
    shutil.move(here / "2026_11_01", tmp_path / "the $copy")
    asked = run(tmp_path, "status", "the $copy", module="ldm_batch")
    command = asked.out.splitlines()[-1]
    assert f"model.path={here}/a model" in command
    resumed = run_in(Path("/"), command)
    assert resumed.returncode == 0, (command, resumed)
    data = tmp_path / "the $copy" / "data"
    assert sorted(path.name for path in data.iterdir()) == ["00000.parquet", "00001.parquet"]
    assert pq.read_table(data / "00001.parquet")["größe, x"].to_pylist() == [3]
    assert not (here / "2026_11_01").exists()


@pytest.mark.parametrize("name", ["txt2img_1m", "upscale_1m"])
def test_a_script_takes_texts_as_the_command_does(tmp_path: Path, name: str) -> None:
    places = {"SOURCE": "dönn (1)/x, y", "SINK": "~/it's #1 $HOME", "MODEL_PATH": "m\\ a=b"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ended = subprocess.run(
        [ROOT / "jobs" / f"{name}.sh", "--cfg", "job"],
        env={**os.environ, **places, "PATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended
    shown = OmegaConf.create(ended.stdout)
    found = {"SOURCE": shown.source.uri, "SINK": shown.sink.uri, "MODEL_PATH": shown.model.path}
    assert found == places


def test_python_takes_texts_as_the_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_prompts(tmp_path, num_files=1, rows_per_file=2)
    job = ["conf=machinery", "cluster=in_process", "source.uri=in", "sink.uri=~/a, é"]
    assert ldm_batch.run_job(job).sink == str(tmp_path / "home/a, é")
    planned = ldm_batch.open_dataset(tmp_path / "home/a, é").job
    assert dataclasses.replace(planned.sink, uri="x").uri == "x"
    assert planned.sink.uri == str(tmp_path / "home/a, é")
