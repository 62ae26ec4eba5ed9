"""Which slots are decided for together, by a clock that the test moves."""

from wmjax.rollout.batches import Batches


def test_a_batch_is_made_when_it_is_full_or_cannot_get_fuller_or_one_has_waited_long_enough() -> None:
    now = 10.0
    batches = Batches(3, 0.5, lambda: now)
    assert batches.patience() is None and batches.take(4) == []
    batches.add(2)
    assert batches.take(4) == [] and batches.patience() == 0.5
    now += 0.25
    batches.add(0)
    assert batches.take(4) == [] and batches.patience() == 0.25
    batches.add(1)
    assert batches.take(4) == [2, 0, 1], "full, in the order of arrival"
    batches.add(3)
    batches.add(1)
    assert batches.take(2) == [3, 1], "the other workers are resetting"
    batches.add(0)
    now += 0.5
    assert batches.patience() == 0 and batches.take(4) == [0], "waited long enough"
    for slot in range(4):
        batches.add(slot)
    assert batches.take(4) == [0, 1, 2] and batches.patience() == 0.5, "one more than a batch waits for its own"


def test_the_fill_counts_the_padding_of_each_group() -> None:
    assert Batches(1, 0.0).fill is None
    batches = Batches(4, 0.0)
    assert batches.fill is None
    batches.count((4, 0))
    batches.count((1, 3))  # share no batch
    assert batches.fill == 8 / 12
