"""What was painted anew, laid over the image that it belongs to: all else stays, to the bit.

Must not know models, nor who painted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def paste(
    painted: NDArray[np.uint8], image: NDArray[np.uint8], mask: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Take from one image where a mask is true, from the other elsewhere.

    Args:
        painted: uint8 `[h, w, 3]`.
        image: the same size; what it shows outside of the mask comes out unchanged.
        mask: bool `[h, w]`.

    Returns:
        A new array, uint8 `[h, w, 3]`.
    """
    assert painted.shape == image.shape == (*mask.shape, 3)
    return np.where(mask[..., None], painted, image)
