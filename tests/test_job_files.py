"""Jobs of one's own, in YAML: texts are what is written, mistakes are told by file and line."""

import os
from pathlib import Path

import pytest
import yaml
from commands import run
from hypothesis import given, settings
from hypothesis import strategies as st
from test_text import FIELDS, LISTS, TEXTS, value_at

from ldm_batch.config import JobConfig
from ldm_batch.errors import JobError
from ldm_batch.plan.command_line import text_word
from ldm_batch.run.compose import compose_jobs

FIRST = "# @package _global_\n"


def composed(folder: Path, text: str | bytes, *words: str) -> JobConfig:
    """The job of a file of this content."""
    (folder / "conf").mkdir(exist_ok=True)
    data = text.encode() if isinstance(text, str) else text
    (folder / "conf/mine.yaml").write_bytes(data)
    [only] = compose_jobs(["conf=mine", *words], folder=folder)
    return only.job


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("sink: {uri: 2026_11_01}", "sink.uri", "2026_11_01"),
        ("sink: {uri: 0x10}", "sink.uri", "0x10"),
        ("name: 1e3", "name", "1e3"),
        ("name: 007", "name", "007"),
        ("name: 12:30", "name", "12:30"),
        ("name: .inf", "name", ".inf"),
        ("call: {negative_prompt: no}", "call.negative_prompt", "no"),
        ("source: {uri: [2026_11, 1e3, off]}", "source.uri", ["2026_11", "1e3", "off"]),
        ("source: {uri: 2026_11}", "source.uri", "2026_11"),
        (
            "source: {columns: {prompt: yes, seed: 1_0}}",
            "source.columns",
            {"prompt": "yes", "seed": "1_0"},
        ),
        ("source: {columns: {prompt: null}}", "source.columns", {"prompt": None}),
        ("source: {carry: [2026_11_01, true]}", "source.carry", ["2026_11_01", "true"]),
        ("cluster: {labels: {zone: 1_0, 1_1: on}}", "cluster.labels", {"zone": "1_0", "1_1": "on"}),
        ("cluster: {labels: {a.b/c: 1}}", "cluster.labels", {"a.b/c": "1"}),
        (f"model: {{revision: {'1' * 37}e10}}", "model.revision", "1" * 37 + "e10"),
        (
            "model: {loras: [{path: 2026_11_01, scale: 5e-1}]}",
            "model.loras",
            [{"path": "2026_11_01", "scale": 0.5}],
        ),
        (
            "cluster: {runtime_env: {env_vars: {A: 1}, pip: [off], x: 1}}",
            "cluster.runtime_env",
            {"env_vars": {"A": "1"}, "pip": ["off"], "x": 1},
        ),
        ("model: {path: null}", "model.path", None),
        ("model: {path: ~}", "model.path", None),
        ("seed: 1_000", "seed", 1000),
        ("call: {eta: 1e-1}", "call.eta", 0.1),
        ("scheduler: {settings: {x: 1e3, on: off}}", "scheduler.settings", {"x": 1e3, "on": False}),
        ("sink: {uri: # set by the command\n}", "sink.uri", None),
    ],
)
def test_a_text_is_what_is_written(tmp_path: Path, text: str, path: str, value: object) -> None:
    assert value_at(composed(tmp_path, f"{FIRST}{text}\n"), path) == value


@settings(max_examples=20, deadline=None)
@given(st.lists(TEXTS, min_size=len(FIELDS), max_size=len(FIELDS)))
def test_any_texts_are_what_is_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    """All fields at once, in the quotes that YAML's own writer thinks needed."""
    values = {p: [t] if p in LISTS else t for p, t in zip(FIELDS, texts, strict=True)}
    document: dict[str, object] = {}
    for path, value in values.items():
        *sections, name = path.split(".")
        node = document
        for section in sections:
            node = node.setdefault(section, {})  # type: ignore[assignment]
        node[name] = _escaped(value)
    folder = tmp_path_factory.mktemp("mine")
    job = composed(folder, FIRST + yaml.safe_dump(document, allow_unicode=True))
    assert {path: value_at(job, path) for path in FIELDS} == values


def _escaped(value: str | list[str]) -> str | list[str]:
    """With `${` as a text; as a command would have to write it, too."""
    if isinstance(value, list):
        return [str(_escaped(text)) for text in value]
    return text_word("name", "x" + value).removeprefix("name=x")


