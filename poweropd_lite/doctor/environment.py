"""What is installed, the card, and what a run would use: `--env` of the doctor."""

import os
import platform
from typing import TYPE_CHECKING

import poweropd_lite
from poweropd_lite.base.config import load_config
from poweropd_lite.doctor.driver import check_driver
from poweropd_lite.doctor.packages import PACKAGES, check_versions, installed, missing

if TYPE_CHECKING:
    import torch


def environment() -> list[str]:
    """Returns the lines of the report."""
    lines = [f"poweropd_lite {poweropd_lite.__version__}, Python {platform.python_version()}, {platform.platform()}"]
    here = {name: installed(name) for name in PACKAGES}
    lines += [f"  {name:13} {here[name] or 'not installed':18} {use}" for name, (use, _) in PACKAGES.items()]
    how = [f"  {name}: {command}" for name, (_, command) in PACKAGES.items() if here[name] is None]
    how = ["to get what is missing:", *how] if how else []
    if lacking := missing():
        return [*lines, f"can't run: {', '.join(lacking)} missing", *how]
    lines += _a_run_here()
    lines += [line for finding in check_driver() for line in finding.shown()]
    if (versions := check_versions()).level != "ok":
        lines.append(f"these don't go together: {versions}")
    lines += how
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        lines.append("HF_HUB_OFFLINE is 1: models and data come from the local cache alone")
    return lines


def _a_run_here() -> list[str]:
    import torch  # here and not above: where it is missing, that is to be said

    from poweropd_lite.checks.machine import compute_dtype, has_bfloat16
    from poweropd_lite.engines.choose import choose_engine, choose_loader

    config = load_config()
    loader = choose_loader(config)  # before transformers is used, as in a run
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
        major, minor = torch.cuda.get_device_capability(device)
        lines = [
            f"CUDA {torch.version.cuda}: {torch.cuda.get_device_name(device)}, compute capability {major}.{minor}, "
            f"{free:.1f} of {total:.1f} GiB free",
            f"  bfloat16      {'yes' if has_bfloat16(device) else 'no: float16 with a loss scale is used instead'}",
        ]
    else:
        built = torch.version.cuda
        why = f"torch is built for CUDA {built}, but finds no card" if built else "torch is built without CUDA"
        why += f"; {torch.get_num_threads()} CPU threads"
        lines = [f"no CUDA: {why}. The bundled pair runs here; Qwen3 wants a card"]
    dtype = compute_dtype(config.dtype, device)
    engine = choose_engine(config, device, dtype, loader.name)
    return [
        *lines,
        "a run would use",
        f"  dtype         {str(dtype).removeprefix('torch.')}",
        f"  loader        {loader.name} ({loader.why})",
        f"  engine        {engine.name} ({engine.why}); full fine-tuning and --modules-to-save: loop",
        f"  teacher       {_nf4_line(device)}",
    ]


def _nf4_line(device: "torch.device") -> str:
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
