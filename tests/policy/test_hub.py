"""A policy goes to the hub and comes back as the same policy, by the real client and a hub on this machine."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import constants

import wmjax
from tests.policy.fake_hub import READER, WRITER, Hub, Repository, serve
from tests.rollout.runs import save_run
from tests.rollout.test_results import record
from wmjax import export
from wmjax.core.errors import UserError
from wmjax.core.files import write_json
from wmjax.core.specs import to_dict
from wmjax.pipeline.evaluate_checkpoint import identity
from wmjax.policy.hub import PARAMETERS, SETTINGS, push_policy
from wmjax.policy.saved import find_policy, save_policy
from wmjax.reporting.model_card import CARD, write_card
from wmjax.rollout.protocol import load_protocol
from wmjax.rollout.results import Results
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two finished evaluations, of which one is of other parameters."""
    folder = save_run(tmp_path_factory.mktemp("run") / "some-run", "e0", "regression")
    found = find_policy(folder)
    protocol = dataclasses.replace(load_protocol("spatial_dev"), tasks=(0, 1), episodes_per_task=2)
    header = {"actor": "policy", "protocol": dataclasses.asdict(protocol)} | identity(folder)
    header |= {"observation": to_dict(OBSERVATION_SPEC), "action": to_dict(ACTION_SPEC)}
    evaluate(found.evaluations / "spatial_dev-tasks0,1-n2", header)
    evaluate(found.evaluations / "of-another", header | {"checkpoint": {"step": 1, "hash": "0" * 16}})
    (found.evaluations / "interrupted").mkdir()
    write_json(found.evaluations / "interrupted" / "header.json", {"format_version": 1, **header})
    return folder


