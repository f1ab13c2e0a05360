"""Log-probs and their gradient without logits, against plain full logits, side by side in one run.

    python benchmarks/logprobs.py

1,024 tokens, hidden size 1,024, Qwen3's vocabulary of 151,936, float32, frozen head: forward and backward, each method in a
process of its own (peak memory is the process's growth over what hidden states and head take). Prints a Markdown table.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

VOCABULARY, WIDTH = 151_936, 1024


def plain(hidden, weight, ids):
    """The usual way: every logit, a float32 log-softmax, a gather."""
    return (hidden @ weight.T).float().log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)


def chunked(hidden, weight, ids):
    """Ours."""
    from poweropd_lite.kernels.products import Head
    from poweropd_lite.method.logprobs import Sampling, score_tokens

    return score_tokens(hidden, Head(weight), ids, Sampling(), "full").score


def measure(method: str, tokens: int, threads: int) -> None:
    """Prints one method's seconds, peak MiB and a checksum of its gradient, as JSON."""
    import torch

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=generator).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).div_(WIDTH**0.5)  # no copy: it would hide a peak
    ids = torch.randint(0, VOCABULARY, (tokens,), generator=generator)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    out = {"plain": plain, "chunked": chunked}[method](hidden, weight, ids)
    out.sum().backward()
    seconds = time.monotonic() - started
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        json.dumps({"seconds": seconds, "mib": peak, "logprob": out.mean().item(), "grad": hidden.grad.norm().item()})
    )


def main() -> None:
    """Measures both and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--method", choices=["plain", "chunked"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.method:
        measure(args.method, args.tokens, args.threads)
        return
    rows = {}
    for method in ("plain", "chunked"):
        flags = ["--method", method, "--tokens", str(args.tokens), "--threads", str(args.threads)]
        out = subprocess.run([sys.executable, __file__, *flags], capture_output=True, text=True, check=True).stdout
        rows[method] = json.loads(out)
    print("| method | seconds | extra peak MiB | mean log-prob | gradient norm |\n|---|---|---|---|---|")
    for method, r in rows.items():
        print(f"| {method} | {r['seconds']:.1f} | {r['mib']:.0f} | {r['logprob']:.6f} | {r['grad']:.6f} |")
    seconds, mib = (rows["chunked"][key] / rows["plain"][key] for key in ("seconds", "mib"))
    print(f"| ratio | {seconds:.2f} | {mib:.2f} | | |")


if __name__ == "__main__":
    main()
