"""What the READMEs say is there: links and anchors, commands, the parts that are made."""

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path

import commands
import conf_readme
import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from ldm_batch.__main__ import COMMANDS
from ldm_batch.config import JobConfig
from ldm_batch.generate.choose import validate_job as validate
from ldm_batch.run import OPEN_FIELDS, config_folder

ROOT = Path(__file__).parents[1]
FOLDERS = ("conf", "jobs", "ldm_batch", "tests")
PAGES = {
    str(path.relative_to(ROOT)): path
    for folder in (ROOT, *(ROOT / name for name in FOLDERS))
    for path in sorted(folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
}
MAX_LINES = 150
"""Of the main README: what one person reads before deciding."""
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`]+`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
DOOR = re.compile(r"python -m ldm_batch\b.*")
FILE = re.compile(r"\bpython (tests/\S+\.py)")
SHA = "0" * 40
"""What `...` stands for in a value."""
TAKES_A_VALUE = ("--config-dir", "--cfg")


# Links


def _without_code(text: str) -> str:
    prose = FENCE.sub("", text)
    return "\n".join(line for line in prose.splitlines() if not line.startswith("    "))


@cache
def anchors(path: Path) -> frozenset[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    found: list[str] = []
    for line in _without_code(path.read_text()).splitlines():
        if heading := re.match(r"#+ (.*)", line):
            words = re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-")
            num_before = sum(anchor == words for anchor in found)
            found.append(f"{words}-{num_before}" if num_before else words)
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    prose = CODE.sub("`code`", _without_code(PAGES[page].read_text()))
    lost = []
    for link in LINK.findall(prose):
        place, _, anchor = link.partition("#")
        if not re.match(r"\w+:", place):
            target = PAGES[page].parent / place if place else PAGES[page]
            if not target.exists() or (anchor and anchor not in anchors(target.resolve())):
                lost.append(link)
    assert not lost


def test_anchors_are_made_as_github_makes_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Two words\n## `a.s3`, `b.s3`\n    # code\n### Two words\n# A (1.2)\n")
    assert anchors(page) == {"two-words", "as3-bs3", "two-words-1", "a-12"}


def test_the_main_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_main_readme_leads_to_every_other(folder: str) -> None:
    assert f"]({folder}/README.md)" in (ROOT / "README.md").read_text()


# Commands


def code_lines(text: str) -> Iterator[str]:
    """Lines of fenced and indented code, continued ones as one."""
    fenced = "\n".join(block for _, block in FENCE.findall(text))
    indented = "\n".join(
        line.strip() for line in FENCE.sub("", text).splitlines() if line.startswith("    ")
    )
    yield from re.sub(r"\\\n\s*", "", f"{fenced}\n{indented}").splitlines()


def shown_commands(page: str) -> list[list[str]]:
    """Every command of ours in a page's code, as words after `-m`."""
    found = [DOOR.search(line) for line in code_lines(PAGES[page].read_text())]
    return [words for each in found if each for words in _apart(each[0])]


def named_commands(page: str) -> list[list[str]]:
    """Every command of ours in a page's sentences, which may leave out what matters elsewhere."""
    codes = [code.strip("`") for code in CODE.findall(_without_code(PAGES[page].read_text()))]
    return [words for code in codes if DOOR.match(code) for words in _apart(code)]


def _apart(line: str) -> Iterator[list[str]]:
    """The commands of a line, each from its module on."""
    words = shlex.split(line, comments=True)
    while words:
        command = [*takewhile(lambda word: word != "&&", words)]
        yield command[2:]
        words = words[len(command) + 1 :]


def overrides_of(words: list[str]) -> list[str]:
    """What composes of a `run`'s words: without options, `...` filled in, one value of a sweep."""
    is_sweep, overrides = "-m" in words, []
    left = iter(words)
    for word in left:
        if word in TAKES_A_VALUE:
            next(left)
        elif not word.startswith("-") and word != "...":
            word = word.replace("=...", f"={SHA}")
            word = re.sub(r"(=[^,\[{]+),.*", r"\1", word) if is_sweep else word
            is_open = word.startswith(tuple(f"{name}{end}" for name in OPEN_FIELDS for end in ".="))
            overrides.append(f"++{word}" if is_open else word)
    return overrides


def _run_words(words: list[str]) -> list[str] | None:
    """The words after `run`; None for another command."""
    if words[0] == "ldm_batch.run":
        return words[1:]
    return words[2:] if words[:2] == ["ldm_batch", "run"] else None


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    for words in shown_commands(page) + named_commands(page):
        if words[0] != "ldm_batch":
            assert importlib.util.find_spec(words[0]), words
        elif words[1:] and words[1] not in ("...", "COMMAND"):
            assert words[1] in {*COMMANDS, "--help"}, words


@pytest.mark.parametrize("page", [p for p in PAGES if not p.startswith("tests/fixtures/")])
def test_jobs_compose(page: str) -> None:
    """All but those of the fixtures, which hold variables and ran long ago."""
    ConfigStore.instance().store(name="job_schema", node=JobConfig)
    shown = shown_commands(page)
    for words in filter(None, map(_run_words, shown + named_commands(page))):
        options = [*takewhile(lambda word: "=" not in word, words)]
        assert not {"-m", "--config-dir"} & {*words[len(options) :]}, f"options first: {words}"
        if "--config-dir" not in words and overrides_of(words):
            with initialize_config_dir(str(config_folder()), version_base="1.3"):
                job = OmegaConf.to_object(compose("config", overrides_of(words)))
            assert isinstance(job, JobConfig)
            if "..." not in words and words in map(_run_words, shown):
                validate(job)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_run_exist(page: str) -> None:
    for name in FILE.findall(PAGES[page].read_text()):
        assert (ROOT / name).is_file(), name


def test_what_the_commands_of_a_page_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`python -m ldm_batch status x`\n\n    A=1 python -m ldm_batch run -m \\\n"
        "        seed=1,2 'source.carry=[a,b]' model.revision=...  # a sweep\n"
        "    python -m ldm_batch verify x && python -m ldm_batch sheet x\n"
    )
    monkeypatch.setitem(PAGES, "page", page)
    sweep, *others = shown_commands("page")
    assert others == [["ldm_batch", "verify", "x"], ["ldm_batch", "sheet", "x"]]
    assert named_commands("page") == [["ldm_batch", "status", "x"]]
    assert overrides_of(_run_words(sweep) or []) == [
        "seed=1",
        "source.carry=[a,b]",
        f"model.revision={SHA}",
    ]


# What is made, and what is shown


def test_what_is_made_of_conf_readme_is_as_made() -> None:
    text = conf_readme.README.read_text()
    made = conf_readme.render(text)
    assert made == text, "conf/ or a field has changed: run `python tests/conf_readme.py`"
    assert [found[2] for found in conf_readme.PART.finditer(text)] == [*conf_readme.PARTS]


def test_a_schema_stands_beside_every_task() -> None:
    for path, text in conf_readme.schemas().items():
        assert path.read_text() == text, "run `python tests/conf_readme.py`"
        rows = [
            {
                "id": 7,
                "prompt": "a cat",
                "image": "a.png",
                "mask": "b.png",
                "seed": None,
                "eta": 0.5,
            },
            {},
        ]
        valid = [jsonschema.Draft202012Validator(json.loads(text)).is_valid(row) for row in rows]
        assert valid == [True, False]


def test_a_job_of_ones_own_runs_from_its_own_folder(tmp_path: Path) -> None:
    """The file and the command of conf/README.md, as they stand there."""
    [yaml] = [block for kind, block in FENCE.findall(PAGES["conf/README.md"].read_text()) if kind]
    commands_shown = shown_commands("conf/README.md")
    words = next(words for words in commands_shown if "dry_run=true" in words)
    assert "--config-dir" in words
    path = tmp_path / "mine/conf/cats.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml)
    table = pa.table({"caption": ["a cat", "a dog"], "topic": ["x", "y"]})
    pq.write_table(table, tmp_path / "prompts.parquet")
    ended = commands.run(tmp_path, *words[1:], module="ldm_batch")
    assert ended.code == 0, ended.err
    assert "2 rows, 1 shards; 0 done, 1 to do" in ended.out
    assert not (tmp_path / "out").exists()