def test_a_group_of_ones_own_has_texts_too(tmp_path: Path) -> None:
    for group, first in (("model", ""), ("other", "# @package upscale.model\n")):
        (tmp_path / group).mkdir()
        (tmp_path / group / "own.yaml").write_text(f"{first}path: 2026_11\n")
    job = composed(tmp_path, FIRST, "model=own", "+other=own", "sink.uri=x")
    assert (job.model.path, job.upscale.model.path) == ("2026_11", "2026_11")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed: x", "conf/mine.yaml: seed: "),
        ("source: {carry: a}", "conf/mine.yaml: source.carry: must be a list, in brackets"),
        ("call: {negative_prompt: null}", "negative_prompt: may not be null; empty is ''"),
        ("call: {stepps: 1}", "conf/mine.yaml: call.stepps: no such field"),
        ("upscale: {background: #ff0000\n}", "line 2: upscale.background: # begins a comment"),
        ("upscale:\n  background: #fff", "line 3: upscale.background: # begins a comment in YAML"),
        ("name: [", "mine.yaml: line 3: expected the node content"),
        ("seed: 1\nseed: 2", "mine.yaml: line 3: found duplicate key seed"),
        ("- a", "mine.yaml: line 2: holds no fields; write FIELD: VALUE"),
        ("text", "mine.yaml: line 2: holds no fields; write FIELD: VALUE"),
        ("call: 5", "mine.yaml: line 2: call: must hold fields, NAME: VALUE"),
        ("name: x\nsource: {columns: [a]}", "line 3: source.columns: must hold fields"),
        ("name: \x07", "mine.yaml: line 2: holds a character that no YAML may hold"),
        ("[" * 3000, "mine.yaml: lists or mappings in each other without end"),
        ("name: !!python/object:os.system {}", "line 2: could not determine a constructor"),
        ("name: &n a\nsink: {uri: *n}", "mine.yaml: line 2: is used again by an alias"),
        ("defaults: [mine]", "lead back to the file itself: a job that builds on another"),
        ("defaults: [/conf: mine]", "names that one, not itself (conf=mine)"),
        ('name: "a\\0b"', r"name: 'a\x00b': holds what is no text in UTF-8"),
        ("#" * 2**20, "mine.yaml: more than 1 MiB"),
    ],
    ids=lambda text: text[:30],
)
def test_a_mistake_is_told_by_file_and_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(JobError) as raised:
        composed(tmp_path, f"{FIRST}{text}\n")
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "name: x\n", "- a\n", "text", f"# A job.\n{FIRST}name: x\n"])
def test_the_first_line_of_a_job_is_asked_for(tmp_path: Path, text: str) -> None:
    with pytest.raises(JobError) as raised:
        composed(tmp_path, text)
    told = "conf/mine.yaml: its first line must be '# @package _global_', and then FIELD: VALUE"
    assert told in str(raised.value)


def test_a_file_that_is_no_utf_8(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"mine\.yaml: line 3: is not UTF-8; save it as UTF-8"):
        composed(tmp_path, FIRST.encode() + b"seed: 1\nname: \xe9\n")
    assert composed(tmp_path, b"\xef\xbb\xbf" + FIRST.encode() + b"name: x\n").name == "x"


def test_aliases_are_not_multiplied(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    text = "scheduler:\n  settings:\n    " + "\n    ".join(lines)
    with pytest.raises(JobError, match=r"mine\.yaml: line 4: is used again by an alias"):
        composed(tmp_path, f"{FIRST}{text}\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("defaults: [override /model: '${oc.env:THE_SECRET}']", "refused, options are chosen by"),
        ("defaults:\n  - override /model: '${now:%Y}'", "line 3: defaults: ${now:%Y}: refused"),
        ("defaults: ['${oc.env:THE_SECRET}']", "line 2: defaults: ${oc.env:THE_SECRET}: refused"),
        ("defaults: [/model@upscale.model: ['${name}']]", "defaults: ${name}: refused"),
        ("defaults: [override /model: ../../x]", "defaults: ../../x: refused, outside the folder"),
        ("defaults: [../x]", "defaults: ../x: refused, outside the folder of its group"),
        ("defaults: [override hydra/job_logging: evil]", "defaults: hydra/job_logging: refused"),
    ],
)
def test_a_list_of_defaults_names_options_alone(
    tmp_path: Path, text: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_SECRET", "what-nobody-may-see")
    with pytest.raises(JobError) as raised:
        composed(tmp_path, f"{FIRST}{text}\n")
    assert told in str(raised.value)
    assert "nobody-may-see" not in str(raised.value)


@pytest.mark.parametrize(
    "word", ["conf={}", "+{}=x", "model@upscale.model={}", "conf=machinery,{}", "conf={}/.."]
)
def test_an_option_is_a_file_of_its_group(tmp_path: Path, word: str) -> None:
    (tmp_path / "other.yaml").write_text(f"{FIRST}name: other\n")
    inside = Path(__file__).parents[1] / "conf/conf"
    outside = os.path.relpath(tmp_path / "other", inside)
    with pytest.raises(JobError, match="refused, outside the folder of its group"):
        compose_jobs([word.format(outside)], is_sweep="," in word)


def test_the_names_of_our_own_files_are_ours(tmp_path: Path) -> None:
    (tmp_path / "job_schema.yaml").write_text("name: 1\n")
    (tmp_path / "config.yaml").write_text("name: 1\n")
    assert composed(tmp_path, f"{FIRST}name: x\n").name == "x"


def test_what_is_shown_is_what_is_composed(tmp_path: Path) -> None:
    composed(tmp_path, f"{FIRST}sink: {{uri: 2026_11_01}}\nname: no\n")
    shown = run(tmp_path, "--config-dir", ".", "--cfg", "job", "conf=mine")
    assert shown.code == 0, shown
    document = yaml.safe_load(shown.out)
    assert (document["sink"]["uri"], document["name"]) == ("2026_11_01", "no")
