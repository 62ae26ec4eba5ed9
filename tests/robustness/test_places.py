"""Folders, environments and pipes as other people's machines have them."""

import ast
import contextlib
import functools
import http.server
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.data.synthetic import make_store
from wmjax.core import command, paths
from wmjax.core.command import run_command, whole_number
from wmjax.core.devices import require_devices
from wmjax.core.errors import UserError
from wmjax.core.files import atomic_path, disk_errors
from wmjax.core.location import local, location
from wmjax.core.paths import resource_folder
from wmjax.core.shards import own_shard, parse_shard
from wmjax.data.formats.lerobot.convert import resolve
from wmjax.data.formats.lerobot.layout import load_layout
from wmjax.data.store import TrainingStore
from wmjax.encoders.export import parse_grid
from wmjax.encoders.vjepa2.files import resolve_folder
from wmjax.models.backbones.pretrained import backbone_folder, backbone_hash
from wmjax.models.backbones.qwen2_5_vl.config import from_hf_config, preset
from wmjax.models.backbones.qwen2_5_vl.names import IGNORED, published_name
from wmjax.models.backbones.qwen2_5_vl.prompt import MINI_TOKENIZER, PromptBuilder
from wmjax.models.backbones.qwen2_5_vl.weights import INDEX, to_hf_config, weight_files
from wmjax.policy.saved import find_policy
from wmjax.reporting.dataset_page import parse_episodes
from wmjax.reporting.html import element, write_document
from wmjax.reporting.video.clips import Videos
from wmjax.rollout.benchmark_log import count_records, write_record
from wmjax.rollout.protocol import read_protocol
from wmjax.scaling.chips import parse_topology
from wmjax.serving.clients.openpi import OpenPIClient
from wmjax.sim import preparation
from wmjax.sim.episode import EpisodeId
from wmjax.sim.libero import ACTION_SPEC
from wmjax.sim.preparation import egl_devices, prepare, require_shared_memory, why_not

ROOT = Path(__file__).parents[2]


# Text.


