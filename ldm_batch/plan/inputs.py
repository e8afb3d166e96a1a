"""The input files of a run: listed, looked into, and text converted on the way.

Text is converted once, into a local file; from when it is stored (`stored_inputs.py`) it is read
there. Must not know shards or workers.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection, Iterator, Sequence

from ldm_batch.config import SourceConfig, source_uris
from ldm_batch.config.identified import identify_text
from ldm_batch.config.text import delimiter_of
from ldm_batch.errors import JobError, StorageError
from ldm_batch.plan.input_files import list_input
from ldm_batch.plan.stored import Plan
from ldm_batch.plan.stored_inputs import as_stored, stored_path, stored_paths
from ldm_batch.read import footer as footers
from ldm_batch.read.footer import Footer
from ldm_batch.read.text.convert import Converted, Reading, convert
from ldm_batch.read.text.pile import Pile
from ldm_batch.records import InputFile, StoredInput
from ldm_batch.storage import (
    SourceFile,
    Store,
    open_file,
    text_format,
    would_list,
)

READ_BYTES = 1024 * 1024
SIDES = ("height", "width")
"""Fields whose largest value says how large a shard's object may become."""


class Inputs:
    """The input of one run. What was converted is kept until it is closed."""

    def __init__(self, source: SourceConfig, store: Store) -> None:
        """Nothing is read yet.

        Args:
            source: of the job.
            store: its sink.
        """
        self._source, self._store = source, store
        self._pile = Pile()
        self._converted: dict[tuple[str, int, str], Converted] = {}
        self._known: dict[str, InputFile] = {}
        self._standing: set[str] = set()
        self._by_name: dict[str, SourceFile] = {}
        self.files: list[SourceFile] = []
        """Those that are there, in order of their names."""
        self.notes: list[str] = []
        """Lines on what is not read of the input, and why."""

    def close(self) -> None:
        """Forget what was converted."""
        self._converted.clear()
        self._pile.close()

    def look(self, planned: Plan | None) -> None:
        """List the files that are there now.

        Args:
            planned: the plan that the sink holds; what it has of text need not be there any more.

        Raises:
            JobError: nothing is there, or two files would have the same name.
        """
        self._known = {s.file.name: s.file for s in planned.shards} if planned else {}
        texts = [file for file in self._known.values() if file.stored is not None]
        self._standing = stored_paths(self._store) if texts else set()
        uris = source_uris(self._source)
        gone = [uri for uri in uris if any(_is_of(uri, file) for file in texts)]
        self.files, self.notes = list_input(self._source, planned, may_be_gone=gone)
        self._by_name = {file.name: file for file in self.files}

    def sample(self, names: Collection[str]) -> SourceFile | None:
        """The first file of some names, as it is listed or else as it was planned."""
        for listed in self.files:
            if listed.name in names:
                return listed
        for file in self._known.values():
            if file.name in names and self.stands(file):
                return SourceFile(file.name, file.uri, file.size_bytes, file.version)
        return None

    def stands(self, file: InputFile) -> bool:
        """Tell whether the rows of a planned file are there, wherever the file itself is."""
        return file.stored is not None and file.stored.path in self._standing

    def read_footers(self, files: Sequence[SourceFile]) -> Iterator[Footer]:
        """Footers of files in their order, of text the footer of what it becomes.

        Raises:
            JobError: a file cannot be read, or is no table.
        """
        parquet = [file for file in files if not self._is_text(file)]
        found = footers.read_new_footers(parquet, self._source.access)
        for file in files:
            if not self._is_text(file):
                yield next(found)
                continue
            known = self._known.get(file.name)
            if known is not None and self.stands(known):
                yield footers.read_planned_footer(as_stored(known, self._store), self._store.access)
                continue
            yield _footer(self._convert(file), file.uri)

    def stored(self, file: SourceFile) -> StoredInput | None:
        """Where a file that was converted is going to stand; None: it is Parquet."""
        if not self._is_text(file):
            return None
        converted = self._convert(file)
        return StoredInput(stored_path(file.name), converted.size_bytes, converted.text_sha256)

    def describe(self, file: SourceFile) -> list[str]:
        """What a user should know of a file that was converted, a line each."""
        if not self._is_text(file) or not (converted := self._convert(file)).num_faulty:
            return []
        return [
            f"{file.uri}: {converted.num_faulty:,} of {converted.num_rows:,} rows cannot be read "
            f"and will be rejected; the first: {converted.first_fault}"
        ]

    def why_empty(self, file: SourceFile) -> str:
        """What a user may not know of a file without rows."""
        found = text_format(file.name) if self._is_text(file) else None
        is_table = found is not None and found.lines in ("csv", "tsv")
        return "; its first line is taken for the names of its columns" * is_table

    def describe_unused(self) -> list[str]:
        """What a user should know of settings that nothing uses here, a line each."""
        if any(self._is_text(file) for file in self.files):
            return []
        told = "ignored, no input is text (CSV, JSON lines)"
        return [f"source.{name}: {told}" for name in identify_text(self._source)]

    def has(self, name: str) -> bool:
        """Tell whether a file of this name is there."""
        return name in self._by_name

    def converted(self, name: str) -> Converted:
        """A text file that is there, by its name."""
        return self._convert(self._by_name[name])

    def footer_of(self, name: str) -> Footer:
        """The footer of what a text file becomes that is there."""
        return _footer(self.converted(name), name)

    def is_same_text(self, file: SourceFile, before: InputFile) -> bool:
        """Tell whether a text file is the planned one, by its bytes."""
        if before.stored is None or file.size_bytes != before.size_bytes:
            return False
        sha256 = hashlib.sha256()
        with open_file(file.uri, self._source.access) as content:
            while block := content.read(READ_BYTES):
                sha256.update(block)
        return sha256.hexdigest() == before.stored.text_sha256

    def _is_text(self, file: SourceFile) -> bool:
        """Tell whether a file is text: as it was planned, else by its name."""
        known = self._known.get(file.name)
        return text_format(file.name) is not None if known is None else known.stored is not None

    def _convert(self, file: SourceFile) -> Converted:
        """A text file as Parquet, once.

        Raises:
            JobError: it is no table, cannot be read, or changes while it is read.
        """
        key = (file.uri, file.size_bytes, file.version)
        if key not in self._converted:
            reading = self._reading(file)
            try:
                with open_file(file.uri, self._source.access) as content:
                    converted = convert(content, file.uri, reading, self._pile)
            except StorageError as error:
                raise JobError(str(error)) from error
            except OSError as error:
                raise JobError(
                    f"{file.uri}: cannot be converted in {tempfile.gettempdir()}: "
                    f"{error.strerror or error}; make room, or name another folder with TMPDIR"
                ) from error
            if converted.text_bytes != file.size_bytes:
                raise JobError(
                    f"{file.uri}: changed while it was read ({file.size_bytes} -> "
                    f"{converted.text_bytes} bytes); run the command again when it is whole"
                )
            self._converted[key] = converted
        return self._converted[key]

    def _reading(self, file: SourceFile) -> Reading:
        source, form = self._source, text_format(file.name)
        assert form is not None
        return Reading(
            form,
            encoding=source.encoding,
            delimiter=delimiter_of(source.delimiter),
            types=source.types,
            measured=tuple(str(source.columns.get(side, side)) for side in SIDES),
        )


def _footer(converted: Converted, uri: str) -> Footer:
    return footers.read_footer(converted.content, uri, converted.size_bytes)


def _is_of(uri: str, file: InputFile) -> bool:
    """Tell whether a place of a source names a planned file, or did."""
    return file.uri == uri.removeprefix("file://") or would_list(uri, file.uri)
