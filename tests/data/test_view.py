"""The page of episodes: what it shows, that it needs nothing else, and what is refused."""

import base64
import dataclasses
import io
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import av
import numpy as np
import pytest
from PIL import Image

from tests.data.synthetic import make_episode, make_latents, make_store
from wmjax import view
from wmjax.core.errors import UserError
from wmjax.data.latents import LatentStore
from wmjax.data.store import TrainingStore, finalize, write_part
from wmjax.reporting.dataset_page import choose_episodes, parse_episodes, write_page
from wmjax.reporting.timeline import rows, shared_scale, timeline
from wmjax.reporting.video.latent_colours import CHANGES, LATENTS, LatentColours
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

VOID = {"meta", "br", "img"}
SPEC = dataclasses.replace(OBSERVATION_SPEC, image_size=28)
HOSTILE = '<script>alert("&bowl")</script>'


class Page(HTMLParser):
    """Elements, texts and attributes; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag, **attributes):
        return [
            a for t, a in self.elements if t == tag and attributes.items() <= {**a, "style": a.get("class")}.items()
        ]

    @property
    def text(self):
        return " ".join(self.texts)


def page(tmp_path, *arguments, **options):
    write_page(tmp_path / "view.html", *arguments, **options)
    return Page((tmp_path / "view.html").read_text(encoding="utf-8"))


def picture(attributes):
    kind, _, data = attributes["href"].partition(";base64,")
    assert kind in ("data:image/jpeg", "data:image/png")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def one_episode_store(folder, **changes):
    """A store of one clean episode: executed = label unless changed."""
    episode = make_episode(0, 21, image_size=28)
    episode.executed = episode.action.copy()
    for name, value in changes.items():
        if name == "meta":
            episode.meta.update(value)
        else:
            setattr(episode, name, value)
    write_part(folder, "only", episode, SPEC)
    return finalize(folder, SPEC, ACTION_SPEC)


def test_every_chosen_episode_has_its_facts_and_its_figure(tmp_path, store):
    shown = page(tmp_path, store, [4, 1])
    assert [a["id"] for a in shown.all("article")] == ["episode-4", "episode-1"]
    assert [a["href"] for a in shown.all("a")] == ["#episode-4", "#episode-1"]
    assert len(shown.all("svg")) == 2 and not shown.all("video")
    for fact in (
        "open the drawer",
        "pick up the",
        f"{4:016x}",
        "libero_spatial 1",
        "after control step 25",
        store.hash,
    ):
        assert (fact in shown.text) == (fact != "open the drawer"), fact
    per_figure = len(rows(store.episode(1), store.spec, store.action_spec))
    assert per_figure == 7 + 6 + 1
    assert len(shown.all("path", style="label")) == 2 * 7
    assert len(shown.all("path", style="executed")) == 2 * 7
    assert len(shown.all("path", style="state")) == 2 * 8
    assert len(shown.all("path", style="success")) == 2
    assert len(shown.all("rect", style="box")) == 2 * per_figure


def test_the_page_needs_nothing_else(tmp_path, store, latents):
    shown = page(tmp_path, store, [0, 2], latents, lambda *_: b"mp4")
    assert not shown.all("script") and not shown.all("link") and not shown.all("iframe")
    for tag, attributes in shown.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("href", "src"):
            assert attributes.get(name, "#").startswith(("#", "data:")), tag
    text = (tmp_path / "view.html").read_text(encoding="utf-8")
    assert "url(" not in text and "@import" not in text and "http://" not in text and "https://" not in text
    assert "prefers-color-scheme: dark" in text
    assert "default-src 'none'" in shown.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]


def test_text_from_the_store_is_escaped(tmp_path):
    folder = tmp_path / '<b>"store"'
    hostile = {"instruction": HOSTILE, "settled_hash": HOSTILE, "init": HOSTILE, "suite": HOSTILE, "seed": HOSTILE}
    shown = page(tmp_path, one_episode_store(folder, meta=hostile), [0])
    assert not shown.all("script") and not shown.all("b")
    assert shown.text.count(HOSTILE) >= 6
    assert '<b>"store"' in shown.text


def test_clean_episodes_say_so_and_show_one_line_per_command(tmp_path):
    shown = page(tmp_path, one_episode_store(tmp_path / "store", meta={"perturbation": 0.0}), [0])
    assert not shown.all("path", style="executed") and not shown.all("span", style="key executed")
    assert "none; executed = label" in shown.text and "label = executed" in shown.text


def test_perturbed_episodes_say_how_far_the_robot_strayed(tmp_path):
    executed = make_episode(0, 21, image_size=28).action
    executed[:, :6] = np.where(executed[:, :6] > 0, executed[:, :6] - 0.125, executed[:, :6] + 0.125)
    shown = page(tmp_path, one_episode_store(tmp_path / "store", executed=executed, meta={"perturbation": 0.25}), [0])
    assert "0.25 of the largest action; executed - label: RMS 0.125" in shown.text
    assert len(shown.all("path", style="executed")) == 7
    assert len(shown.all("span", style="key executed")) == 1


def test_imported_episodes_without_a_seed_or_success_are_shown(tmp_path):
    meta = {"seed": None, "init": None, "settled_hash": "", "success_step": None, "perturbation": None}
    shown = page(tmp_path, one_episode_store(tmp_path / "store", meta=meta), [0])
    facts, table, simulator = 5, 2, 1
    assert shown.text.count("not recorded") == facts + table + simulator
    assert not shown.all("path", style="success") and "None" not in shown.text


def test_frames_lie_at_their_control_steps_and_hold_their_pixels():
    episode = make_episode(0, 40, image_size=28)
    episode.images[:] = (np.arange(10) * 25).astype(np.uint8)[:, None, None, None, None]
    episode.images[:, 1] = 255 - episode.images[:, 1]
    scale = shared_scale([episode], SPEC, ACTION_SPEC)
    figure = Page(timeline(episode, scale, SPEC, ACTION_SPEC, {}))
    first, second = (a for a in figure.all("image"))
    assert float(first["width"]) == pytest.approx(10 * SPEC.frame_stride * scale.step, abs=0.1)
    assert float(first["x"]) == 0
    pixels = picture(first).astype(int)
    assert pixels.shape == (28, 280, 3)
    assert np.abs(pixels[14, 14::28, 0] - np.arange(10) * 25).max() <= 2
    assert np.abs(picture(second).astype(int)[14, 14::28, 0] - (255 - np.arange(10) * 25)).max() <= 2


def test_a_later_first_frame_moves_the_strip_and_long_episodes_skip_frames():
    episode = make_episode(0, 203, image_size=28)
    episode.frame_step = episode.frame_step + 2
    scale = shared_scale([episode], SPEC, ACTION_SPEC)
    strip = Page(timeline(episode, scale, SPEC, ACTION_SPEC, {})).all("image")[0]
    assert float(strip["x"]) == pytest.approx(2 * scale.step, abs=0.05)
    frames = picture(strip).shape[1] // 28
    every = int(96 / (4 * scale.step))
    assert every == 4 and frames == -(-len(episode.images) // every)
    assert float(strip["width"]) == pytest.approx(frames * every * 4 * scale.step, abs=0.1)


def test_large_frames_are_made_smaller():
    spec = dataclasses.replace(OBSERVATION_SPEC, image_size=256, cameras=("agentview",))
    episode = make_episode(0, 8, image_size=256, cameras=1)
    (strip,) = Page(timeline(episode, shared_scale([episode], spec, ACTION_SPEC), spec, ACTION_SPEC, {})).all("image")
    assert picture(strip).shape == (160, 2 * 160, 3)


def test_success_and_closed_gripper_are_marked_where_they_are():
    episode = make_episode(0, 50, image_size=28)
    episode.executed[:, 6] = -1
    episode.executed[10:20, 6] = episode.executed[45:, 6] = 1
    episode.meta["success_step"] = 42
    scale = shared_scale([episode], SPEC, ACTION_SPEC)
    figure = Page(timeline(episode, scale, SPEC, ACTION_SPEC, {}))
    (success,) = figure.all("path", style="success")
    assert float(re.match(r"M([\d.]+) ", success["d"])[1]) == pytest.approx(42 * scale.step, abs=0.05)
    closed = [(float(a["x"]) / scale.step, float(a["width"]) / scale.step) for a in figure.all("rect", style="closed")]
    assert np.allclose(closed, [(10, 10), (45, 5)], atol=0.01)


def test_curves_follow_the_values():
    episode = make_episode(0, 20, image_size=28)
    episode.action[:, 0] = np.where(np.arange(20) < 10, -0.5, 0.5)
    episode.executed = episode.action.copy()
    figure = Page(timeline(episode, shared_scale([episode], SPEC, ACTION_SPEC), SPEC, ACTION_SPEC, {}))
    heights = [float(y) for y in re.findall(r"V([\d.]+)", figure.all("path", style="label")[0]["d"])]
    assert heights == [32.0] * 10 + [2.0] * 10
    state = figure.all("path", style="state")[0]["d"]
    assert state.count("L") == 19


def test_the_scale_is_shared_so_that_episodes_can_be_compared():
    episodes = [make_episode(0, 128, image_size=28), make_episode(2, 18, image_size=28)]
    both, short = shared_scale(episodes, SPEC, ACTION_SPEC), shared_scale(episodes[1:], SPEC, ACTION_SPEC)
    assert both.step == 1024 / 128 and short.step == 96 / SPEC.frame_stride
    for name, (low, high) in both.ranges.items():
        assert low <= short.ranges[name][0] and high >= short.ranges[name][1]
    assert both.ranges["state x"] == (0.0, 2.0)


def test_a_state_that_never_moves_is_drawn_in_the_middle(tmp_path):
    still = np.zeros((21, 8), np.float32)
    shown = page(tmp_path, one_episode_store(tmp_path / "store", state=still), [0])
    assert set(re.findall(r" ([\d.]+)", shown.all("path", style="state")[0]["d"])) == {"17.0"}


def test_latents_become_a_square_per_frame(tmp_path, store, latents):
    shown = page(tmp_path, store, [0, 3], latents)
    for name in (LATENTS, CHANGES):
        strips = shown.all("image", **{"aria-label": name})
        assert len(strips) == 2
        frames = store.episodes[0]["num_frames"]
        pixels = picture(strips[0])
        assert pixels.shape[2] == 4 and pixels.shape[1] == frames * pixels.shape[0]
        assert pixels[:-2, 0, 3].min() == 255 and pixels[-1, :, 3].max() == 0
    assert "synthetic, agentview, 4 tokens of 6, jax" in shown.text


def test_latents_of_two_cameras_lie_below_one_another(tmp_path, store):
    both = make_latents(tmp_path / "latents", store, views=1, grid=2, dim=6)
    both.latents = np.concatenate([both.latents, both.latents], axis=2)
    (strip,) = page(tmp_path, store, [0], both).all("image", **{"aria-label": LATENTS})
    frames, pixels = store.episodes[0]["num_frames"], picture(strip)
    tile = pixels.shape[1] // frames
    cells = pixels[:, : tile - 2, :3][8::16, 8::16]
    assert cells.shape[:2] == (4, 2) and np.array_equal(cells[:2], cells[2:])
    assert float(strip["height"]) * frames / float(strip["width"]) == pytest.approx(pixels.shape[0] / tile, rel=0.01)


def test_the_strongest_direction_is_red_and_the_range_is_used():
    random = np.random.default_rng(0)
    latents = random.normal(size=(50, 4, 12)) * 0.01
    ramp = np.linspace(-1, 1, 50)
    latents[..., 5] += 3 * ramp[:, None]
    latents[..., 7] += np.sin(40 * ramp)[:, None]
    colours = LatentColours.fit(latents)
    painted = colours(latents)
    assert painted.shape == (50, 4, 3) and painted.dtype == np.uint8
    red, green = painted[:, 0, 0].astype(int), painted[:, 0, 1].astype(int)
    assert red[0] == 0 and red[-1] == 255 and np.diff(red).min() >= -2
    assert np.corrcoef(green, np.sin(40 * ramp))[0, 1] > 0.98
    assert colours.explained[0] > colours.explained[1] > 0.1 and sum(colours.explained) <= 1


def test_components_are_those_of_the_singular_value_decomposition():
    latents = np.random.default_rng(1).normal(size=(200, 8)) * np.arange(1, 9)
    colours = LatentColours.fit(latents)
    _, values, vectors = np.linalg.svd(latents - latents.mean(0), full_matrices=False)
    assert np.allclose(np.abs(colours.basis.T @ vectors[:3].T), np.eye(3), atol=1e-4)
    assert np.allclose(colours.explained, values[:3] ** 2 / (values**2).sum(), rtol=1e-4)
    assert (colours.basis.max(0) > -colours.basis.min(0)).all()


def test_colours_exist_for_constant_latents_and_for_two_channels():
    assert np.unique(LatentColours.fit(np.ones((5, 4, 8)))(np.ones((5, 4, 8)))).tolist() == [128]
    narrow = np.random.default_rng(0).normal(size=(9, 4, 2))
    assert np.unique(LatentColours.fit(narrow)(narrow)[..., 2]).tolist() == [128]


def test_less_the_place_mean_what_never_changes_vanishes(tmp_path, store):
    constant = make_latents(tmp_path / "latents", store, views=1, grid=2, dim=6)
    place = np.arange(4)[:, None] * np.ones(6)
    constant.latents = np.broadcast_to(place, constant.latents.shape).astype(np.float16)
    shown = page(tmp_path, store, [0], constant)
    still, moving = (picture(shown.all("image", **{"aria-label": name})[0]) for name in (CHANGES, LATENTS))
    assert np.unique(still[..., :3][still[..., 3] == 255]).tolist() == [128]
    assert len(np.unique(moving[..., 0])) > 2


def test_choice_of_episodes(store):
    assert choose_episodes(store.episodes, None, 2) == [0, 2, 1, 3]
    assert choose_episodes(store.episodes, None, 99) == [0, 2, 4, 1, 3, 5]
    assert choose_episodes(store.episodes, [5, 0, 5]) == [5, 0]
    assert parse_episodes("0, 5,9") == [0, 5, 9]


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "1.5", "0-3", "²"])
def test_malformed_numbers_are_refused(text):
    with pytest.raises(UserError, match=r"--episodes is .*0,5,9"):
        parse_episodes(text)


def test_episodes_that_do_not_exist_are_refused(store):
    with pytest.raises(UserError, match=r"no episode 6; the store has 0 to 5"):
        choose_episodes(store.episodes, [0, 6])
    with pytest.raises(UserError, match="--per-task is 0"):
        choose_episodes(store.episodes, None, 0)


def test_a_lerobot_folder_is_told_how_to_become_a_store(tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text("{}")
    with pytest.raises(UserError, match=r"LeRobot dataset; convert it first with `python -m wmjax\.convert"):
        TrainingStore(tmp_path)


def test_what_is_no_store_is_refused(tmp_path, store, latents):
    with pytest.raises(UserError, match="no wmjax training store there"):
        TrainingStore(tmp_path / "nothing")
    with pytest.raises(UserError, match="format is not 'wmjax training store'"):
        TrainingStore(latents.folder)
    with pytest.raises(UserError, match="format is not 'wmjax latent store'"):
        LatentStore(store.folder)
    for opener in (TrainingStore, LatentStore):
        with pytest.raises(UserError, match="a file; name the folder"):
            opener(store.folder / "manifest.json")


def test_latents_of_another_store_are_refused_and_nothing_is_written(tmp_path, latents):
    other = make_store(tmp_path / "store", image_size=28, lengths=(29, 41))
    with pytest.raises(UserError, match="frame count differs"):
        write_page(tmp_path / "view.html", other, [0], latents)
    assert not (tmp_path / "view.html").exists()


def test_places_that_cannot_be_written_are_refused(tmp_path, store):
    with pytest.raises(UserError, match="a folder; name an HTML file"):
        write_page(tmp_path, store, [0])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        write_page(tmp_path / "file" / "deep" / "view.html", store, [0])


def test_a_failure_half_way_leaves_the_old_page(tmp_path, store):
    (tmp_path / "view.html").write_text("old")

    def fail(*_):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_page(tmp_path / "view.html", store, [0], encode_video=fail)
    assert [p.name for p in tmp_path.iterdir()] == ["view.html"]
    assert (tmp_path / "view.html").read_text() == "old"


def test_the_command_writes_videos_of_every_frame(tmp_path, store, latents, capsys):
    out = tmp_path / "new" / "page.html"
    arguments = [str(store.folder), "--latents", str(latents.folder), "--episodes", "2", "--out", str(out)]
    assert view.main(arguments) == 0
    assert "1 episodes" in capsys.readouterr().out
    (video,) = Page(out.read_text(encoding="utf-8")).all("video")
    data = base64.b64decode(video["src"].removeprefix("data:video/mp4;base64,"))
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.video[0].average_rate == 5
        assert sum(1 for _ in container.decode(video=0)) == store.episodes[2]["num_frames"]


def test_the_command_prints_one_line_for_bad_input(tmp_path, store, capsys):
    assert view.main([str(store.folder), "--episodes", "99", "--out", str(tmp_path / "x.html")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --episodes: there is no episode 99") and error.count("\n") == 1
    assert view.main([str(store.folder), "--episodes", "1", "--per-task", "1"]) == 2
    assert "argument --per-task: not allowed with argument --episodes" in capsys.readouterr().err
    for option, value in (("--per-task", "0"), ("--per-task", "-1"), ("--episodes", "-1"), ("--episodes", "x")):
        assert view.main([str(store.folder), option, value]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {option} is '{value}'; give") and error.count("\n") == 1


def test_import_is_light():
    code = (
        "import sys, wmjax.view;"
        "print([m for m in ('jax', 'torch', 'flax', 'grain', 'mujoco', 'libero', 'robosuite') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_a_store_of_scenes_is_shown(tmp_path):
    """There the perturbation is a text, and the initial state too."""
    episode = make_episode(0, 20, 28)
    episode.meta |= {"perturbation": "random_motion", "init": "random/17", "seed": None}
    write_part(tmp_path / "scenes", "a", episode, SPEC)
    out = tmp_path / "view.html"
    write_page(out, finalize(tmp_path / "scenes", SPEC, ACTION_SPEC), [0], None)
    assert "random motion" in out.read_text(encoding="utf-8") and "random/17" in out.read_text(encoding="utf-8")