def evaluate(folder: Path, header: dict) -> None:
    """An evaluation in which three of four episodes succeed."""
    results = Results(folder, header)
    for number in range(4):
        results.add(record(number % 2, number, "success" if number else "failure"))
    write_json(folder / "summary.json", {"overall": {"successes": 3}, "commit": "abc123", "finished_at": "today"})


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy's folder, as the hub holds it, but without a card."""
    out = tmp_path_factory.mktemp("policy") / "bowl"
    save_policy(run, out, "float32")
    return out


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process's client uses, with an empty cache and the writer's token."""
    with serve() as found:
        files = f"{found.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", WRITER)
        monkeypatch.setenv("WMJAX_CACHE", str(tmp_path / "cache"))
        yield found


def export_to_hub(run: Path, out: Path, *more: str) -> int:
    return export.main(["--run", str(run), "--out", str(out), "--format", "hub", *more])


def front_matter(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_what_is_pushed_is_loaded_as_the_same_policy(run: Path, hub: Hub, tmp_path: Path, capsys) -> None:
    assert export_to_hub(run, tmp_path / "out", "--push", "owner/bowl", "--private") == 0
    assert f"{hub.url}/owner/bowl/commit/" in capsys.readouterr().out
    repository = hub.repositories["owner/bowl"]
    assert repository.private
    assert set(repository.newest) == {".gitattributes", CARD, SETTINGS, PARAMETERS}
    assert b"3 of 4" in repository.newest[CARD]
    one, other = find_policy(run).parameters(), find_policy("hub:owner/bowl").parameters()
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])
    assert identity(Path("hub:owner/bowl"))["recipe_hash"] == identity(run)["recipe_hash"]
    policy = wmjax.load_policy("hub:owner/bowl", batch_size=1)
    assert policy.prompt("pick up the black bowl").tokens.shape[0] == 1
    downloaded = [line for line in hub.requests if "resolve" in line and line.startswith("GET")]
    assert len(downloaded) == 2 and not any(CARD in line for line in downloaded)


def test_the_card_has_the_results_of_these_parameters_and_no_others(run: Path, tmp_path: Path) -> None:
    assert len(write_card(find_policy(run), tmp_path, "bfloat16", "hub:owner/bowl")) == 1
    text = (tmp_path / CARD).read_text()
    front = front_matter(text)
    assert front["library_name"] == "wmjax" and front["pipeline_tag"] == "robotics" and "e0_mse" in front["tags"]
    assert "world-model" not in front["tags"]
    [entry] = front["model-index"]
    [result] = entry["results"]
    assert entry["name"] == "bowl" and result["metrics"][0]["value"] == 0.75
    assert "| `spatial_dev-tasks0,1-n2` | libero_spatial: 0, 1 | 3 of 4 | 75.0 % | 30.1 to 95.4 % | 0 |" in text
    assert "of-another" not in text and "interrupted" not in text and str(run.parent) not in text
    assert "stored here rounded to bfloat16" in text and "Random resets are for development" in text
    assert "--run hub:owner/bowl --protocol spatial_dev --tasks 0,1 --episodes 2" in text
    assert 'wmjax.load_policy("hub:owner/bowl")' in text and "python -m wmjax.train --config e0_mse" in text


def test_a_card_without_evaluations_says_so(folder: Path, hub: Hub, tmp_path: Path) -> None:
    assert write_card(find_policy(folder), tmp_path, "float32", "bowl") == []
    text = (tmp_path / CARD).read_text()
    assert "no finished evaluation" in text and "model-index" not in front_matter(text)
    assert 'wmjax.load_policy("bowl")' in text


def test_a_second_push_is_a_commit_without_stale_copies_and_revisions_stay(
    folder: Path, hub: Hub, tmp_path: Path
) -> None:
    push_policy(folder, "owner/bowl")
    repository = hub.repositories["owner/bowl"]
    repository.commit(repository.newest | {"assets/encoder.model/old/config.json": b"{}"})
    repository.refs["v1"] = repository.refs["main"]
    shutil.copytree(folder, tmp_path / "two")
    (tmp_path / "two" / "assets" / "prompt.tokenizer" / "new").mkdir(parents=True)
    (tmp_path / "two" / "assets" / "prompt.tokenizer" / "new" / "tokenizer.json").write_text("{}")
    push_policy(tmp_path / "two", "owner/bowl")
    assets = {path for path in repository.newest if path.startswith("assets")}
    assert assets == {"assets/prompt.tokenizer/new/tokenizer.json"}
    assert (find_policy("hub:owner/bowl@v1").folder / "assets" / "encoder.model" / "old").is_dir()
    assert (find_policy("hub:owner/bowl").folder / "assets" / "prompt.tokenizer" / "new").is_dir()


def test_without_network_what_was_downloaded_is_used(folder: Path, hub: Hub, tmp_path: Path, monkeypatch) -> None:
    push_policy(folder, "owner/bowl")
    found = find_policy("hub:owner/bowl")
    assert found.evaluations.parent == tmp_path / "cache" / "evaluations"
    assert found.evaluations.name.startswith("owner--bowl-")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert find_policy("hub:owner/bowl").folder == found.folder
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match=r"^hub:owner/bowl: http://127.0.0.1:9 cannot be reached.*check the network"):
        find_policy("hub:owner/bowl")


def test_places_that_hold_no_policy_are_one_line(folder: Path, hub: Hub, monkeypatch) -> None:
    push_policy(folder, "owner/bowl")
    weights = {"config.json": b"{}", "model.safetensors": b""}
    for name, files, gated in (
        ("owner/text", weights, False),
        ("other/gated", weights, True),
        ("owner/damaged", hub.repositories["owner/bowl"].newest | {SETTINGS: b"{"}, False),
    ):
        hub.repositories[name] = Repository(gated=gated)
        hub.repositories[name].commit(files)
    monkeypatch.setenv("HF_TOKEN", READER)
    for place, message in {
        "hub:owner/none": "has no such model, or it is private",
        "hub:owner/bowl@v9": "no such revision",
        "hub:owner/bowl@": "no revision behind @",
        "hub:bowl": "'bowl' is not of the form OWNER/NAME",
        "hub:../../etc": "is not of the form OWNER/NAME",
        "hub:owner/text": r"no policy of wmjax, its repository has no policy\.json",
        "hub:owner/damaged": "not valid JSON",
        "hub:other/gated": "the repository is gated; ask for access",
    }.items():
        with pytest.raises(UserError, match=message):
            wmjax.load_policy(place)


@pytest.mark.parametrize(
    ("token", "name"), [("hf_wrong", "owner/bowl"), (READER, "owner/bowl"), (WRITER, "another/bowl")]
)
def test_a_refused_push_is_one_line_and_names_the_folder(
    token: str, name: str, folder: Path, hub: Hub, monkeypatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=rf"^--push {name}: .* refuses the token .*; {folder} is complete") as caught:
        push_policy(folder, name)
    assert not hub.repositories and "\n" not in str(caught.value)


def test_a_hub_out_of_order_is_one_line(folder: Path, hub: Hub) -> None:
    hub.broken = True
    with pytest.raises(UserError, match=r"failed .*500.*try again later"):
        push_policy(folder, "owner/bowl")


@pytest.mark.parametrize(
    ("token", "options", "message"),
    [
        ("", ["--push", "owner/bowl"], "needs a token of the hub, and there is none"),
        (WRITER, ["--push", "bowl"], "--push 'bowl' is not of the form OWNER/NAME"),
        (WRITER, ["--private"], "--private needs --push"),
        (WRITER, ["--merge"], "leave it out with --policy and --format"),
    ],
)
def test_impossible_uploads_are_refused_before_the_work(
    token: str, options: list[str], message: str, run: Path, hub: Hub, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    assert export_to_hub(run, tmp_path / "out", *options) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and message in error
    assert not hub.requests and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_address_is_read_from_the_environment(folder: Path, tmp_path: Path) -> None:
    """Runs as a user does: in a separate process with HF_ENDPOINT and HF_TOKEN."""
    with serve() as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": WRITER,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "WMJAX_CACHE": str(tmp_path / "cache"),
        }
        words = ["-m", "wmjax.export", "--run", str(folder), "--out", str(tmp_path / "out"), "--format", "hub"]
        line = [sys.executable, *words, "--push", "owner/bowl"]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("wmjax.load_policy('hub:owner/bowl')\n")
        assert json.loads(hub.repositories["owner/bowl"].newest[SETTINGS])["step"] == 1
