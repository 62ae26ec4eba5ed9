"""Policies at a URL, such as ``gs://bucket/e2``: in a run's copy there, or in a policy's folder."""

import shutil
from pathlib import Path

from wmjax.core.errors import UserError
from wmjax.core.files import disk_errors, only_one
from wmjax.core.location import Remote
from wmjax.policy.hub import PARAMETERS, SETTINGS
from wmjax.policy.places import ASSETS
from wmjax.trainer import checkpoint
from wmjax.trainer.mirror import CHECKPOINTS, local_folder, steps_at


def fetch_policy(place: Remote) -> Path:
    """Downloads the files that a policy needs, without the optimizer's state, unless they are in the cache.

    Args:
        place: a run's copy, whose newest checkpoint is taken, one of its checkpoints, or a policy's folder.

    Returns:
        A folder in the cache that :func:`wmjax.policy.saved.find_policy` takes.

    Raises:
        UserError: the URL cannot be read, or there is no policy.

    """
    url, at, step = place.url.rstrip("/").rpartition(f"/{CHECKPOINTS}/")
    home = Remote(url) if at else place
    folder, files = local_folder(home, "fetched"), home.files()
    assets = [name for name in files if name.startswith(f"{ASSETS}/")]
    if SETTINGS in files:
        _download(home, folder, SETTINGS, [name for name in (PARAMETERS, *assets) if name in files])
        return folder
    steps = steps_at(files)
    chosen = f"{steps[-1]:08d}" if steps and not at else step
    if chosen not in [f"{one:08d}" for one in steps]:
        have = f"complete are {', '.join(map(str, steps))}" if steps else "it has no complete checkpoint"
        raise UserError(f"{place}: no policy, {have}; name a run's URL, one of its checkpoints, or a policy's folder")
    root = f"{CHECKPOINTS}/{chosen}"
    parts = (f"{root}/{checkpoint.SEAL}", *(f"{root}/{item}/" for item in checkpoint.POLICY_ITEMS))
    names = [name for name in files if name.startswith(parts)]
    _download(home, folder, f"{root}/{checkpoint.MANIFEST}", names + assets)
    return folder / root


def _download(home: Remote, folder: Path, last: str, names: list[str]) -> None:
    """Downloads files, and then one that holds their hashes; nothing if that one already equals the URL's.

    Processes that want the same policy take turns. Files of another checkpoint of the same step are removed first.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with only_one(folder / ".lock"):
            if (folder / last).is_file() and (folder / last).read_bytes() == (home / last).read_bytes():
                return
            (folder / last).unlink(missing_ok=True)
            if last != SETTINGS:
                shutil.rmtree((folder / last).parent, ignore_errors=True)
            home.download(folder, names)
            home.download(folder, [last])
