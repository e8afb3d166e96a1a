"""Whose trouble it is that a batch raises: of one of its rows, or of the whole shard.

Must not know who draws, nor how rows are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace

from ldm_batch.config import CallConfig
from ldm_batch.errors import LdmBatchError, one_line
from ldm_batch.generate.pipeline import Picture, Pipeline
from ldm_batch.records import Call, Fault, Reason, Request

OF_A_DEVICE = ("CUDA error", "cuDNN error", "out of memory", "can't allocate memory")
"""What torch says of a device, or of memory, in errors of kinds that say nothing."""


def draw(
    pipeline: Pipeline, requests: Sequence[Request], witnesses: Iterable[Request]
) -> Sequence[Picture]:
    """Draw one batch; where it raises, each of its requests by itself, padded as always.

    What raises alone is its own trouble, and a fault, if the pipeline draws all the same: another
    request of the batch, or one of the witnesses. Where it draws none of them, it is the shard's.

    Args:
        pipeline: who draws; the requests are of one of its batches.
        requests: of the batch.
        witnesses: requests beside these, asked for only where none of them is drawn.

    Raises:
        Exception: what the first request met, where it is not the trouble of requests.
    """
    try:
        return pipeline.generate(requests)
    except Exception as error:
        if not _may_be_of_a_row(error):
            raise
    made: list[Picture] = []
    raised: list[Exception] = []
    for request in requests:
        try:
            [picture] = pipeline.generate([request])
        except Exception as error:
            if not _may_be_of_a_row(error):
                raise
            raised.append(error)
            told = f"the pipeline does not draw it: {type(error).__name__}: {one_line(error)}"
            picture = Fault(Reason.OUT_OF_RANGE, told)
        made.append(picture)
    if len(raised) == len(requests) and not _draws_any(pipeline, witnesses):
        raise raised[0]
    return made


def as_usual(call: Call, *, usual: CallConfig, is_sized: bool) -> Call:
    """The call of a row with the job's own numbers where the job has some.

    Args:
        is_sized: the job says the size, too, and not the row's image.
    """
    sides = () if is_sized else ("height", "width")
    names = [field.name for field in fields(call) if field.name not in sides]
    numbers = {name: getattr(usual, name) for name in names}
    return replace(call, **{name: value for name, value in numbers.items() if value is not None})


def _draws_any(pipeline: Pipeline, witnesses: Iterable[Request]) -> bool:
    """Tell whether a pipeline draws one of some requests."""
    for request in witnesses:
        try:
            pipeline.generate([request])
        except Exception as error:
            if not _may_be_of_a_row(error):
                raise
        else:
            return True
    return False


def _may_be_of_a_row(error: Exception) -> bool:
    """Tell whether an exception may come of what a request asks, not of the machine or the job."""
    if isinstance(error, LdmBatchError | OSError | MemoryError):
        return False
    is_device = type(error).__name__ in ("AcceleratorError", "OutOfMemoryError")
    return not is_device and not any(words in str(error) for words in OF_A_DEVICE)