def unencoded(path: Path) -> list[str]:
    """Calls that open a text file without saying its encoding."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        names = {keyword.arg for keyword in node.keywords}
        place = {"read_text": 0, "write_text": 1, "open": 1}.get(name)
        modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        text = name != "open" or (modes and re.fullmatch(r"[rwaxt+]+", modes[-1]))
        if place is not None and text and "encoding" not in names and len(node.args) <= place:
            found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


@pytest.mark.parametrize("package", ["wmjax", "encoders_export", "benchmarks", "tools"])
def test_text_is_opened_with_its_encoding(package):
    assert not [place for path in (ROOT / package).rglob("*.py") for place in unencoded(path)]


def test_the_lint_finds_its_faults(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "x.py"
    path.write_text(
        'p.read_text()\np.open("w")\np.write_text(t)\np.open("rb")\np.read_text(encoding="x")\np.open("a+")\n',
        encoding="utf-8",
    )
    assert unencoded(path) == ["x.py:1", "x.py:2", "x.py:3", "x.py:6"]


# Commands.


def run(code: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, env=variables, timeout=240
    )


def test_an_output_closed_by_its_reader_is_not_an_error(tmp_path):
    code = (
        "from wmjax.core.command import run_command; import sys; sys.exit(run_command(lambda: print('x' * 10**6) or 0))"
    )
    line = f'{sys.executable} -c "{code}" 2>{tmp_path}/err | :'
    subprocess.run(line, shell=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=240)
    assert (tmp_path / "err").read_text(encoding="utf-8") == ""


PRINTS = "from wmjax.core.command import run_command as r; import sys; sys.exit(r(lambda: print('x' * {}) or 0))"


@pytest.mark.parametrize("size", [1, 10**6])
def test_an_output_on_a_full_disk_is_one_line(size):
    line = [sys.executable, "-c", PRINTS.format(size)]
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=240, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: the output, or a file: No space left on device; free some space\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_an_output_closed_before_the_start_is_not_an_error(closed, tmp_path):
    line = f'{sys.executable} -c "{PRINTS.format(9)}" >{tmp_path}/out 2>{tmp_path}/err {closed}'
    assert subprocess.run(line, shell=True, cwd=ROOT, timeout=240, check=False).returncode == 0
    assert (tmp_path / "err").read_text(encoding="utf-8") == ""
    assert (tmp_path / "out").read_text(encoding="utf-8") == ("" if closed.startswith(">") else "xxxxxxxxx\n")


def test_what_a_terminal_cannot_show_is_escaped():
    code = "from wmjax.core.command import run_command; run_command(lambda: print('Schl\\u00fcssel \\u2028') or 0)"
    done = run(code, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout.strip() == "Schl\\xfcssel \\u2028"


@pytest.mark.parametrize(
    "error", [PermissionError(13, "no", "/a/b"), FileExistsError(17, "no", "/a/b"), OSError(28, "no", "/a")]
)
def test_places_that_cannot_be_used_are_one_line(capsys, error):
    def body() -> int:
        raise error

    assert run_command(body) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: /a") and message.count("\n") == 1


def test_a_machine_without_temporary_files_is_one_line(capsys):
    def body() -> int:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    assert run_command(body) == 2
    assert capsys.readouterr().err.endswith("in ['/tmp']; set TMPDIR to a folder that can be written to\n")


def test_errors_of_wmjax_itself_are_not_hidden():
    def body() -> int:
        raise OSError(5, "a broken disk", "/a")

    with pytest.raises(OSError, match="a broken disk"):
        run_command(body)


@pytest.mark.parametrize(
    ("words", "alone"),
    [
        (["python", "-m", "wmjax.train", "--dry-run"], True),
        (["python", "-X", "dev", "-u", "-m", "wmjax.train"], True),
        (["/env/bin/python", "/env/bin/wmjax", "train"], True),
        (["python", "-m", "cProfile", "-o", "x", "-m", "wmjax.train"], False),
        (["python", "-m", "pdb", "-m", "wmjax.train"], False),
        (["python", "-c", "import wmjax"], False),
        (["python", "train.py"], False),
    ],
)
def test_who_runs_the_command_decides_about_huge_pages(words, alone):
    assert command._runs_alone("wmjax.train", words) == alone


def test_huge_pages_keep_the_interpreters_options(monkeypatch):
    calls = []
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "-m", "wmjax.train", "--steps", "3"])
    monkeypatch.setattr(sys, "gettrace", lambda: None)
    monkeypatch.setattr(sys, "getprofile", lambda: None)
    monkeypatch.setattr(os, "execv", lambda place, words: calls.append(words))
    command.use_huge_pages("wmjax.train")
    assert calls == [[sys.executable, "-X", "dev", "-m", "wmjax.train", "--steps", "3"]]
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr(sys, "getprofile", lambda: len)
    command.use_huge_pages("wmjax.train")
    assert len(calls) == 1


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "", "1e3", "99999999999"])
def test_options_are_whole_numbers_in_a_range(text):
    with pytest.raises(UserError, match=r"--workers is .*; give a whole number from 1 to 100"):
        whole_number("workers", 1, 100)(text)
    assert whole_number("videos", 0)("0") == 0


NO_NUMBERS = ["", "x", "-1", "1.5", "None", "²", "9" * 5000, "0x1", "1_0", "+1"]
"""Texts that Python's own checks and conversions disagree about among them."""


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_a_launchers_variables_are_numbers(value):
    with pytest.raises(UserError, match="SLURM_PROCID is"):
        own_shard({"SLURM_PROCID": value, "SLURM_STEP_NUM_TASKS": "2"})
    assert own_shard({"SLURM_PROCID": " 1", "SLURM_STEP_NUM_TASKS": "2"}) == (1, 2)


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize(
    ("read", "form", "message"),
    [
        (parse_shard, "{}/2", "is not i/n"),
        (parse_shard, "0/{}", "is not i/n"),
        (parse_episodes, "0,{}", "--episodes is"),
        (parse_topology, "v5e:4x{}", "--topology is"),
        (parse_grid, "{0}x{0}", "grid is"),
        (EpisodeId.parse, "libero_spatial/0/random/{}", "is not an episode's key"),
    ],
)
def test_numbers_within_a_text_are_decimal_digits(value, read, form, message):
    with pytest.raises(UserError, match=message) as caught:
        read(form.format(value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["", " ", "a\0b", os.fsdecode(b"run\xff")])
@pytest.mark.parametrize("read", [local, location, paths.expand, find_policy, TrainingStore])
def test_an_empty_path_is_not_the_current_folder(place, read, tmp_path, monkeypatch):
    """As ``--out "$OUT"`` says when OUT is not set."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the path is"):
        read(place)
    assert local(".") == Path() and not list(tmp_path.iterdir())


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local("~/runs") == tmp_path / "runs"
    monkeypatch.setenv("WMJAX_CACHE", "~/cache")
    assert paths.cache_root() == tmp_path / "cache"
    with pytest.raises(UserError, match="write the whole path"):
        local("~nobody_of_that_name/x")


def test_home_is_expanded_wherever_something_is_read(monkeypatch, tmp_path):
    """A shell does not expand ``~`` after ``=``, nor does anything in a settings file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("data", "backbone", "encoder"):
        (tmp_path / name).mkdir()
    shutil.copyfile(resource_folder("eval") / "protocols/spatial_dev.toml", tmp_path / "mine.toml")
    assert resolve("~/data", None) == tmp_path / "data"
    assert backbone_folder("~/backbone") == tmp_path / "backbone"
    assert resolve_folder("~/encoder") == tmp_path / "encoder"
    assert read_protocol("~/mine.toml")[0] == tmp_path / "mine.toml"
    with pytest.raises(UserError, match=f"{tmp_path}/run"):
        find_policy("~/run")
    with pytest.raises(UserError, match=f"{tmp_path}/x.toml: missing"):
        load_layout("~/x.toml")
    for command_, words in (("report", ["~/results"]), ("diagnose", ["--run=~/run"]), ("sweep", ["~/plan.toml"])):
        error = io.StringIO()
        with contextlib.redirect_stderr(error):
            assert importlib.import_module(f"wmjax.{command_}").main(words) == 2
        assert f"error: {tmp_path}" in error.getvalue() or f"'{tmp_path}" in error.getvalue()


def test_the_fix_of_a_cache_is_another_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="set WMJAX_CACHE to another folder"), disk_errors(tmp_path / "runs/a"):
        raise PermissionError(13, "Permission denied", "x")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be written"), disk_errors(tmp_path / "file" / "x"):
        (tmp_path / "file" / "x").mkdir()


