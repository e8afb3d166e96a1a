"""The files of a configuration as they are read: YAML whose texts are the texts that are written.

YAML takes `2026_11_01`, `no` and `1e3` for values of other types; where a field is a text, the text
is kept. What a file may not hold is refused with its name and line. Must not know what a value may
be.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from ldm_batch.config.described import job_fields
from ldm_batch.config.groups import JOBS
from ldm_batch.config.texts import is_text
from ldm_batch.errors import JobError
from ldm_batch.run.no_code import refuse_word

MAX_FILE_BYTES = 1024 * 1024
OF_A_JOB = "# @package _global_"
NEVER_READ = ("config.yaml", "job_schema.yaml")
"""Of a folder of the user's: the base of every job, and the name of the schema, are ours."""
TEXT_TAG, NULL_TAG, MERGE_TAG = (f"tag:yaml.org,2002:{name}" for name in ("str", "null", "merge"))
OTHER_TAGS = tuple(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool"))


class JobFiles(FileConfigSource):
    """Where Hydra finds files: as it does itself, but that they are read here."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Read one file.

        Raises:
            JobError: it cannot be read, or holds what it may not; names it, and the line.
        """
        file = Path(self.path) / self._normalize_file_name(config_path)
        text = _read(file)
        try:
            header = self._get_header_dict(text)
        except ValueError as error:
            raise JobError(f"{file}: its first line: {error}") from error
        group = config_path.rpartition("/")[0]
        if group == JOBS and header["package"] is None:
            raise JobError(
                f"{file}: its first line must be {OF_A_JOB!r}, and then FIELD: VALUE follow"
            )
        package = header["package"] or group.replace("/", ".")
        section = re.sub(r"^_global_\.?", "", package.replace("_group_", group.replace("/", ".")))
        document = _document(file, text, section, is_own=self.provider != "main")
        try:
            config = OmegaConf.create(document)
        except OmegaConfBaseException as error:
            raise JobError(f"{file}: {str(error).splitlines()[0]}") from error
        return ConfigResult(
            config=config, path=self.full_path(), provider=self.provider, header=header
        )

    def is_config(self, config_path: str) -> bool:
        """Tell whether there is such a file; the base and the schema of a job are ours."""
        is_ours = self._normalize_file_name(config_path) in NEVER_READ
        return super().is_config(config_path) and (self.provider == "main" or not is_ours)


@contextlib.contextmanager
def read_here() -> Iterator[None]:
    """Let Hydra read files as this module does, for as long as it lasts."""
    Plugins.instance()  # whose first use registers Hydra's own
    # Private: the public way, a plugin, cannot take the place of Hydra's own reader of files.
    types = SourcesRegistry.instance().types
    before = types[FileConfigSource.scheme()]
    types[FileConfigSource.scheme()] = JobFiles
    try:
        yield
    finally:
        types[FileConfigSource.scheme()] = before


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise JobError(f"{file}: cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:
        raise JobError(f"{file}: more than 1 MiB, which is no configuration")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise JobError(f"{file}: line {line}: is not UTF-8; save it as UTF-8") from error


def _document(file: Path, text: str, section: str, *, is_own: bool) -> dict[str, Any]:
    """The mapping that a file holds, with its texts as they are written."""
    try:
        # Private: what `OmegaConf.load` reads by, which gives no lines and no tags.
        loader = get_yaml_loader()(text)
        root = loader.get_single_node()
        if root is None or (root.tag == NULL_TAG and not root.value):
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise JobError(f"{file}: line {_line(root)}: holds no fields; write FIELD: VALUE")
        _FileWalk(file, text.splitlines(), is_own).check(root, section)
        document = loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        raise JobError(f"{file}: line {line}: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise JobError(f"{file}: line {line}: holds a character that no YAML may hold") from error
    except RecursionError as error:
        raise JobError(f"{file}: lists or mappings in each other without end") from error
    except ValueError as error:  # of a number or a date that is none
        raise JobError(f"{file}: {error}") from error
    assert isinstance(document, dict)
    return document


class _FileWalk:
    """One walk over the nodes of a file."""

    def __init__(self, file: Path, lines: list[str], is_own: bool) -> None:
        self._file = file
        self._lines = lines
        self._is_own = is_own
        self._seen: set[int] = set()

    def check(self, root: yaml.MappingNode, section: str) -> None:
        """Refuse what a file may not hold, and make the values of texts texts."""
        self._seen.add(id(root))
        for key, value in root.value:
            if key.value == "defaults":
                self._check_defaults(value)
            self._walk(key, "")
            self._make_text(key)
            self._walk(value, f"{section}.{key.value}" if section else str(key.value))

    def _walk(self, node: yaml.Node, path: str) -> None:
        if id(node) in self._seen:
            raise self._error(node, "is used again by an alias `*`: refused, write it out there")
        self._seen.add(id(node))
        field = job_fields().get(path)
        if field and (field.is_section or field.kind == "mapping"):
            self._refuse_no_mapping(node, path)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                self._walk(key, "")
                self._make_text(key)
                self._walk(value, f"{path}.{key.value}")
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                self._walk(value, f"{path}[]")
        elif is_text(path):
            self._refuse_comment(node, path)
            self._make_text(node)

    def _refuse_no_mapping(self, node: yaml.Node, path: str) -> None:
        is_named = isinstance(node, yaml.ScalarNode) and "${" in node.value
        if not isinstance(node, yaml.MappingNode) and node.tag != NULL_TAG and not is_named:
            raise self._error(node, f"{path}: must hold fields, NAME: VALUE")

    def _make_text(self, node: yaml.Node) -> None:
        if node.tag in OTHER_TAGS:
            node.tag = TEXT_TAG

    def _refuse_comment(self, node: yaml.Node, path: str) -> None:
        """Refuse a text that YAML takes for a comment, as a colour is."""
        mark = node.start_mark
        rest = self._lines[mark.line][mark.column :] if mark.line < len(self._lines) else ""
        comment = re.match(r"\s*(#\S+)", rest)
        if node.tag == NULL_TAG and not node.value and comment:
            raise self._error(
                node, f"{path}: # begins a comment in YAML; in quotes it is a text: '{comment[1]}'"
            )

    def _check_defaults(self, node: yaml.Node) -> None:
        """Refuse what a list of defaults may not name, and make its values texts."""
        for name, value in _pairs(node):
            if "${" in name + value:
                raise self._error(
                    node, f"defaults: {value or name}: refused, options are chosen by their names"
                )
            if ".." in f"{name}/{value}".split("/"):
                raise self._error(
                    node, f"defaults: {value or name}: refused, outside the folder of its group"
                )
            if self._is_own:
                try:
                    key = name.removeprefix("override ").strip().lstrip("/")
                    refuse_word(f"{key}={value}" if value else key)
                except JobError as error:
                    raise self._error(node, f"defaults: {error}") from error
        for item in node.value if isinstance(node, yaml.SequenceNode) else ():
            for leaf in _scalars(item):
                self._make_text(leaf)

    def _error(self, node: yaml.Node, message: str) -> JobError:
        return JobError(f"{self._file}: line {_line(node)}: {message}")


def _pairs(node: yaml.Node) -> Iterator[tuple[str, str]]:
    """Name and option of every entry of a list of defaults; a file alone has no option."""
    for item in node.value if isinstance(node, yaml.SequenceNode) else ():
        if isinstance(item, yaml.MappingNode):
            for key, value in item.value:
                for option in _scalars(value):
                    yield str(key.value), str(option.value)
        elif isinstance(item, yaml.ScalarNode):
            yield str(item.value), ""


def _scalars(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    """The values that a node holds, one or a list's or a mapping's."""
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.SequenceNode):
        yield from (value for value in node.value if isinstance(value, yaml.ScalarNode))
    elif isinstance(node, yaml.MappingNode):
        yield from (v for pair in node.value for v in pair if isinstance(v, yaml.ScalarNode))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
