"""Uploading a proven export to the hub. The token comes from the environment and goes nowhere but to the hub."""

import glob
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import files_in
from poweropd_lite.export.job import Job

# What an export may write: with --overwrite, such files of an earlier one are replaced or removed, and no others.
WRITTEN = re.compile(
    r"(README\.md|Modelfile|export\.json|reference\.json|(adapter_|generation_)?config\.json|adapter_model\.safetensors|"
    r"((video_)?pre)?processor_config\.json|tokenizer.*\.json|special_tokens_map\.json|added_tokens\.json|"
    r"vocab\.(json|txt)|merges\.txt|(tokenizer|spiece|sentencepiece(\.bpe)?)\.model|"
    r"chat_template\.jinja|additional_chat_templates/[^/]+\.jinja|model(\.safetensors)?(-\d+-of-\d+)?\.safetensors|"
    r"model\.safetensors\.index\.json|model-[\w.]+\.gguf|\.gitattributes)"
)


def check_push(job: Job, name: str) -> None:
    """Raises UserError if the upload to `name` could not be made: asked before the work."""
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi(token=job.token)
    try:
        api.whoami()
        there = set(api.list_repo_files(name)) - {".gitattributes", "README.md"} if api.repo_exists(name) else set()
        shown = bool(there) and job.config.private and not api.repo_info(name).private
    except OfflineModeIsEnabled:
        raise UserError("--push uploads, and HF_HUB_OFFLINE says not to; unset it, or leave out --push") from None
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        reason = _reason(error, job)
        raise UserError(f"the hub can't be reached or does not take the token: {reason}; check HF_TOKEN") from None
    new = "--push with a new name"
    if there and not job.config.overwrite:
        first = sorted(there)[0]
        raise UserError(f"{name} holds {len(there)} files already (for one {first}); type {new}, or --overwrite")
    if shown:
        raise UserError(f"{name} is there already and public; type --no-private to upload to it, or {new}")
    if strange := sorted(file for file in there - _code(job) if not WRITTEN.fullmatch(file)):
        raise UserError(f"{name} holds files that no export writes (for one {strange[0]}); type {new}")


def _code(job: Job) -> set[str]:
    """The names of the base's Python files, which come along: any other's may be the user's."""
    base = Path(job.target.base)
    return {file.name for file in base.glob("*.py")} if base.is_dir() and job.config.trust_remote_code else set()


def push(job: Job, name: str, say: Callable[[str], None]) -> str:
    """Uploads the export's folder in one commit; returns its address. Raises UserError; the folder stays."""
    from httpx import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=job.token)
    say(f"uploading {job.out} to {name}")
    kept = {".gitattributes", *files_in(job.out)}
    try:
        api.create_repo(name, private=job.config.private, exist_ok=True)
        done = api.upload_folder(
            repo_id=name,
            folder_path=job.out,
            commit_message="Upload by poweropd_lite",
            ignore_patterns=[".*"],
            delete_patterns=[glob.escape(file) for file in api.list_repo_files(name) if file not in kept] or None,
        )
    except (HfHubHTTPError, HTTPError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the upload to {name} failed: {_reason(error, job)}\nThe export itself is whole, in {job.out}; to try "
            f"again, type: hf upload {name} {shlex.quote(str(job.out))}{' --private' if job.config.private else ''}"
        ) from None
    url = str(getattr(done, "repo_url", None) or done)
    say(f"uploaded to {url}")
    return url


def _reason(error: Exception, job: Job) -> str:
    """The error in a line, without the token: whatever a library puts into its messages."""
    return " ".join(str(error).replace(job.token or "HF_TOKEN", "HF_TOKEN").split())[:300]
