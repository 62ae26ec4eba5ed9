"""Diagnostics: every reference and metric against a direct computation or a closed form."""

import numpy as np
import pytest

from wmjax.analysis.ridge import Ridge, predict_once
from wmjax.diagnostics import flow_bounds as flow
from wmjax.diagnostics import prophet_skill as world
from wmjax.diagnostics.actions import action_section, pooled_r2
from wmjax.diagnostics.conditions import effect_of, unused
from wmjax.diagnostics.latent_probes import probe_section
from wmjax.diagnostics.samples import ActionWindows, LatentWindows, near_change, rotation_columns
from wmjax.diagnostics.section import Skipped
from wmjax.sim.libero import ACTION_SPEC
from wmjax.trainer.metrics import mean_r2, r2_over_steps

RNG = np.random.default_rng


# Ridge


@pytest.mark.parametrize("rows", [60, 15])
def test_ridge_is_least_squares_with_augmented_rows(rows: int) -> None:
    """The textbook identity: √s I below the standardised features and zeros below the centred targets."""
    rng, strength = RNG(0), 3.0
    x, y, new = rng.normal(size=(rows, 20)) * 3 + 1, rng.normal(size=(rows, 2)) + 5, rng.normal(size=(7, 20))
    mean, std = x.mean(0), x.std(0)
    stacked = np.concatenate([(x - mean) / std, np.sqrt(strength) * np.eye(20)])
    right = np.concatenate([y - y.mean(0), np.zeros((20, 2))])
    expected = (new - mean) / std @ np.linalg.lstsq(stacked, right, rcond=None)[0] + y.mean(0)
    np.testing.assert_allclose(Ridge(x).predict(y, strength, new), expected, rtol=1e-9)
    np.testing.assert_allclose(predict_once(x, y, strength, new), expected, rtol=1e-9)


def test_a_feature_that_stood_still_in_the_fit_does_not_decide_a_prediction() -> None:
    rng = RNG(0)
    x, new = rng.normal(size=(50, 5)), rng.normal(size=(7, 5))
    x[:, 4] = 0.5 + rng.normal(0, 1e-7, 50)
    new[:, 4] = 0.5
    moved = new.copy()
    moved[:, 4] = 0.6
    y = x[:, :1]
    for predict in (Ridge(x).predict, lambda *given: predict_once(x, *given)):
        assert np.abs(predict(y, 1.0, moved) - predict(y, 1.0, new)).max() < 0.1


# Actions


def test_steps_near_a_change_of_the_gripper() -> None:
    closed = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1], bool)
    other = np.array([0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], bool)
    near = near_change(np.stack([closed, other], axis=1), 2)
    assert [np.flatnonzero(column).tolist() for column in near.T] == [[3, 4, 5, 6, 7], [0, 1, 2, 3]]
    assert not near_change(np.zeros((4, 2), bool)).any()


def action_case() -> tuple[np.ndarray, ActionWindows]:
    rng = RNG(1)
    action = rng.normal(size=(40, 4, 7)).astype(np.float32)
    action[..., -1] = np.sign(action[..., -1])
    mask = rng.uniform(size=(40, 4)) < 0.8
    held = rng.normal(size=(40, 1)) > 0
    near = (mask & (rng.uniform(size=(40, 4)) < 0.3))[..., None]
    state = rng.normal(size=(40, 8)).astype(np.float32)
    return action, ActionWindows(action, mask, state, near, held, ACTION_SPEC, np.arange(40) % 2)


def test_the_constant_predictor_scores_zero_and_the_truth_one() -> None:
    action, windows = action_case()
    constant = np.broadcast_to(action[windows.mask].mean(0), action.shape)
    np.testing.assert_allclose(r2_over_steps(constant, action, windows.mask), 0.0, atol=1e-6)
    np.testing.assert_allclose(r2_over_steps(action, action, windows.mask), 1.0)
    still = action * (np.arange(7) != 3)
    assert np.isnan(r2_over_steps(action, still, windows.mask)[3])
    assert mean_r2(r2_over_steps(action, still, windows.mask)) == pytest.approx(1.0)  # of what moves


def test_masked_steps_count_for_nothing() -> None:
    action, windows = action_case()
    guess = np.where(windows.mask[..., None], action + 0.1, 1e6)
    assert (r2_over_steps(guess, action, windows.mask) > 0.9).all()


def test_pooled_r2_is_the_mean_over_the_whole_split() -> None:
    """In units of the split's own deviation every dimension weighs the same."""
    action, windows = action_case()
    guess, truth = action[windows.mask] + 0.3, action[windows.mask]
    each = r2_over_steps(action + 0.3, action, windows.mask)
    assert pooled_r2(guess, truth, truth.std(0)) == pytest.approx(each.mean(), rel=1e-4)


