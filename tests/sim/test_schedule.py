"""The schedule: which worker runs which episode next."""

from wmjax.sim.episode import EpisodeId
from wmjax.sim.schedule import Schedule


def episodes(*counts: int) -> list[EpisodeId]:
    return [EpisodeId("suite", task, "random", index) for task, count in enumerate(counts) for index in range(count)]


def test_every_episode_is_handed_out_once():
    schedule, everything = Schedule(episodes(5, 3, 1)), episodes(5, 3, 1)
    taken = []
    while (episode := schedule.take(len(taken) % 3)) is not None:
        taken.append(episode)
    assert sorted(taken) == sorted(everything)


def test_slots_keep_their_task_and_share_only_the_last_one():
    schedule = Schedule(episodes(4, 4, 4))
    order = [(slot, schedule.take(slot).task_id) for _ in range(6) for slot in (0, 1)]
    taken = [[task for slot, task in order if slot == wanted] for wanted in (0, 1)]
    assert taken == [[0, 0, 0, 0, 2, 2], [1, 1, 1, 1, 2, 2]]


def test_an_episode_that_is_put_back_comes_again_last():
    schedule = Schedule(episodes(2))
    first = schedule.take(0)
    schedule.put_back(first)
    assert [schedule.take(0).index, schedule.take(0).index] == [1, 0]
    assert schedule.take(0) is None
    schedule.put_back(first)
    assert schedule.take(1) == first
