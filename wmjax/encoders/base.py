"""The interface of encoders, which turn clips of frames into latents for a latent store and for a policy that acts.

An encoder is one class: it owns its settings (``Config``), describes its latents before anything is loaded
(``describe``), and computes them with a pure function of frozen parameters (``apply``). ``encoder.kind`` names it, by a
name of :data:`ENCODERS` or as ``package.module:Class``; ``docs/extending.md`` shows how to add one. This module imports
neither jax nor torch, so that both frameworks can export.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from wmjax.core.errors import UserError
from wmjax.core.registry import Registry
from wmjax.core.settings import Depth, Range, Settings
from wmjax.core.specs import EncoderSpec
from wmjax.data.latents import Backend
from wmjax.data.shift import MAX_SHIFT, VIEWS

Array = Any
"""A numpy or jax array; this module must not import jax."""


@dataclasses.dataclass(frozen=True)
class EncoderConfig(Settings, section="encoder"):
    """The choice of the encoder, of its cameras, and of the number of views of each episode.

    A view is shifted by up to ``max_shift`` pixels; the images of the other cameras are shifted as far. ``path`` is a
    latent store that an export command wrote; empty, the latents are encoded once into the cache, by ``backend``. An
    encoder sees clips of ``clip_length`` frames of one camera; the tokens of several ``cameras`` are concatenated. If
    none is named, it is the first of the observations. A subclass has an encoder's own settings as fields.
    """

    kind: str = "vjepa2"
    backend: Literal["jax", "torch"] = "jax"
    views: Depth = VIEWS
    max_shift: Annotated[int, Range(0, 1_000)] = MAX_SHIFT
    clip_length: Depth = 4
    path: str = ""
    cameras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses values that cannot be used, before anything is recorded.

        Raises:
            UserError: names the setting, its value and the least that it may be.

        """
        super().__post_init__()
        if len(set(self.cameras)) != len(self.cameras):
            raise UserError(f"encoder.cameras is {list(self.cameras)}; name each camera once")

    @classmethod
    def select(cls, values: dict[str, Any]) -> "type[EncoderConfig]":
        """The settings' class of the encoder that ``values`` name."""
        return ENCODERS.resolve(values.get("kind", cls.kind)).Config

    def with_default_camera(self, cameras: Sequence[str]) -> Self:
        """These settings with the first of the observations' cameras, if they name none."""
        return self if self.cameras else dataclasses.replace(self, cameras=tuple(cameras[:1]))

    def with_spec(self, spec: EncoderSpec) -> "EncoderConfig":
        """These settings with those that a spec records: what they must be to make its latents again."""
        own = {field.name for field in dataclasses.fields(self)}
        recorded = {name: value for name, value in spec.parameters.items() if name in own}
        recorded |= {"precision": spec.precision} if "precision" in own else {}
        return dataclasses.replace(self, clip_length=spec.clip_length, cameras=spec.cameras, **recorded)


@runtime_checkable
class Exporter(Protocol):
    """The interface of an encoder that computes the latents of a store, in any framework."""

    @property
    def spec(self) -> EncoderSpec:
        """The spec of the latents, without statistics."""

    @property
    def backend(self) -> Backend:
        """The framework, which a store records."""

    def encode(self, clips: UInt8[np.ndarray, "batch time height width 3"]) -> Float32[Array, "batch tokens dim"]:
        """z(t) of clips of one camera whose last frame is t.

        ``np.asarray`` brings it to the host. Until then it may still be computed, so that a caller may start the next
        clips meanwhile.
        """


class Encoder(abc.ABC):
    """Frozen features of clips. In jax it acts; for a latent store it may have an exporter in another framework.

    Attributes:
        spec: the definition of its latents, without statistics.
        params: a pytree of arrays, the frozen parameters; empty if there are none.

    """

    Config: ClassVar[type[EncoderConfig]] = EncoderConfig
    """The class of its settings."""
    MODELS: ClassVar[tuple[str, ...]] = ()
    """Names that ``encoder.model``, if it has that setting, may have beside ``mini`` and that are not folders."""
    backend: Backend = "jax"
    spec: EncoderSpec
    params: Any

    @abc.abstractmethod
    def __init__(self, config: Any) -> None:
        """Loads the parameters.

        Raises:
            UserError: there are none, or they do not fit the settings.

        """

    @classmethod
    @abc.abstractmethod
    def describe(cls, config: Any) -> EncoderSpec:
        """The spec of the latents that the settings ask for, without loading the encoder or importing a framework.

        Raises:
            UserError: no such encoder, or settings that do not fit it.

        """

    @classmethod
    def files(cls, config: Any) -> list[Path]:
        """The files of a folder that the settings name and the encoder reads; none of what ships or is on a hub."""
        return []

    @classmethod
    def shape(cls, config: Any) -> tuple[int | None, int | None]:
        """Tokens per frame and their channels, None if only a download could tell."""
        spec = cls.describe(config)
        return spec.tokens_per_frame, spec.dim

    @classmethod
    def without_weights(cls, config: Any) -> Callable[[Any], Any] | None:
        """:meth:`apply` with random parameters that are no arguments, for counting its operations; loads nothing.

        None, the default, if only a download could tell what is computed.
        """
        return None

    @classmethod
    def for_export(cls, config: Any) -> Exporter:
        """The encoder in the framework that the settings name.

        Raises:
            UserError: there is none in that framework.

        """
        if config.backend != cls.backend:
            raise UserError(
                f"encoder.backend is {config.backend!r}; the encoder {config.kind} has {cls.backend!r} only, set it"
            )
        return cls(config)

    @abc.abstractmethod
    def apply(
        self, params: Any, clips: UInt8[Array, "batch time height width 3"]
    ) -> Float32[Array, "batch tokens dim"]:
        """z(t) of clips of one camera whose last frame is t: pure and traceable by jax. Not normalised."""

    def encode(self, clips: UInt8[np.ndarray, "batch time height width 3"]) -> Float32[Array, "batch tokens dim"]:
        """:meth:`apply` compiled; returns as soon as it is under way."""
        return self._compiled(self.params, clips)

    @functools.cached_property
    def _compiled(self) -> Callable[..., Any]:
        import jax

        return jax.jit(self.apply)


ENCODERS: Registry[Encoder] = Registry("encoder.kind", {"vjepa2": "wmjax.encoders.vjepa2.encoder:VJEPA2"})
"""The encoders that have a name."""


def default_encoder() -> EncoderConfig:
    """The settings of the encoder that a scale gets if it names none."""
    return EncoderConfig.select({})()


def describe(config: EncoderConfig) -> EncoderSpec:
    """The spec of the latents that the settings ask for, see :meth:`Encoder.describe`."""
    return ENCODERS.resolve(config.kind).describe(config)
