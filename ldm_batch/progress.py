"""What a running job tells: one line that moves on a terminal, plain lines now and then elsewhere.

Counts what it is told; must not know plans, workers or storage.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import TextIO

from ldm_batch.records import Failure, Outcome, Receipt, Shard

LINE_EVERY_S = 10.0
MOVE_EVERY_S = 0.2
"""A line is added to a log, which keeps them all, less often than a terminal's one line moves."""


class Tally:
    """What has become of the shards of a run so far."""

    def __init__(self) -> None:
        self.num_shards = 0
        self.num_rows = 0
        self.num_images = 0
        self.rejected: Counter[str] = Counter()
        self.seen_in: dict[str, int] = {}
        """A shard that rejected a row, by the reason."""
        self.lost: Counter[Outcome] = Counter()
        self.failures: list[Failure] = []

    @property
    def num_rejected(self) -> int:
        """Rows that became no image."""
        return self.rejected.total()

    def add(self, event: Receipt | Failure) -> None:
        """Count one finished shard."""
        if isinstance(event, Failure):
            self.failures.append(event)
            return
        self.num_shards += 1
        self.num_rows += event.num_rows
        self.num_images += event.num_images
        self.rejected.update(event.rejected)
        self.seen_in = {reason: event.shard for reason in event.rejected} | self.seen_in
        if event.outcome in (Outcome.FOUND, Outcome.LOST_TO_SAME, Outcome.LOST_TO_OTHER):
            self.lost[event.outcome] += 1


class Progress:
    """Prints how far a run is."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._num_rows = self._num_shards = 0
        self._is_terminal = out.isatty()
        self._started = time.monotonic()
        self._shown = -1
        self._last = 0.0 if self._is_terminal else self._started

    def expect(self, shards: Sequence[Shard]) -> None:
        """Count these shards as what there is to do."""
        self._num_rows, self._num_shards = sum(s.num_rows for s in shards), len(shards)

    def show(self, tally: Tally, *, force: bool = False) -> None:
        """Print where the run stands, if it is time to."""
        now = time.monotonic()
        if not force and now - self._last < (MOVE_EVERY_S if self._is_terminal else LINE_EVERY_S):
            return
        self._last = now
        if force and tally.num_shards == self._shown:
            return
        self._shown = tally.num_shards
        line = self._line(tally, now - self._started)
        print(f"\r\033[K{line}" if self._is_terminal else line, file=self._out, flush=True, end="")
        if not self._is_terminal:
            print(file=self._out, flush=True)

    def end(self) -> None:
        """Leave the moving line where it is and go to the next."""
        if self._is_terminal:
            print(file=self._out, flush=True)

    def _line(self, tally: Tally, elapsed_s: float) -> str:
        rate = tally.num_images / elapsed_s if elapsed_s > 0 else 0.0
        left = self._num_rows - tally.num_rows
        remaining_s = elapsed_s * left / tally.num_rows if tally.num_rows else None
        parts = [
            f"{tally.num_rows:,}/{self._num_rows:,} rows",
            f"{tally.num_shards}/{self._num_shards} shards",
            f"{rate:.2f} images/s",
            f"ETA {_duration(remaining_s)}",
            f"{tally.num_rejected:,} rejected",
        ]
        if tally.failures:
            parts.append(f"{len(tally.failures)} shards failed")
        return " | ".join(parts)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "--:--"
    minutes, seconds_left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds_left:02d}" if hours else f"{minutes}:{seconds_left:02d}"


def tell(out: TextIO, message: str) -> None:
    """Print a line now: logs of a job that waits must not stand in a buffer."""
    print(message, file=out, flush=True)
