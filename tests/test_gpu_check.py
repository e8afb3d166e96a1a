"""The check of a CUDA card runs without one, on a tiny model, and without what it must not need."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

DTYPES = ("float32", "bfloat16")
SCRIPT = Path(__file__).parent / "gpu" / "check.py"
ABSENT = ("pyarrow", "ray", "hydra", "omegaconf", "s3fs", "scipy")
"""What it runs without; of the hub's and torch's own, which import fsspec where they please, the
script's own imports do without that, too."""
RUN = """
import runpy, sys
absent, *sys.argv = sys.argv[1:]
sys.modules.update(dict.fromkeys(absent.split(",")))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def has_card() -> bool:
    """Whether there is a CUDA device; without torch, which takes seconds to import."""
    return shutil.which("nvidia-smi") is not None


def run(*arguments: str, absent: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess[str]:
    """The script, where some packages are as good as not installed."""
    command = [sys.executable, "-c", RUN, ",".join(absent), str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where the check of a CPU put its numbers, and what it printed."""
    folder = tmp_path_factory.mktemp("check")
    ran = run("--cpu", "--tiny", "--json", "found.json", absent=ABSENT, folder=folder)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return folder / "found.json", ran.stdout


def test_what_is_compared_is_the_same_bytes(ended: tuple[Path, str]) -> None:
    found = json.loads(ended[0].read_text())
    assert found["same_bytes"] == dict.fromkeys(
        (
            "again",
            "in another order",
            "at every place, beside others",
            "after memory ran out",
            "as planned after that",
            "NaN in bfloat16, made in float32",
            "memory of the copy in float32 returns",
            "in a second process",
        ),
        True,
    )
    assert found["different_images"]
    assert found["foreign_modules"] == []


def test_rates_stand_beside_what_was_not_measured(ended: tuple[Path, str]) -> None:
    path, printed = ended
    found = json.loads(path.read_text())
    measured = {f"{one['who']} {one['dtype']} at 2" for one in found["rates"]}
    noisy = {name for name, why in found["unmeasured"].items() if why.startswith("fewer steps")}
    assert measured.isdisjoint(noisy)
    assert measured | noisy == {
        f"{who} {dtype} at 2" for who in ("diffusers", "ldm_batch") for dtype in DTYPES
    }
    for rate in found["rates"]:
        assert rate["images_per_s"] > 0
        assert rate["share_of_peak"] is rate["peak_memory_gib"] is None
    if "ldm_batch bfloat16 at 2" in noisy:
        assert found["unmeasured"]["one call of 50 steps"] == "no rate of bfloat16 at 2 to prove"
    else:
        assert found["scaled_to_50_over_50"]["ratio"] > 0
    assert {
        "kernel time over wall": "no CUDA device",
        "CUDA graph of the UNet's call": "no CUDA device",
        "by 2 workers on one card": "no CUDA device",
    }.items() <= found["unmeasured"].items()
    for name in found["unmeasured"]:
        assert f"- {name}: " in printed
    for rate in found["rates"]:
        assert f"| {rate['who']} | {rate['dtype']} | 2 |" in printed
    assert "no card: a CPU" in printed


def test_a_rate_of_a_busy_machine_is_none() -> None:
    """Where the longer call took less time, a rate would be below zero."""
    check = runpy.run_path(str(SCRIPT), run_name="check")
    took = {4: 1.0, 2: 2.0}
    check["measure"].__globals__["seconds"] = lambda call, *_: call() or took[asked[-1]]
    report, asked = check["Report"](60.0), list[int]()
    with report.part("a rate"):
        check["measure"](
            report,
            check["TINY"],
            SimpleNamespace(type="cpu"),
            asked.append,
            who="ldm_batch",
            model=None,
            batch_size=2,
        )
    assert asked == [4, 2]
    assert report.rates == []
    assert report.unmeasured["a rate"].startswith("fewer steps took longer")


@pytest.mark.skipif(has_card(), reason="needs a machine without a CUDA device")
def test_without_a_card_it_says_so(tmp_path: Path) -> None:
    ran = run(absent=(*ABSENT, "fsspec", "botocore"), folder=tmp_path)
    assert ran.returncode == 2, ran.stderr[-2000:]
    assert "no CUDA device here" in ran.stderr
    assert not [*tmp_path.iterdir()]
