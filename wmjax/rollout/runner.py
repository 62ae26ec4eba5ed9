"""The runner of episodes: one queue, a slot per worker, decisions batched over the slots that are ready."""

import dataclasses
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
from jaxtyping import UInt8

from wmjax.core.errors import UserError
from wmjax.core.logs import bar
from wmjax.rollout.actors import Actor, Chunk, Decision, Plan, Replay, Scripted, no_frames
from wmjax.rollout.batches import Batches
from wmjax.rollout.decisions import Decided, EpisodeVideos, Imagined
from wmjax.rollout.execution import Execution, blank, dropped_cameras
from wmjax.rollout.metrics import METRICS, measure_all
from wmjax.rollout.protocol import Protocol
from wmjax.rollout.results import EpisodeRecord, Outcome, Results
from wmjax.rollout.settings import EvaluateSettings
from wmjax.sim.episode import EpisodeId
from wmjax.sim.pool import Fault
from wmjax.sim.rollout_pool import RolloutPool
from wmjax.sim.schedule import Schedule
from wmjax.sim.worker import Command, Execute, Foresee, Reply, Reset, RunExpert

MAX_ATTEMPTS = 3
"""An episode whose workers failed this many times is recorded as a crash or timeout."""
HOPELESS_FAULTS = 3
"""If this many faults precede the first answer of any worker, the simulator does not run at all."""

log = logging.getLogger("wmjax.rollout")


