"""Lists of protocols: what is refused, what is run, what survives a stop, and the table."""

import json
from pathlib import Path

import numpy as np
import pytest

import wmjax.compare
import wmjax.evaluate as command
from tests.rollout.fakes import ENV
from wmjax.analysis.intervals import mean_rate, wilson
from wmjax.core.errors import UserError
from wmjax.pipeline.evaluate_list import evaluate_list
from wmjax.rollout.protocol import load_protocol, protocol_names
from wmjax.rollout.protocol_list import load_protocol_list
from wmjax.sim.libero import PERTURBED


def write(folder: Path, text: str) -> str:
    """A list with this text beside two short protocols, ``a.toml`` and ``b.toml``."""
    for name, task in (("a", 0), ("b", 1)):
        protocol = f'suite = "libero_spatial"\ntasks = [{task}]\nepisodes_per_task = 2\nmax_steps = 8\n'
        (folder / f"{name}.toml").write_text(f'{protocol}init = "random"\nenv = "{ENV}"\n')
    (folder / "both.toml").write_text(text)
    return str(folder / "both.toml")


def table(folder: Path) -> dict:
    return json.loads((folder / "both.json").read_text())


def test_the_shipped_lists_are_the_cells_of_libero_pro_and_the_four_suites():
    cells = load_protocol_list("pro_all").cells
    assert sorted(cell.protocol.suite for cell in cells) == sorted(PERTURBED)
    assert all(cell.protocol == cell.unchanged == load_protocol(cell.protocol.name) for cell in cells)
    suites = [cell.protocol.name for cell in load_protocol_list("all_suites").cells]
    assert suites == ["libero_spatial", "libero_object", "libero_goal", "libero_10"]
    assert load_protocol_list("spatial_dev") is None
    assert {"pro_all", "all_suites"} < set(protocol_names())


def test_a_change_is_of_every_cell_and_names_the_table():
    chosen = load_protocol_list("all_suites", episodes_per_task=2, max_steps=220, init=None)
    assert {(c.protocol.episodes_per_task, c.protocol.max_steps) for c in chosen.cells} == {(2, 220)}
    assert chosen.label == "all_suites-n2-max_steps220"
    assert chosen.cells[0].folder(Path("e")).name == "libero_spatial-n2"  # its limit is 220 without a change


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("protocols = []", "protocols is empty; name at least one protocol; correct the file"),
        ('protocols = ["pro_spatial_objct"]', "unknown protocol 'pro_spatial_objct'; did you mean pro_spatial_object"),
        ('protocols = ["c.toml"]', "protocols names 'c.toml', but .*c.toml is not a file"),
        ('protocols = ["pro_all"]', "protocols names 'pro_all', which is a list itself; name its protocols"),
        ('protocols = ["both.toml"]', "protocols names 'both.toml', which is a list itself"),
        ('protocols = ["a.toml", "a.toml"]', "protocols names 'a' more than once"),
        ('protocols = ["a.toml"]\nseed = 3', "unknown setting 'seed'"),
        ("protocols = [3]", r"protocols\[0\] is 3; expected str"),
    ],
)
def test_a_bad_list_is_one_line_that_names_the_file(text, message, tmp_path):
    with pytest.raises(UserError, match=rf"both.toml: {message}") as found:
        load_protocol_list(write(tmp_path, text))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--policy", "noop", "--suite", "libero_goal"], "leave --suite out"),
        (["--policy", "noop", "--episodes", "51"], "libero_spatial_object has 50 initial states"),
        (["--policy", "replay"], "a scripted actor, not replay; name one of its protocols, such as pro_spatial_object"),
    ],
)
def test_unsupported_options_of_a_list_are_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(["--protocol", "pro_all", *words]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_comparison_of_lists_is_refused(capsys):
    with pytest.raises(UserError, match=r"'pro_all' is a list of protocols, which only .* runs; name one protocol"):
        load_protocol("pro_all")
    assert wmjax.compare.main(["x", "y", "--until", "decided", "--protocol", "pro_all"]) == 2
    assert "'pro_all' is a list" in capsys.readouterr().err


def test_a_list_resumes_after_its_finished_cells(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, 'protocols = ["a.toml", "b.toml"]')
    good = (tmp_path / "b.toml").read_text()
    (tmp_path / "b.toml").write_text(good.replace("tasks = [1]", "tasks = [9]"))  # the fake refuses that task
    arguments = ["--policy", "noop", "--protocol", path, "--videos", "0"]
    assert command.main(arguments) == 2
    folder = tmp_path / "runs" / "noop"
    assert [cell["complete"] for cell in table(folder)["cells"]] == [True, False]
    assert table(folder)["average"] is None
    first = (folder / "a" / "summary.json").stat().st_mtime_ns
    (tmp_path / "b.toml").write_text(good)
    assert command.main(arguments) == 0
    assert (folder / "a" / "summary.json").stat().st_mtime_ns == first
    found, printed = table(folder), capsys.readouterr().out
    assert [(c["protocol"], c["episodes"], c["overall"]["successes"]) for c in found["cells"]] == [
        ("a", 2, 0), ("b", 2, 0),
    ]  # fmt: skip
    assert found["average"] == {"rate": 0.0, "interval_95": [0.0, pytest.approx(wilson(0, 2)[1] / 2**0.5)]}
    assert (folder / "both.txt").read_text().strip() in printed
    assert "| a | libero_spatial | 0/2 | 0.0 % |" in (folder / "both.md").read_text()


def test_the_last_shard_completes_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, 'protocols = ["a.toml", "b.toml"]')
    for shard, complete in (("0/2", False), ("1/2", True)):
        words = ["--policy", "noop", "--protocol", path, "--videos", "0", "--shard", shard, "--out", "o"]
        assert command.main(words) == 0
        assert [cell["complete"] for cell in table(tmp_path / "o")["cells"]] == [complete] * 2
    assert (tmp_path / "o" / "a" / "report.html").is_file()


def test_a_cell_of_another_policy_does_not_count_as_finished(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, 'protocols = ["a.toml"]')
    words = ["--policy", "noop", "--protocol", path, "--videos", "0", "--out", "o"]
    assert command.main(words) == 0
    asked = []

    def evaluate_cell(protocol, folder):
        asked.append(protocol.name)
        raise UserError("another evaluation")

    chosen = load_protocol_list(path)
    assert evaluate_list(chosen, tmp_path / "o", {"actor": "noop"}, evaluate_cell).cells[0].complete
    assert not asked
    with pytest.raises(UserError, match="another evaluation"):
        evaluate_list(chosen, tmp_path / "o", {"actor": "random"}, evaluate_cell)


def test_the_interval_of_an_average_covers_it():
    assert mean_rate([(7, 20)]) == (0.35, pytest.approx(wilson(7, 20)))
    random, rates = np.random.default_rng(0), np.array([0.1, 0.5, 0.9, 0.97])
    drawn = random.binomial(50, rates, size=(2000, 4))
    limits = np.array([mean_rate([(int(successes), 50) for successes in row])[1] for row in drawn])
    covered = (limits[:, 0] <= rates.mean()) & (rates.mean() <= limits[:, 1])
    assert 0.94 < covered.mean() < 0.98
