"""Exports a policy as a repository of the Hugging Face hub, or for LeRobot, and uploads it if asked to."""

from pathlib import Path
from typing import Literal

from wmjax.core.location import Location
from wmjax.core.specs import ActionSpec, ObservationSpec, from_dict
from wmjax.policy.hub import PREFIX, push_policy, require_repository, require_token
from wmjax.policy.lerobot_files import write_lerobot_files
from wmjax.policy.saved import find_policy, save_policy
from wmjax.reporting.model_card import write_card


def export_for(
    reader: Literal["hub", "lerobot"],
    run: str | Location,
    out: Path,
    dtype: Literal["float32", "bfloat16"],
    push: str | None = None,
    *,
    private: bool = False,
) -> str:
    """Writes a policy's folder with a model card.

    Args:
        reader: ``lerobot`` adds the files of :mod:`wmjax.policy.lerobot_files`.
        run: what :func:`wmjax.policy.saved.find_policy` takes.
        out: an empty or new folder.
        dtype: of the stored parameters.
        push: ``OWNER/NAME`` of the repository to upload to; None uploads nothing.
        private: whether a new repository is private.

    Returns:
        What was done, for people.

    Raises:
        UserError: no policy, ``out`` holds files, or the upload is refused; before any work if there is no token.

    """
    if push is not None:
        require_repository(push, "--push")
        require_token()
    found = find_policy(run)
    save_policy(found.folder, out, dtype)
    evaluations = write_card(found, out, dtype, f"{PREFIX}{push}" if push else out.name)
    if reader == "lerobot":
        observation, action = (found.meta["specs"][name] for name in ("observation", "action"))
        specs = from_dict(ObservationSpec, observation, "policy"), from_dict(ActionSpec, action, "policy")
        write_lerobot_files(out, *specs)
    kind = "a policy for LeRobot's --policy.path" if reader == "lerobot" else "a policy"
    message = f"{kind} in {dtype} and its model card, with the results of {len(evaluations)} evaluations"
    if push is None:
        return message
    return f"{message}\n{push_policy(out, push, private=private)}: wmjax.load_policy({f'{PREFIX}{push}'!r})"
