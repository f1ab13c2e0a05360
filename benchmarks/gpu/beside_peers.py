"""Ours beside its peers on this card: benchmarks/peers/run.py, once each, with the methods that tell most."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

RUN = Path(__file__).parent.parent / "peers" / "run.py"
METHODS = ["lean, every weight, power", "ours, every weight, power", "ours, LoRA, power", "plain, every weight, power"]
TRL = "TRL DistillationTrainer, every weight"  # left out, and said so, where it is not installed


def measure(tiny: bool) -> dict:
    """Returns a row a work and method: seconds and peak MiB over the loaded models, or why there are none."""
    methods = METHODS[1:3] if tiny else [*METHODS, TRL]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(RUN), "--quick", "--output", folder, *["--tiny"] * tiny]
        subprocess.run(command + [word for name in methods for word in ("--method", name)], check=True)
        works = [json.loads(file.read_text()) for file in sorted(Path(folder).glob("*.json"))]
    rows = []
    for work in works:
        for method, (found,) in work["runs"].items():
            figures = {"seconds": found.get("seconds", 0.0), "peak MiB": found.get("peak_mib", 0.0)}
            rows.append({"work": work["work"], "method": method, **figures, "failed": found.get("failed", "")})
    return {"rows": rows, "left_out": works[0]["left_out"]}
