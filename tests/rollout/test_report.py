"""The report is well-formed, self-contained, complete and escaped, and states the limits of its verdict."""

import base64
import dataclasses
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.rollout.test_results import record
from wmjax import report as command
from wmjax.analysis.summary import summarize
from wmjax.core.errors import UserError
from wmjax.core.files import write_json
from wmjax.reporting import evaluation_page as report
from wmjax.reporting.charts import Series, line_chart, round_ticks
from wmjax.reporting.curves import curves, read_metrics
from wmjax.reporting.evaluation_page import write_report
from wmjax.reporting.gallery import Clip, choose
from wmjax.reporting.html import DASH, VOID, element
from wmjax.reporting.sections import closed_loop
from wmjax.reporting.video.clips import write_video
from wmjax.rollout.results import Results

PROTOCOL = {
    "name": "dev", "suite": "libero_spatial", "tasks": [0, 1], "episodes_per_task": 5, "init": "random",
    "max_steps": 220, "open_loop_horizon": 8, "execution_delay": 0, "target_velocity": 0.0, "seed": 0,
}  # fmt: skip
HEADER = {
    "actor": "policy",
    "protocol": PROTOCOL,
    "checkpoint": {"step": 20, "hash": "c0ffee"},
    "experiment": {"recipe": "e2_flow", "scale": "mini", "dataset": "spatial", "seed": 0},
    "recipe_hash": "abc",
}
INSTRUCTION = """lift the <b>"bowl"</b> & </td><script>alert('x')</script>"""
OUTCOMES = {0: ("success", "success", "failure", "crash", "timeout"), 1: ("failure",) * 5}
VIDEOS = ("libero_spatial-0__random-0__success", "libero_spatial-0__random-2__failure",
          "libero_spatial-1__random-0__failure", "libero_spatial-1__random-1__failure")  # fmt: skip


