"""What conf/README.md says of jobs, groups, fields and columns, made from where they are declared.

    python tests/conf_readme.py    # writes these parts and the schemas in conf/task/ anew

Every part stands between two comments that name it; what stands outside of them is written by hand.
`test_readmes.py` holds the file to what is made here.
"""

import ast
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ldm_batch import config
from ldm_batch.columns import COLUMNS, By, Column, json_schema
from ldm_batch.config import JobConfig, S3Config
from ldm_batch.diffusion.schedulers import NAMES
from ldm_batch.generate.choose import TASKS, TASKS_BY_ENGINE
from ldm_batch.generate.then_upscale import RECORDED
from ldm_batch.records import Reason

CONF = Path(__file__).parents[1] / "conf"
README = CONF / "README.md"
WIDTH = 100
PART = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
"""A part that is made: the comment before it, its name, and the comment after it."""
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "conf")
WORDS = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "None": "null",
    "list[str]": "list of texts",
    "list[int]": "list of whole numbers",
    "list[float]": "list of numbers",
}
BROUGHT = {
    By.ROW: "the row",
    By.CALL: "the row, or `call`",
    By.US: "us",
    By.CHECK: "a check of quality",
}
OPEN_TYPES = {
    "JobConfig.shards": "whole number, range as `3-9`, or list of these",
    "JobConfig.batch_size": "whole number or auto",
    "JobConfig.rows_per_shard": "whole number or auto",
    "SourceConfig.uri": "text or list of texts",
    "ModelConfig.loras": "list of LoRAs",
}
"""What `Any` stands for."""


def render(text: str) -> str:
    """The README with every part that is made in place of what stands between its comments."""
    return PART.sub(lambda found: f"{found[1]}{PARTS[found[2]]()}{found[3]}", text)


def _jobs() -> str:
    """What every file of conf/conf/ is, and the command that it names."""
    told = []
    for path in sorted((CONF / "conf").glob("*.yaml")):
        command, *about = _comment(path)[1:]
        command = command.replace("ldm_batch.run", "ldm_batch run")
        told.append(f"**`{path.stem}`**: {' '.join(about)}\n\n    {command}\n")
    return "\n".join(told)


def _groups() -> str:
    """Every group's options with the comment that begins their file."""
    told = []
    for group in GROUPS:
        told.append(f"| `{group}=` | |\n| --- | --- |\n")
        for path in sorted((CONF / group).glob("*.yaml")):
            about = " ".join(line for line in _comment(path) if not line.startswith("@"))
            about = about.removeprefix(f"{group}={path.stem}: ")
            told.append(f"| `{path.stem}` | {_cell(about)} |\n")
        told.append("\n")
    without = ", ".join(f"`{n}`" for n in NAMES if not (CONF / f"scheduler/{n}.yaml").exists())
    told.append(f"Schedulers without a file are chosen by `scheduler.name=`: {without}.\n")
    return "".join(told)


def _fields() -> str:
    """A table of each section's fields: type, default and what they mean."""
    job = JobConfig()
    sections = {f.name: getattr(job, f.name) for f in fields(job)}
    sections = {name: value for name, value in sections.items() if is_dataclass(value)}
    told = ["### The job itself\n", _table(job, skip=sections)]
    for name, section in sections.items():
        told += [f"### `{name}`\n", f"{_docstrings()[type(section).__name__]}\n\n", _table(section)]
    told += ["### `source.s3`, `sink.s3`\n", f"{_docstrings()['S3Config']}\n\n", _table(S3Config())]
    return "".join(told)


def _columns() -> str:
    """A table of every column, and which of them the dataset of each task has, in their order."""
    told = ["| column | type | brought by | |\n", f"|{' --- |' * 4}\n"]
    for column in COLUMNS.values():
        about = f"{column.about}{_bounds(column)}"
        told.append(f"| `{column.name}` | {column.type} | {BROUGHT[column.by]} | {about} |\n")
    told.append("\n")
    by_engine = {f"{name} model.engine={e}": t for (e, name), t in TASKS_BY_ENGINE.items()}
    for name, task in {**TASKS, **by_engine}.items():
        told.append(f"{_filled(f'- A row of `task={name}` may bring: ', task.columns.fields)}\n")
        told.append(f"{_filled('  Its dataset has: ', task.columns.recorded)}\n")
    asked = [column.name for column in COLUMNS.values() if column.is_named]
    told.append(f"{_filled('- A job that asks for it adds: ', asked)}\n")
    told.append(f"{_filled('- A second stage adds: ', RECORDED)}\n")
    return "".join(told)


