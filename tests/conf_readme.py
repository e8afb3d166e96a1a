"""What conf/README.md says of jobs, groups, fields and columns, made from where they are declared.

    python tests/conf_readme.py    # writes these parts and the schemas in conf/task/ anew

Every part stands between two comments that name it; what stands outside of them is written by hand.
`test_readmes.py` holds the file to what is made here.
"""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

from ldm_batch.columns import COLUMNS, By, Column, json_schema
from ldm_batch.config.described import class_docstring, job_fields, section_about
from ldm_batch.config.groups import JOBS, find_groups
from ldm_batch.generate.choose import TASKS, TASKS_BY_ENGINE
from ldm_batch.generate.then_upscale import RECORDED
from ldm_batch.records import Reason

CONF = Path(__file__).parents[1] / "conf"
README = CONF / "README.md"
WIDTH = 100
PART = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
"""A part that is made: the comment before it, its name, and the comment after it."""
BROUGHT = {
    By.ROW: "the row",
    By.CALL: "the row, or `call`",
    By.US: "us",
    By.CHECK: "a check of quality",
}


def render(text: str) -> str:
    """The README with every part that is made in place of what stands between its comments."""
    return PART.sub(lambda found: f"{found[1]}{PARTS[found[2]]()}{found[3]}", text)


def _jobs() -> str:
    """What every file of conf/conf/ is, and the command that it names."""
    told = []
    for option in find_groups()[JOBS]:
        command, *about = option.comment[1:]
        command = command.replace("ldm_batch.run", "ldm_batch run")
        told.append(f"**`{option.name}`**: {' '.join(about)}\n\n    {command}\n")
    return "\n".join(told)


def _groups() -> str:
    """Every group's options with the comment that begins their file."""
    told = []
    for group, options in find_groups().items():
        if group != JOBS:
            told.append(f"| `{group}=` | |\n| --- | --- |\n")
            for option in options:
                told.append(f"| `{option.name}` | {_cell(option.about)} |\n")
            told.append("\n")
    return "".join(told)


def _fields() -> str:
    """A table of each section's fields: type, default and what they mean."""
    job = job_fields().values()
    told = ["### The job itself\n", _table("")]
    for section in (field for field in job if field.is_section and not field.section):
        about = section_about(section.name)
        told += [f"### `{section.name}`\n", f"{about}\n\n", _table(section.name)]
    about = class_docstring("S3Config")
    told += ["### `source.s3`, `sink.s3`\n", f"{about}\n\n", _table("source.s3")]
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
    asked = [column.name for column in COLUMNS.values() if column.is_named and column.by is By.CALL]
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


def _table(section: str) -> str:
    rows = ["| field | type | default | |\n", f"|{' --- |' * 4}\n"]
    for field in job_fields().values():
        if field.section == section and (section or not field.is_section):
            kind, default, about = field.kind, f"`{field.default}`", _cell(field.about)
            if field.is_section:
                kind, default = f"section, see [`{field.name}`](#{_anchor(field.name)})", ""
            rows.append(f"| `{field.name}` | {kind} | {default} | {about} |\n")
    return "".join([*rows, "\n"])


def _anchor(name: str) -> str:
    return "sources3-sinks3" if name == "s3" else name


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
