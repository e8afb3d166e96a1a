"""The commit protocol against everything that a store, a network and other drivers do to it.

A model that hypothesis drives: drivers that crash, replies that get lost, requests that arrive
late, conflicts, old listings, and two drivers whose requests interleave. Failing runs are printed
as a program; `--hypothesis-seed=N` replays.
"""

import hashlib
import io
import json
import os
from collections import deque
from contextlib import ExitStack, suppress
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from memory_s3 import Crash, MemoryS3

from ldm_batch import identity
from ldm_batch.columns import METADATA_KEY
from ldm_batch.commands.sweep import find_leftovers
from ldm_batch.records import InputFile, Outcome, Reason, Receipt, Rejection, Shard
from ldm_batch.storage import Store
from ldm_batch.write.commit import commit_shard, committed_shards, read_named_digest
from ldm_batch.write.receipt import roll_forward, write_receipt
from ldm_batch.write.rejections import (
    OMITTED_TYPE,
    RejectedRows,
    RejectionsFile,
    make_rejections_file,
)

NUM_SHARDS, NUM_ROWS = 12, 4
FINGERPRINT = "f" * 64
EVENTS = ("ok", "ok", "500", "409", "lost", "late", "crash before", "crash after", "other")
SHARDS = st.integers(0, NUM_SHARDS - 1)
SCRIPTS = st.lists(st.sampled_from(EVENTS), min_size=1, max_size=8)
MACHINES = st.booleans()
"""Which of two kinds of machine does the work: their images differ in the last bits."""
NUM_EXAMPLES = int(os.environ.get("COMMIT_MODEL_EXAMPLES", "40"))


def shard_of(index: int) -> Shard:
    file = InputFile("in.parquet", "in.parquet", 1, "", NUM_SHARDS * NUM_ROWS, "")
    return Shard(index, file, index * NUM_ROWS, NUM_ROWS)


def make_rejected(index: int, on_other_machine: bool) -> RejectionsFile | None:
    """The rejections of a shard: other ones on another machine, and of every third it has none."""
    if (index + on_other_machine) % 3 == 0:
        return None
    reason = Reason.NOT_FINITE if on_other_machine else Reason.CONSTANT_IMAGE
    rejection = Rejection("a", index * NUM_ROWS, reason, "an image that is none")
    rows = RejectedRows(pa.array([{"prompt": "a"}]), pa.array([[]], OMITTED_TYPE))
    return make_rejections_file(shard_of(index), [rejection], rows)


def make_content(index: int, on_other_machine: bool) -> bytes:
    """The object of a shard, as one kind of machine makes it."""
    rejected = REJECTED[index, on_other_machine]
    facts = {
        "shard": f"{index:05d}",
        "fingerprint": FINGERPRINT,
        "num_rows": NUM_ROWS,
        "num_rows_with_images": NUM_ROWS - bool(rejected),
        "rejected": {"not_finite": 1} if rejected else {},
        **({"rejections": rejected.digest} if rejected else {}),
    }
    metadata = {METADATA_KEY: json.dumps(facts)}
    schema = pa.schema([("pixel", pa.int64())], metadata=metadata)
    buffer = io.BytesIO()
    pixels = [index * 100 + row + on_other_machine for row in range(NUM_ROWS)]
    pq.write_table(pa.table({"pixel": pixels}, schema=schema), buffer)
    return buffer.getvalue()


REJECTED = {(i, m): make_rejected(i, m) for i in range(NUM_SHARDS) for m in (False, True)}
CONTENTS = {(i, m): make_content(i, m) for i in range(NUM_SHARDS) for m in (False, True)}


