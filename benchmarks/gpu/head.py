"""Log-probs from hidden states: seconds and peak memory by what is sampled from and by the logits of a chunk."""

import torch
from card import seconds
from shapes import TOKENS, VOCABULARY, device

from poweropd_lite.kernels import head, products
from poweropd_lite.method.logprobs import Sampling, score_tokens

GIB = 2**30


def measure(tiny: bool) -> dict:
    """Returns a row a case: the student's head (1,024 wide) with gradient, the 4B teacher's (2,560) without."""
    count, rows, sizes = (64, 1000, (1 << 14,)) if tiny else (32_768, VOCABULARY, (1 << 24, 5 << 24, 10 << 24))
    forbidden = torch.arange(min(TOKENS, rows - 10), rows, device=device())
    plain, held, top = Sampling(), Sampling(forbidden=forbidden), Sampling(top_k=20, top_p=0.95, forbidden=forbidden)
    cases = [("student, plain", plain), ("student, forbidden ids", held), ("student, top-k and top-p", top)]
    cases += [("student, forbidden ids, trained head", held), ("teacher", plain)]
    standing, found = (products.LOGIT_ELEMENTS, products.FUSED_ELEMENTS), []
    try:
        for name, sampling in cases:
            for kernels, size in [(False, sizes[0]), *((True, size) for size in sizes if sampling is not top)]:
                products.LOGIT_ELEMENTS, products.FUSED_ELEMENTS, head.switched_off = sizes[0], size, not kernels
                took, peak = _time(count, 2560 if name == "teacher" else 1024, rows, sampling, name, tiny)
                row = {"case": name, "kernels": kernels, "logits a chunk": size, "seconds": took, "peak GiB": peak}
                found.append(row)
    finally:
        products.LOGIT_ELEMENTS, products.FUSED_ELEMENTS = standing
        head.switched_off = False
    return {"tokens": count, "rows": found}


def _time(count: int, size: int, rows: int, sampling: Sampling, name: str, tiny: bool) -> tuple[float, float]:
    """Returns seconds, and the peak in GiB over what stood there before."""
    generator = torch.Generator(device()).manual_seed(0)
    where = {"device": device(), "dtype": torch.bfloat16, "generator": generator}
    hidden = torch.randn(count, 64 if tiny else size, **where)
    weight = torch.randn(rows, hidden.shape[1], **where) * 0.02
    ids = torch.randint(0, rows - 300, (count,), generator=generator, device=device())
    hidden.requires_grad_(name != "teacher")
    weight.requires_grad_("trained head" in name)

    def work() -> None:
        hidden.grad = weight.grad = None
        score = score_tokens(hidden, products.Head(weight), ids, sampling, "sampled", lambda log_q, rows: log_q).score
        if score.requires_grad:
            score.sum().backward()

    cuda = torch.cuda.is_available()
    stood = torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    took = seconds(work, 3)
    return took, (torch.cuda.max_memory_allocated() - stood) / GIB if cuda else 0.0
