"""llama.cpp's own converter and quantiser, from a checkout that the user points to; nothing is installed or fetched."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poweropd_lite.base.errors import UserError
from poweropd_lite.export.check import Tick
from poweropd_lite.export.folders import write_common, write_merged
from poweropd_lite.export.job import Job
from poweropd_lite.export.settings import OWN_GGUF
from poweropd_lite.export.source import Source
from poweropd_lite.models.shape import layer_kinds

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONVERTER = "convert_hf_to_gguf.py"
QUANTISER = "llama-quantize"


def check_checkout(folder: Path, kind: str) -> None:
    """Raises UserError if the checkout lacks what an export to a kind of weights takes from it."""
    if not (folder / CONVERTER).is_file():
        raise UserError(f"{folder} has no {CONVERTER}, so it is no llama.cpp checkout; type --llama-cpp with one")
    if kind not in OWN_GGUF and _quantiser(folder) is None:
        raise UserError(
            f"{folder} has no built {QUANTISER}, which makes {kind}; build it there (cmake -B build && cmake --build "
            f"build --target {QUANTISER}), or type --gguf-type with one of {', '.join(OWN_GGUF)}"
        )


def _quantiser(folder: Path) -> Path | None:
    places = [folder / "build" / "bin" / QUANTISER, folder / "bin" / QUANTISER, folder / QUANTISER]
    return next((place for place in places if place.is_file()), None)


_GEMMA_27B = (46, 62)  # layers of those of Gemma 2 and 3, whose other scale llama.cpp knows them by


def misread(c: "PretrainedConfig") -> str | None:
    """Returns what llama.cpp would compute otherwise of a model that its converter takes, or None."""
    text = c.get_text_config()
    if text.model_type == "qwen3_moe" and not text.norm_topk_prob:
        return "its experts' weights don't add up to 1 (norm_topk_prob), and llama.cpp makes them"
    wanted = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(text.num_hidden_layers)]
    if text.model_type == "gemma3_text" and text.layer_types != wanted:
        return "llama.cpp has every sixth layer of a Gemma 3 without a window, and this one has others"
    wanted = ["full_attention" if i % 2 else "sliding_attention" for i in range(text.num_hidden_layers)]
    if text.model_type == "gemma2" and text.layer_types != wanted:
        return "llama.cpp has every second layer of a Gemma 2 without a window, and this one has others"
    scale = getattr(text, "query_pre_attn_scalar", text.head_dim) if text.model_type.startswith("gemma") else None
    if scale not in (None, text.head_dim) and text.num_hidden_layers not in _GEMMA_27B:
        return f"its queries are scaled by {scale}^-1/2 (query_pre_attn_scalar), and llama.cpp takes the size of a head for it"
    return None


def convert(job: Job, checkout: Path, file: Path, source: Source, tick: Tick) -> None:
    """Writes `file` from the merged model in float32, which is removed again: for models that gguf.py does not know."""
    import gguf

    kind, own = job.config.gguf_kind, job.config.gguf_kind in OWN_GGUF
    merged, whole = file.with_name(".merged"), file if own else file.with_name(".whole.gguf")
    merged.mkdir()
    write_merged(job, merged, source, "float32", tick)
    write_common(job, merged)
    _take_pieces(job, merged)
    command = [sys.executable, str(checkout / CONVERTER), str(merged), "--outfile", str(whole)]
    _run([*command, "--outtype", kind if own else "f32"], CONVERTER)
    shutil.rmtree(merged)
    fields = gguf.GGUFReader(whole).fields
    ends = [f"tokenizer.ggml.{end}_token_id" for end in ("eos", "eot", "eom")]
    named = {fields[key].contents() for key in ends if key in fields}
    if lost := sorted(job.vocabulary.stop_ids - named):  # it reads the tokenizer's end token alone
        tokens = ", ".join(job.vocabulary.tokenizer.convert_ids_to_tokens(lost))
        source.notes.append(
            f"llama.cpp's converter did not write the stop tokens {tokens}: where an answer does not end with them, "
            "name them to your program"
        )
    # (Phi-3's file has the word, and llama.cpp does not follow it.)
    unread = job.model_config.model_type == "phi3" or not any("sliding_window" in key for key in fields)
    if unread and "sliding_attention" in layer_kinds(job.model_config):
        source.notes.append(
            f"llama.cpp knows no window in this model: texts of more than {job.model_config.sliding_window:,} tokens are "
            "read otherwise than in training"
        )
    if not own:
        quantise(checkout, kind, whole, file)


def _take_pieces(job: Job, folder: Path) -> None:
    """Copies sentencepiece's own file of the base, if there is one: transformers does not save it, and Gemma's is read from it."""
    from transformers.utils import cached_file

    ways: dict[str, Any] = {"revision": job.revision, "_raise_exceptions_for_missing_entries": False}
    if pieces := cached_file(job.target.base, "tokenizer.model", **ways):
        shutil.copy(pieces, folder)


def quantise(checkout: Path, kind: str, whole: Path, file: Path) -> None:
    """Writes `file` in a kind of weights from a file in wider ones, which is removed."""
    _run([str(_quantiser(checkout)), str(whole), str(file), kind.upper()], QUANTISER)
    whole.unlink()


def _run(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise UserError(
            f"{name} failed (exit code {done.returncode}): {' / '.join(said)[-600:]}; nothing was handed over"
        )