def test_action_references_are_computed_from_the_same_data() -> None:
    action, windows = action_case()
    guess = action + RNG(2).normal(size=action.shape).astype(np.float32)
    section = action_section(guess, windows, {0: "first", 1: "second", 2: "absent"})
    truth, arm = action[windows.mask], action[windows.mask][:, :6]
    variance = np.square(arm - arm.mean(0)).mean()
    assert section.mse["constant"][0] == pytest.approx(truth.var(0).mean(), rel=1e-5)
    assert section.mse["perfect gripper, constant arm"] == pytest.approx((variance * 6 / 7, variance, 0.0), rel=1e-5)
    assert section.mse["model"][0] == pytest.approx(np.square(guess - action)[windows.mask].mean(), rel=1e-5)
    right = np.sign(guess[..., -1]) == action[..., -1]
    assert section.gripper["model"] == pytest.approx(
        (right[windows.mask].mean(), right[windows.near_change[..., 0]].mean())
    )
    held = (windows.closed_before == (action[..., -1] > 0))[windows.near_change[..., 0]].mean()
    assert section.gripper["repeat the last command"][1] == pytest.approx(held)
    assert section.r2.shape == (4, 7) and list(section.r2_task) == ["first", "second"]
    first = windows.mask & (windows.task == 0)[:, None]
    np.testing.assert_allclose(section.r2_task["first"], r2_over_steps(guess, action, first))
    assert "perfect gripper" in section.table()


def test_the_effect_of_a_condition() -> None:
    action, windows = action_case()
    deviation = action[windows.mask].std(0)
    effect = effect_of(action + 0.5 * deviation, action, windows, 1.0)
    assert effect.change == pytest.approx(0.5, rel=1e-5)
    none, flipped = effect_of(action, action, windows, 1.0), effect_of(-action, action, windows, 1.0)
    assert (none.change, none.flips, none.gripper) == (0.0, 0.0, 1.0)
    assert (flipped.flips, flipped.gripper) == (1.0, 0.0)
    effects = {"none": none, "blind": none, "seen": effect}
    assert len(unused(effects, {"blind", "seen"})) == 1 and "blind" in unused(effects, {"blind", "seen"})[0]


# World model


def turned(position: np.ndarray) -> np.ndarray:
    """Six values in the place of a rotation, which whoever reads the position can read too."""
    return np.concatenate([position, position[..., ::-1] - 2 * position], axis=-1)


