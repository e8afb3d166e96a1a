"""Who makes which shard: attempts, preemption, retries elsewhere, and copies of stragglers."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_batch.cluster.attempts import Trouble
from ldm_batch.cluster.schedule import COPY_AFTER, MAX_LOSSES, MAX_PREEMPTIONS, Ending, Schedule
from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.errors import JobError
from ldm_batch.records import Failure, InputFile, Shard

FILE = InputFile("p.parquet", "/p.parquet", 1, "1", 80, "00")
TROUBLE = Trouble("cursed")


def make(num_shards: int, *nodes: str, **settings: object) -> Schedule:
    """A schedule with one loaded worker, 0, 1, ..., on each of the named nodes."""
    shards = [Shard(i, FILE, i * 10, 10) for i in range(num_shards)]
    schedule = Schedule(shards, ClusterConfig(**{"shards_in_flight": 1, **settings}))  # type: ignore[arg-type]
    for number, node in enumerate(nodes):
        schedule.add_worker(number, node)
    return schedule


def handed(schedule: Schedule, now: float = 0.0, num_coming: int = 0) -> list[tuple[int, int]]:
    """Worker and shard of what is handed out now."""
    given = schedule.hand_out(now, num_coming=num_coming)
    return [(number, shard.index) for number, shard in given]


def test_every_idle_worker_gets_a_shard_then_one_ahead_while_there_are_plenty() -> None:
    schedule = make(5, "a", "a", shards_in_flight=2)
    assert handed(schedule) == [(0, 0), (1, 1), (0, 2), (1, 3)]
    assert handed(schedule) == []
    assert schedule.finish(1, 1, 1.0)
    assert handed(schedule) == []  # the last one waits for a worker without any
    assert schedule.finish(1, 3, 1.0)
    assert handed(schedule) == [(1, 4)]


def test_trouble_is_tried_again_on_another_node_until_the_attempts_are_used_up() -> None:
    schedule = make(1, "a", "a", "b", max_attempts=3)
    assert handed(schedule) == [(0, 0)]
    assert schedule.fail(0, 0, TROUBLE) is None
    assert handed(schedule) == [(2, 0)]
    assert schedule.fail(2, 0, TROUBLE) is None
    assert handed(schedule) == [(1, 0)]
    assert schedule.fail(1, 0, TROUBLE) == Failure(0, 3, "cursed")
    assert schedule.num_unfinished == 0


def test_what_is_being_made_for_too_long_hangs_and_what_waits_does_not() -> None:
    schedule = make(3, "a", shards_in_flight=2, max_shard_s=10)
    assert handed(schedule) == [(0, 0), (0, 1)]
    assert schedule.find_hung(1.0) == []
    assert schedule.finish(0, 0, 9.0)
    assert schedule.find_hung(9.0) == []  # from here on the second is being made
    assert schedule.find_hung(18.9) == []
    [(number, shard)] = schedule.find_hung(19.0)
    assert (number, shard.index) == (0, 1)
    assert make(1, "a").find_hung(1e9) == []


def test_on_one_node_another_worker_tries() -> None:
    schedule = make(1, "a", "a")
    assert handed(schedule) == [(0, 0)]
    schedule.fail(0, 0, TROUBLE)
    assert handed(schedule) == [(1, 0)]


def test_in_company_shards_are_taken_from_the_end() -> None:
    schedule = make(5, "a")
    assert handed(schedule) == [(0, 0)]
    schedule.finish(0, 0, 1.0)
    schedule.meet_another(from_end=True)
    for shard in (4, 3):
        assert handed(schedule) == [(0, shard)]
        schedule.finish(0, shard, 1.0)
    schedule.meet_another(from_end=False)
    for shard in (1, 2):
        assert handed(schedule) == [(0, shard)]
        schedule.finish(0, shard, 1.0)
    assert schedule.num_unfinished == 0


def test_nothing_is_taken_ahead_that_a_worker_on_its_way_can_make() -> None:
    schedule = make(3, "a", shards_in_flight=2)
    assert handed(schedule, num_coming=2) == [(0, 0)]
    assert handed(schedule, num_coming=2) == []
    assert handed(schedule, num_coming=1) == [(0, 1)]


def test_a_copy_goes_to_another_node_if_it_can() -> None:
    schedule = make(5, "a", "a", "b", copy_stragglers=True)
    assert handed(schedule) == [(0, 0), (1, 1), (2, 2)]
    assert schedule.finish(1, 1, 1.0)
    assert schedule.finish(2, 2, 1.0)
    assert handed(schedule, 1.0) == [(1, 3), (2, 4)]
    assert schedule.finish(1, 3, 2.0)
    assert schedule.finish(2, 4, 2.0)
    assert handed(schedule, 2.0) == [(2, 0)]


def test_a_job_error_is_raised() -> None:
    schedule = make(1, "a")
    handed(schedule)
    with pytest.raises(JobError, match="the model changed"):
        schedule.fail(0, 0, Trouble("the model changed", is_job_error=True))


@pytest.mark.parametrize(
    ("ending", "num_excused"),
    [(Ending.PREEMPTED, MAX_PREEMPTIONS), (Ending.LOST, MAX_LOSSES), (Ending.DIED, 0)],
)
def test_what_counts_as_an_attempt_when_a_worker_ends(ending: Ending, num_excused: int) -> None:
    schedule = make(1, max_attempts=1)
    for number in range(num_excused):
        schedule.add_worker(number, f"node {number}")
        assert handed(schedule) == [(number, 0)]
        assert schedule.lose_worker(number, ending, "gone") == []
    schedule.add_worker(num_excused, "last node")
    assert handed(schedule) == [(num_excused, 0)]
    assert schedule.lose_worker(num_excused, ending, "gone") == [Failure(0, 1, "gone")]


def test_of_two_shards_in_a_dying_worker_each_is_tried_alone() -> None:
    schedule = make(2, "a", shards_in_flight=2, max_attempts=1)
    assert handed(schedule) == [(0, 0), (0, 1)]
    assert schedule.lose_worker(0, Ending.DIED, "gone") == []
    schedule.add_worker(1, "a")
    assert handed(schedule) == [(1, 0)]
    assert schedule.lose_worker(1, Ending.DIED, "gone") == [Failure(0, 1, "gone")]
    schedule.add_worker(2, "a")
    assert handed(schedule) == [(2, 1)]
    assert schedule.finish(2, 1, 1.0)
    assert schedule.num_unfinished == 0


def test_a_retiring_worker_finishes_what_it_has_and_gets_nothing_new() -> None:
    schedule = make(3, "a", "b")
    assert handed(schedule) == [(0, 0), (1, 1)]
    schedule.retire_worker(0)
    assert not schedule.is_idle(0)
    assert schedule.finish(0, 0, 1.0)
    assert schedule.is_idle(0)
    assert handed(schedule) == []
    schedule.finish(1, 1, 1.0)
    assert handed(schedule) == [(1, 2)]


def make_with_straggler(**settings: object) -> Schedule:
    """Two workers, three shards: two are done after a second each, 2 is with worker 0 since 1 s."""
    schedule = make(3, "a", "b", copy_stragglers=True, **settings)
    assert handed(schedule, 0.0) == [(0, 0), (1, 1)]
    assert schedule.finish(0, 0, 1.0)
    assert handed(schedule, 1.0) == [(0, 2)]
    assert schedule.finish(1, 1, 1.0)
    return schedule


def test_an_idle_worker_takes_a_copy_of_a_straggler_and_the_first_to_finish_counts() -> None:
    schedule = make_with_straggler()
    assert handed(schedule, 1.0 + 0.99 * COPY_AFTER) == []
    assert handed(schedule, 1.0 + 1.01 * COPY_AFTER) == [(1, 2)]
    assert handed(schedule, 100.0) == []  # one copy, not more
    assert schedule.finish(1, 2, 4.0)
    assert schedule.num_unfinished == 0
    assert not schedule.finish(0, 2, 5.0)


def test_no_copies_unless_asked_for() -> None:
    schedule = make_with_straggler()
    schedule._cluster.copy_stragglers = False
    assert handed(schedule, 100.0) == []


def test_the_failure_of_one_of_two_copies_leaves_the_other_to_decide() -> None:
    schedule = make_with_straggler(max_attempts=1)
    assert handed(schedule, 10.0) == [(1, 2)]
    assert schedule.fail(0, 2, TROUBLE) is None
    assert handed(schedule, 11.0) == []
    assert schedule.finish(1, 2, 12.0)
    assert schedule.num_unfinished == 0


def test_when_both_copies_fail_the_shard_fails_once() -> None:
    schedule = make_with_straggler(max_attempts=1)
    assert handed(schedule, 10.0) == [(1, 2)]
    assert schedule.fail(0, 2, TROUBLE) is None
    assert schedule.lose_worker(1, Ending.DIED, "gone") == [Failure(2, 2, "gone")]
    assert schedule.num_unfinished == 0


def test_a_shard_ahead_in_a_busy_worker_is_copied_at_once() -> None:
    schedule = make(4, "a", shards_in_flight=2, copy_stragglers=True)
    assert handed(schedule, 0.0) == [(0, 0), (0, 1)]
    assert schedule.finish(0, 0, 1.0)
    assert handed(schedule, 1.0) == [(0, 2)]
    assert schedule.finish(0, 1, 2.0)
    assert handed(schedule, 2.0) == [(0, 3)]
    schedule.add_worker(1, "b")
    assert handed(schedule, 2.0) == [(1, 3)]


Step = tuple[str, int, int]
WHATS = ["fail", "lose", "died", "add", "finish", "retire"]
STEPS = st.lists(st.tuples(st.sampled_from(WHATS), st.integers(0, 9), st.integers(0, 9)))


@given(STEPS, st.integers(1, 12), st.integers(1, 3), st.booleans())
def test_whatever_happens_every_shard_ends_exactly_once(
    steps: list[Step], num_shards: int, in_flight: int, copies: bool
) -> None:
    schedule = make(num_shards, "a", shards_in_flight=in_flight, copy_stragglers=copies)
    running: dict[int, list[int]] = {0: []}
    ended: list[int] = []
    usable = {0}
    for now, (what, chosen, place) in enumerate([*steps, *_to_the_end(num_shards)]):
        if not usable or what == "add":
            number = 100 + now
            schedule.add_worker(number, f"node {place % 3}")
            running[number] = []
            usable.add(number)
        for given_to, shard in handed(schedule, float(now)):
            assert given_to in usable
            running[given_to].append(shard)
            assert len(running[given_to]) <= in_flight
        number = sorted(running)[chosen % len(running)]
        if what in ("lose", "died"):
            ending = Ending.LOST if what == "lose" else Ending.DIED
            ended += [f.shard for f in schedule.lose_worker(number, ending, "gone")]
            del running[number]
            usable.discard(number)
        elif what == "retire":
            schedule.retire_worker(number)
            usable.discard(number)
        elif running[number]:
            shard = running[number].pop(place % len(running[number]))
            if what == "fail":
                failure = schedule.fail(number, shard, TROUBLE)
                ended += [] if failure is None else [shard]
            elif schedule.finish(number, shard, float(now)):
                ended.append(shard)
        if not running:
            running[-1 - now] = []
            schedule.add_worker(-1 - now, "a")
            usable.add(-1 - now)
    assert sorted(ended) == list(range(num_shards))
    assert schedule.num_unfinished == 0


def _to_the_end(num_shards: int) -> Iterator[Step]:
    """Enough to finish whatever is left, on new workers on three nodes."""
    for place in range(3):
        yield "add", 0, place
    for turn in range(200 * num_shards):
        yield "finish", turn, turn
