"""AdamW with warm-up and cosine decay; norms, biases and gates do not decay."""

import dataclasses
import math
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from wmjax.core.errors import UserError, unknown_name
from wmjax.core.settings import Fraction, Range, Rate, Settings, quoted
from wmjax.models.parameters import path_name
from wmjax.models.world.injection import Gate
from wmjax.trainer.sharding import logical_axes


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Settings, section="optimizer"):
    """AdamW. ``gate_multiplier`` scales the learning rate of the memory gates, ``prophet_multiplier`` the Prophet's.

    Above 1 e2's Prophet learns faster, but e1's is spoilt before its gate opens: through a nearly closed gate its
    gradient is tiny, and Adam takes full steps all the same (docs/experiments.md). ``linear_multiplier`` scales the
    rate of the Prophet's linear part (``model.prophet.linear_rank``) once more; 0 leaves it at ridge regression.

    ``clip_norm`` bounds the norm of the Prophet's gradient and that of all others, each for itself: in one norm the
    world loss, which no parameter but the Prophet's may feel in e2, would shrink the policy's steps.

    ``rates`` lists further factors of the learning rate, and ``decays`` weight decays, for parameters by name, each as
    ``PATTERN=NUMBER``: ``head=2``, ``world/prophet=0``, ``*/bias=0.5``. A pattern is a name, the beginning of names up
    to a slash, or has the wildcards of file names; of several that fit, the last one counts. A rate of 0 freezes: these
    parameters stay as they are, and their gradient has no part in the clipped norm.
    """

    learning_rate: Annotated[float, Range(0, 1, above=True)] = 6e-4
    warmup_steps: Annotated[int, Range(0, 1_000_000_000)] = 200
    final_fraction: Fraction = 0.02
    weight_decay: Annotated[float, Range(0, 10)] = 1e-2
    b1: Rate = 0.9
    b2: Rate = 0.95
    clip_norm: Annotated[float, Range(0, 1_000_000, above=True)] = 1.0
    gate_multiplier: Annotated[float, Range(0, 1_000)] = 10.0
    prophet_multiplier: Annotated[float, Range(0, 1_000)] = 1.0
    linear_multiplier: Annotated[float, Range(0, 1_000)] = 1.0
    rates: tuple[str, ...] = ()
    decays: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        by_pattern("rates", self.rates)
        by_pattern("decays", self.decays)


MOST = {"rates": 1_000.0, "decays": 10.0}
"""The largest numbers of :func:`by_pattern`."""


def by_pattern(setting: str, entries: Iterable[str]) -> dict[str, float]:
    """Reads ``PATTERN=NUMBER`` entries of ``optimizer.rates`` or ``optimizer.decays``.

    Raises:
        UserError: an entry of another form, or a number that is negative or too large.

    """
    found: dict[str, float] = {}
    for entry in entries:
        pattern, _, text = entry.rpartition("=")
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not pattern or not 0 <= number <= MOST[setting]:
            raise UserError(
                f"optimizer.{setting} has {quoted(entry)}; write PATTERN=NUMBER with a number from 0 to "
                f"{MOST[setting]:g}, as in head=2"
            )
        found.pop(pattern, None)  # the last one counts
        found[pattern] = number
    return found


