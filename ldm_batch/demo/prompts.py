"""The rows of the demo job: captions of the demo world, and a few deliberately bad rows.

Pure data, a list of dicts; who writes it to Parquet decides the column types.
"""

from typing import Any

from ldm_batch.demo.world import caption, draw_specs

MAX_PROMPT_WORDS = 400


def make_demo_prompts(num_rows: int = 256, seed: int = 0) -> list[dict[str, Any]]:
    """Make rows with the keys `id`, `prompt` and `num_inference_steps` (None: the job's default).

    Six rows in every 256 are bad, one of each kind of `BAD_ROWS`, spread over the table; with fewer
    than 32 rows all are good. An over-long prompt begins with a caption and goes on past 77 tokens.
    """
    if num_rows < 0:
        raise ValueError(f"num_rows must be at least 0, not {num_rows}")
    rows: list[dict[str, Any]] = [
        {"id": f"scene-{index:05d}", "prompt": caption(spec), "num_inference_steps": None}
        for index, spec in enumerate(draw_specs(seed, num_rows))
    ]
    if num_rows < 32:
        return rows
    for place, kind in _bad_places(num_rows):
        rows[place] = _spoil(rows[place], kind, duplicate_of=rows[place - 1]["id"])
    return rows


BAD_ROWS = (
    "null prompt",
    "empty prompt",
    "blank prompt",
    "duplicate id",
    "over-long prompt",
    "negative number of steps",
)


def _bad_places(num_rows: int) -> list[tuple[int, str]]:
    repeats = max(1, num_rows // 256)
    kinds = BAD_ROWS * repeats
    stride = num_rows / (len(kinds) + 1)
    return [(int((index + 1) * stride), kind) for index, kind in enumerate(kinds)]


def _spoil(row: dict[str, Any], kind: str, *, duplicate_of: str) -> dict[str, Any]:
    over_long = f"{row['prompt']}, " + "and so on " * (MAX_PROMPT_WORDS // 3)
    changes: dict[str, dict[str, Any]] = {
        "null prompt": {"prompt": None},
        "empty prompt": {"prompt": ""},
        "blank prompt": {"prompt": "  \t "},
        "duplicate id": {"id": duplicate_of},
        "over-long prompt": {"prompt": over_long},
        "negative number of steps": {"num_inference_steps": -20},
    }
    return row | changes[kind]
