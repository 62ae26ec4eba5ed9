"""DAgger in the main process: writes a policy's episodes, with the expert's labels, into a training store."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wmjax.core.errors import UserError
from wmjax.core.files import claim_plan
from wmjax.core.specs import ObservationSpec, to_dict
from wmjax.data.episode import EpisodeData
from wmjax.data.store import TrainingStore, finalize, part_names, write_part
from wmjax.recording.demonstration import SLOTS_PER_ATTEMPT, DemonstrationConfig, demonstration_id
from wmjax.recording.labeller import Labelled
from wmjax.sim.episode import RECORDING_VERSION, EpisodeId
from wmjax.sim.libero import ACTION_SPEC

PLAN = "recording.json"
PLACEMENTS = 7
"""The attempt number of the placements that policies start from. Recordings make fewer attempts than this."""


class Aggregation:
    """A training store of a policy's episodes, resumable after any interruption.

    Args:
        folder: the store; finished episodes in it are kept.
        spec: the policy's observations, with ``simulator`` filled in.
        policy: identity of the policy, plain JSON values.
        config: the ``label_steps`` of the expert's chunks, the ``seed`` of the set of random placements, and the
            ``target_velocity``.

    Raises:
        UserError: the folder holds episodes of another policy or other settings.

    """

    def __init__(
        self, folder: Path, spec: ObservationSpec, policy: Mapping[str, Any], config: DemonstrationConfig
    ) -> None:
        self.folder, self._spec, self._policy, self._seed = folder, spec, dict(policy), config.seed
        self._drift = {"target_velocity": config.target_velocity} if config.target_velocity else {}
        plan = {"policy": self._policy, "observation": to_dict(spec), "version": RECORDING_VERSION}
        plan |= {"label_steps": config.label_steps, "seed": config.seed, **self._drift}
        if part_names(folder) and not (folder / PLAN).exists():
            raise UserError(f"{folder}: episodes of unknown origin ({PLAN} is missing); choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        claim_plan(folder / PLAN, plan, "episodes")

    def missing(self, suite: str, tasks: Sequence[int], per_task: int) -> list[EpisodeId]:
        """The episodes that are not recorded yet. They start from random placements that no demonstration uses.

        Raises:
            UserError: ``per_task`` is out of range.

        """
        if not 1 <= per_task <= SLOTS_PER_ATTEMPT:
            raise UserError(f"episodes is {per_task}; choose 1 to {SLOTS_PER_ATTEMPT} per task")
        wanted = [
            demonstration_id(suite, task, slot, PLACEMENTS, self._seed) for task in tasks for slot in range(per_task)
        ]
        done = set(part_names(self.folder))
        return [episode for episode in wanted if _part(episode) not in done]

    def add(self, episode: EpisodeId, outcome: str, moments: Sequence[Labelled]) -> None:
        """Writes a finished episode. An episode that could not be run is left out."""
        if outcome not in ("success", "failure"):
            return
        meta = {"policy": self._policy["hash"], "outcome": outcome} | self._drift
        data = to_episode(episode, moments, success=outcome == "success", meta=meta)
        write_part(self.folder, _part(episode), data, self._spec, ACTION_SPEC)

    def finish(self) -> TrainingStore:
        """Merges the episodes unless the store holds them all already.

        Raises:
            UserError: there are none.

        """
        names = part_names(self.folder)
        if (self.folder / "manifest.json").is_file():
            store = TrainingStore(self.folder)
            if [entry.get("part") for entry in store.episodes] == names:
                return store
        return finalize(self.folder, self._spec, ACTION_SPEC, describe=self._describe)

    def _describe(self, episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The policy and its outcomes, for the store's manifest."""
        outcomes = Counter(str(episode["outcome"]) for episode in episodes)
        return {"policy": self._policy, "outcomes": dict(sorted(outcomes.items()))}


def to_episode(
    episode: EpisodeId, moments: Sequence[Labelled], *, success: bool, meta: Mapping[str, Any]
) -> EpisodeData:
    """An episode of a policy with the expert's labels.

    Args:
        episode: its identity.
        moments: its settled state and the state after each control step; the last one only says what was executed.
        success: whether it ended in success.
        meta: what else to note.

    """
    *reached, _ = moments
    assert reached[0].start is not None
    settled, about = reached[0].start
    frames = [(step, moment) for step, moment in enumerate(reached) if moment.image is not None]
    return EpisodeData(
        images=np.stack([moment.image for _, moment in frames]),  # type: ignore[misc]
        frame_step=np.array([step for step, _ in frames], np.int32),
        state=np.stack([moment.state for moment in reached]),
        action=np.stack([moment.label for moment in reached]),
        executed=np.stack([moment.action for moment in moments[1:]]),  # type: ignore[misc]
        settled_state=settled,
        meta={
            "suite": episode.suite,
            "task_id": episode.task_id,
            "seed": episode.seed,
            "init": episode.init,
            "init_index": episode.index,
            "episode": episode.key,
            "perturbation": 0.0,
            "success_step": len(reached) if success else None,
            **about,
            **meta,
        },
        action_chunk=np.stack([moment.chunk for _, moment in frames]),  # type: ignore[misc]
        injected=np.zeros(len(reached), bool),
    )


def _part(episode: EpisodeId) -> str:
    return f"{episode.suite}-{episode.task_id:02d}-{episode.index:09d}"
