"""Uploading a proven export to the hub. The token comes from the environment and goes nowhere but to the hub."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from poweropd_lite.errors import UserError

if TYPE_CHECKING:
    from poweropd_lite.export.plan import Plan

OURS_TO_REPLACE = {".gitattributes", "README.md"}  # what a new repository may hold


WEIGHTS = [
    "*.safetensors",
    "*.safetensors.index.json",
    "*.gguf",
]  # of an earlier export, which would lie beside the new


def check_push(plan: "Plan") -> None:
    """Raises UserError if the upload could not be made: asked before the work."""
    if plan.config.push is None:
        return
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        _api(plan).whoami()
        there = set(_files(plan)) - OURS_TO_REPLACE
    except OfflineModeIsEnabled:
        raise UserError("--push uploads, and HF_HUB_OFFLINE says not to; unset it, or leave out --push") from None
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        raise UserError(
            f"the hub can't be reached or does not take the token: {_reason(error, plan)}; check HF_TOKEN"
        ) from None
    if there and not plan.config.overwrite:
        raise UserError(
            f"{plan.config.push} holds {len(there)} files already (for one {sorted(there)[0]}); type --push with a new name, or --overwrite to "
            "upload over it"
        )


def push(plan: "Plan", say: Callable[[str], None]) -> str:
    """Uploads the export's folder in one commit; returns its address. Raises UserError, with the folder left as it is."""
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError

    api, name = _api(plan), plan.config.push
    say(f"uploading {plan.out} to {name}")
    try:
        api.create_repo(name, private=plan.config.private, exist_ok=True)
        done = api.upload_folder(
            repo_id=name,
            folder_path=plan.out,
            commit_message="Upload by poweropd_lite",
            ignore_patterns=[".*"],
            delete_patterns=WEIGHTS if plan.config.overwrite else None,
        )
    except (HfHubHTTPError, HTTPError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the upload to {name} failed: {_reason(error, plan)}\nThe export itself is whole, in {plan.out}; to try again, type: "
            f"hf upload {name} {plan.out}{' --private' if plan.config.private else ''}"
        ) from None
    url = str(getattr(done, "repo_url", None) or done)
    say(f"uploaded to {url}")
    return url


def _api(plan: "Plan") -> Any:
    from huggingface_hub import HfApi

    return HfApi(token=plan.token)


def _files(plan: "Plan") -> list[str]:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return _api(plan).list_repo_files(plan.config.push)
    except RepositoryNotFoundError:
        return []


def _reason(error: Exception, plan: "Plan") -> str:
    text = " ".join(str(error).replace(plan.token, "HF_TOKEN").split())  # whatever a library puts into its messages
    return text[:300]
