"""What the rest of the program knows of whoever draws: counted tokens, images, a description.

Must not know any one model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ldm_batch.made_as import MadeAs
from ldm_batch.records import Call, Fault, Made, PromptCount, Request

BatchKey = Callable[[Call], tuple[Call, int]]
"""call -> what calls must share to be in one batch, and how many images one batch may have."""


Picture = NDArray[np.uint8] | Made | Fault
"""What becomes of a request: pixels `[H, W, 3]`, or 4 with alpha; those and more; or why there are
none."""


class Pipeline(Protocol):
    """What the rest of the program knows of a model."""

    def count_tokens(self, prompts: Sequence[str]) -> list[PromptCount]:
        """Tokens of each prompt, and whether the text encoder would cut it."""

    def batch_key(self, call: Call) -> tuple[Call, int]:
        """What images of one batch have in common, and how many make one; see `BatchKey`."""

    def generate(self, requests: Sequence[Request]) -> Sequence[Picture]:
        """One image per request (uint8, height x width x 3), all of one `batch_key`; what an
        image looks like does not depend on the requests beside it; in more torch threads than one
        its last bits may on its place. One that was made otherwise
        than planned is a `Made` whose column `made_as` says how."""

    def as_made(self, how: MadeAs) -> Pipeline:
        """The pipeline whose images are those that this one made otherwise than planned, so."""

    def describe(self) -> dict[str, Any]:
        """What made the images, for provenance; JSON values."""

    def pop_notes(self) -> list[str]:
        """What happened since the last call that a receipt should tell, such as a split batch."""
