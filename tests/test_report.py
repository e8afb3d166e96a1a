"""What a run says of itself before it begins: whose model draws, where nobody chose one."""

import io

import pytest

from ldm_batch.config import JobConfig, ModelConfig
from ldm_batch.demo.world import COLOURS, SHAPES, spec_of_caption
from ldm_batch.drive.report import print_model

DEMO = JobConfig(model=ModelConfig(path="demo:text_to_image"))


def told(job: JobConfig, *overrides: str) -> str:
    out = io.StringIO()
    print_model(job, overrides, out)
    return out.getvalue()


def test_the_demo_model_is_named_with_what_it_knows() -> None:
    line = told(DEMO, "source.uri=prompts.parquet", "sink.uri=out")
    assert line.count("\n") == 1
    assert "the demo model draws, which knows coloured shapes on plain backgrounds" in line
    assert "conf=..." in line
    caption = f"a {COLOURS[0]} {SHAPES[0]} on a {COLOURS[2]} background"
    assert spec_of_caption(caption)
    assert spec_of_caption("a photograph of a cat") is None


@pytest.mark.parametrize(
    "overrides",
    [
        ["conf=demo", "source.uri=in"],
        ["model=demo", "source.uri=in"],
        ["++model.path=demo:text_to_image", "source.uri=in"],
        ["sink.uri=out"],
        [],
    ],
)
def test_what_was_chosen_or_is_the_demo_itself_needs_no_word(overrides: list[str]) -> None:
    assert told(DEMO, *overrides) == ""


def test_another_model_needs_no_word() -> None:
    assert told(JobConfig(model=ModelConfig(path="models/ldm")), "source.uri=in") == ""
