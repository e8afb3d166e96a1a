"""Which column of an input file stands for which field, and which columns are carried along.

Looks at footers, never at rows; must not know shards or the sink.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from ldm_batch.columns import COLUMNS, IMAGE_COLUMNS, METADATA_KEY, TaskColumns
from ldm_batch.config import SourceConfig
from ldm_batch.config.bounds import suggest
from ldm_batch.errors import JobError
from ldm_batch.read.footer import Footer
from ldm_batch.read.text.columns import origin_of, own_names

MAX_CHUNK_BYTES = 2 * 1024**3
"""What a column of a row group may unpack to: 28 kB of zstd were made that declare 900 MB."""
PARENT = "parent_"
IMAGE_PARTS = ("bytes", "path")
"""Fields of a struct that is an image: its file, and where that stands or how it was called."""
_DECIMALS = (pa.Decimal32Type, pa.Decimal64Type, pa.Decimal128Type, pa.Decimal256Type)
OWN_COLUMNS = {
    "image": "image",
    "id": "key",
    "image_index": "image_index",
    "prompt": "prompt",
    "parent_seed": "seed",
}
"""Fields of rows that bring images -> columns of a dataset of ours, whose seeds, steps and eta are
those of the images that it holds and not of those to be made."""


def resolve_columns(
    footer: Footer, task: TaskColumns, source: SourceConfig, uri: str
) -> dict[str, str]:
    """Tell which column stands for which field; a field without a column is left out.

    Raises:
        JobError: a mapped or carried column is missing, or a column has a type that cannot hold
            its field.
    """
    names = own_names(footer.schema)
    columns: dict[str, str] = {}
    for field in task.fields:
        wanted = source.columns.get(field, _usual_name(field, footer, task))
        if wanted in names:
            columns[field] = str(wanted)
        elif field in task.needed and wanted is None:
            raise JobError(
                f"{uri}: every row needs a {field}; name its column with source.columns.{field}"
            )
        elif wanted is not None and (field in source.columns or field in task.needed):
            raise JobError(
                f"{uri}: no column {wanted!r} for {field} (source.columns.{field})"
                f"{_suggest(wanted, names)}{_where_names_stand(footer)}"
            )
    carried = carried_columns(footer, task, source)
    for name in source.carry:
        if carried[name] != name:
            raise JobError(
                f"{uri}: source.carry: its own {name.removeprefix(PARENT)!r} is carried along as "
                f"{name!r} anyway, and its {name!r} as {PARENT + name!r}; leave {name!r} out, or "
                "set source.carry_parent=false"
            )
    for name in (*columns.values(), *carried.values()):
        if name not in names:
            raise JobError(f"{uri}: no column {name!r} (source.carry){_suggest(name, names)}")
        if names.count(name) > 1:
            raise JobError(f"{uri}: two columns are named {name!r}")
    was_text = origin_of(footer.schema) is not None
    for field, name in columns.items():
        kind = footer.schema.field(name).type
        if name in footer.folders or (was_text and is_text(kind)):
            continue  # what all files decide together, and what each cell says for itself
        check_type(field, name, kind, uri, task)
    _check_size(footer.metadata, {*columns.values(), *carried.values()}, uri)
    return columns


def _where_names_stand(footer: Footer) -> str:
    origin = origin_of(footer.schema)
    is_table = origin is not None and origin.get("format") in ("csv", "tsv")
    return "; its first line is taken for the names of its columns" * is_table


def _suggest(wanted: str, names: list[str]) -> str:
    """Say which column was probably meant, in whatever case, or list them."""
    if not names:
        return "; the file has no columns"
    same = [name for name in names if _spelling(name) == _spelling(wanted)]
    return f"; did you mean {same[0]!r}?" if same else suggest(wanted, names)


def _usual_name(field: str, footer: Footer, task: TaskColumns) -> str | None:
    """The column that stands for a field where the job does not say."""
    if task.has_image and is_own(footer):
        return OWN_COLUMNS.get(field)
    if field == "id" and field in footer.folders:  # all rows of a file would have one name
        return None
    return None if COLUMNS[field].is_named else field


def is_own(footer: Footer) -> bool:
    """Tell whether a file is a shard of a dataset of ours."""
    return METADATA_KEY in (footer.schema.metadata or {})


def check_type(field: str, column: str, declared: pa.DataType, uri: str, task: TaskColumns) -> None:
    """Raise a JobError where a column has a type that cannot hold its field."""
    kind = held_type(declared)
    if COLUMNS[field].type == "image":
        fits, wanted = is_image(kind), "bytes, {bytes, path} structs or paths"
    elif field == "id":
        fits = holds_text(kind) or pa.types.is_integer(kind) or isinstance(kind, pa.UuidType)
        fits, wanted = fits or _is_whole(kind), "text or whole numbers"
    elif COLUMNS[field].is_text:
        fits, wanted = holds_text(kind), "text"
    else:
        fits = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)
        fits, wanted = fits or pa.types.is_decimal(kind), "numbers"
    if not fits:
        told = f"column {column!r} has type {declared}, {field} needs {wanted}"
        raise JobError(f"{uri}: {told}; {_hint(field, task)}")


def _is_whole(kind: pa.DataType) -> bool:
    """Tell whether a type is that of decimals without a fraction, as some databases write all
    their whole numbers."""
    return isinstance(kind, _DECIMALS) and kind.scale <= 0


def _hint(field: str, task: TaskColumns) -> str:
    """What to do about a column that cannot hold a field."""
    told = f"map another column with source.columns.{field}"
    if field in task.needed:
        return f"{told}, or write it anew"
    return f"{told}, or null to ignore it"


def _check_size(metadata: pq.FileMetaData, names: set[str], uri: str) -> None:
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for i in range(row_group.num_columns):
            chunk = row_group.column(i)
            path = chunk.path_in_schema
            name = next((n for n in names if path == n or path.startswith(f"{n}.")), None)
            if name is not None and chunk.total_uncompressed_size > MAX_CHUNK_BYTES:
                raise JobError(
                    f"{uri}: column {name!r} of row group {group} unpacks to "
                    f"{chunk.total_uncompressed_size} bytes, at most {MAX_CHUNK_BYTES}; "
                    "write the file with smaller row groups"
                )


def plain_type(declared: pa.DataType) -> pa.DataType:
    """The value type of a dictionary-encoded type, any other type as it is."""
    return declared.value_type if pa.types.is_dictionary(declared) else declared


def held_type(declared: pa.DataType) -> pa.DataType:
    """The type of a column's values: not of its dictionary, nor JSON where it is text."""
    kind = plain_type(declared)
    return kind.storage_type if isinstance(kind, pa.JsonType) else kind


