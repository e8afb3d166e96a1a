"""What the text files of a plan were converted into, stored before the plan is.

An object of `.ldm_batch/input/` counts where a plan names it. Must not know workers.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ldm_batch.errors import JobError
from ldm_batch.plan.inputs import Inputs
from ldm_batch.plan.stored import Plan, load_plan
from ldm_batch.plan.stored_inputs import stored_paths
from ldm_batch.read import footer as footers
from ldm_batch.read.text.columns import origin_of
from ldm_batch.records import InputFile, Shard
from ldm_batch.storage import Creation, SourceFile, Store


def store_inputs(store: Store, inputs: Inputs, plan: Plan) -> tuple[Plan | None, set[str]]:
    """Store what the text files of a plan's new shards were converted into, each exclusively.

    Returns:
        The plan by what stands then, and the paths that were created; no plan where another driver
        has planned another file under such a name.
    """
    files = {shard.file.name: shard.file for shard in plan.new_shards if shard.file.stored}
    stands: dict[str, InputFile] = {}
    created: set[str] = set()
    for name, file in files.items():
        found, is_ours = _store_one(store, inputs, file)
        if found is None:
            return None, created
        stands[name] = found
        if is_ours and found.stored is not None:
            created.add(found.stored.path)
    if stands == files:
        return plan, created
    shards, new_shards = _by(stands, plan.shards), _by(stands, plan.new_shards)
    return replace(plan, shards=shards, new_shards=new_shards), created


def take_back_inputs(store: Store, created: set[str]) -> None:
    """Remove what was created for a plan that was not stored, but for what the stored one names."""
    for path in sorted(created - planned_paths(store)) if created else ():
        store.remove(path)


def mend_inputs(store: Store, inputs: Inputs, files: Iterable[InputFile]) -> None:
    """Store again what is gone of planned files whose text is still there.

    Raises:
        JobError: it comes out otherwise by now.
    """
    texts = [file for file in files if file.stored is not None]
    standing = stored_paths(store) if texts else set()
    for file in texts:
        if file.stored is None or file.stored.path in standing or not inputs.has(file.name):
            continue
        if inputs.footer_of(file.name).sha256 != file.footer_sha256:
            raise JobError(
                f"{store.uri(file.stored.path)}: is gone, and this version makes another file of "
                f"{file.uri}; put it back, or write to a new sink"
            )
        store.publish(file.stored.path, inputs.converted(file.name).content, exclusive=True)


def _store_one(store: Store, inputs: Inputs, file: InputFile) -> tuple[InputFile | None, bool]:
    """Store what one file was converted into: the file by what stands then, None where that is of
    another planned file; and whether it was created here."""
    assert file.stored is not None
    content, path = inputs.converted(file.name).content, file.stored.path
    created = store.create(path, content)
    if created is not Creation.LOST_TO_OTHER:
        return file, created is Creation.WON
    if (found := _same_by_another_version(store, inputs, file)) is not None:
        return found, False
    if path in planned_paths(store):
        return None, False
    store.publish(path, content, exclusive=False)  # that of a driver that died before its plan
    return file, True


def _same_by_another_version(store: Store, inputs: Inputs, file: InputFile) -> InputFile | None:
    """The file by what stands in its place, where that has the same rows in other bytes."""
    assert file.stored is not None
    path, ours = file.stored.path, inputs.footer_of(file.name)
    with store.open(path) as content:
        size = content.seek(0, io.SEEK_END)
    source = SourceFile(path, store.uri(path), size, "")
    [theirs] = footers.read_new_footers([source], store.access)
    if (origin_of(theirs.schema), theirs.num_rows) != (origin_of(ours.schema), ours.num_rows):
        return None
    stored = replace(file.stored, size_bytes=size)
    return replace(file, stored=stored, footer_sha256=theirs.sha256)


def planned_paths(store: Store) -> set[str]:
    """Paths of what the stored plan reads in the sink, in place of text."""
    planned = load_plan(store)
    return {s.file.stored.path for s in planned.shards if s.file.stored} if planned else set()


def _by(stands: Mapping[str, InputFile], shards: Iterable[Shard]) -> tuple[Shard, ...]:
    return tuple(replace(shard, file=stands.get(shard.file.name, shard.file)) for shard in shards)
