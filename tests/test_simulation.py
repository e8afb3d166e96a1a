"""Simulated clusters: the scheduling policy keeps its promises whatever happens to machines."""

from collections import Counter
from dataclasses import replace

import pytest
from bench.cluster_simulation import CALM, Costs, Scenario, Shards, Weather, simulate

from ldm_batch.cluster.schedule import Ending
from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.plan.cut import auto_rows_per_shard, expected_workers, whole_batches
from ldm_batch.records import InputFile

STORM = Weather(
    slow_nodes=0.2,
    noise=0.5,
    hung=1e-3,
    node_life_s=200,
    crash_s=2000,
    transient=0.01,
    poison=0.01,
)
JOB = Scenario(num_rows=40_000, num_workers=40, rows_per_shard=64, costs=Costs(image_s=0.2))
NUM_SHARDS = 625
WASTES = ["loading", "padding", "fixed", "lost", "failed", "copies", "hung", "idle"]


@pytest.mark.parametrize("copy_stragglers", [False, True])
def test_every_shard_ends_once(copy_stragglers: bool) -> None:
    losses: Counter[str] = Counter()
    for seed in range(5):
        scenario = replace(JOB, weather=STORM, copy_stragglers=copy_stragglers)
        out = simulate(scenario, seed)
        assert len(set(out.failed)) == len(out.failed) > 0
        assert out.num_done + len(out.failed) == NUM_SHARDS
        losses += out.num_losses
    assert min(losses[ending] for ending in Ending) > 10


@pytest.mark.parametrize("weather", [CALM, Weather(), STORM], ids=["calm", "usual", "storm"])
def test_every_second_is_accounted_for(weather: Weather) -> None:
    out = simulate(replace(JOB, rows_per_shard=70, weather=weather), 0)
    parts = [getattr(out, f"{part}_s") for part in WASTES]
    assert min(parts) >= 0
    assert sum(parts) + out.useful_s == pytest.approx(out.held_s)
    assert out.held_s <= 40 * out.end_s * (1 + 1e-9)
    assert sum(parts) / out.held_s == pytest.approx(out.waste)


def test_without_trouble_useful_time_is_that_of_the_images() -> None:
    out = simulate(replace(JOB, weather=CALM), 0)
    assert out.useful_s == pytest.approx(40_000 * 0.2)
    assert out.failed == []
    assert out.padding_s == out.lost_s == out.failed_s == 0


def test_the_seed_decides_everything() -> None:
    stormy = replace(JOB, weather=STORM)
    assert simulate(stormy, 1) == simulate(stormy, 1)
    assert simulate(stormy, 1) != simulate(stormy, 2)


@pytest.mark.parametrize("seed", range(5))
def test_copies_never_lengthen_a_job(seed: int) -> None:
    uneven = replace(JOB, weather=replace(CALM, slow_nodes=0.2, noise=0.5))
    without = simulate(replace(uneven, copy_stragglers=False), seed)
    assert simulate(replace(uneven, copy_stragglers=True), seed).end_s <= without.end_s


def test_copies_save_the_job_from_a_hung_shard() -> None:
    hung = replace(JOB, weather=replace(CALM, hung=2 / NUM_SHARDS))
    without = simulate(replace(hung, copy_stragglers=False), 0)
    copied = simulate(replace(hung, copy_stragglers=True), 0)
    assert without.end_s > 1800 > 3 * copied.end_s
    assert copied.num_done == without.num_done == NUM_SHARDS


def test_preemptions_eat_no_attempts() -> None:
    shaky = replace(CALM, node_life_s=100, warned=0.5, replace_s=20)
    quick = replace(JOB.costs, load_s=5)
    out = simulate(replace(JOB, weather=shaky, costs=quick, max_attempts=1), 0)
    assert min(out.num_losses["preempted"], out.num_losses["lost"]) > 20
    assert out.failed == []


def test_a_shard_that_kills_its_worker_takes_no_other_with_it() -> None:
    poison = replace(CALM, poison=0.01)
    out = simulate(replace(JOB, weather=poison, max_attempts=1), 0)
    assert out.num_losses["died"] > 2
    assert len(out.failed) > 2
    assert out.num_failed_good == 0