def test_a_file_that_may_not_grow_is_one_line(tmp_path):
    with (
        pytest.raises(UserError, match=r"x: larger than its disk or the limit .*; choose another folder"),
        atomic_path(tmp_path / "x"),
    ):
        raise OSError(27, "File too large")
    assert not list(tmp_path.iterdir())


def test_no_device_is_one_line(monkeypatch):
    import jax

    def fails():
        raise AssertionError

    monkeypatch.setattr(jax, "devices", fails)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(UserError, match="JAX_PLATFORMS is 'cuda': AssertionError"):
        require_devices()


@pytest.mark.parametrize("value", ["1", "True", "true", "on"])
def test_numbers_of_64_bits_are_refused(value):
    """Whatever the way in which the environment spells it."""
    code = "from wmjax.core.devices import require_devices as r\nfrom wmjax.core.command import run_command\n"
    code += "import sys; sys.exit(run_command(lambda: r() or 0))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "JAX_ENABLE_X64": value}, capture_output=True, text=True
    )
    assert done.returncode == 2 and "jax_enable_x64 is on (JAX_ENABLE_X64), " in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


# Folders that users also put things into.


def test_foreign_videos_are_passed_over(tmp_path):
    for name in ("montage", "a__b", "libero_spatial-2__random-1__success", "libero_spatial-2__random-2__success__2",
                 "libero_spatial-2__random-3__timeout", "libero_spatial-2__x__success (1)", "__"):  # fmt: skip
        (tmp_path / f"{name}.mp4").write_bytes(b"")
    videos = Videos(tmp_path, 2, 5.0, ACTION_SPEC)
    assert not videos.wanted("libero_spatial", 2, "success") and videos.wanted("libero_spatial", 2, "failure")


