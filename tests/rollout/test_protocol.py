"""Protocols: the files that ship, and what is refused."""

import pytest

from wmjax.errors import UserError
from wmjax.rollout.protocol import Protocol, load_protocol, protocol_names
from wmjax.sim.demonstration import demonstration_id

LIMITS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520}


def test_the_benchmark_is_ten_tasks_of_fifty_initial_states_with_the_published_limits():
    for name, limit in LIMITS.items():
        protocol = load_protocol(name)
        assert (protocol.suite, protocol.init, protocol.max_steps) == (name, "benchmark", limit)
        keys = [episode.key for episode in protocol.episodes()]
        assert len(set(keys)) == len(keys) == 500
        assert keys[0] == f"{name}/0/benchmark/0" and keys[-1] == f"{name}/9/benchmark/49"


def test_every_shipped_protocol_loads_and_development_shares_nothing_with_demonstrations():
    for name in protocol_names():
        assert load_protocol(name).name == name
    dev = set(load_protocol("spatial_dev", episodes_per_task=500).episodes())
    demos = {demonstration_id("libero_spatial", t, s, a, 0) for t in range(10) for s in range(500) for a in range(3)}
    assert not dev & demos
    with pytest.raises(UserError, match="demonstrations"):
        load_protocol("spatial_dev", first_index=999_999)


def test_changes_replace_fields_and_none_does_not():
    protocol = load_protocol("spatial_dev", tasks=(3,), episodes_per_task=2, seed=None)
    assert [e.key for e in protocol.episodes()] == [f"libero_spatial/3/random/{i}" for i in (100000, 100001)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": "libero_spatia"}, "did you mean libero_spatial"),
        ({"tasks": (0, 10)}, "tasks contains 10"),
        ({"tasks": ()}, "at least one task"),
        ({"tasks": (1, 1)}, "each once"),
        ({"episodes_per_task": 51}, "has 50 initial states"),
        ({"episodes_per_task": 0}, "episodes_per_task is 0"),
        ({"max_steps": "many"}, "protocol.max_steps is 'many'"),
        ({"init": "fixed"}, "benchmark"),
        ({"execution_delay": -1}, "must not be negative"),
        ({"horizon": 8}, "did you mean .*open_loop_horizon"),
    ],
)
def test_bad_values_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        load_protocol("libero_spatial", **changes)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="did you mean spatial_dev"):
        load_protocol("spatial_dv")
    broken = tmp_path / "broken.toml"
    broken.write_text("suite = ")
    with pytest.raises(UserError, match=r"broken.toml"):
        load_protocol(str(broken))
    broken.write_text('suite = "libero_goal"')
    with pytest.raises(UserError, match="key 'tasks' is missing"):
        load_protocol(str(broken))


def test_a_file_of_ones_own_is_named_after_itself(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('suite = "libero_goal"\ntasks = [4]\nepisodes_per_task = 1\ninit = "random"\nmax_steps = 9\n')
    assert load_protocol(str(path)) == Protocol("mine", "libero_goal", (4,), 1, "random", 9)
