"""Whose object: those of a dataset, and those that must not be taken for its own.

Reads footers, as carefully as an input's: who wrote them is what is asked. Must not know workers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from typing import NoReturn

from ldm_batch import identity
from ldm_batch.columns import METADATA_KEY
from ldm_batch.errors import JobError
from ldm_batch.plan.stored import Plan
from ldm_batch.read import footer as footers
from ldm_batch.read.footer import Footer
from ldm_batch.records import Shard
from ldm_batch.storage import Access, SourceFile, Store, would_list

OWN_TABLES = (
    identity.data_path("00000"),
    f"{identity.INPUT_FOLDER}/a.csv.parquet",
    f"{identity.PLAN_FOLDER}/00000.parquet",
    identity.rejected_path("00000"),
)
"""One of each kind of table that a dataset is made of."""


def refuse_own_sink(uris: Iterable[str], store: Store) -> None:
    """Refuse a source that would take in what the job itself makes of it.

    Raises:
        JobError: a source names the folder of the dataset, one above it, or a table that stands
            within.
    """
    made = [store.uri(path) for path in OWN_TABLES]
    for uri in uris:
        if any(would_list(uri, place) for place in made):
            raise JobError(
                f"source.uri: {uri} takes in {store.root}, where the images of this job go, and so "
                "would feed on what it makes; name a sink.uri outside of it, or the source's files "
                "by a glob such as *.parquet"
            )


def visible_names(store: Store) -> set[str]:
    """Names in `data/` that readers would read."""
    return {name for name in store.names(identity.DATA_FOLDER) if not name.startswith(".")}


def names_without_receipt(store: Store, indices: Collection[int]) -> set[str]:
    """Names of the objects of some shards that nobody has noted as theirs yet."""
    noted = map(identity.shard_index, store.names(identity.RECEIPTS_FOLDER))
    return {f"{index:05d}.parquet" for index in set(indices) - set(noted)}


def refuse_foreign(store: Store, plan: Plan, names: Collection[str], access: Access) -> None:
    """Refuse objects in `data/` that are none of a plan's.

    Args:
        names: of the objects to look at.
        access: how the store is reached.

    Raises:
        JobError: names the first whose footer does not name the plan's fingerprint and its shard.
    """
    shards = {f"{shard.id}.parquet": shard for shard in plan.shards} if names else {}
    for name in sorted(set(names) - shards.keys()):
        _refuse(store, name, "no shard of the plan has this name")
    files = [_source_file(store, name) for name in sorted(names)]
    found = footers.read_new_footers(files, access)
    for file in files:
        try:
            footer = next(found)
        except JobError as error:
            raise JobError(
                f"{error}; it stands in {identity.DATA_FOLDER}/, where only this dataset's own "
                "objects may: remove it, or write to another sink"
            ) from error
        if why := _why_foreign(footer, shards[file.name], plan.fingerprint):
            _refuse(store, file.name, why)


def _source_file(store: Store, name: str) -> SourceFile:
    path = f"{identity.DATA_FOLDER}/{name}"
    with store.open(path) as file:
        return SourceFile(name, store.uri(path), file.seek(0, os.SEEK_END), "")


def _why_foreign(footer: Footer, shard: Shard, fingerprint: str) -> str:
    """Why an object is none of a plan's; empty where it is."""
    try:
        facts = json.loads((footer.schema.metadata or {})[METADATA_KEY])
        own, whose = facts["fingerprint"] == fingerprint, (facts["shard"], facts["num_rows"])
    except (KeyError, TypeError, ValueError):
        return "it is not ours"
    if not own:
        return "it was made with other settings"
    return "" if whose == (shard.id, shard.num_rows) else "it was made of other rows"


def _refuse(store: Store, name: str, why: str) -> NoReturn:
    raise JobError(
        f"{store.uri(f'{identity.DATA_FOLDER}/{name}')}: is no object of this dataset ({why}); "
        "remove it, or write to another sink"
    )