def test_a_node_on_which_nothing_works_fails_no_shard() -> None:
    bad = replace(CALM, num_bad_nodes=1)
    assert simulate(replace(JOB, weather=bad, max_attempts=1), 0).num_failed_good > 0
    out = simulate(replace(JOB, weather=bad, max_attempts=2), 0)
    assert out.failed == []


def test_shards_cover_the_rows() -> None:
    shards = Shards(1000, 64, InputFile("", "", 0, "", 1000, ""))
    assert [shard.num_rows for shard in shards] == [64] * 15 + [40]
    assert shards[15].row_start == 960


# Rows per shard


@pytest.mark.parametrize("num_images", [1, 2, 3, 7, 16, 1000, 5000])
@pytest.mark.parametrize("batch_size", [1, 16, 48, 100, 4096])
@pytest.mark.parametrize("num_workers", [None, 1, 8, 1000])
def test_auto_fills_batches(num_workers: int | None, batch_size: int, num_images: int) -> None:
    for num_rows in (1, 256, 10_000, 10**6, 10**9):
        rows = auto_rows_per_shard(
            num_rows, num_workers, batch_size=batch_size, num_images_per_prompt=num_images
        )
        images = rows * num_images
        padding = -images % batch_size
        assert rows >= 1
        assert images <= max(1024, batch_size + num_images)
        assert images + num_images > batch_size
        assert padding < max(num_images, 1 if rows > 1 else batch_size)


def test_auto_knows_large_and_small_jobs() -> None:
    def auto(num_rows: int, num_workers: int | None = None) -> int:
        return auto_rows_per_shard(num_rows, num_workers, batch_size=16)

    assert auto(1) == auto(1, 1000) == auto(256) == 32
    assert auto(256, 2) == 32
    assert auto(10**6, 8) == auto(10**9, 1000) == auto(10**9) == 1024
    assert auto(10**6, 1000) == auto(10**6) == 64


def test_auto_grows_with_rows_and_shrinks_with_workers() -> None:
    for num_workers in (None, 1, 8, 64):
        sizes = [auto_rows_per_shard(4**n, num_workers, batch_size=16) for n in range(16)]
        assert sizes == sorted(sizes)
    sizes = [auto_rows_per_shard(10**5, 2**n, batch_size=16) for n in range(9)]
    assert sizes == sorted(sizes, reverse=True)


def test_auto_takes_the_workers_that_the_configuration_names() -> None:
    cluster = ClusterConfig(address="auto")
    assert expected_workers(cluster) is None
    assert expected_workers(replace(cluster, min_workers=16)) == 16
    assert expected_workers(replace(cluster, min_workers=16, max_workers=64)) == 64
    assert expected_workers(replace(cluster, num_workers=3)) == 3
    assert expected_workers(ClusterConfig()) == 8
    assert expected_workers(ClusterConfig(executor="in_process", num_workers=3)) == 1


@pytest.mark.parametrize(("rows", "rounded"), [(1000, 992), (15, 15), (16, 16), (1, 1)])
def test_whole_batches(rows: int, rounded: int) -> None:
    assert whole_batches(rows, batch_size=16) == rounded


@pytest.mark.parametrize(
    ("num_rows", "num_workers", "image_s"), [(100_000, 64, 0.05), (10_000, 8, 1.0), (256, 2, 1.0)]
)
def test_auto_wastes_little_more_than_the_best(
    num_rows: int, num_workers: int, image_s: float
) -> None:
    job = Scenario(num_rows, num_workers, 1, costs=Costs(image_s=image_s))
    rows = auto_rows_per_shard(num_rows, num_workers, batch_size=16)
    wastes = {
        size: simulate(replace(job, rows_per_shard=size), 0).waste
        for size in (rows, 16, 32, 64, 128, 256, 1024)
    }
    assert wastes[rows] <= min(wastes.values()) + 0.03
    assert wastes[rows] < wastes[1024] - 0.05