class Page(HTMLParser):
    """Parses a page; every tag must close the one that was opened last."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def evaluation(folder, outcomes=OUTCOMES, header=HEADER, videos=(), finished=True, **summary):
    """A results folder written by the real classes."""
    results = Results(folder, header)
    for task, kinds in outcomes.items():
        for index, outcome in enumerate(kinds):
            item = record(task, index, outcome)
            results.add(dataclasses.replace(item, instruction=INSTRUCTION) if task == 0 else item)
    for name in videos:
        write_video(folder / "videos" / f"{name}.mp4", np.zeros((2, 2, 16, 16, 3), np.uint8), ["a", "b"], 5)
    if finished:
        content = {"command": "python -m wmjax.evaluate --run 'my run'", "commit": "0123abcd", "finished_at": "2026"}
        write_json(folder / "summary.json", {**content, **summary, **summarize(results.records).as_dict()})
    return folder


def in_run(tmp_path, lines):
    """An evaluation inside a run with the given lines of ``metrics.jsonl``."""
    run = tmp_path / "run"
    folder = evaluation(run / "evaluations" / "00000020" / "dev")
    write_json(run / "config.json", {"recipe": "e2_flow", "train": {"steps": 20}})
    (run / "metrics.jsonl").write_text("\n".join(lines))
    return folder


def read(folder, *others) -> Page:
    return Page(write_report(folder, compare_with=others).read_text())


METRICS = [
    *(json.dumps({"step": s, "split": "train", "time": 1.0, "loss": 1 / s, "memory/gate": 0.01 * s}) for s in (10, 20)),
    json.dumps({"step": 20, "split": "val", "time": 1.0, "loss": 0.2, "r2/0": -9.0, "r2/1": 0.5, "r2_arm": 0.4,
                "world/skill_1": 0.31, "world/skill_2": 0.25}),
]  # fmt: skip


def test_the_page_is_well_formed_and_loads_nothing(tmp_path):
    folder = in_run(tmp_path, METRICS)
    page = Page(write_report(evaluation(folder, {}, videos=VIDEOS)).read_text())
    assert "script" not in {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("href", "srcset", "poster", "action", "xlink:href")
            assert name != "src" or (tag == "video" and value.startswith("data:video/mp4;base64,"))
            assert "http:" not in (value or "") and "https:" not in (value or "")
    assert not {"link", "iframe", "img", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    text = (folder / "report.html").read_text()
    assert "url(" not in text and "@import" not in text and "prefers-color-scheme: dark" in text
    policy = next(meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy["content"]


def test_the_verdict_comes_first_and_says_everything(tmp_path):
    page = read(evaluation(tmp_path))
    order = [tag for tag, attributes in page.tags if tag == "table" or attributes.get("id") == "verdict"]
    assert order[0] == "section" and "table" in order
    sections = [attributes["id"] for attributes in page.all("section")]
    assert sections == ["verdict", "tasks", "videos", "closed-loop", "controls", "reproduce", "provenance"]
    start = page.text[: page.text.index("Tasks")]
    for part in ("25.0 %", "7.1 % to 59.1 %", "2 of 8 finished", "e2_flow", "step 20", "dev", "Random resets"):
        assert part in start, part
    assert "counted as failures, it would be 20.0 %" in start
    for part in ("2 successes", "6 policy failures", "1 time-outs", "1 crashes"):
        assert part in start, part
    assert "Drifting target" not in start


def test_every_task_is_there_with_its_interval_and_is_escaped(tmp_path):
    folder = evaluation(tmp_path)
    page = read(folder)
    for part in (INSTRUCTION, "task 1", "libero_spatial/0", "libero_spatial/1", "2/3", "0/5", "0.0 % to 43.4 %"):
        assert part in page.text, part
    assert "<script" not in (folder / "report.html").read_text()
    bars = [svg for svg in page.all("svg") if svg["class"] == "bar"]
    assert len(bars) == 4  # verdict, two tasks, all
    assert {svg["aria-label"] for svg in bars} >= {"95 % interval 0.0 to 43.4 %"}


def test_videos_are_embedded_with_failures_beside_successes(tmp_path):
    folder = evaluation(tmp_path, videos=VIDEOS)
    (folder / "videos" / "other.mp4").write_bytes(b"not ours")
    page = read(folder)
    shown = [video["src"].partition(",")[2] for video in page.all("video")]
    assert {base64.b64decode(data) for data in shown} == {(folder / "videos" / f"{n}.mp4").read_bytes() for n in VIDEOS}
    assert all({"controls", "muted"} <= video.keys() for video in page.all("video"))
    names = [video["aria-label"] for video in page.all("video")]
    assert names[:2] == ["libero_spatial/0/random/0: success", "libero_spatial/0/random/2: failure"]
    assert "No success." in page.text and "4 videos" in page.text and "random/2 · 10 steps" in page.text


def test_the_size_limit_is_kept_and_said(tmp_path, monkeypatch):
    folder = evaluation(tmp_path, videos=VIDEOS)
    size = -(-(folder / "videos" / f"{VIDEOS[0]}.mp4").stat().st_size // 3) * 4
    monkeypatch.setattr(report, "VIDEO_LIMIT", int(3.5 * size))
    page = read(folder)
    assert sum(len(video["src"].partition(",")[2]) for video in page.all("video")) <= 3.5 * size
    assert len(page.all("video")) == 3 and "3 of 4 videos are embedded" in page.text
    assert f"Not embedded (size limit): videos/{VIDEOS[3]}.mp4" in page.text


def test_each_task_and_outcome_has_its_turn_before_a_second_video(tmp_path):
    clips = []
    for name in ("a0", "a1", "b0", "b1"):
        (tmp_path / name).write_bytes(b"123")
        clips.append(Clip(tmp_path / name, name[0], "e", "success"))
    assert {path.name for path in choose(clips, 8).embedded} == {"a0", "b0"}
    assert {path.name for path in choose(clips, 12).embedded} == {"a0", "b0", "a1"}


def test_curves_are_drawn_for_what_was_measured(tmp_path):
    page = read(in_run(tmp_path, METRICS))
    labels = [svg["aria-label"] for svg in page.all("svg") if svg.get("class") == "chart"]
    assert labels == [
        "Loss over training steps",
        "R² per action dimension over training steps",
        "World-model skill per horizon over training steps",
        "Memory gate and injected ratio over training steps",
    ]
    assert "Not measured by this run: Variance of the prediction." in page.text
    assert "t+1 0.31 t+2 0.25" in page.text and "Values below -1 are drawn at -1" in page.text
    assert "evaluated checkpoint, step 20" in page.text and "train.steps" in page.text


def test_a_dead_prophet_that_adds_to_the_present_shows(tmp_path):
    line = {"step": 20, "split": "val", "time": 1.0, "world/change_ratio": 1e-4, "world/variance_ratio": 0.9}
    page = read(in_run(tmp_path, [json.dumps(line)]))
    assert "change, validation 0.0001" in page.text and "latents, validation 0.9" in page.text


def test_missing_and_damaged_metrics_are_tolerated(tmp_path):
    folder = in_run(tmp_path, [])
    assert "no metrics.jsonl" in read(folder).text
    run = folder.parents[2]
    (run / "metrics.jsonl").unlink()
    assert "no metrics.jsonl" in read(folder).text
    lines = [*METRICS, '{"step": 30, "spl{"step"', "[1]", '{"step": 40, "split": "val", "loss": NaN}']
    (run / "metrics.jsonl").write_text("\n".join(lines))
    assert "left out: 2." in read(folder).text
    assert "nan" not in (folder / "report.html").read_text().lower().replace("provenance", "")


def test_a_resumed_run_counts_the_later_of_equal_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "split": "train", "loss": loss} for step, loss in ((1, 9), (2, 8), (1, 7), (2, 6), (3, 5))]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_metrics(path).get("train", "loss") == [(1, 7), (2, 6), (3, 5)]


def test_long_curves_are_thinned_out_but_keep_their_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(json.dumps({"step": i, "split": "train", "loss": i}) for i in range(1001)))
    points = read_metrics(path).get("train", "loss")
    assert len(points) < 500 and points[-1] == (1000, 1000)
    assert curves(read_metrics(tmp_path / "missing"))[0] == []


@pytest.mark.parametrize(
    "low, high", [(0, 1), (-1, 0.93), (0.348, 2.21), (0, 0), (3, 3), (-2, -2), (1e-7, 3e-7), (0, 1e5)]
)
def test_ticks_are_round_few_and_enclose_the_values(low, high):
    ticks = round_ticks(low, high, 5)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-9 * step and ticks[-1] >= high - 1e-9 * step and 2 <= len(ticks) <= 7
    assert any(np.isclose(step / 10 ** np.floor(np.log10(step * 1.001)), factor) for factor in (1, 2, 5))


def test_a_chart_of_one_constant_point_stays_on_the_canvas():
    chart = Page(line_chart([Series("a", [(0.0, 0.0)], 0)], "x"))
    (dot,) = chart.all("circle")
    assert 0 <= float(dot["cx"]) <= 360 and 0 <= float(dot["cy"]) <= 200


def test_markup_escapes_text_and_attributes():
    assert element("p", "<&>", title='"x"', hidden=True, id=None) == '<p title="&quot;x&quot;" hidden>&lt;&amp;&gt;</p>'
    assert element("p", element("b", "x"), None) == "<p><b>x</b></p>"


def test_a_skill_is_a_ratio_of_means(tmp_path):
    """A robot that does not move leaves copying almost no error: one such episode must not outweigh all others."""
    moved = {"world/error": 0.5, "world/copy_error": 1.0}
    infos = [moved, moved, {"world/error": 0.002, "world/copy_error": 0.0001}]
    records = [dataclasses.replace(record(0, index, "failure"), info=info) for index, info in enumerate(infos)]
    rows = re.findall(r"<tr>.*?</tr>", str(closed_loop(records)))
    (skill,) = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows if "world/skill" in row]
    assert skill == [DASH, f"{1 - 1.002 / 2.0001:.4g}"]


def test_controls_are_compared_in_pairs(tmp_path):
    this = evaluation(tmp_path / "this", {0: ("success", "success", "success", "failure")})
    header = {**HEADER, "experiment": {**HEADER["experiment"], "recipe": "e1_flow"}}
    other = evaluation(tmp_path / "other", {0: ("failure", "failure", "success", "success")}, header)
    text = read(this, other).text
    assert "e1_flow" in text and "+25.0 points" in text
    assert "experiment.recipe e1_flow e2_flow" in text
    assert "None given" in read(this).text
    with pytest.raises(UserError, match="is the evaluation itself"):
        write_report(this, compare_with=[this])
    with pytest.raises(UserError, match="no finished episodes in common"):
        write_report(this, compare_with=[evaluation(tmp_path / "far", {1: ("success",)})])


def test_the_command_and_the_commit_are_shown_exactly(tmp_path):
    page = read(evaluation(tmp_path, commit="0123abcd-dirty"))
    assert "git checkout 0123abcd python -m wmjax.evaluate --run 'my run'" in page.text
    assert "Finished at 2026" in page.text and "had uncommitted changes" in page.text
    assert page.all("details") and "checkpoint.hash c0ffee" in page.text


def limits(tmp_path, finished=True, runs=0, **changes) -> str:
    """The verdict's caveats for a changed header or protocol."""
    protocol = {**PROTOCOL, **{k: v for k, v in changes.items() if k != "actor"}}
    header = {"actor": changes.get("actor", "policy"), "protocol": protocol}
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    evaluation(folder, header=header, finished=finished)
    for number in range(runs):
        content = {"header": header, "finished_at": f"2026-11-29T00:00:{number:02d}+00:00"}
        write_json(folder / "results" / f"dev-{number:03d}.json", content)
    text = read(folder).text
    return text[: text.index("Tasks")]


