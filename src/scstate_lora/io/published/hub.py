"""Fetch published models from the Hugging Face Hub or its cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from scstate_lora._compat import http_error
from scstate_lora._logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(\S+))?", re.ASCII)
_FILE_ENDINGS = (".ckpt", ".pt", ".safetensors")
"""Names with these endings are mistyped paths, not repositories."""
_ASK_SECONDS = 10.0
_NO_FILE = "no file of this name"


def is_hub_id(text: str | Path) -> bool:
    """Whether a text names a repository of the Hub, ``owner/name`` or ``owner/name@revision``, not a local path."""
    match = _ID.fullmatch(str(text)) if isinstance(text, str) else None
    return match is not None and not match[1].endswith(_FILE_ENDINGS) and not Path(text).exists()


def fetch_snapshot(
    hub_id: str, *, choose: Callable[[Sequence[str]], Sequence[str]], offline: bool | None = None
) -> Path:
    """Download the required files of a repository, or take them from the cache.

    Parameters
    ----------
    hub_id
        ``owner/name`` or ``owner/name@revision``, where the revision is a branch, tag or commit.
    choose
        Maps the names of all files in the repository to those required. Others are not downloaded.
    offline
        Whether to use only the cache; by default as the environment variable ``HF_HUB_OFFLINE`` says. If the Hub cannot
        be reached, the cache is used, too.

    Returns
    -------
    The folder that holds the files.

    Raises
    ------
    ValueError
        If `hub_id` is not an id.
    FileNotFoundError
        If the repository, revision or file does not exist, or is not in the cache while offline.
    PermissionError
        If the licence has to be accepted first, or a token is missing.
    ConnectionError
        If the Hub cannot be reached and the cache lacks the files.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    match = _ID.fullmatch(hub_id)
    if match is None:
        msg = f"{hub_id!r} is not the id of a model on the Hub. Give owner/name or owner/name@revision."
        raise ValueError(msg)
    repo, revision = match[1], match[2]
    if offline is None:
        offline = bool(constants.HF_HUB_OFFLINE)
    unreachable: Exception | None = None
    try:
        patterns: Sequence[str] = [_NO_FILE]  # for the cache: no check for completeness
        if not offline:
            try:  # ask first: snapshot_download falls back to the cache silently
                info = HfApi().model_info(repo, revision=revision, timeout=_ASK_SECONDS)
                files = [file.rfilename for file in info.siblings or []]
                patterns = choose(files) or _nothing_in(hub_id, files)
            except (http_error(), OfflineModeIsEnabled) as error:
                if _status(error) in (401, 403, 404):
                    raise
                unreachable = error
        folder = Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=list(patterns),
                local_files_only=offline or unreachable is not None,
            )
        )
    except (http_error(), LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise _explained(error, repo, revision, offline=offline, unreachable=unreachable) from error
    cached = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    if not choose(cached):
        _nothing_in(hub_id, cached)
    if unreachable is not None:
        logger.warning(
            "The Hub cannot be reached (%s). %s is read from the cache, %s.", type(unreachable).__name__, hub_id, folder
        )
    return folder


def _explained(
    error: Exception, repo: str, revision: str | None, *, offline: bool, unreachable: Exception | None
) -> OSError:
    """Translate an error of huggingface_hub into one that names the model and the remedy."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    model = f"{repo} (revision {revision or 'main'})"
    page = f"{constants.ENDPOINT}/{repo}"
    status = _status(error)
    if isinstance(error, GatedRepoError):  # a RepositoryNotFoundError too
        return PermissionError(
            f"{model} is only for users who have accepted its licence. Accept it at {page}, then log in with "
            "`hf auth login` or set HF_TOKEN."
        )
    if isinstance(error, RepositoryNotFoundError):
        return FileNotFoundError(
            f"There is no model {model} at {page}, or it is private. Check the id; log in with `hf auth login` or set "
            "HF_TOKEN if it is private. If a local folder was meant: none of this name exists."
        )
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"The model {repo} has no revision {revision}. Its revisions are listed at {page}.")
    if status in (401, 403):
        return PermissionError(
            f"{page} refused access to {model} ({status}). Log in with `hf auth login` or set HF_TOKEN to a "
            "token with read access."
        )
    if offline and isinstance(error, LocalEntryNotFoundError):
        return FileNotFoundError(
            f"{model} is not in the cache {constants.HF_HUB_CACHE}, and offline mode forbids downloading it. "
            "Fetch it once with network access (offline=False, HF_HUB_OFFLINE not set), or give a local folder."
        )
    cause = unreachable or error
    return ConnectionError(
        f"{model} could not be downloaded and is not completely in the cache {constants.HF_HUB_CACHE} "
        f"({type(cause).__name__}: {cause}). Check the network and HF_HUB_OFFLINE. If a local folder was meant: none "
        "of this name exists."
    )


def _status(error: Exception) -> int | None:
    """Status code of the Hub's response; None if there was no response."""
    response = getattr(error, "response", None)
    return None if response is None else response.status_code


def _nothing_in(hub_id: str, files: Sequence[str]) -> NoReturn:
    listed = ", ".join(sorted(files)[:10]) or "nothing"
    msg = f"{hub_id} holds none of the required files; it holds {listed}. Check that this model was meant."
    raise FileNotFoundError(msg)
