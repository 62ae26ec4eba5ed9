"""Policies on the Hugging Face hub: ``hub:OWNER/NAME`` and ``hub:OWNER/NAME@REVISION``.

The hub's client reads the address (``HF_ENDPOINT``), the token (``HF_TOKEN``, or ``hf auth login``) and whether the
network may be used (``HF_HUB_OFFLINE``). Only the files of a policy are downloaded, and none of them is executed.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from wmjax.core.errors import UserError, one_line
from wmjax.core.location import Location
from wmjax.core.paths import cache_root
from wmjax.policy.places import ASSETS

SETTINGS, PARAMETERS = "policy.json", "policy.safetensors"
"""The two files of a policy's folder (:mod:`wmjax.policy.saved`)."""
PREFIX = "hub:"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
LOGIN = "log in with 'hf auth login', or set HF_TOKEN"


def is_on_hub(path: str | Location) -> bool:
    """Whether a policy's place is one on the hub."""
    return str(path).startswith(PREFIX)


def require_repository(name: str, where: str) -> str:
    """The name of a repository on the hub, checked.

    Raises:
        UserError: not of the form ``OWNER/NAME``.

    """
    if not REPOSITORY.fullmatch(name):
        raise UserError(f"{where} {name!r} is not of the form OWNER/NAME; give the name of a model repository")
    return name


def download_policy(place: str) -> Path:
    """The folder of a policy on the hub, downloaded once per revision into ``<cache>/hub``.

    Args:
        place: ``hub:OWNER/NAME``, for its newest revision, or ``hub:OWNER/NAME@REVISION``, where a revision is a
            branch, a tag or a commit. Without network, what was downloaded before is used.

    Raises:
        UserError: a malformed name, no such repository or revision, no access, no network, or no policy in it.

    """
    from huggingface_hub import snapshot_download

    name, at, revision = place.removeprefix(PREFIX).partition("@")
    require_repository(name, PREFIX)
    if at and not revision:
        raise UserError(f"{place}: no revision behind @; name a branch, a tag or a commit, or leave the @ out")
    cache, files = cache_root() / "hub", [SETTINGS, PARAMETERS, f"{ASSETS}/*"]
    with _hub_errors(place):
        folder = Path(snapshot_download(name, revision=revision or None, cache_dir=cache, allow_patterns=files))
    if not (folder / SETTINGS).is_file():
        raise UserError(
            f"{place}: no policy of wmjax, its repository has no {SETTINGS}; name one that wmjax.export --push wrote"
        )
    return folder


def require_token() -> None:
    """Refuses a command that would upload at its end if there is no token.

    Raises:
        UserError: there is none.

    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise UserError(f"--push needs a token of the hub, and there is none; {LOGIN}")


def push_policy(folder: Path, name: str, *, private: bool = False) -> str:
    """Uploads a policy's folder as one commit to a repository, which is created if it does not exist.

    Args:
        folder: of the policy.
        name: ``OWNER/NAME``.
        private: whether a new repository is private; an existing one stays as it is.

    Returns:
        The commit's URL.

    Raises:
        UserError: the hub refuses it or cannot be reached; the folder stays as it is.

    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="wmjax")
    with _hub_errors(f"--push {name}", f"; {folder} is complete, 'hf upload {name} {folder}' tries again"):
        api.create_repo(name, private=private, exist_ok=True)
        # An earlier commit's copies of encoder and tokenizer would be taken for this policy's.
        stale = [f"{ASSETS}/*"]
        found = api.upload_folder(
            repo_id=name, folder_path=folder, commit_message=f"wmjax policy {folder.name}", delete_patterns=stale
        )
    return found.commit_url


@contextlib.contextmanager
def _hub_errors(what: str, after: str = "") -> Iterator[None]:
    """Turns errors of the hub's client into one line that begins with ``what`` and ends with ``after``."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(f"{what}: the repository is gated; ask for access on its page, and {LOGIN}{after}") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{what}: {constants.ENDPOINT} has no such model, or it is private and this account may not read it; "
            f"check the name, or {LOGIN}{after}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{what}: no such revision; name a branch, a tag or a commit of it{after}") from error
    except errors.HfHubHTTPError as error:
        if getattr(error.response, "status_code", None) in (401, 403):
            raise UserError(
                f"{what}: {constants.ENDPOINT} refuses the token ({one_line(error)}); use one with write access to "
                f"the owner: {LOGIN}{after}"
            ) from error
        raise UserError(f"{what}: {constants.ENDPOINT} failed ({one_line(error)}); try again later{after}") from error
    except UserError:
        raise
    except Exception as error:  # the client's own kinds, httpx's, and ValueError for a card that the hub refuses
        raise UserError(
            f"{what}: {constants.ENDPOINT} cannot be reached, or its answer cannot be read ({one_line(error)}); check "
            f"the network and HF_ENDPOINT{after}"
        ) from error
