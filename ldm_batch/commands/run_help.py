"""`run --help`: what groups, sections and fields are for, in words; composes nothing.

Must not know what a value does.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ldm_batch.config.bounds import suggest
from ldm_batch.config.described import Field, job_fields, section_about
from ldm_batch.config.groups import Option, find_groups, group_about
from ldm_batch.errors import JobError

WIDTH, INDENT = 88, 25
JOB = "job"
"""The topic of the fields that stand in no section."""
OPTIONS = {
    "--help NAME": "what a group, section, field or option is for",
    "--cfg job": "print the whole configuration of the job and run nothing",
    "--config-dir FOLDER": "jobs and options of your own, laid out as `init` does",
    "-m, --multirun": "one job per value, e.g. seed=1,2,3 'sink.uri=out/${seed}'",
    "--version": "versions of ldm_batch and of what decides images",
}
EXAMPLES = (
    "conf=txt2img_1m source.uri=prompts/ sink.uri=out/cats dry_run=true",
    "conf=sdxl speed=fast source.uri=prompts.parquet sink.uri=out/cats seed=7",
    "conf=upscale_4x source.uri=images.parquet sink.uri=out/large",
)


def help_on(topics: Sequence[str], command: str, own_folders: Sequence[Path] = ()) -> str:
    """The text of `run --help TOPIC ...`.

    Args:
        topics: names of groups, sections, fields or options; none: an overview.
        command: how `run` was called.
        own_folders: with groups of the user's.

    Raises:
        JobError: there is nothing of such a name.
    """
    groups = find_groups(own_folders)
    if not topics:
        return "\n".join(_overview(command, groups))
    return "\n\n".join("\n".join(_topic(topic, groups)) for topic in topics)


def _overview(command: str, groups: Mapping[str, list[Option]]) -> Iterator[str]:
    fields = job_fields()
    sections = [f.path for f in fields.values() if f.is_section and not f.section]
    yield f"usage: {command} [OPTION ...] [conf=JOB] [GROUP=OPTION ...] [FIELD=VALUE ...]"
    yield ""
    yield "Make a synthetic image dataset, or what is missing of it: the same command again"
    yield "makes what the first one did not."
    yield ""
    yield "Groups (NAME=OPTION takes a file of settings) and sections (NAME.FIELD=VALUE sets one):"
    names = [*groups, *(name for name in sections if name not in groups)]
    for name in names:
        signs = [f"{name}="] * (name in groups) + [f"{name}."] * (name in sections)
        about = group_about(name) if name in groups else section_about(name)
        yield _line(" ".join(signs), _first_sentence(about))
    yield ""
    own = [field.path for field in fields.values() if not field.is_section and not field.section]
    yield from textwrap.wrap(f"Fields of the job itself: {', '.join(own)}.", WIDTH)
    yield ""
    yield "Options:"
    for name, about in OPTIONS.items():
        yield _line(name, about)
    yield ""
    yield "Examples:"
    yield from (f"  {command} {example}" for example in EXAMPLES)
    yield ""
    yield f"{command} --help conf lists the jobs."


def _topic(topic: str, groups: Mapping[str, list[Option]]) -> Iterator[str]:
    fields = job_fields()
    name, equals, value = topic.lstrip("+").partition("=")
    path = name.rstrip(".").replace("-", "_")
    options = {option.name: option for option in groups.get(path, [])}
    if equals and value in options:
        yield from _option(path, options[value])
    elif equals and options:
        raise JobError(f"--help {topic}: {path}: no option {value!r}{suggest(value, [*options])}")
    elif path in groups or path in fields or path == JOB:
        yield from _named(path, options, fields)
    elif found := [(g, o) for g, known in groups.items() for o in known if o.name == topic]:
        for group, option in found:
            yield from _option(group, option)
    elif leaves := [field for field in fields.values() if field.name == path]:
        for field in leaves:
            yield from _field(field)
    else:
        raise JobError(f"--help {topic}: {_did_you_mean(path, [*groups, *fields])}")


def _named(path: str, options: Mapping[str, Option], fields: Mapping[str, Field]) -> Iterator[str]:
    """A group, a section, or what is both; else a field."""
    is_section = path == JOB or (path in fields and fields[path].is_section)
    if options:
        yield from _filled(f"{path}=OPTION: {group_about(path)}", "")
        for option in options.values():
            yield _line(option.name, option.about)
    if is_section:
        section = "" if path == JOB else path
        if options:
            yield ""
        about = "the job itself, FIELD=VALUE" if path == JOB else f"{path}.FIELD=VALUE"
        more = "" if options or path == JOB else f": {fields[path].about}"
        yield from _filled(f"{about}{more}", "")
        for field in fields.values():
            if field.section == section and (section or not field.is_section):
                yield from _field(field)
    elif path in fields:
        if options:
            yield ""
        yield from _field(fields[path])


def _option(group: str, option: Option) -> Iterator[str]:
    yield from _filled(f"{group}={option.name}: {option.about}", "")
    yield ""
    lines = option.path.read_text(encoding="utf-8", errors="replace").splitlines()
    yield from (f"  {line}" for line in lines[len(option.comment) :])


def _field(field: Field) -> Iterator[str]:
    if field.is_section:
        yield f"  {field.path}.FIELD"
    else:
        yield f"  {field.path}={field.default}  ({field.kind})"
    yield from _filled(field.about, "      ")
    if field.values and field.values[0] != "true":
        yield from _filled(f"One of: {', '.join(field.values)}.", "      ")


def _line(name: str, about: str) -> str:
    """A name and what it is for, beside it."""
    start = f"  {name.ljust(INDENT - 3)} "
    lines = textwrap.wrap(about, WIDTH - INDENT) or [""]
    return f"\n{' ' * INDENT}".join([start + lines[0], *lines[1:]])


def _filled(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _first_sentence(text: str) -> str:
    first = " ".join(text.split()).split(". ")[0]
    return first if first.endswith(".") else f"{first}."


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    meant = f"did you mean {close[0]}?" if close else "--help alone lists what there is"
    return f"no such group, section, field or option; {meant}"
