"""llama.cpp's own converter and quantiser, from a checkout that the user points to; nothing is installed or fetched."""

import shutil
import subprocess
import sys
from pathlib import Path

from poweropd_lite.base.errors import UserError
from poweropd_lite.export.folders import Tick, write_common, write_merged
from poweropd_lite.export.job import Job
from poweropd_lite.export.settings import OWN_GGUF
from poweropd_lite.export.source import Source

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


def convert(job: Job, checkout: Path, file: Path, source: Source, tick: Tick) -> None:
    """Writes `file` from the merged model in float32, which is removed again: for models that gguf.py does not know."""
    import gguf

    kind, own = job.config.gguf_kind, job.config.gguf_kind in OWN_GGUF
    merged, whole = file.with_name(".merged"), file if own else file.with_name(".whole.gguf")
    merged.mkdir()
    write_merged(job, merged, source, "float32", tick)
    write_common(job, merged)
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
    if not own:
        quantise(checkout, kind, whole, file)


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
