"""What a run was fed: its data, prompts, template and models, by digests, so that a resume that is fed otherwise is seen."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.config import BUNDLED, Config
from poweropd_lite.base.errors import UserError
from poweropd_lite.base.files import digest, read_json, write_json
from poweropd_lite.checks.reward import own_function
from poweropd_lite.grade.custom import find_grader
from poweropd_lite.models.loading import model_path
from poweropd_lite.models.probe import probe_texts
from poweropd_lite.models.served import SAME, apart
from poweropd_lite.problems.files import digest_of
from poweropd_lite.problems.prompts import TemplateFault
from poweropd_lite.problems.stored import digest_of_ids
from poweropd_lite.run.folder import INPUTS, RunFolder
from poweropd_lite.run.session import Prepared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Inputs:
    """What a run is fed, compared with what it was fed before. Raises UserError where its file can't be read."""

    def __init__(self, run: RunFolder, ready: Prepared, said: Sequence[float] = ()) -> None:
        """`said` is what a served teacher says of the texts that it is known by."""
        self.file, before = run.path / INPUTS, None
        self.changed: list[dict[str, Any]] = []  # what was accepted before, by step
        if self.file.is_file():
            try:
                saved = read_json(self.file)
                before, self.changed = dict(saved["fed"]), list(saved["changed"])
                self.fed = _fed(ready, said, before)
                self.differences = _differences(before, self.fed)
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                mend = "put it back from a copy, or remove it to go on without knowing what changed"
                raise UserError(f"{self.file} can't be used ({type(error).__name__}: {error}); {mend}") from None
        else:
            self.fed, self.differences = _fed(ready, said, None), []
        if before is None and run.steps_saved:
            print(f"{run.path} has no {INPUTS}: whether its data or models changed since can't be seen")

    def refuse(self) -> None:
        """Raises UserError if something changed."""
        if self.differences:
            found = "\n  ".join(self.differences)
            raise UserError(
                f"{self.file.parent} was trained on other inputs than these:\n  {found}\nput them back, start a new run, or "
                "type --accept-changes to go on with these (the run's inputs.json will say so)"
            )

    def keep(self, step: int) -> None:
        """Writes them down: what changed as accepted at `step`, unless no step was taken on what was before."""
        if self.differences and step:
            print("\n".join(f"accepted: {change}" for change in self.differences))
            self.changed.append({"step": step, "what": self.differences})
        home = os.path.relpath(os.getcwd(), self.file.parent)  # from the run: both may be moved together
        write_json(self.file, {"fed": self.fed, "changed": self.changed, "home": home})


def _fed(ready: Prepared, said: Sequence[float], before: dict[str, Any] | None) -> dict[str, Any]:
    config, pair = ready.config, ready.pair
    served = {"served": [round(x, 5) for x in said]} if config.served else {}
    return served | {
        "data": _data(config),
        "prompts": {"count": len(ready.prompts), "sha256": digest_of_ids(ready.prompts)},
        "probes": {  # fixed texts in each model's own template
            "student": _probed(pair.tokenizer),
            "teacher": _probed(pair.teacher_tokenizer),
        },
        "models": {
            role: _files(
                getattr(config, role), role, config.trust_remote_code, (before or {}).get("models", {}).get(role, {})
            )
            for role in _roles(config)
        },
        **({"grader": asdict(find_grader(config.eval_grader))} if config.eval_grader else {}),
        **({"reward": {"sha256": own_function(config.reward)[0]}} if ":" in config.reward else {}),
    }


def _roles(config: Config) -> list[str]:
    """The settings that name what is loaded."""
    named = ["student", *(["teacher"] if config.loads_teacher else [])]
    return named + (["adapter"] if config.adapter is not None else [])


def _data(config: Config) -> dict[str, str]:
    path = Path(config.data)
    if config.data == BUNDLED or not path.exists():
        return {"name": config.data}  # of the hub: its rows are in the prompts
    return {"name": path.name, "sha256": digest_of(path)}


def _probed(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    try:
        return _of_ids(probe_texts(tokenizer))
    except TemplateFault:  # a teacher's, which is not needed: prompts follow the student's
        return None


def _of_ids(rows: Sequence[Sequence[int]]) -> str:
    return hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()


def _files(name: str, role: str, code: bool, before: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Size, time and digest of a model's weights, config and, with remote `code`, programs (tokenizers are asked, not read).

    A digest is taken over where size and time are those of before.
    """
    folder = Path(model_path(name, role))
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "config.json")
        if not isinstance(cached, str):
            return {}
        folder = Path(cached).parent
    kinds, found = {".safetensors" if any(folder.glob("*.safetensors")) else ".bin", *([".py"] if code else [])}, {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and (file.suffix in kinds or file.name in ("config.json", "adapter_config.json")):
            stat, blob = file.stat(), file.resolve().name
            known = before.get(file.name, {})
            same = (known.get("size"), known.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns)
            # The hub's cache names large files by their SHA-256.
            value = known["sha256"] if same else blob if len(blob) == 64 and file.is_symlink() else digest(file)
            found[file.name] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": value}
    return found


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    found = []
    if before["data"] != now["data"]:
        then, here = (data["name"] + f" ({data.get('sha256', '')[:12]})" for data in (before["data"], now["data"]))
        if before["data"].get("sha256") != now["data"].get("sha256"):
            found.append(f"data: {then} then, {here} now")
    if before["prompts"] != now["prompts"]:
        then, here = before["prompts"]["count"], now["prompts"]["count"]
        found.append(
            f"prompts: {then:,} then, {here:,} now" if then != here else f"prompts: other tokens in these {here:,}"
        )
    for role in ("student", "teacher"):
        if before["probes"][role] != now["probes"][role]:
            found.append(f"{role}'s tokenizer or chat template: fixed texts are rendered otherwise")
    for role, here in now["models"].items():
        then = before["models"].get(role, {})
        if odd := sorted(n for n in then.keys() | here.keys() if _hash(then, n) != _hash(here, n)):
            found.append(f"{role}'s files: {', '.join(odd)}")
    if "served" in now and (moved := apart(before["served"], now["served"])) > SAME:
        found.append(
            f"teacher's log-probs of known texts, which have moved by {moved:.3g} nats a token (limit {SAME:g})"
        )
    for name, setting in (("grader", "eval_grader"), ("reward", "reward")):
        then, here = before.get(name), now.get(name)
        if then != here:
            shas = (of and of["sha256"][:12] for of in (then, here))
            found.append("{}'s file: {} then, {} now".format(setting, *shas))
    return found


def _hash(files: dict[str, Any], name: str) -> str | None:
    return files.get(name, {}).get("sha256")
