"""Protocols: the files that ship, and what is refused."""

import dataclasses

import pytest

from wmjax.core.errors import UserError
from wmjax.recording.demonstration import demonstration_id
from wmjax.rollout.protocol import Protocol, load_protocol, protocol_names
from wmjax.rollout.protocol_list import load_protocol_list
from wmjax.sim.disturbance import Disturbance

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
        assert load_protocol_list(name) or load_protocol(name).name == name
    dev = set(load_protocol("spatial_dev", episodes_per_task=500).episodes())
    demos = {demonstration_id("libero_spatial", t, s, a, 0) for t in range(10) for s in range(500) for a in range(3)}
    assert not dev & demos
    with pytest.raises(UserError, match="demonstrations"):
        load_protocol("spatial_dev", first_index=999_999)


REGIMES = {
    "spatial_delay8": {"execution_delay": 8},
    "spatial_delay16": {"execution_delay": 16},
    "spatial_moving": {"target_velocity": 0.04},
    "spatial_moving_delay8": {"target_velocity": 0.04, "execution_delay": 8},
    "spatial_dropout": {"camera_dropout": 0.5},
    "spatial_horizon16": {"open_loop_horizon": 16},
    "spatial_ensemble": {"open_loop_horizon": 4, "ensemble": 0.01},
    "spatial_oracle": {"oracle": 0.0},
    "spatial_closed": {"corruption": "closed"},
    "spatial_shuffled": {"corruption": "shuffled"},
}


@pytest.mark.parametrize("name", REGIMES)
def test_a_regime_is_the_development_protocol_with_something_made_harder(name):
    assert load_protocol(name) == dataclasses.replace(load_protocol("spatial_dev"), name=name, **REGIMES[name])


def test_every_suite_has_a_development_protocol_with_its_own_step_limit():
    for short, suite in (("spatial", "libero_spatial"), ("object", "libero_object"), ("goal", "libero_goal"),
                         ("long", "libero_10")):  # fmt: skip
        protocol = load_protocol(f"{short}_dev")
        assert protocol == dataclasses.replace(
            load_protocol("spatial_dev"), name=f"{short}_dev", suite=suite, max_steps=LIMITS[suite]
        )
        kinds = {"object": "object", "position": "swap", "language": "lan", "task": "task"}
        for kind, suffix in kinds.items():
            perturbed, benchmark = load_protocol(f"pro_{short}_{kind}"), load_protocol(suite)
            assert perturbed == dataclasses.replace(benchmark, name=perturbed.name, suite=f"{suite}_{suffix}")


def test_only_a_moving_target_disturbs_the_simulator():
    assert load_protocol("spatial_dev").disturbance is None
    assert load_protocol("spatial_moving").disturbance == Disturbance(target_velocity=0.04)


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
        ({"execution_delay": -1}, "execution_delay is -1; it must be at least 0"),
        ({"target_velocity": -0.1}, r"target_velocity is -0\.1; it must be at least 0 and at most 0\.5"),
        ({"target_velocity": float("nan")}, "target_velocity is nan"),
        ({"target_velocity": "fast"}, "protocol.target_velocity is 'fast'"),
        ({"camera_dropout": 1.5}, r"camera_dropout is 1\.5; it must be at least 0 and at most 1"),
        ({"oracle": 1.5}, r"oracle is 1\.5; it must be at least 0 and at most 1"),
        ({"oracle": float("nan")}, "oracle is nan"),
        (
            {"corruption": "shufled"},
            "protocol.corruption is 'shufled'; choose one of 'none', 'zero', 'noise', 'shuffled'",
        ),
        ({"corruption": "zero", "oracle": 0.5}, r"corruption is 'zero' with oracle 0\.5; leave one of them out"),
        ({"realtime": "rtc"}, "realtime is 'rtc', but execution_delay is 0"),
        (
            {"realtime": "blend", "execution_delay": 2, "ensemble": 0.1},
            r"realtime is 'blend' with ensemble 0\.1, .*; leave one of them out",
        ),
        ({"realtime": "rtcs"}, "protocol.realtime is 'rtcs'; choose one of 'none', 'rtc', 'blend'"),
        ({"ensemble": float("inf")}, r"ensemble is inf; it must be a finite number"),
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
    with pytest.raises(UserError, match=r"key 'protocol\.tasks' is missing"):
        load_protocol(str(broken))


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"camera_dropout": 2.0}, r"camera_dropout is 2.0; .*; give another --camera-dropout"),
        ({"episodes_per_task": 0}, r"episodes_per_task is 0; .*; give another --episodes"),
        ({"open_loop_horizon": -1, "seed": 3}, r"open_loop_horizon is -1; .*; give another --horizon"),
        ({"suite": "libero_gaol"}, r"unknown suite 'libero_gaol'; .*; give another --suite"),
        ({"tasks": (0, 0)}, r"tasks is \[0, 0\]; .*; give another --tasks"),
        ({"execution_delay": 10**6}, r"execution_delay is 1000000; .*; give another --delay"),
        ({"name": 3}, r"protocol.name is 3.*; give another --protocol.name"),
        ({"origins": 3}, r"unknown setting 'protocol.origins'.*; give another --protocol.origins"),
    ],
)
def test_the_fix_is_where_the_value_was_given(changes, fix):
    with pytest.raises(UserError, match=fix) as found:
        load_protocol("spatial_dev", **changes)
    assert "correct the file" not in str(found.value)


def test_the_fix_names_the_file_or_the_settings_that_a_value_came_from(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('suite = "libero_goal"\ntasks = [4]\nepisodes_per_task = 1\ninit = "random"\nmax_steps = -9\n')
    with pytest.raises(UserError, match=r"mine.toml: protocol.max_steps is -9; .*; correct the file$"):
        load_protocol(str(path))
    with pytest.raises(UserError, match=r"is -9; .*; correct the file, or what replaces a part of it: --seed$"):
        load_protocol(str(path), seed=3)
    origins = {"episodes_per_task": "evaluation.episodes_per_task"}
    with pytest.raises(UserError, match=r"episodes_per_task is 60 from .*; give another evaluation.episodes_per_task$"):
        load_protocol("libero_spatial", origins, episodes_per_task=60)


def test_a_file_of_ones_own_is_named_after_itself(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('suite = "libero_goal"\ntasks = [4]\nepisodes_per_task = 1\ninit = "random"\nmax_steps = 9\n')
    assert load_protocol(str(path)) == Protocol("mine", "libero_goal", (4,), 1, "random", 9)
