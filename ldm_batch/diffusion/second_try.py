"""What a pipeline does where a batch does not come out as planned: fewer rows, or float32.

Nothing of it lasts: the next batch is tried as planned again, and weights of a second try are freed
when it ends. Must not know what is drawn, nor by which models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from ldm_batch.diffusion.device_memory import give_back_memory, is_out_of_memory
from ldm_batch.diffusion.fixed_shape import FixedShape
from ldm_batch.errors import ShardError
from ldm_batch.made_as import tried_in_float32, without_float32
from ldm_batch.records import Fault


class SecondTries:
    """A pipeline of one fixed shape, while it is used by one thread."""

    def __init__(self, batch_size: int) -> None:
        """Take the planned number of rows of every model call."""
        self._shape = FixedShape(batch_size)
        self._notes: list[str] = []

    @property
    def is_float32(self) -> bool:
        """Whether every part computes in float32."""
        raise NotImplementedError

    def with_batch_size(self, batch_size: int) -> Self:
        """Return another pipeline on the same weights, with its own fixed shape."""
        raise NotImplementedError

    def pop_notes(self) -> list[str]:
        """Return what happened since the last call that a receipt should tell."""
        notes = [*self._notes, *self._shape.pop_notes()]
        self._notes.clear()
        return notes

    def _in_float32(self) -> Self:
        """Return this pipeline in float32, loaded again from its files; whoever asks for it keeps
        it no longer than it draws."""
        raise NotImplementedError

    def _make_once(self, requests: Sequence[Any]) -> list[Any]:
        """Pictures, or faults, of one batch at this shape."""
        raise NotImplementedError

    def _draw(self, requests: Sequence[Any]) -> list[Any]:
        """Pictures, or faults, of one batch, each with how it was made.

        Raises:
            JobError: float32 is needed, and the model's files are others by now.
            ShardError: memory runs out with one row per model call.
        """
        return self._shape.run(
            lambda: self._make(requests), lambda half: self._draw_in_fewer(half, requests)
        )

    def _make(self, requests: Sequence[Any]) -> list[Any]:
        """The same at the planned shape: what half precision spoils is tried in float32."""
        first = self._make_once(requests)
        doubtful = [i for i, one in enumerate(first) if isinstance(one, Fault)]
        if self.is_float32 or not doubtful:
            return first
        faults = [first[i] for i in doubtful]
        again = self._draw_in_float32([requests[i] for i in doubtful], faults)
        for i, picture in zip(doubtful, tried_in_float32(faults, again), strict=True):
            first[i] = picture
        return first

    def _draw_in_fewer(self, half: FixedShape, requests: Sequence[Any]) -> list[Any]:
        """What the pipeline that was planned with half as many rows makes of the same requests."""
        fewer, rows = self.with_batch_size(half.num_rows), half.num_rows
        starts = range(0, len(requests), rows)
        return [
            one
            for start in starts
            for one in self._drawn_by(fewer, half, requests[start : start + rows])
        ]

    def _draw_in_float32(self, requests: Sequence[Any], faults: Sequence[Any]) -> list[Any]:
        """What this pipeline makes in float32; where there is no memory for that, the faults."""
        try:
            return self._drawn_by(self._in_float32(), self._shape, requests)
        except (RuntimeError, MemoryError, ShardError) as error:
            if not is_out_of_memory(error):
                raise
            return without_float32(faults)
        finally:
            give_back_memory()

    def _drawn_by(
        self, other: SecondTries, shape: FixedShape, requests: Sequence[Any]
    ) -> list[Any]:
        """Pictures of another pipeline, whose notes become this one's."""
        other._shape, other._notes = shape, self._notes
        return other._draw(requests)
