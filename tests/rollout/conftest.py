"""A fault folder that workers inherit, and a quick way to evaluate in the fake simulator."""

import dataclasses

import pytest

from tests.rollout.fakes import FAULTS, PROTOCOL
from wmjax.pipeline.evaluate import evaluate
from wmjax.rollout.results import read_records
from wmjax.rollout.settings import EvaluateSettings


@pytest.fixture
def faults(tmp_path, monkeypatch):
    folder = tmp_path / "faults"
    folder.mkdir()
    monkeypatch.setenv(FAULTS, str(folder))
    return folder


@pytest.fixture
def run(tmp_path):
    """``run(actor, name, workers, timeout, header, **protocol changes) -> records by key``.

    ``evaluation`` are further settings of the evaluation.
    """

    def _run(
        actor,
        name="out",
        *,
        workers=2,
        timeout=60.0,
        header=None,
        videos=0,
        episodes=None,
        shard=(0, 1),
        evaluation=None,
        **changes,
    ):
        protocol = dataclasses.replace(PROTOCOL, **changes)
        out = tmp_path / name
        more = evaluation or {}
        settings = EvaluateSettings(workers=workers, videos=videos, shard=shard, timeout=timeout, **more)
        evaluate(actor, protocol, out, settings, header, episodes=episodes)
        records = read_records(out)
        assert len({record.key for record in records}) == len(records)
        return {record.key: record for record in records}

    return _run
