"""Floating-point operations of a function, counted in its jaxpr: nothing is compiled, nothing allocated.

XLA's own ``cost_analysis`` counts the body of a scan once and answers nothing on a GPU. Counted are matrix
multiplications and convolutions, 2 per multiply-add, as model FLOPs usually are; recomputation by remat counts.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def flops(function: Callable[..., Any], *arguments: Any) -> int:
    """FLOPs of one call; arguments may be ShapeDtypeStructs.

    Raises:
        NotImplementedError: multiplications in a loop whose trip count is not known.

    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, features = equation.invars[1].aval, params["dimension_numbers"].rhs_spec[0]
        return 2 * equation.outvars[0].aval.size * kernel.size // kernel.shape[features]
    inner = [_count(body) for value in params.values() for body in bodies(value)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        raise NotImplementedError("a while loop with multiplications: its trip count is not in the jaxpr")
    return sum(inner)


def bodies(value: Any) -> list[Jaxpr]:
    """The jaxprs in one parameter of an equation."""
    values = value if isinstance(value, tuple | list) else [value]
    plain = [v.jaxpr if isinstance(v, ClosedJaxpr) else v for v in values]
    return [v for v in plain if isinstance(v, Jaxpr)]