def save_weights(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        save_file({"x": np.full(2, number, np.float32)}, folder / name)


def test_the_hash_of_a_base_is_that_of_its_own_files(tmp_path):
    save_weights(tmp_path, "model.safetensors")
    own = backbone_hash(tmp_path)
    save_weights(tmp_path, "model.safetensors", "adapter_model.safetensors", "model-00001-of-00002.safetensors",
                 "added_tokens.safetensors", "consolidated.safetensors")  # fmt: skip
    (tmp_path / INDEX).write_text('{"weight_map": {"x": "model-00001-of-00002.safetensors"}}', encoding="utf-8")
    assert backbone_hash(tmp_path) == own and weight_files(tmp_path) == [tmp_path / "model.safetensors"]


def test_without_a_single_file_the_index_names_the_shards(tmp_path):
    save_weights(
        tmp_path, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "old-00003.safetensors"
    )
    shards = {"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": shards}), encoding="utf-8")
    assert [path.name for path in weight_files(tmp_path)] == sorted(shards.values())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.fp16.safetensors", "model-q4.gguf"])
def test_weights_in_another_form_are_named(name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"neither model.safetensors nor .* but {name}; save the model again"):
        backbone_hash(tmp_path)


@pytest.mark.parametrize("kind", ["missing", "folder", "dangling link"])
def test_a_missing_shard_is_named(kind, tmp_path):
    shard = tmp_path / "model-00001-of-00001.safetensors"
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": shard.name}}), encoding="utf-8")
    if kind == "folder":
        shard.mkdir()
    if kind == "dangling link":
        shard.symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=rf"{shard.name}: (missing|a folder.*); download the checkpoint again"):
        backbone_hash(tmp_path)


def test_a_number_that_a_config_says_is_not_replaced():
    values = to_hf_config(preset("mini"))
    with pytest.raises(UserError, match="rope_theta is 0"):
        from_hf_config({**values, "rope_theta": 0})
    assert from_hf_config({k: v for k, v in values.items() if k != "rope_theta"}).text.rope_theta == 1e6


