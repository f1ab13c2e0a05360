"""What a card that is not here says to a run: by its name alone, its compute capability and memory. Nothing is run.

The least capabilities are those that the packages' own documents name.
"""

from dataclasses import replace

from poweropd_lite.base.config import Config
from poweropd_lite.base.errors import Finding
from poweropd_lite.checks.machine import check_device
from poweropd_lite.doctor.driver import wanted
from poweropd_lite.plan.cards import Machine
from poweropd_lite.plan.warn import unknown_dtype

TORCH, VLLM, UNSLOTH = 7.5, 7.5, 7.0  # torch's builds for CUDA 13, which PyPI gives
NF4, INT8, ADAMW8BIT = 6.0, 7.5, 6.0  # of bitsandbytes


def check_card(config: Config, card: Machine, plan: str) -> list[Finding]:
    """Returns what is found of a run's settings on a card that is not here; `plan` is the command that plans it there."""
    findings = check_device(config, card.cuda, card.bfloat16, card.name)
    if card.capability is None:
        findings = [*(f for f in findings if f.level != "ok"), _unknown(config, card)]
    else:
        findings += [_torch(card), _bitsandbytes(config, card), _engines(config, card)]
    memory = f"{card.gib:.1f} GiB can be used; whether the run fits, with which flags, and how long it takes: {plan}"
    there = f"it must be {wanted(card.capability)}; what it is, the packages and the free memory are known only there: "
    there += "python -m poweropd_lite.doctor --env"
    findings += [Finding("ok", "memory", memory), Finding("ok", "driver", there)]
    evidence = {"gpu": card.name, "capability": card.capability}
    return [
        replace(f, found=f"for {card.name}, not this machine: {f.found}", evidence={**f.evidence, **evidence})
        for f in findings
    ]


def _unknown(config: Config, card: Machine) -> Finding:
    """A card of which its size alone is known."""
    finding = unknown_dtype(card)
    asks = ["bfloat16"] if config.dtype in ("auto", "bfloat16") else []
    asks += [f"{name} ({least})" for name, least in _of_bitsandbytes(config).items()]
    asks += [f"vLLM ({VLLM})", f"Unsloth ({UNSLOTH})", f"torch's own builds ({TORCH})"]
    found = f"a size says no compute capability, so {', '.join(asks)} can't be judged; "
    found += "every card since Ampere (RTX 30xx, A100, L4) has all of them"
    return replace(finding, check="compute capability", found=found)


def _torch(card: Machine) -> Finding:
    found = f"compute capability {card.capability}; torch's builds for CUDA 13 begin at {TORCH}"
    if _has(card, TORCH):
        return Finding("ok", "torch", found)
    mend = (
        "torch's build for CUDA 12.6, which has: pip install torch --index-url https://download.pytorch.org/whl/cu126"
    )
    return Finding("warning", "torch", f"{found}: they have no kernels for it", mend)


def _of_bitsandbytes(config: Config) -> dict[str, float]:
    """What a run asks of bitsandbytes, and the least compute capability of it."""
    asked = {
        "NF4": (NF4, 4 in (config.student_bits, 0 if config.served else config.teacher_bits)),
        "LLM.int8": (INT8, config.teacher_bits == 8 and not config.served),
        "8-bit AdamW": (ADAMW8BIT, config.optimizer == "adamw8bit"),
    }
    return {name: least for name, (least, does) in asked.items() if does}


def _bitsandbytes(config: Config, card: Machine) -> Finding:
    asks = _of_bitsandbytes(config)
    if not asks:
        return Finding("ok", "bitsandbytes", "nothing is asked of it")
    found = f"{', '.join(f'{name} from compute capability {least} on' for name, least in asks.items())}"
    if lacking := [name for name, least in asks.items() if not _has(card, least)]:
        found += f"; it has {card.capability}, too little for {', '.join(lacking)}"
        mend = "--teacher-bits 4" if lacking == ["LLM.int8"] else "another card"
        return Finding("warning", "bitsandbytes", found, mend)
    return Finding("ok", "bitsandbytes", f"{found}; it has {card.capability}")


def _engines(config: Config, card: Machine) -> Finding:
    asked = {"vLLM": (VLLM, config.engine == "vllm", "--engine loop")}
    asked["Unsloth"] = (UNSLOTH, config.loader == "unsloth", "--loader peft")
    lacking = [name for name, (least, _, _) in asked.items() if not _has(card, least)]
    found = f"vLLM from compute capability {VLLM} on, Unsloth from {UNSLOTH}; it has {card.capability}"
    if mends := [mend for name, (_, wanted, mend) in asked.items() if wanted and name in lacking]:
        return Finding(
            "warning", "loader and engine", f"{found}, too little for {', '.join(lacking)}", ", ".join(mends)
        )
    if lacking:
        found += f", too little for {', '.join(lacking)}: PEFT and the built-in loop do without"
    else:
        found += ": both can be taken where they are installed"
    return Finding("ok", "loader and engine", found)


def _has(card: Machine, least: float) -> bool:
    return card.capability is not None and card.capability >= least
