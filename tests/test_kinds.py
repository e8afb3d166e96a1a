"""Problems of a dataset by kind: the same trouble in many places is one line with its number."""

import io

import pytest

from ldm_batch.commands.verify.command import print_verification
from ldm_batch.commands.verify.kinds import count_kinds, kind_of
from ldm_batch.commands.verify.verification import Verification


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (
            "data/00017.parquet: has other columns than the first object",
            "has other columns than the first object",
        ),
        (
            "data/00001.parquet: row 12, image 0: has seed 77, which is not derived",
            "has seed …, which is not derived",
        ),
        (
            "data/00001.parquet: a.parquet#3 #0: has seed 77, which is not derived",
            "has seed …, which is not derived",
        ),
        (
            "data/00001.parquet: cat: two #11: not made again: it differs by 3.5e-2 levels",
            "not made again: it differs by … levels",
        ),
        ("data/00001.parquet: 12 images of 10 rows", "… images of … rows"),
        (
            ".ldm_batch/plan: the shards of a.parquet do not cover its rows",
            "the shards of a.parquet do not cover its rows",
        ),
        ("data/00000.parquet: a #0: has SHA-256 0123456789ab..., was 'x'", "has SHA-… …, was …"),
    ],
)
def test_a_kind_has_no_place(problem: str, kind: str) -> None:
    assert kind_of(problem) == kind


def test_kinds_come_before_rows() -> None:
    problems = [f"data/0000{i}.parquet: k{i} #0: has seed {i}" for i in range(9)]
    problems.append("data/00000.parquet: damaged: bits")
    assert count_kinds(problems) == [("has seed …", 9), ("damaged: bits", 1)]
    found = Verification(1, 1, [], {}, 9, 9, 0, {}, 0, 0, {}, [], problems, None)
    out = io.StringIO()
    print_verification(found, out)
    lines = out.getvalue().splitlines()
    first = lines.index("  9 of a kind: has seed …")
    assert lines[first + 1] == "  1 of a kind: damaged: bits"
    assert lines[first + 2] == "  wrong: data/00000.parquet: k0 #0: has seed 0"
    assert lines[-1] == "10 problems"
