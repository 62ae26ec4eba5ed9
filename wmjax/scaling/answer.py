"""The answer to a request: one estimate, two that are compared, or a recommendation, with its text."""

from typing import Any

from wmjax.core.errors import UserError
from wmjax.scaling import compilers, report
from wmjax.scaling.recommend import recommend
from wmjax.scaling.request import Request, on_features


def answer(request: Request, *, recommended: bool, features: bool) -> tuple[dict[str, Any], str]:
    """What was found, as JSON-able values and as text.

    Args:
        request: a training and a topology.
        recommended: whether several meshes, remats and batches are tried.
        features: whether the same training is estimated on stored features of the vision tower too.

    Raises:
        UserError: options that exclude each other, bad settings, a missing compiler.

    """
    if not recommended:
        found = compilers.run(request)
        if features:
            found["on_features"] = compilers.run(on_features(request))
        return found, report.render(found)
    if request.rows:
        raise UserError("--decision with --recommend; estimate the decision alone, without --recommend")
    if features:
        raise UserError("--features with --recommend; give --train.cached_vision bfloat16 --train.same_shift true")
    found = recommend(request, compilers.run, report.print_line)
    return found, report.render_recommendation(found)