def world_case(frames: int = 300, tokens: int = 4, dim: int = 6, future: int = 2, seed: int = 3) -> LatentWindows:
    """A linear world: the next latent is the last one's mixture plus what happened in between, plus noise."""
    rng, matrix = RNG(seed), RNG(0).normal(size=(dim, dim)) / np.sqrt(dim)
    past = rng.normal(size=(frames, 3, tokens, dim))
    steps = [past[:, -1] @ matrix + 0.5 * past[:, -2] + 0.1 * rng.normal(size=(frames, tokens, dim)) + 0.3]
    steps.append(steps[0] @ matrix + 0.5 * past[:, -1])
    mask = np.ones((frames, future), bool)
    mask[::7, 1] = False
    position = np.cumsum(rng.normal(size=(frames, 1 + future, 3)), axis=1)
    episode = np.repeat(np.arange(frames // 10), 10)
    return LatentWindows(
        past.astype(np.float32), np.stack(steps, 1).astype(np.float32), mask, position, turned(position), episode
    )


def test_skill_by_hand() -> None:
    truth = np.zeros((3, 2, 1, 1), np.float32)
    copy, guess = np.full_like(truth, 2.0), np.full_like(truth, 1.0)
    guess[0] = 100.0
    mask = np.array([[False, False], [True, True], [True, False]])
    np.testing.assert_allclose(world.skill(guess, truth, copy, mask), [0.75, 0.75])
    np.testing.assert_allclose(world.skill(copy, truth, copy, mask), 0.0)
    assert np.isnan(world.skill(guess, truth, truth, mask)).all()


def test_mean_change_and_ridge_are_what_a_linear_world_gives() -> None:
    train, test = world_case(seed=3), world_case(seed=4)
    rows = train.mask[:, 1]
    expected = (train.future[rows, 1] - train.now[rows]).mean(0)
    np.testing.assert_allclose(world.mean_change(train)[1], expected, atol=1e-5)
    guess, strength = world.ridge_futures(train, test.history)
    copy = np.broadcast_to(test.now[:, None], test.future.shape)
    assert (world.skill(guess, test.future, copy, test.mask) > 0.97).all()
    assert strength.shape == (2,)
    section = world.world_section(test.future, test, train)
    np.testing.assert_allclose(section.skill["Prophet"], 1.0)
    drifted = test.now[:, None] + world.mean_change(train)
    np.testing.assert_allclose(section.skill["mean delta"], world.skill(drifted, test.future, copy, test.mask))
    assert (section.skill["mean delta"] > 0).all() and (section.prophet_over_ridge > 0.99).all()
    assert section.samples == (300, 257) and not section.alarms
    np.testing.assert_allclose(section.variance["latents"], 1.0)
    np.testing.assert_allclose(section.rank["predicted"], section.rank["true"])
    assert "no collapse" in section.table()


def test_effective_rank() -> None:
    assert world.effective_rank(np.ones(5)) == pytest.approx(5.0)
    assert world.effective_rank(np.array([1.0, 0.0, 0.0])) == pytest.approx(1.0)
    assert world.effective_rank(np.zeros(3)) == 0.0


def test_constant_predictions_raise_the_alarm() -> None:
    train, test = world_case(seed=3), world_case(seed=4)
    noise = 1e-6 * RNG(0).normal(size=test.future.shape)  # Rounding errors have full rank.
    constant = (test.future[:1] + noise).astype(np.float32)
    section = world.world_section(constant, test, train)
    assert sum("latents" in alarm for alarm in section.alarms) == 4
    assert "COLLAPSE: the variance of the predicted latents at t+1 is 0.000" in section.table()


def test_constant_changes_and_thin_predictions_raise_the_alarm() -> None:
    train, test = world_case(seed=3), world_case(seed=4)
    section = world.world_section(test.now[:, None] + np.ones_like(test.future), test, train)
    assert len(section.alarms) == 4 and all("changes" in alarm for alarm in section.alarms)
    line = RNG(0).normal(size=(300, 2, 4, 1)).astype(np.float32) * np.ones(6, np.float32)
    assert sum("rank" in alarm for alarm in world.world_section(line, test, train).alarms) == 2
    # On top of z(t), which has every direction by itself, only the changes show it.
    train, test = world_case(seed=3, dim=24), world_case(seed=4, dim=24)
    thin = world.world_section(test.now[:, None] + line.repeat(4, -1), test, train).alarms
    assert [("rank" in alarm, "changes" in alarm) for alarm in thin] == [(True, True)] * 2


# Position probe


def test_the_probe_reads_positions_from_latents_that_hold_them() -> None:
    rng = RNG(0)
    position = np.cumsum(rng.normal(size=(400, 3, 3)), axis=1)
    table = np.concatenate([position, rng.normal(size=(400, 3, 5))], -1)[:, :, None].astype(np.float32)
    windows = LatentWindows(
        table[:, :1], table[:, 1:], np.ones((400, 2), bool), position, turned(position), np.arange(400) // 20
    )
    test, train = windows.take(np.arange(200)), windows.take(np.arange(200, 400))
    section = probe_section(test.future, test, train, train.future)
    for name in ("probe of true latents: ẑ(t+k)", "probe of true latents: z(t+k)", "own probe: ẑ(t+k)"):
        np.testing.assert_allclose(section.r2[name], 1.0, atol=1e-3, err_msg=name)
    truth, now = test.position[:, 1:], test.position[:, :1]
    copy = 1 - np.square(now - truth).sum((0, 2)) / np.square(truth - truth.mean(0)).sum((0, 2))
    np.testing.assert_allclose(section.r2["true position at t"], copy)
    np.testing.assert_allclose(section.r2["probe of true latents: z(t)"], copy, atol=0.02)
    np.testing.assert_allclose(section.r2["own probe: z(t)"], copy, atol=0.05)
    copying = probe_section(np.broadcast_to(test.now[:, None], test.future.shape), test, train)
    np.testing.assert_allclose(copying.r2["probe of true latents: ẑ(t+k)"], section.r2["probe of true latents: z(t)"])
    np.testing.assert_allclose(copying.r2["probe of true latents: z(t+k)"], 1.0, atol=1e-3)
    assert "own probe: ẑ(t+k)" not in copying.r2
    rotation = probe_section(test.future, test, train, train.future, "rotation")
    assert rotation.table().startswith("R2 of the future rotation") and "true rotation at t" in rotation.r2
    np.testing.assert_allclose(rotation.r2["probe of true latents: z(t+k)"], 1.0, atol=1e-3)


def test_a_rotation_is_the_same_on_both_sides_of_pi() -> None:
    quarter = rotation_columns(np.array([[0.0, 0.0, np.pi / 2], [0.0, 0.0, 0.0]], np.float32))
    np.testing.assert_allclose(quarter, [[0, 1, 0, -1, 0, 0], [1, 0, 0, 0, 1, 0]], atol=1e-6)
    axis = np.array([0.6, 0.0, 0.8], np.float32)
    np.testing.assert_allclose(rotation_columns(3.2 * axis), rotation_columns((3.2 - 2 * np.pi) * axis), atol=1e-6)


# Flow head

BETA = (1.5, 1.0)


def gaussian_chunks(count: int, seed: int) -> np.ndarray:
    return RNG(seed).normal(size=(count, 6)) * np.linspace(0.2, 2.0, 6) + 3.0


def test_best_unconditional_of_a_gaussian_has_a_closed_form() -> None:
    """E|u - u*|² is the mean of s / ((1-t)² + t² s) over covariance eigenvalues s and flow times."""
    chunks = gaussian_chunks(3000, 0)
    s = np.linalg.eigvalsh(np.cov(chunks.T, bias=True))
    time = flow.beta_quantiles(np.linspace(0, 1, 20_001)[:-1] + 2.5e-5, BETA)[:, None]
    exact = (s / ((1 - time) ** 2 + time**2 * s)).mean()
    found = flow.unconditional_loss(chunks, 1.0, chunks, BETA, RNG(0), 8000)
    assert found == pytest.approx(exact, rel=0.02)
    # Smoothing less fits the training chunks better, and new ones of a Gaussian worse.
    new = gaussian_chunks(3000, 1)
    assert flow.unconditional_loss(chunks, 0.0, chunks, BETA, RNG(0)) < 0.8 * exact
    assert flow.unconditional_loss(chunks, 0.1, new, BETA, RNG(0)) > 1.1 * exact
    assert flow.choose_smoothing(chunks, np.arange(3000) // 30, BETA, RNG(0)) >= 0.7


def test_the_posterior_mean_is_the_formula_of_the_empirical_distribution() -> None:
    rng = RNG(0)
    centres, time = rng.normal(size=(20, 4)), rng.uniform(0.1, 0.9, (5, 1))
    noisy = rng.normal(size=(5, 4))
    mean = flow.posterior_mean(noisy, time, centres, np.zeros(4))
    for x, t, found in zip(noisy, time[:, 0], mean, strict=True):
        density = np.exp(-np.square(x - t * centres).sum(1) / 2 / (1 - t) ** 2)
        w = density / density.sum()
        velocity = (w[:, None] * (centres - (x - t * centres) / (1 - t))).sum(0)
        np.testing.assert_allclose((found - x) / (1 - t), velocity, rtol=1e-9)


def test_the_posterior_mean_of_a_smoothed_mixture() -> None:
    """One dimension, by numerical integration of Bayes' rule."""
    centres, prior, t, x = np.array([[-1.0], [0.5]]), np.array([0.09]), 0.6, 0.2
    grid = np.linspace(-6, 6, 20_001)
    density = sum(np.exp(-((grid - c) ** 2) / 2 / prior) for c in centres[:, 0])
    weight = density * np.exp(-((x - t * grid) ** 2) / 2 / (1 - t) ** 2)
    found = flow.posterior_mean(np.array([[x]]), np.array([[t]]), centres, prior)
    assert found[0, 0] == pytest.approx((weight * grid).sum() / weight.sum(), rel=1e-6)


def test_one_training_episode_gives_no_references_to_a_flow() -> None:
    """As at the scale smoke, which trains on one of two episodes."""
    chunks = gaussian_chunks(40, 0)
    section = flow.flow_section(0.1, chunks[:20], chunks[20:], np.zeros(20, int), BETA)
    assert isinstance(section, Skipped) and "two training episodes" in section.table()


def test_zero_velocity_and_verdicts() -> None:
    chunks = gaussian_chunks(2000, 0)
    noise = RNG(1).normal(size=(200, *chunks.shape))
    assert flow.zero_velocity_loss(chunks) == pytest.approx(np.square(chunks - noise).mean(), rel=0.01)
    section = flow.flow_section(0.1, chunks[:500], chunks[500:], np.arange(1500) // 20, BETA)
    assert isinstance(section, flow.FlowSection)
    _, upper, training, these, zero = section.loss.values()
    assert these < training < upper < zero  # fewer chunks are told apart earlier
    between = flow.flow_section(0.5 * (these + training), chunks[:500], chunks[500:], np.arange(1500) // 20, BETA)
    assert isinstance(between, flow.FlowSection)
    assert section.verdict == flow.BEATS_ALL and between.verdict == flow.BEATS_KNOWN
    words = [flow.verdict(loss, 0.2, 0.5, 1.2) for loss in (0.1, 0.3, 0.7, 1.3)]
    assert words == [flow.BEATS_ALL, flow.BEATS_KNOWN, "WORSE THAN IGNORING THE OBSERVATION", words[3]]
    assert words[3] == "WORSE THAN A ZERO VELOCITY"