def holds_text(kind: pa.DataType) -> bool:
    """Tell whether a type holds text, or bytes that may be text: many writers say no more."""
    return is_text(kind) or is_binary(kind) or bool(pa.types.is_fixed_size_binary(kind))


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a type holds text (or, as null, nothing)."""
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def is_image(kind: pa.DataType) -> bool:
    """Tell whether a type holds images: bytes, paths, or structs that have `bytes`, `path` or both,
    and whatever else; one of the two may be null in all rows."""
    if not pa.types.is_struct(kind):
        return is_binary(kind) or is_text(kind)
    assert isinstance(kind, pa.StructType)
    names = [kind.field(i).name for i in range(kind.num_fields)]
    types = {name: kind.field(name).type for name in IMAGE_PARTS if names.count(name) == 1}
    if sum(names.count(name) for name in IMAGE_PARTS) != len(types) or not types:
        return False
    data, path = (types.get(name, pa.null()) for name in IMAGE_PARTS)
    return (is_binary(data) or pa.types.is_null(data)) and is_text(path)


def is_binary(kind: pa.DataType) -> bool:
    """Tell whether a type holds bytes."""
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def carried_columns(footer: Footer, task: TaskColumns, source: SourceConfig) -> dict[str, str]:
    """Which columns are copied to the output, by their name there.

    What a job enlarges of a dataset of ours brings along all that is known of it, with `parent_`
    before names that the new dataset has itself, and before those that have it already.
    """
    carried = {name: name for name in source.carry}
    if not task.has_image or not source.carry_parent or not is_own(footer):
        return carried
    for name in footer.schema.names:
        if name in IMAGE_COLUMNS or name in source.carry or name in footer.folders:
            continue
        is_taken = name in task.recorded or name.startswith(PARENT)
        carried[f"{PARENT}{name}" if is_taken else name] = name
    return carried


def carried_fields(
    footer: Footer, task: TaskColumns, source: SourceConfig
) -> list[tuple[str, pa.DataType]]:
    """Name in the output and Arrow type of the carried columns."""
    return [
        (name, plain_type(footer.schema.field(column).type))
        for name, column in carried_columns(footer, task, source).items()
    ]


def describe_unread(
    footer: Footer, task: TaskColumns, source: SourceConfig, used: Mapping[str, str]
) -> list[str]:
    """What a user should know of columns that are not read although their names say a field, but
    for case and dashes, a line each.

    Args:
        used: field -> column that stands for it.
    """
    if task.has_image and is_own(footer):
        return []
    fields = {_spelling(field): field for field in task.fields}
    taken = {*used.values(), *source.carry}
    told = []
    for name in footer.schema.names:
        field = fields.get(_spelling(name))
        if field is None or name in taken or field in used or field in source.columns:
            continue
        if field == name == "id" and name in footer.folders:
            continue  # told of folders, with the reason
        told.append(
            f"column {name!r} is not read; if it is {field}, set source.columns.{field}={name}, "
            f"else source.columns.{field}=null"
        )
    return told


def _spelling(name: str) -> str:
    """A name as it is whoever writes it: `Negative-Prompt`, `negativePrompt`, `negative_prompt`."""
    return "".join(character for character in name.casefold() if character.isalnum())


def columns_in_words(columns: Mapping[str, str], folders: Collection[str] = ()) -> str:
    """The used columns in words, for the plan's notes.

    Args:
        folders: those that stand in the names of folders.
    """
    words = []
    for field, name in columns.items():
        place = f"folders {name}=..." if name in folders else f"column {name!r}"
        is_plain = field == name and name not in folders
        words.append(field if is_plain else f"{field} ({place})")
    return ", ".join(words)
