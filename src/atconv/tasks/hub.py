"""Upload of a folder to Hugging Face: what goes wrong is said in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

__all__ = ["check_repository", "upload"]

_REASONS = {
    401: "the token is not accepted: log in again with hf auth login, or renew HF_TOKEN",
    403: "the token may not write there: take your own name, and a token with write access",
    404: "there is no such user or organization, or the token may not see it",
    409: "it exists already: --overwrite uploads into it, or name another",
}


def check_repository(name: str) -> None:
    """Fail fast: raise ValueError where it is no USER/NAME, or there is no token."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"hub:{name} is no name of a repository: {error}") from error
    if name.count("/") != 1:
        raise ValueError(f"a repository is named hub:USER/NAME, got hub:{name}")
    if get_token() is None:
        raise ValueError("there is no token of Hugging Face: log in with hf auth login, or set HF_TOKEN")


def upload(folder: Path, name: str, private: bool, overwrite: bool) -> str:
    """Make a repository and upload a folder into it. Files of other names stay in one that exists.

    Returns:
        its address.

    Raises:
        RuntimeError: it exists and is not to be written over, or Hugging Face rejects it or does not answer.
    """
    api = HfApi()
    with _explained(api, f"hub:{name} was not made"):
        address = api.create_repo(name, private=private, exist_ok=overwrite)
    made = f"hub:{name} is there, but the files were not uploaded (--overwrite tries again)"
    with _explained(api, made):
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Publish a model with atconv")
    return str(address)


@contextmanager
def _explained(api: HfApi, what: str) -> Iterator[None]:
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = _REASONS.get(status) or f"{status}, {error.server_message or error}"
        raise RuntimeError(f"{what}: {' '.join(reason.split())}") from error
    except Exception as error:  # each HTTP client has its own types
        reason = " ".join(str(error).split())[:200]
        raise RuntimeError(f"{what}: {reason} (asked {api.endpoint})") from error