def test_caveats(tmp_path):
    assert "Random resets are for development" in limits(tmp_path)
    assert "Part of the benchmark: 2 of 10 tasks, 5 of 50" in limits(tmp_path, init="benchmark")
    whole = limits(tmp_path, init="benchmark", tasks=list(range(10)), episodes_per_task=50)
    assert "Part of" not in whole and "Random" not in whole and "Harder" not in whole
    harder = limits(tmp_path, init="benchmark", target_velocity=0.05)
    assert "Harder than the published benchmark: target velocity" in harder and "Drifting target 0.05 m/s" in harder
    assert "ran the benchmark 2 times" in limits(tmp_path, init="benchmark", runs=2)
    assert "Interrupted after 10 of 10 episodes" in limits(tmp_path, finished=False)
    bound = limits(tmp_path, oracle=0.5)
    assert "an upper bound for predictions" in bound and "Oracle bracket 0.5 of the memory" in bound
    assert "bound" not in limits(tmp_path, oracle=1.0) and "Oracle" not in limits(tmp_path, oracle=None)
    assert "ceiling" in limits(tmp_path, actor="expert") and "floor" in limits(tmp_path, actor="noop")


def test_without_a_finished_episode_there_is_no_rate(tmp_path):
    page = read(evaluation(tmp_path, {0: ("crash", "timeout")}))
    assert "no episode finished" in page.text and "0.0 % success" not in page.text


def test_bad_input_is_refused_in_one_line(tmp_path, capsys):
    folder = in_run(tmp_path, [])
    run = folder.parents[2]
    assert command.main([str(run)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"did you mean {folder}?" in error
    assert command.main([str(tmp_path / "nowhere")]) == 2
    assert "header.json is missing" in capsys.readouterr().err
    with pytest.raises(UserError, match="no finished episode yet"):
        write_report(evaluation(tmp_path / "empty", {}, finished=False))
    with pytest.raises(UserError, match="name an HTML file"):
        write_report(folder, tmp_path)
    (folder / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary.json: not valid JSON"):
        write_report(folder)


def test_the_command_writes_to_the_given_path(tmp_path, capsys):
    folder = evaluation(tmp_path / "e")
    out = tmp_path / "new" / "page.html"
    assert command.main([str(folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"report: {out}\n" and Page(out.read_text()).text
    assert command.main([str(folder)]) == 0 and (folder / "report.html").is_file()


def test_neither_jax_nor_the_simulator_is_imported():
    code = (
        "import sys, wmjax.report; print({'jax', 'flax', 'mujoco', 'robosuite', 'libero', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