@dataclasses.dataclass
class _Running:
    """One attempt at an episode in a slot."""

    episode: EpisodeId
    video: bool
    started: float
    execution: Execution
    reply: Reply | None = None
    due: UInt8[np.ndarray, "n cameras height width 3"] = dataclasses.field(default_factory=no_frames)
    future: UInt8[np.ndarray, "n cameras height width 3"] = dataclasses.field(default_factory=no_frames)
    foreseeing: bool = False
    step: int = 0
    decisions: int = 0
    frames: list[UInt8[np.ndarray, "_ cameras height width 3"]] = dataclasses.field(default_factory=list)
    captions: list[str] = dataclasses.field(default_factory=list)
    info: dict[str, list[float]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    imagined: list[Imagined] = dataclasses.field(default_factory=list)
    decided: list[Decided] = dataclasses.field(default_factory=list)
    watched: list[Any] = dataclasses.field(default_factory=list)
    executed: list[Chunk] = dataclasses.field(default_factory=list)
    held_at_start: frozenset[int] = frozenset()
    reached: list[int] | None = None

    def note_goals(self, reply: Reply) -> None:
        """Records the goals that hold; among those newly reached, the instructed goal comes first."""
        if reply.goals is None:
            return
        if self.reached is None:
            self.held_at_start, self.reached = frozenset(reply.goals), []
        new = set(reply.goals) - self.held_at_start - set(self.reached)
        self.reached += sorted(new, key=lambda task: (task != reply.given.task_id, task))


Watched = Callable[[EpisodeId, Outcome, Sequence[Any]], None]
"""Takes what the workers' watcher saw of a finished episode, once per control step from the settled state on."""


class Runner:
    """Runs a list of episodes to their end and records each exactly once.

    Args:
        pool: the simulator processes.
        actor: chooses the actions.
        protocol: step limit, horizon, delay.
        results: takes the finished episodes.
        videos: takes frames of some of them.
        settings: how it waits for others before a decision, and what else is measured of every finished episode.
        recipe_hash: noted with every episode.
        watched: is called for every finished episode, if the pool's workers have a watcher.

    """

    def __init__(
        self,
        pool: RolloutPool,
        actor: Actor,
        protocol: Protocol,
        results: Results,
        videos: EpisodeVideos,
        settings: EvaluateSettings,
        recipe_hash: str = "",
        watched: Watched | None = None,
    ) -> None:
        _require_applicable(actor, protocol)
        self._action_spec = protocol.environment.action_spec
        self._pool, self._actor, self._protocol = pool, actor, protocol
        self._results, self._videos, self._recipe_hash = results, videos, recipe_hash
        self._watched = watched
        self._metrics = [METRICS.resolve(name)(self._action_spec) for name in settings.metrics]
        self._batches = Batches(settings.batch, settings.max_wait)
        self._schedule = Schedule[EpisodeId]([])
        self._running: dict[int, _Running] = {}
        self._faults: dict[EpisodeId, list[str]] = defaultdict(list)
        self._answered = False
        self._total, self._began = 0, 0.0
        self.outcomes: Counter[str] = Counter()
        self.control_steps = 0

    @property
    def fill(self) -> float | None:
        """See :attr:`wmjax.rollout.batches.Batches.fill`; None for an actor that acts inside the workers."""
        return self._batches.fill

    def run(self, episodes: Sequence[EpisodeId]) -> None:
        """Runs the episodes; each is on disk as soon as it ends.

        Raises:
            UserError: the actor cannot serve the protocol, the simulator does not run, or bad input was found there.

        """
        self._schedule, self._total, self._began = Schedule(episodes), len(episodes), time.monotonic()
        for slot in range(self._pool.size):
            self._start(slot)
        self._actor.prepare(
            self._pool.size, self._protocol.open_loop_horizon, self._action_spec
        )  # compiles while workers reset
        while self._running:
            for slot, event in self._pool.wait(self._batches.patience()):
                if isinstance(event, Fault):
                    self._handle_fault(slot, event)
                elif self._receive(slot, event):
                    self._batches.add(slot)
            if ready := self._batches.take(sum(run.reply is not None for run in self._running.values())):
                self._decide(ready)

    def _start(self, slot: int) -> None:
        """Gives a free slot its next episode."""
        episode = self._schedule.take(slot)
        if episode is None:
            return
        video = self._videos.wanted(episode.suite, episode.task_id)
        protocol = self._protocol
        execution = Execution(
            protocol.open_loop_horizon, protocol.execution_delay, protocol.ensemble, spec=self._action_spec
        )
        self._running[slot] = _Running(episode, video, time.monotonic(), execution)
        render = video or self._actor.needs_frames
        settled = self._actor.settled_state(episode)
        self._pool.send(slot, Reset(episode, render, settled, protocol.disturbance, protocol.sentence))

    def _receive(self, slot: int, reply: Reply) -> bool:
        """Processes the answer of a worker; returns whether its episode waits for a decision."""
        run = self._running[slot]
        if run.foreseeing:
            run.foreseeing, run.future = False, self._pool.frames(slot, self._actor.future_frames)
            return True
        run.reply = reply
        run.step += reply.steps
        run.watched += reply.watched
        run.note_goals(reply)
        self._answered = True
        self.control_steps += reply.steps
        if run.video and reply.frame_steps:
            run.frames.append(self._pool.frames(slot, len(reply.frame_steps)))
            run.captions += [self._caption(run, step) for step in reply.frame_steps]
        if not reply.success and run.step < self._protocol.max_steps:
            run.due = self._pool.frames(slot, len(reply.frame_steps) if self._actor.needs_frames else 0)
            if self._actor.future_frames:
                run.foreseeing = True
                self._pool.send(slot, Foresee(self._actor.future_frames, run.execution.planned()))
            return not run.foreseeing
        self._finish(slot, "success" if reply.success else "failure")
        return False

    def _decide(self, slots: Sequence[int]) -> None:
        """Requests the decisions of all ready slots from the actor at once, and sends their actions."""
        if self._actor.inside:
            plans = [Plan(np.zeros((0, self._action_spec.dim), np.float32))] * len(slots)
        else:
            decisions = [self._decision(slot) for slot in slots]
            plans = self._actor.act(decisions)
            begun = sum(decision.pending is not None for decision in decisions)  # these share no batch with the others
            self._batches.count((begun, len(slots) - begun))
        for slot, plan in zip(slots, plans, strict=True):
            self._pool.send(slot, self._command(self._running[slot], plan))

    def _decision(self, slot: int) -> Decision:
        run = self._running[slot]
        reply = _require(run.reply)
        frames = run.due
        if run.decisions == 0 and len(frames):
            due = self._protocol.open_loop_horizon // self._actor.observation_spec.frame_stride
            frames = np.repeat(frames, due, axis=0)
        if self._protocol.camera_dropout and len(frames):
            dropped = dropped_cameras(run.episode, run.decisions, frames.shape[1], self._protocol.camera_dropout)
            frames = blank(frames, dropped)
            run.info["observation/dropped_cameras"].append(float(dropped.sum()))
        begun = run.decisions > 0 and self._actor.pending_steps > 0
        return Decision(
            slot, run.episode, run.decisions, run.step, frames, reply.state, reply.given.text, run.future,
            pending=run.execution.planned(self._actor.pending_steps) if begun else None,
        )  # fmt: skip

    def _command(self, run: _Running, plan: Plan) -> Command:
        """The next horizon of control steps, cut at the step limit."""
        for name, value in plan.info.items():
            run.info[name].append(value)
        newest = sum(map(len, run.frames)) - 1
        if run.video and plan.observed is not None and plan.imagined is not None:
            run.imagined.append(Imagined(newest, plan.observed, plan.imagined))
        if run.video and len(plan.actions):
            run.decided.append(Decided(newest, plan.actions, dict(plan.info)))
        steps = min(self._protocol.open_loop_horizon, self._protocol.max_steps - run.step)
        last = run.step + steps == self._protocol.max_steps
        render = run.video or (self._actor.needs_frames and not last)  # no decision follows the last step
        run.decisions += 1
        if self._actor.inside:
            return RunExpert(steps, render, run.video)
        run.execution.add(plan.actions)
        if self._protocol.execution_delay and run.decisions > 1:
            run.info["action/jump"].append(run.execution.jump())
        run.executed.append(run.execution.take(steps))
        return Execute(run.executed[-1], render, run.video)

    def _handle_fault(self, slot: int, fault: Fault) -> None:
        """Retries the episode, or records that it could not be run."""
        run = self._running[slot]
        faults = self._faults[run.episode]
        faults.append(fault.kind)
        self.outcomes["faults"] += 1
        attempt = f"attempt {len(faults)} of {MAX_ATTEMPTS}"
        log.warning("%s: %s, %s: %s", run.episode.key, fault.kind, attempt, fault.message)
        if not self._answered and self.outcomes["faults"] >= HOPELESS_FAULTS:
            last = fault.message.strip().splitlines()[-1]
            raise UserError(f"the simulator does not run ({last}); check it with `python -m wmjax.doctor`")
        if len(faults) < MAX_ATTEMPTS:
            self._schedule.put_back(run.episode)
            del self._running[slot]
            self._start(slot)
        else:
            self._finish(slot, fault.kind)

    def _finish(self, slot: int, outcome: Outcome) -> None:
        """Records the episode and starts the slot's next one.

        The video is written first. If the process is killed in between, the episode is run again, so that no recorded
        episode lacks its video.
        """
        run = self._running.pop(slot)
        try:
            self._save_video(run, outcome)
        except (UserError, OSError) as error:
            log.warning("no video of %s: %s", run.episode.key, error)
        if self._watched is not None:
            self._watched(run.episode, outcome, run.watched)
        record = self._record(run, outcome)
        if run.executed and outcome in ("success", "failure"):
            actions = np.concatenate(run.executed)[: run.step]
            self._results.save_actions(run.episode.key, actions)
            measured = measure_all(self._metrics, record, actions)
            record = dataclasses.replace(record, info=record.info | measured)
        self._results.add(record)
        self.outcomes[outcome] += 1
        self._report(run, outcome)
        self._start(slot)

    def _report(self, run: _Running, outcome: Outcome) -> None:
        """One line per episode, with the time left."""
        done = sum(self.outcomes[kind] for kind in get_args(Outcome))
        left = (time.monotonic() - self._began) / done * (self._total - done)
        log.info(
            "%s episode %d/%d %s: %s after %d steps (%d successes, about %.0f min left)",
            bar(done, self._total), done, self._total, run.episode.key, outcome, run.step, self.outcomes["success"],
            left / 60,
        )  # fmt: skip

    def _record(self, run: _Running, outcome: Outcome) -> EpisodeRecord:
        episode, faults = run.episode, tuple(self._faults.pop(run.episode, ()))
        return EpisodeRecord(
            key=episode.key,
            suite=episode.suite,
            task_id=episode.task_id,
            instruction=run.reply.instruction if run.reply else "",
            init=episode.init,
            index=episode.index,
            seed=episode.seed,
            settled_hash=run.reply.settled_hash if run.reply else "",
            success=outcome == "success",
            steps=run.step,
            outcome=outcome,
            attempts=len(faults) + (outcome in ("success", "failure")),
            faults=faults,
            seconds=round(time.monotonic() - run.started, 3),
            decisions=run.decisions,
            info={name: float(np.nanmean(v)) for name, v in run.info.items() if not np.isnan(v).all()},
            recipe_hash=self._recipe_hash,
            open_loop_horizon=self._protocol.open_loop_horizon,
            execution_delay=self._protocol.execution_delay,
            settled_state=tuple(run.reply.settled_state.tolist()) if run.reply else (),
            given_instruction=run.reply.given.text if run.reply else "",
            given_task=run.reply.given.task_id if run.reply else None,
            reached=None if run.reached is None else tuple(run.reached),
        )

    def _save_video(self, run: _Running, outcome: Outcome) -> None:
        episode = run.episode
        if run.frames and self._videos.wanted(episode.suite, episode.task_id, outcome):
            reply = _require(run.reply)
            given = "" if reply.given.text == reply.instruction else f" (given: {reply.given.text})"
            captions = [f"{reply.instruction}{given}\n{episode.key} {outcome}   {caption}" for caption in run.captions]
            frames = np.concatenate(run.frames)
            name = video_name(episode)
            self._videos.add(episode.suite, episode.task_id, name, outcome, frames, captions, run.imagined, run.decided)

    def _caption(self, run: _Running, step: int) -> str:
        numbers = "   ".join(f"{name} {values[-1]:.3g}" for name, values in run.info.items())
        return f"step {step}/{self._protocol.max_steps}   {numbers}"


def video_name(episode: EpisodeId) -> str:
    """The part of a video's name that distinguishes the episodes of one task."""
    return f"{episode.init}-{episode.index}"


def _require(reply: Reply | None) -> Reply:
    if reply is None:
        raise RuntimeError("the worker has not answered yet")
    return reply


def _require_applicable(actor: Actor, protocol: Protocol) -> None:
    """Refuses protocols whose settings do not apply to the actor.

    Raises:
        UserError: names the field.

    """
    for field, meaning in (("execution_delay", "without delay"), ("ensemble", "anew at every control step")):
        if actor.inside and getattr(protocol, field):
            raise UserError(f"{field} is {getattr(protocol, field)}, the {actor.name} acts {meaning}; set it to 0")
    if protocol.execution_delay and isinstance(actor, Replay):
        raise UserError(
            f"execution_delay is {protocol.execution_delay}, which would execute a replay's actions late; set it to 0"
        )
    if protocol.sentence != "own" and isinstance(actor, Scripted):
        raise UserError(f"sentence is {protocol.sentence!r}, the {actor.name} reads none; set it to 'own'")
    if (protocol.oracle is not None) != bool(actor.future_frames):
        raise UserError(
            f"oracle is {protocol.oracle}, the {actor.name} takes {actor.future_frames} frames of the true future; "
            "evaluate a policy with a world memory that was loaded for it, or leave oracle out"
        )
    trained = actor.pending_steps if actor.realtime == "none" else 0
    if trained and protocol.execution_delay != trained:
        raise UserError(
            f"execution_delay is {protocol.execution_delay}, the {actor.name} was trained with the pending actions of "
            f"{trained} control steps (train.delay); set it to {trained}"
        )
    if protocol.realtime != actor.realtime:
        raise UserError(
            f"realtime is {protocol.realtime!r}, the {actor.name} acts with {actor.realtime!r}; evaluate a policy that "
            "was loaded for it, or leave realtime out"
        )
    if protocol.corruption != actor.corruption:
        raise UserError(
            f"corruption is {protocol.corruption!r}, the {actor.name} acts with {actor.corruption!r}; evaluate a "
            "policy with a world memory that was loaded for it, or leave corruption out"
        )
    if protocol.camera_dropout and actor.needs_frames and len(actor.observation_spec.cameras) == 1:
        raise UserError(
            f"camera_dropout is {protocol.camera_dropout}, the {actor.name} has one camera, which always shows; "
            "set it to 0"
        )