def _bounds(column: Column) -> str:
    """What a value may be, as the end of what it means."""
    low, high = (f"{n:g}" if isinstance(n, float) else str(n) for n in (column.low, column.high))
    parts = [f"{low} to {high}"] if column.low is not None else []
    parts += [f"multiples of {column.multiple}"] if column.multiple else []
    parts += [f"default {column.default}"] if column.default not in (None, "") else []
    return f" ({', '.join(parts)})" if parts else ""


def _reasons() -> str:
    """The closed list of why a row was rejected."""
    return f"{_filled('', [reason.value for reason in Reason])}\n"


PARTS = {
    "jobs": _jobs,
    "groups": _groups,
    "fields": _fields,
    "reasons": _reasons,
    "columns": _columns,
}


def _table(section: Any, skip: Mapping[str, Any] = {}) -> str:
    owner, rows = type(section).__name__, ["| field | type | default | |\n", f"|{' --- |' * 4}\n"]
    for field in fields(section):
        if field.name not in skip:
            annotation, about = _declared()[owner, field.name]
            value = getattr(section, field.name)
            if is_dataclass(value):
                kind, default = f"section, see [`{field.name}`](#{_anchor(field.name)})", ""
            else:
                kind = OPEN_TYPES.get(f"{owner}.{field.name}") or _in_words(annotation)
                default = f"`{_yaml(value)}`"
            rows.append(f"| `{field.name}` | {kind} | {default} | {_cell(about)} |\n")
    return "".join([*rows, "\n"])


def _anchor(name: str) -> str:
    return "sources3-sinks3" if name == "s3" else name


@cache
def _classes() -> list[ast.ClassDef]:
    paths = sorted(Path(config.__file__).parent.glob("*.py"))
    nodes = [node for path in paths for node in ast.parse(path.read_text()).body]
    return [node for node in nodes if isinstance(node, ast.ClassDef)]


@cache
def _docstrings() -> dict[str, str]:
    """Class name -> its docstring as Markdown."""
    return {node.name: ast.get_docstring(node) or "" for node in _classes()}


@cache
def _declared() -> dict[tuple[str, str], tuple[str, str]]:
    """Class and field -> annotation and the docstring under the field, on one line."""
    return {key: value for node in _classes() for key, value in _fields_of(node)}


def _fields_of(node: ast.ClassDef) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            about = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                about = " ".join(str(after.value.value).split())
            yield (node.name, statement.target.id), (ast.unparse(statement.annotation), about)


def _in_words(annotation: str) -> str:
    if annotation.startswith("dict["):
        return "mapping"
    return " or ".join(WORDS[part] for part in annotation.split(" | "))


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _comment(path: Path) -> list[str]:
    """The lines of the comment that begins a file."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


def _filled(start: str, names: Any) -> str:
    text = start + ", ".join(f"`{name}`" for name in names) + "."
    indent = "  " if start else ""
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def schemas() -> dict[Path, str]:
    """Path and content of the JSON schema of each task's rows, beside its YAML."""
    by_engine = {f"{name}.{engine}": task for (engine, name), task in TASKS_BY_ENGINE.items()}
    columns = {name: task.columns for name, task in {**TASKS, **by_engine}.items()}
    made = {name: json_schema(known.fields, known.needed) for name, known in columns.items()}
    return {
        CONF / "task" / f"{name}.schema.json": f"{json.dumps(schema, indent=2)}\n"
        for name, schema in made.items()
    }


if __name__ == "__main__":
    for path, text in {README: render(README.read_text()), **schemas()}.items():
        path.write_text(text)
        print(f"written: {path}")
