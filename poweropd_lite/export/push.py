"""Uploading a proven export to the hub. The token comes from the environment and goes nowhere but to the hub."""

import glob
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.errors import UserError

if TYPE_CHECKING:
    from poweropd_lite.export.plan import Plan

IN_A_NEW_REPOSITORY = {".gitattributes", "README.md"}
# What an export may write: with --overwrite, such files of an earlier one are replaced or removed, and no others.
WRITTEN = re.compile(
    r"(README\.md|Modelfile|export\.json|reference\.json|config\.json|generation_config\.json|adapter_(config\.json|model\.safetensors)|"
    r"tokenizer.*\.json|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt|chat_template\.jinja|"
    r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|model-[\w.]+\.gguf|\.gitattributes)"
)


def check_push(plan: "Plan") -> None:
    """Raises UserError if the upload could not be made: asked before the work."""
    if plan.config.push is None:
        return
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        _api(plan).whoami()
        there = set(_files(plan)) - IN_A_NEW_REPOSITORY
        shown = bool(there) and plan.config.private and not _api(plan).repo_info(plan.config.push).private
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
    if shown:
        raise UserError(
            f"{plan.config.push} is there already and public; type --no-private to upload to it, or --push with a new name"
        )
    if strange := sorted(name for name in there if not WRITTEN.fullmatch(name)):
        raise UserError(
            f"{plan.config.push} holds files that no export writes (for one {strange[0]}), so it is not written over; type --push with a new name"
        )


def push(plan: "Plan", say: Callable[[str], None]) -> str:
    """Uploads the export's folder in one commit; returns its address. Raises UserError, with the folder left as it is."""
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError

    api, name = _api(plan), plan.config.push
    say(f"uploading {plan.out} to {name}")
    kept = {".gitattributes", *(file.name for file in plan.out.iterdir())}
    try:
        api.create_repo(name, private=plan.config.private, exist_ok=True)
        done = api.upload_folder(
            repo_id=name,
            folder_path=plan.out,
            commit_message="Upload by poweropd_lite",
            ignore_patterns=[".*"],
            delete_patterns=[glob.escape(name) for name in _files(plan) if name not in kept] or None,
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
