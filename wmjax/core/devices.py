"""The accelerators that jax finds."""

import os

from wmjax.core.errors import UserError


def require_devices() -> None:
    """Starts jax's backend, which jax otherwise does at the first computation.

    Raises:
        UserError: the platform that was asked for is not there, or its driver does not start; or numbers of 64 bits are
            switched on, with which neither random streams nor compiled programs are those of any other run.

    """
    import jax
    import jax.numpy as jnp

    if jnp.result_type(float) != jnp.float32:
        raise UserError("jax_enable_x64 is on (JAX_ENABLE_X64), networks and random streams are of 32 bits; unset it")
    try:
        jax.devices()
    except Exception as error:  # backends raise RuntimeError, plugins AssertionError and worse
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        asked = os.environ.get("JAX_PLATFORMS")
        raise UserError(
            f"jax finds no device (JAX_PLATFORMS is {asked!r}: {reason}); unset JAX_PLATFORMS, set it to cpu, or "
            "install the driver and the plugin of that platform"
        ) from error
