"""Hashes name caches and identify existing artefacts, so their values must not change."""

import hashlib
from pathlib import Path

import pytest

from wmjax.core.errors import UserError
from wmjax.core.files import hash_bytes, hash_file, hash_files, hash_json
from wmjax.core.specs import spec_hash
from wmjax.encoders.vjepa2.files import MINI_FOLDER, weights_hash
from wmjax.experiment.config import load
from wmjax.experiment.data_config import DataConfig
from wmjax.models.backbones.pretrained import backbone_hash
from wmjax.models.backbones.qwen2_5_vl.prompt import PromptBuilder
from wmjax.policy.saved import find_policy
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

# "data" and "recipe" change with ``RECORDING_VERSION`` only: a new setting that is off makes nobody record again.
EXPECTED = {
    "json": "1d5aa48ef9cd2b6b",
    "observation": "496f0ee7ea9f47c2",
    "action": "0d713928cdc696d1",
    "encoder": "fbe67ecdcedf2799",
    "backbone": "9a129038d9a00aed",
    "data": "356e00478c",
    "recipe": "3c1a921592",
    "policy": "ab747811683992a7",
    "tokenizer": "cfe5709b589767d5",
    "template": "bece87ecc3fb6b57",
}


def test_bytes_and_files_have_their_sha_256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"ab" * 3_000_000)
    (tmp_path / "b").write_bytes(b"c")
    whole = hashlib.sha256(b"ab" * 3_000_000 + b"c").hexdigest()
    assert hash_files([tmp_path / "a", tmp_path / "b"], "") == whole == hash_bytes(b"ab" * 3_000_000 + b"c")
    assert hash_file(tmp_path / "b") == hash_bytes(b"c")
    with pytest.raises(UserError, match=r"nothing: missing; copy it"):
        hash_files([tmp_path / "b", tmp_path / "nothing"], "copy it")


def test_hashes_keep_their_values(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    builder = PromptBuilder("mini", [(112, 112)], 8, 80)
    found = {
        "json": hash_json({"b": [1, 2.5], "a": "é"}),
        "observation": spec_hash(OBSERVATION_SPEC),
        "action": spec_hash(ACTION_SPEC),
        "encoder": weights_hash(MINI_FOLDER),
        "backbone": backbone_hash(tmp_path),
        "data": DataConfig().identity(),
        "recipe": load("e2_flow").data.identity(),
        "policy": find_policy(Path("mini")).hash,
        **builder.hashes,
    }
    assert found == EXPECTED