def make_optimizer(config: OptimizerConfig, steps: int, accumulate: int = 1) -> optax.GradientTransformation:
    """The optimizer for a run over ``steps`` batches of NNX states (every moment float32, like the parameters).

    With ``accumulate`` above 1 the mean gradient of so many batches makes one update, and the schedule counts updates.
    """
    schedule = learning_rate(config, max(1, steps // accumulate))
    rates = by_pattern("rates", config.rates)
    frozen = {pattern: float(number > 0) for pattern, number in rates.items()}
    update = optax.chain(
        *([_scale_by_name("rates", frozen)] if 0 in frozen.values() else []),
        clip_gradients(config.clip_norm),
        optax.scale_by_adam(b1=config.b1, b2=config.b2),
        _decay(config),
        *([_scale_by_name("rates", rates)] if rates else []),
        _scale_rates(config),
        optax.scale_by_learning_rate(schedule),
    )
    return update if accumulate == 1 else optax.MultiSteps(update, accumulate).gradient_transformation()


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then cosine decay to ``final_fraction`` of the peak."""
    warmup = min(config.warmup_steps, max(1, steps // 5))
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, max(steps, warmup + 1), config.learning_rate * config.final_fraction
    )


def clip_gradients(norm: float) -> optax.GradientTransformation:
    """Scales the Prophet's gradient and all others' down to a global norm of at most ``norm``, each separately."""

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: "prophet" if _of_prophet(path) else "policy", params)

    return optax.partition({name: optax.clip_by_global_norm(norm) for name in ("prophet", "policy")}, labels)


def _variable_map(function: Any, tree: Any) -> Any:
    """Of each variable, with its path."""
    return jax.tree_util.tree_map_with_path(function, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _decays(params: Any) -> Any:
    """True for matrices. A stacked vector is ``[layers, n]``: its logical axes tell it from a matrix."""

    def decays(_: Any, leaf: Any) -> Any:
        value = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
        names = logical_axes(leaf)
        stacked = int(names is not None and names[:1] == ("layers",))
        answer = value.ndim - stacked >= 2 and not isinstance(leaf, Gate)
        return leaf.replace(answer) if isinstance(leaf, nnx.Variable) else answer

    return _variable_map(decays, params)


def _of_prophet(path: tuple[Any, ...], part: str = "") -> bool:
    """Whether a parameter belongs to the Prophet or to a part of it."""
    names = [getattr(key, "key", None) for key in path]
    return "prophet" in names and (not part or names[names.index("prophet") + 1] == part)


def _fitting(rules: dict[str, float], path: tuple[Any, ...], otherwise: float) -> float:
    """The number of the last pattern that fits a parameter's name."""
    name = path_name(path)
    return next((rules[pattern] for pattern in reversed(rules) if _fits(name, pattern)), otherwise)


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}/*")


def _require_fitting(setting: str, rules: dict[str, float], params: Any) -> None:
    """Refuses a pattern that fits no trained parameter.

    Raises:
        UserError: names it, and the nearest beginnings of names.

    """
    leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=lambda x: isinstance(x, nnx.Variable))[0]
    names = [path_name(path) for path, _ in leaves]
    for pattern in rules:
        if not any(_fits(name, pattern) for name in names):
            parts = [name.split("/") for name in names]
            known = {"/".join(part[:length]) for part in parts for length in range(1, len(part) + 1)}
            near = {name for name in known if "/" not in name or "/" in pattern}
            raise unknown_name(f"parameters in optimizer.{setting}:", pattern, near)


def _scale_by_name(setting: str, rules: dict[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of parameters by the numbers of their patterns."""

    def init(params: Any) -> Any:
        _require_fitting(setting, rules, params)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def scale(path: tuple[Any, ...], leaf: Any) -> Any:
            factor = _fitting(rules, path, 1.0)
            return jax.tree.map(lambda u: u * factor if factor else jnp.zeros_like(u), leaf)  # 0 * NaN is NaN

        return _variable_map(scale, updates), state

    return optax.GradientTransformation(init, update)


def _decay(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adds decayed weights: those of patterns by their own number, other matrices by ``weight_decay``."""
    rules = by_pattern("decays", config.decays)
    if not rules:
        return optax.add_decayed_weights(config.weight_decay, mask=_decays)

    def init(params: Any) -> Any:
        _require_fitting("decays", rules, params)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def number(path: tuple[Any, ...], leaf: Any) -> Any:
            return jax.tree.map(lambda usual: _fitting(rules, path, config.weight_decay * usual), leaf)

        numbers = _variable_map(number, _decays(params))
        return jax.tree.map(lambda u, p, decay: u + decay * p, updates, params, numbers), state

    return optax.GradientTransformation(init, update)


def _scale_rates(config: OptimizerConfig) -> optax.GradientTransformation:
    def multiplier(path: tuple[Any, ...], leaf: Any) -> float:
        if isinstance(leaf, Gate):
            return config.gate_multiplier
        if not _of_prophet(path):
            return 1.0
        return config.prophet_multiplier * (config.linear_multiplier if _of_prophet(path, "linear") else 1.0)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def scale(path: tuple[Any, ...], leaf: Any) -> Any:
            factor = multiplier(path, leaf)
            return jax.tree.map(lambda u: u * factor, leaf)

        return _variable_map(scale, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
