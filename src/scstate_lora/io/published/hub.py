"""Fetch published models from the Hugging Face Hub, or from its cache, with errors that say what to do."""

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
"""What ends so is a path that was mistyped, rather than a repository."""
_ASK_SECONDS = 10.0
_NO_FILE = "no file of this name"


def is_hub_id(text: str | Path) -> bool:
    """Whether this names a repository of the Hub, ``owner/name`` or ``owner/name@revision``, and no local path."""
    match = _ID.fullmatch(str(text)) if isinstance(text, str) else None
    return match is not None and not match[1].endswith(_FILE_ENDINGS) and not Path(text).exists()


def fetch_snapshot(
    hub_id: str, *, choose: Callable[[Sequence[str]], Sequence[str]], offline: bool | None = None
) -> Path:
    """Download what is needed of a repository, or take it from the cache.

    Parameters
    ----------
    hub_id
        ``owner/name`` or ``owner/name@revision``; a branch, tag or commit.
    choose
        Given the names of the repository's files, those wanted. Others are not downloaded.
    offline
        Whether to use the cache alone. By default what the environment variable ``HF_HUB_OFFLINE`` says. When the Hub
        cannot be reached, the cache is used too.

    Returns
    -------
    The folder that holds the files.

    Raises
    ------
    ValueError
        If the id is none.
    FileNotFoundError
        If there is no such repository, revision or file, or it is not in the cache and ``offline`` forbids more.
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
        wanted: Sequence[str] = [_NO_FILE]  # of the cache all there is, and not whether it is complete
        if not offline:
            try:  # ask first: snapshot_download would fall back on the cache without a word
                info = HfApi().model_info(repo, revision=revision, timeout=_ASK_SECONDS)
                files = [file.rfilename for file in info.siblings or []]
                wanted = choose(files) or _nothing_in(hub_id, files)
            except (http_error(), OfflineModeIsEnabled) as error:
                if _status(error) in (401, 403, 404):
                    raise
                unreachable = error
        folder = Path(
            snapshot_download(
                repo,
                revision=revision,
                allow_patterns=list(wanted),
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
    """Translate an error of huggingface_hub into one that names the model and the way out."""
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
            f"{model} is only for those who accepted its licence. Accept it at {page}, then log in with "
            "`hf auth login` or set HF_TOKEN."
        )
    if isinstance(error, RepositoryNotFoundError):
        return FileNotFoundError(
            f"There is no model {model} at {page}, or it is private. Check the id; log in with `hf auth login` or set "
            "HF_TOKEN if it is private. If a local folder was meant: there is none of that name here."
        )
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"The model {repo} has no revision {revision}. Those it has are listed at {page}.")
    if status in (401, 403):
        return PermissionError(
            f"{page} refused access to {model} ({status}). Log in with `hf auth login` or set HF_TOKEN to a "
            "token that may read it."
        )
    if offline and isinstance(error, LocalEntryNotFoundError):
        return FileNotFoundError(
            f"{model} is not in the cache {constants.HF_HUB_CACHE}, and offline mode forbids to download it. "
            "Fetch it once with a network (offline=False, HF_HUB_OFFLINE not set), or give a local folder."
        )
    cause = unreachable or error
    return ConnectionError(
        f"{model} could not be downloaded and is not wholly in the cache {constants.HF_HUB_CACHE} "
        f"({type(cause).__name__}: {cause}). Check the network and HF_HUB_OFFLINE. If a local folder was meant: there "
        "is none of that name here."
    )


def _status(error: Exception) -> int | None:
    """Status of the Hub's answer; None where it gave none."""
    response = getattr(error, "response", None)
    return None if response is None else response.status_code


def _nothing_in(hub_id: str, files: Sequence[str]) -> NoReturn:
    listed = ", ".join(sorted(files)[:10]) or "nothing"
    msg = f"{hub_id} holds none of the files that are needed; it holds {listed}. Check that this model was meant."
    raise FileNotFoundError(msg)
