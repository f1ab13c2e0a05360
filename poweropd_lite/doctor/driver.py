"""A card's driver against the CUDA that torch is built for: what is found, and what to type where they don't go together.

The least drivers are those of NVIDIA's CUDA compatibility guide for Linux: one of them runs every release of a major
version. Which cards a build has kernels for is from PyTorch's build scripts; of the version that requirements.txt names
there are builds for CUDA 12.6, 13.0 and 13.2.
"""

import shutil
import subprocess
from dataclasses import dataclass

from poweropd_lite.base.errors import Finding

LEAST = {12: "525.60.13", 13: "580.65.06"}  # driver, by CUDA's major version
# CUDA 13 builds begin with Turing; those of 12.8 and 12.9 with Volta; those before with Maxwell, and end before Blackwell.
MAXWELL, VOLTA, TURING, BLACKWELL = 5.0, 7.0, 7.5, 10.0
INDEX = "https://download.pytorch.org/whl/cu"


@dataclass(frozen=True)
class Driven:
    """A card of this machine, as its driver names it."""

    name: str
    driver: str
    capability: float | None  # old drivers don't say


def check_driver() -> list[Finding]:
    """Returns what is found of the driver of this machine's first card, and nothing where no driver is here."""
    import torch

    if (smi := shutil.which("nvidia-smi")) is None:
        return []
    for asked in ("name,driver_version,compute_cap", "name,driver_version"):  # drivers before 470 don't know the third
        try:
            ask = [smi, f"--query-gpu={asked}", "--format=csv,noheader"]
            said = subprocess.run(ask, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            return [_silent(str(error))]
        fields = [field.strip() for field in said.stdout.partition("\n")[0].split(",")]
        if not said.returncode and len(fields) == asked.count(",") + 1:
            break
    else:
        return [_silent(" ".join((said.stdout + said.stderr).split())[:200])]
    name, driver, capability = (*fields, "")[:3]
    card = Driven(name, driver, float(capability) if capability.replace(".", "", 1).isdigit() else None)
    found = torch.cuda.is_available()  # also under an old driver, with NVIDIA's compatibility libraries
    return [judge(card, torch.__version__.partition("+")[0], torch.version.cuda, found)]


def judge(card: Driven, torch_version: str, cuda: str | None, found_card: bool = False) -> Finding:
    """Returns whether torch, built for `cuda` such as 13.0 (None: for CPUs alone), runs on the card with its driver; `found_card`: it finds
    one, whatever the driver's number says.
    """
    here, mend = f"{card.name} with driver {card.driver}", what_to_install(card, torch_version)
    evidence = {"driver": card.driver, "capability": card.capability, "torch": torch_version, "cuda": cuda}
    if cuda is None:
        found = f"torch {torch_version} is built without CUDA, and {here} is here"
        return Finding("warning", "driver", found, mend, evidence)
    built, major = f"torch {torch_version} is built for CUDA {cuda}", int(cuda.partition(".")[0])
    least = LEAST.get(major, LEAST[13])
    if _number(card.driver) < _number(least) and not found_card:
        found = f"{built}, which wants driver {least} or newer, and here is {here}: torch finds no card"
        return Finding("warning", "driver", found, mend, evidence)
    if not _has_kernels(card.capability, cuda):
        found = f"{built}, which has no kernels for compute capability {card.capability}, and here is {here}"
        return Finding("warning", "driver", found, mend, evidence)
    return Finding("ok", "driver", f"{here}; {built}, which wants {least} or newer", evidence=evidence)


def what_to_install(card: Driven, torch_version: str) -> str:
    """Returns the command that gets the newest build of torch that runs on the card with its driver, or what else does."""
    if _number(card.driver) >= _number(LEAST[13]) and _has_kernels(card.capability, "13.0"):
        return f"pip install torch=={torch_version} --index-url {INDEX}130"
    if _number(card.driver) >= _number(LEAST[12]) and _has_kernels(card.capability, "12.6"):
        return f"pip install torch=={torch_version} --index-url {INDEX}126, without vLLM, whose build on PyPI is for CUDA 13"
    return f"a driver {LEAST[13]} or newer from NVIDIA; a rented machine's image chooses it"


def wanted(capability: float | None) -> str:
    """Returns which drivers torch's builds want for a card that is not here."""
    pairs = [(major, cuda) for major, cuda in ((13, "13.0"), (12, "12.6")) if _has_kernels(capability, cuda)]
    return ", ".join(f"{LEAST[major]} or newer for torch's build for CUDA {cuda}" for major, cuda in pairs)


def _has_kernels(capability: float | None, cuda: str) -> bool:
    number = _number(cuda)
    if capability is None:
        return True
    least = TURING if number >= (13,) else VOLTA if number >= (12, 8) else MAXWELL
    return least <= capability and (capability < BLACKWELL or number >= (12, 8))


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _silent(said: str) -> Finding:
    found = f"nvidia-smi is here and names no card: {said or 'it says nothing'}"
    return Finding("warning", "driver", found, "install NVIDIA's driver, or start it; nvidia-smi tells when it runs")