class Commits(RuleBasedStateMachine):
    """Shards that many attempts commit."""

    def __init__(self) -> None:
        super().__init__()
        self.client = MemoryS3()
        self.patches = ExitStack()
        self.patches.enter_context(patch("ldm_batch.storage.s3.connect", return_value=self.client))
        self.patches.enter_context(patch("ldm_batch.storage.retry.FIRST_PAUSE_S", 0.0))
        self.store = Store("s3://bucket/sink")
        self.standing: dict[int, bytes] = {}
        self.winners: set[int] = set()

    def teardown(self) -> None:
        """Whatever happened, one undisturbed run completes the dataset."""
        self.client.script.clear()
        self.client.stale = None
        done = committed_shards(self.store)
        roll_forward(self.store, done, FINGERPRINT, num_threads=1)
        for index in set(range(NUM_SHARDS)) - done:
            self.attempt(index, False)
        while self.client.late:
            self.a_late_request_arrives(0)
        self.objects_stand_whole_and_unchanged()
        assert committed_shards(self.store) == set(range(NUM_SHARDS))
        receipts = {self.store.read(identity.receipt_path(f"{i:05d}")) for i in range(NUM_SHARDS)}
        assert None not in receipts
        self.patches.close()

    def attempt(self, index: int, on_other_machine: bool) -> None:
        """What a worker does with a shard that it has made."""
        content = CONTENTS[index, on_other_machine]
        rejected = REJECTED[index, on_other_machine]
        was_there = self.object_of(index) is not None
        num_others = self.client.num_others
        outcome, size_bytes, digest = commit_shard(
            self.store,
            shard_of(index),
            io.BytesIO(content),
            rejected,
            max_bytes=10**6,
            overwrite=False,
        )
        self.judge(index, outcome, content)
        nobody_else = not was_there and self.client.num_others == num_others
        assert outcome is Outcome.COMMITTED or not nobody_else, "an attempt lost to itself"
        receipt = Receipt(
            shard=index,
            outcome=outcome,
            num_rows=NUM_ROWS,
            num_rows_with_images=NUM_ROWS - bool(rejected),
            num_images=NUM_ROWS,
            rejected={"not_finite": 1} if rejected else {},
            object_bytes=size_bytes,
            object_sha256=digest,
        )
        write_receipt(self.store, receipt, FINGERPRINT)

    def object_of(self, index: int) -> bytes | None:
        """The object of a shard, if there is one."""
        content, _ = self.client.objects.get(f"sink/data/{index:05d}.parquet", (None, {}))
        return content

    def judge(self, index: int, outcome: Outcome, content: bytes) -> None:
        """An attempt is told the truth about what became of it."""
        standing = self.object_of(index)
        if outcome is Outcome.COMMITTED:
            assert index not in self.winners, "two attempts were told that they won"
            self.winners.add(index)
        assert (standing == content) == (outcome is not Outcome.LOST_TO_OTHER)

    @rule(index=SHARDS, machine=MACHINES, script=SCRIPTS, other=SHARDS, other_machine=MACHINES)
    def a_driver_makes_a_shard(
        self, index: int, machine: bool, script: list[str], other: int, other_machine: bool
    ) -> None:
        """One attempt, while the network does what the script says."""
        self.client.script = deque(script)
        self.client.other = lambda: self.attempt(other, other_machine)
        with suppress(Crash):
            self.attempt(index, machine)
        self.client.script.clear()

    @rule(forgotten=st.sets(SHARDS), machine=MACHINES)
    def a_driver_resumes_from_an_old_listing(self, forgotten: set[int], machine: bool) -> None:
        """A listing that misses objects costs work, nothing else."""
        missed = {f"sink/data/{index:05d}.parquet" for index in forgotten}
        self.client.stale = set(self.client.objects) - missed
        done = committed_shards(self.store)
        self.client.stale = None
        roll_forward(self.store, done, FINGERPRINT, num_threads=1)
        for index in set(range(NUM_SHARDS)) - done:
            self.attempt(index, machine)

    @precondition(lambda self: self.client.late)
    @rule(which=st.integers(0, 100))
    def a_late_request_arrives(self, which: int) -> None:
        """A request of a driver that is long gone is done now."""
        request = self.client.late.pop(which % len(self.client.late))
        with suppress(ClientError):
            request()

    @precondition(lambda self: not self.client.late)
    @rule()
    def what_nobody_names_is_swept(self) -> None:
        """When no request is under way any more, as after a day."""
        for leftover in find_leftovers(self.store, age_s=-60):
            self.store.remove_leftover(leftover)
        named = {key.rpartition("/")[2] for key in self.named_rejections()}
        assert self.store.names(identity.REJECTED_FOLDER) == named

    def named_rejections(self) -> set[str]:
        """Keys of the rejections that objects name."""
        named = set()
        for index in self.standing:
            if digest := read_named_digest(self.store, f"{index:05d}"):
                named.add(f"sink/{identity.rejected_path(f'{index:05d}', digest)}")
        return named

    @invariant()
    def rejections_are_those_that_objects_name(self) -> None:
        """What an object names is there, and is what it names."""
        for key in self.named_rejections():
            content, _ = self.client.objects[key]
            assert hashlib.sha256(content).hexdigest() in key

    @invariant()
    def objects_stand_whole_and_unchanged(self) -> None:
        """What is committed is whole, never changes, never vanishes; nothing else is in `data/`."""
        found = {
            key.removeprefix("sink/data/"): content
            for key, (content, _) in self.client.objects.items()
            if key.startswith("sink/data/")
        }
        for name, content in found.items():
            index = identity.shard_index(name)
            assert index is not None
            assert content in (CONTENTS[index, False], CONTENTS[index, True])
            assert self.standing.setdefault(index, content) == content
        assert {f"{index:05d}.parquet" for index in self.standing} == found.keys()

    @invariant()
    def receipts_tell_of_what_stands(self) -> None:
        """A receipt is of the object that is there."""
        for key, (content, _) in self.client.objects.items():
            if key.startswith("sink/.ldm_batch/receipts/"):
                receipt = json.loads(content)
                standing = self.standing[receipt["shard"]]
                assert receipt["object_sha256"] == hashlib.sha256(standing).hexdigest()


Commits.TestCase.settings = settings(
    max_examples=NUM_EXAMPLES,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestCommits = Commits.TestCase
