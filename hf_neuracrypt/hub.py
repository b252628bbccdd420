"""What every talk with the Hub needs: errors in one line, and small files of repositories that may be hostile."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from hf_neuracrypt.errors import HubError, first_line


# The HTTP library's base of all errors; its name changes with the library.
TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]


def may_be_repository(name: str) -> bool:
    """Whether a name that no file or folder has can be that of a repository."""
    if constants.HF_HUB_OFFLINE and "/" not in name:
        return False  # `datasets` would give what it has cached of any folder that once had this name
    return not (Path(name).is_absolute() or name.startswith((".", "~")) or name.endswith("/") or name.count("/") > 1)


def offline(name: str) -> str | None:
    """The error message for `name` in offline mode; None if the Hub may be reached."""
    if constants.HF_HUB_OFFLINE:
        return f"cannot reach {name}: HF_HUB_OFFLINE is set, and it is not in the cache"
    return None


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Say in one line what the Hub, or the way to it, has against `name`. Raises HubError."""
    try:
        yield
    # RuntimeError is what an upload ends in when its retries are used up; ConnectionError is HF_HUB_OFFLINE.
    except (HfHubHTTPError, TRANSPORT_ERROR, HFValidationError, EntryNotFoundError, OSError, RuntimeError) as error:
        reason = explain(error, name)
        if reason is None and isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of the Hub
        broken = f"the conversation with the Hub about {name} broke off ({first_line(error)}): try again"
        raise HubError(reason or broken) from error


def explain(error: BaseException | None, name: str) -> str | None:
    """One line for a user: what is wrong with `name` and what to do; None if the Hub has no part in `error`."""
    if error is None:
        return None
    if isinstance(error, OfflineModeIsEnabled):
        return offline(name)
    if isinstance(error, GatedRepoError):
        return f"{name} is gated: ask its owner for access on the Hub, and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return f"{name} is not on the Hub, or it is private: set HF_TOKEN to a token that may read it"
    if isinstance(error, LocalTokenNotFoundError):
        return f"no access token for {name}: set HF_TOKEN, or run `hf auth login`"
    if isinstance(error, HFValidationError):
        return f"{name!r} is no name of a repository on the Hub: owner/name"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return _explain_status(error.response.status_code, name, first_line(error))
    return explain(error.__cause__ or error.__context__, name)


def _explain_status(status: int, name: str, text: str) -> str:
    if status in (409, 412):
        return f"somebody else published to {name} at the same time: nothing of yours was; look at it, then try again"
    if status == 401:
        return f"the Hub does not know you: set HF_TOKEN to a token that may write to {name}"
    if status == 403:
        return f"your token may not write to {name}: use one with write permission, under an account that may"
    if status == 429 or status >= 500:
        return f"the Hub has trouble with {name} (status {status}): try again; what arrived is not sent again"
    return f"the Hub refuses {name} (status {status}): {text}"


def may_have_files(model: str, filenames: list[str]) -> bool:
    """Whether a model's repository holds one of these files; offline, that is not known. Raises HubError."""
    with hub_errors(model):
        return constants.HF_HUB_OFFLINE or bool(HfApi().get_paths_info(model, filenames))


def read_small_file(name: str, filename: str, repo_type: str, revision: str | None, max_bytes: int) -> str | None:
    """Text of a file in a repository, its size looked at before it is fetched; None if the file is not there.

    Raises:
        HubError: the repository cannot be read, or the file is larger than `max_bytes`, or is no text.
    """
    with hub_errors(name):
        if not constants.HF_HUB_OFFLINE:
            entries = HfApi().get_paths_info(name, [filename], repo_type=repo_type, revision=revision)
            if not entries:
                return None
            if getattr(entries[0], "size", max_bytes + 1) > max_bytes:
                raise HubError(f"{filename} of {name} is larger than {max_bytes:,} bytes: it is not what it should be")
        try:
            path = hf_hub_download(name, filename, repo_type=repo_type, revision=revision)
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError) and not constants.HF_HUB_OFFLINE:
                raise
            return None
        try:
            return Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise HubError(f"{filename} of {name} is not text: it is damaged") from None
