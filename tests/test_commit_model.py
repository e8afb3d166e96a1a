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
from ldm_batch.records import InputFile, Outcome, Receipt, Shard
from ldm_batch.storage import Store
from ldm_batch.write.commit import commit_shard, committed_shards
from ldm_batch.write.receipt import roll_forward, write_receipt

NUM_SHARDS, NUM_ROWS = 12, 4
FINGERPRINT = "f" * 64
EVENTS = ("ok", "ok", "500", "409", "lost", "late", "crash before", "crash after", "other")
SHARDS = st.integers(0, NUM_SHARDS - 1)
SCRIPTS = st.lists(st.sampled_from(EVENTS), min_size=1, max_size=8)
MACHINES = st.booleans()
"""Which of two kinds of machine does the work: their images differ in the last bits."""
NUM_EXAMPLES = int(os.environ.get("COMMIT_MODEL_EXAMPLES", "40"))


def make_content(index: int, on_other_machine: bool) -> bytes:
    """The object of a shard, as one kind of machine makes it."""
    facts = {
        "shard": f"{index:05d}",
        "fingerprint": FINGERPRINT,
        "num_rows": NUM_ROWS,
        "num_rows_with_images": NUM_ROWS,
        "rejected": {},
    }
    metadata = {METADATA_KEY: json.dumps(facts)}
    schema = pa.schema([("pixel", pa.int64())], metadata=metadata)
    buffer = io.BytesIO()
    pixels = [index * 100 + row + on_other_machine for row in range(NUM_ROWS)]
    pq.write_table(pa.table({"pixel": pixels}, schema=schema), buffer)
    return buffer.getvalue()


CONTENTS = {(i, m): make_content(i, m) for i in range(NUM_SHARDS) for m in (False, True)}


class Commits(RuleBasedStateMachine):
    """Shards that many attempts commit."""

    def __init__(self) -> None:
        super().__init__()
        self.client = MemoryS3()
        self.patches = ExitStack()
        self.patches.enter_context(patch("ldm_batch.storage.s3.connect", return_value=self.client))
        self.patches.enter_context(patch("ldm_batch.storage.s3_client.FIRST_PAUSE_S", 0.0))
        self.store = Store("s3://bucket/sink")
        self.standing: dict[int, bytes] = {}
        self.winners: set[int] = set()

    def teardown(self) -> None:
        """Whatever happened, one undisturbed run completes the dataset."""
        self.client.script.clear()
        self.client.stale = None
        done = committed_shards(self.store)
        roll_forward(self.store, done, FINGERPRINT)
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
        file = InputFile("in.parquet", "in.parquet", 1, "", NUM_SHARDS * NUM_ROWS, "")
        shard = Shard(index, file, index * NUM_ROWS, NUM_ROWS)
        was_there = self.object_of(index) is not None
        num_others = self.client.num_others
        outcome, size_bytes, digest = commit_shard(
            self.store, shard, io.BytesIO(content), [], max_bytes=10**6, overwrite=False
        )
        self.judge(index, outcome, content)
        nobody_else = not was_there and self.client.num_others == num_others
        assert outcome is Outcome.COMMITTED or not nobody_else, "an attempt lost to itself"
        receipt = Receipt(
            shard=index,
            outcome=outcome,
            num_rows=NUM_ROWS,
            num_rows_with_images=NUM_ROWS,
            num_images=NUM_ROWS,
            rejected={},
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
        roll_forward(self.store, done, FINGERPRINT)
        for index in set(range(NUM_SHARDS)) - done:
            self.attempt(index, machine)

    @precondition(lambda self: self.client.late)
    @rule(which=st.integers(0, 100))
    def a_late_request_arrives(self, which: int) -> None:
        """A request of a driver that is long gone is done now."""
        request = self.client.late.pop(which % len(self.client.late))
        with suppress(ClientError):
            request()

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
