"""Run a pipeline at one fixed batch shape: short batches padded, fewer rows where memory runs out.

An image's last bits depend on the shape of its batch, so the shape never follows the number of
requests, nor what was made before: where the device's memory does not suffice for a batch, that
batch alone is made as a pipeline of half as many rows makes it. Must not know what a request is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ldm_batch.diffusion.device_memory import give_back_memory, is_out_of_memory
from ldm_batch.errors import ShardError
from ldm_batch.made_as import in_fewer_rows

Item = TypeVar("Item")


class FixedShape:
    """The number of rows in every model call of one pipeline."""

    def __init__(self, num_rows: int, halvings: Counter[int] | None = None) -> None:
        """Take the number of rows.

        Args:
            halvings: where to count what was made in fewer; None: by itself.
        """
        self.num_rows = num_rows
        self._halvings: Counter[int] = Counter() if halvings is None else halvings

    def fill(self, items: Sequence[Item]) -> list[Item]:
        """Items for one model call: the last one repeated up to `num_rows`."""
        return [*items, *[items[-1]] * (self.num_rows - len(items))]

    def halved(self) -> FixedShape:
        """The shape of half as many rows, whose notes are this one's."""
        return FixedShape(self.num_rows // 2, self._halvings)

    def run(
        self,
        make: Callable[[], Sequence[Any]],
        make_in_fewer: Callable[[FixedShape], Sequence[Any]],
    ) -> list[Any]:
        """Return the pictures of `make()`; where memory runs out, those of `make_in_fewer(half)`,
        each with how it was made.

        Raises:
            ShardError: memory runs out with one row.
        """
        try:
            return list(make())
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
        if self.num_rows == 1:
            raise ShardError(f"out of memory at one image per model call: {message}")
        give_back_memory()  # out here, where no traceback holds tensors any more
        half = self.halved()
        made = make_in_fewer(half)
        self._halvings[self.num_rows] += len(made)
        return in_fewer_rows(made, half.num_rows)

    def pop_notes(self) -> list[str]:
        """Return what happened since the last call that the receipt should tell."""
        notes = [
            f"out of memory at {rows} images per model call: {num_images} made again in calls of "
            f"{rows // 2}; their last bits differ from those of the planned batch_size"
            for rows, num_images in sorted(self._halvings.items(), reverse=True)
        ]
        self._halvings.clear()
        return notes
