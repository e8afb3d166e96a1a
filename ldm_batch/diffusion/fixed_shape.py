"""Run a pipeline at one fixed batch shape: short batches padded, larger ones split.

An image's last bits depend on the shape of its batch, so the shape never follows the number of
requests. Only when the device's memory does not suffice is it halved, for good and with a note.
Must not know what a request or a result is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from ldm_batch.errors import ShardError

Item = TypeVar("Item")
Result = TypeVar("Result")


class FixedShape:
    """The number of rows in every model call of one pipeline."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._notes: list[str] = []

    def run(
        self, items: Sequence[Item], make: Callable[[Sequence[Item]], Sequence[Result]]
    ) -> list[Result]:
        """Return `make`'s results for all items, calling it with exactly `num_rows` each time.

        Padding repeats the last item; see `run_halving` for what happens where memory runs out.
        """
        return self.run_halving(lambda num_rows: self._run_cut(items, make, num_rows))

    def run_halving(self, make: Callable[[int], Result]) -> Result:
        """Return `make(num_rows)`; where memory runs out, halve `num_rows` and start again.

        All of one attempt is made again, so that it has one shape.

        Raises:
            ShardError: memory runs out with one row.
        """
        while True:
            try:
                return make(self.num_rows)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                message = str(error).splitlines()[0]
            self._halve(message)

    def pop_notes(self) -> list[str]:
        """Return what happened since the last call that the receipt should tell."""
        notes, self._notes = self._notes, []
        return notes

    @staticmethod
    def _run_cut(
        items: Sequence[Item], make: Callable[[Sequence[Item]], Sequence[Result]], num_rows: int
    ) -> list[Result]:
        results: list[Result] = []
        for start in range(0, len(items), num_rows):
            rows = items[start : start + num_rows]
            padding = [items[-1]] * (num_rows - len(rows))
            results += make([*rows, *padding])[: len(rows)]
        return results

    def _halve(self, message: str) -> None:
        if self.num_rows == 1:
            raise ShardError(f"out of memory at one image per model call: {message}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        before, self.num_rows = self.num_rows, self.num_rows // 2
        self._notes.append(
            f"out of memory at {before} images per model call, {self.num_rows} from here on; "
            "their last bits differ from those of the planned batch_size"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that memory, of the device or the host, ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return "out of memory" in text or "can't allocate memory" in text
