"""What a run tells: a line that moves on a terminal, plain lines elsewhere."""

import io
import re

import pytest

from ldm_batch.progress import Progress, Tally
from ldm_batch.records import Failure, InputFile, Outcome, Receipt, Shard


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def receipt(outcome: Outcome = Outcome.COMMITTED, **changes: object) -> Receipt:
    rejected = {"null_prompt": 2, "empty_prompt": 1}
    values = {"num_rows": 1000, "num_rows_with_images": 997, "num_images": 1994}
    return Receipt(
        0, outcome, **(values | changes), rejected=rejected, object_bytes=1, object_sha256=""
    )


def expecting(out: io.StringIO) -> Progress:
    """The progress of a run that has four shards of 1,000 rows to make."""
    file = InputFile("a", "a", 1, "", 4000, "")
    progress = Progress(out)
    progress.expect([Shard(i, file, i * 1000, 1000) for i in range(4)])
    return progress


def tally_of(*events: Receipt | Failure) -> Tally:
    tally = Tally()
    for event in events:
        tally.add(event)
    return tally


def test_a_tally_counts() -> None:
    tally = tally_of(receipt(), receipt(Outcome.LOST_TO_SAME), Failure(7, 3, "x"), receipt())
    assert (tally.num_shards, tally.num_rows, tally.num_images) == (3, 3000, 5982)
    assert (tally.num_rejected, dict(tally.rejected)) == (9, {"null_prompt": 6, "empty_prompt": 3})
    assert dict(tally.lost) == {Outcome.LOST_TO_SAME: 1}
    assert tally.failures == [Failure(7, 3, "x")]


def test_a_line_tells_where_a_run_stands() -> None:
    out = io.StringIO()
    tally = tally_of(receipt(), Failure(7, 3, "x"))
    expecting(out).show(tally, force=True)
    pattern = r"1,000/4,000 rows \| 1/4 shards \| [\d.]+ images/s \| ETA 0:00 \| 3 rejected \| 1 sh"
    assert re.match(pattern, out.getvalue())
    assert out.getvalue().endswith("1 shards failed\n")


def test_before_the_first_shard_there_is_no_estimate() -> None:
    out = io.StringIO()
    expecting(out).show(Tally(), force=True)
    assert out.getvalue() == "0/4,000 rows | 0/4 shards | 0.00 images/s | ETA --:-- | 0 rejected\n"


def test_plain_lines_come_now_and_then() -> None:
    """Not at each shard, but once at the end."""
    out = io.StringIO()
    progress = expecting(out)
    tally = Tally()
    for _ in range(4):
        tally.add(receipt())
        progress.show(tally)
    assert out.getvalue() == ""
    progress.show(tally, force=True)
    progress.end()
    assert len(out.getvalue().splitlines()) == 1
    assert "\r" not in out.getvalue()


def test_what_was_shown_is_not_shown_again() -> None:
    out = io.StringIO()
    progress, tally = expecting(out), tally_of(receipt())
    progress.show(tally, force=True)
    progress.show(tally, force=True)
    assert len(out.getvalue().splitlines()) == 1


def test_a_terminal_has_one_line_that_moves() -> None:
    out = Terminal()
    progress, tally = expecting(out), Tally()
    progress.show(tally)
    for _ in range(2):
        tally.add(receipt())
        progress.show(tally, force=True)
    progress.end()
    assert out.getvalue().count("\r\x1b[K") == 3
    assert out.getvalue().count("\n") == 1
    assert "2,000/4,000 rows" in out.getvalue().splitlines()[-1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "--:--"), (0.0, "0:00"), (61.9, "1:01"), (3599.0, "59:59"), (360000.0, "100:00:00")],
)
def test_durations(seconds: float | None, text: str) -> None:
    from ldm_batch import progress

    assert progress._duration(seconds) == text