TEMPLATES = [
    "{{ 1 / 0 }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% include 'x' %}",
    "{{ nothing.at.all }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_that_fails_is_one_line(template, tmp_path):
    folder = shutil.copytree(MINI_TOKENIZER, tmp_path / "tokenizer")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(
        UserError, match=r"chat_template.jinja: the chat template refuses a message of 2 images"
    ) as caught:
        PromptBuilder(folder, [(112, 112)] * 2, 16, 120, preset("mini"))("lift it")
    assert "\n" not in str(caught.value)


def test_an_unpaired_surrogate_in_a_prompt_is_refused():
    with pytest.raises(UserError, match="which is not Unicode text"):
        PromptBuilder(MINI_TOKENIZER, [(112, 112)] * 2, 16, 120, preset("mini"))("lift \ud83e")


@pytest.mark.parametrize("url", ["ws://[bad", "ws://localhost:99999", "ws://", "ws://:x", "ws:///"])
def test_an_invalid_address_is_one_line(url):
    with pytest.raises(UserError, match=r"cannot connect to .*; start the server, or correct --policy"):
        OpenPIClient(url, timeout_s=1.0)


@pytest.mark.parametrize(
    ("stored", "published"),
    [
        ("model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("language_model.model.norm.weight", "model.norm.weight"),
        ("language_model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("model.visual.blocks.0.norm1.weight", "visual.blocks.0.norm1.weight"),
        ("module.model.norm.weight", "module.model.norm.weight"),
        ("_orig_mod.model.norm.weight", "_orig_mod.model.norm.weight"),
    ],
)
def test_names_as_training_tools_leave_them(stored, published):
    """Those that transformers would fill with random values stay unknown, and are refused."""
    assert published_name(stored) == published


FIXED = {
    "strategy": {"Fixed": 80}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
    "pad_token": "<|endoftext|>",
}  # fmt: skip
CUT = {"direction": "Right", "max_length": 12, "strategy": "LongestFirst", "stride": 0}
STORED = [
    {"padding": FIXED},
    {"padding": FIXED | {"direction": "Left"}},
    {"padding": FIXED | {"strategy": "BatchLongest", "pad_to_multiple_of": 64}},
    {"truncation": CUT},
    {"truncation": CUT | {"direction": "Left"}, "padding": FIXED},
]
"""What transformers stores in a tokenizer that was called with ``padding`` or ``truncation``, and does not apply."""


@pytest.mark.parametrize("stored", STORED)
def test_padding_and_cuts_that_a_tokenizer_stores_do_not_reach_the_prompt(stored, tmp_path):
    folder = shutil.copytree(MINI_TOKENIZER, tmp_path / "tokenizer")
    values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps({**values, **stored}), encoding="utf-8")
    plain, found = (PromptBuilder(each, [(112, 112)] * 2, 16, 120, preset("mini")) for each in (MINI_TOKENIZER, folder))
    for instruction in ("pick up the bowl", "lift", "put the black bowl in the top drawer of the cabinet and close it"):
        for one, other in zip(plain(instruction), found(instruction), strict=True):
            np.testing.assert_array_equal(one, other)


def test_tensors_that_follow_from_the_config_are_passed_over():
    assert IGNORED.fullmatch("model.rotary_emb.inv_freq") and IGNORED.fullmatch("visual.rotary_pos_emb.inv_freq")
    assert not IGNORED.fullmatch("model.layers.0.self_attn.q_proj.weight")


# Results.


CONTENT = {"header": {"recipe_hash": "r", "protocol": {"name": "p"}}, "finished_at": "now", "command": "x"}


def test_a_result_is_recorded_although_the_folder_cannot_be_written(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("", encoding="utf-8")
    path = write_record(tmp_path / "file" / "results", "p", CONTENT)
    assert path.parent == tmp_path / "cache/results" and json.loads(path.read_text(encoding="utf-8"))["command"] == "x"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"header": 3, "finished_at": 1}', "\xff"])
def test_a_damaged_record_loses_no_other(tmp_path, content):
    (tmp_path / "p-000.json").write_text(content, encoding="utf-8")
    (tmp_path / "p-notes.json").write_text("mine", encoding="utf-8")
    assert write_record(tmp_path, "p", CONTENT).name == "p-001.json"
    assert count_records(tmp_path, CONTENT["header"]) == 1


def test_a_name_that_is_not_utf8_is_shown_on_a_page(tmp_path):
    name = os.fsdecode(b"b\xff.hdf5")
    write_document(tmp_path / "x.html", name, "dataset_page.css", [element("p", name)])
    assert "<p>b\\udcff.hdf5</p>" in (tmp_path / "x.html").read_text(encoding="utf-8")


# The simulator's environment.


@pytest.mark.parametrize("devices", ["MIG-0a1b2c3d-0000-1111", "GPU-8f2b", "3", "", "-1", "7,6", "0"])
def test_cuda_devices_are_kept_from_robosuite(monkeypatch, devices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
    monkeypatch.setattr(preparation, "count_egl_devices", lambda: 1)
    with egl_devices():
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
        assert os.environ.get("MUJOCO_EGL_DEVICE_ID") == ("0" if devices == "0" else None)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == devices and "MUJOCO_EGL_DEVICE_ID" not in os.environ


def test_shared_memory_that_is_too_small_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(preparation, "SHARED_MEMORY", tmp_path)
    with pytest.raises(UserError, match=r"MB free, the simulator's frames need .*--shm-size"):
        require_shared_memory(10**18)
    require_shared_memory(1)
    monkeypatch.setattr(preparation, "SHARED_MEMORY", tmp_path / "not there")
    require_shared_memory(10**18)


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (ModuleNotFoundError("x", name="bddl"), "package bddl is not installed"),
        (PermissionError(13, "Permission denied", "/tmp/robosuite.log"), "/tmp/robosuite.log; give this user"),
        (RuntimeError("cannot cache function 'f': no locator available"), "set NUMBA_CACHE_DIR"),
        (RuntimeError("The MUJOCO_EGL_DEVICE_ID environment variable must be 0..0, got 3"), "MUJOCO_EGL_DEVICE_ID is"),
        (AttributeError("'NoneType' object has no attribute 'eglQueryString'"), "apt-get install libosmesa6"),
        (ImportError("Cannot initialize a EGL device display"), "apt-get install libosmesa6"),
        (ValueError("something else"), "cannot be imported (ValueError: something else)"),
        (ImportError("Numba needs NumPy 2.2 or less. Got NumPy 2.3."), "cannot be imported (ImportError: Numba needs"),
    ],
)
def test_every_cause_has_its_own_fix(monkeypatch, cause, words):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    message = str(why_not(cause))
    assert words in message and "\n" not in message
    assert ("apt-get" in message) == ("apt-get" in words)


@pytest.mark.parametrize(("name", "value"), [("MUJOCO_GL", "vulkan"), ("PYOPENGL_PLATFORM", "osmesa")])
def test_settings_of_opengl_that_contradict_are_named(monkeypatch, name, value):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv(name, value)
    assert f"{name} is {value!r}" in str(why_not(ImportError("Cannot use the rendering platform")))


@pytest.mark.parametrize("home", ["/", "missing", "none"])
def test_the_environment_is_prepared_in_any_home(home, tmp_path):
    """Runs in a separate process, because its settings would persist."""
    code = (
        "import os; from wmjax.sim.preparation import prepare; prepare(); import sys;"
        "m = sys.modules.get('robosuite.macros'); print(m is None or m.FILE_LOGGING_LEVEL is None)"
    )
    variables = {"WMJAX_CACHE": str(tmp_path), "HOME": str(tmp_path / "missing") if home == "missing" else "/"}
    done = run(code, **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"


def test_a_folder_for_compiled_code_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "x"))
    (tmp_path / "file").write_text("", encoding="utf-8")
    prepare()
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path / "numba")


def test_a_container_without_temporary_files_is_prepared_too(monkeypatch, tmp_path):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(preparation.tempfile, "gettempdir", none)
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path))
    assert preparation._own_folder("numba") == tmp_path / "numba"
    (tmp_path / "file").touch()
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path / "file"))
    assert preparation._own_folder("numba") is None


def test_an_empty_choice_of_opengl_counts_as_unset(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "")
    prepare()
    assert os.environ["MUJOCO_GL"] == "egl"


# URLs.


def test_a_server_that_ignores_ranges_is_not_called_truncated(tmp_path):
    pytest.importorskip("aiohttp")
    make_store(tmp_path / "store", image_size=56, lengths=(40,))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "store"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(UserError, match="ignores ranges"):
            TrainingStore(f"http://127.0.0.1:{server.server_port}/").frames[3]
    finally:
        server.shutdown()
