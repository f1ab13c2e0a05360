"""Log-probs, scores, KL and their gradients against autograd on full float64 logits; and what the chunks save."""

import forked
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from poweropd_lite.kernels import products
from poweropd_lite.kernels.products import Head
from poweropd_lite.method.logprobs import Sampling, kept_ids, reverse_kl, score_tokens
from poweropd_lite.method.reward import power
from poweropd_lite.rehearse.stats import truncation_facts

PLAIN = Sampling()
TRUNCATED = Sampling(temperature=0.7, top_k=6, top_p=0.9, forbidden=torch.tensor([3, 11]))


@pytest.fixture
def case(monkeypatch):
    """Hidden states, a head, targets and incoming gradients; chunks of three rows, so that the cut shows."""
    monkeypatch.setattr(products, "LOGIT_ELEMENTS", 3 * 12)
    g = torch.Generator().manual_seed(1)
    hidden = torch.randn(10, 5, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(12, 5, generator=g, dtype=torch.float64)
    ids = torch.randint(0, 12, (10,), generator=g)
    return hidden, weight, ids, torch.randn(10, generator=g, dtype=torch.float64)


def plain_score(hidden, weight, ids, sampling, score):
    """The definition, on full logits."""
    return score_of(hidden @ weight.T, ids, sampling, score)


def score_of(logits, ids, sampling, score):
    """One row at a time."""
    if score == "full":
        return logits.log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)
    rows = []
    for z, target in zip(logits / sampling.temperature, ids.tolist(), strict=True):
        kept = reference_kept(z.detach(), sampling) | {target}
        inside = torch.tensor(sorted(kept))
        rows.append(z[target] - z[inside].logsumexp(-1))
    return torch.stack(rows)


def reference_kept(scaled, sampling):
    """Forbidden ids out, the top_k largest, then the fewest of those that hold top_p: in plain Python."""
    forbidden = set() if sampling.forbidden is None else set(sampling.forbidden.tolist())
    order = sorted((i for i in range(len(scaled)) if i not in forbidden), key=lambda i: -scaled[i].item())
    order = order[: sampling.top_k or None]
    probs = scaled[order].softmax(-1).tolist()
    kept, mass = set(), 0.0
    for i, p in zip(order, probs, strict=True):
        if mass >= sampling.top_p:
            break
        kept.add(i)
        mass += p
    return kept


SAMPLINGS = [
    PLAIN,
    Sampling(top_k=3),
    Sampling(top_p=0.6),
    Sampling(temperature=1.7),
    Sampling(forbidden=torch.tensor([0, 5])),
    TRUNCATED,
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("score", ["full", "sampled"])
@pytest.mark.parametrize("head_trains", [False, True])
def test_scores_and_gradients_equal_autograd_on_full_logits(case, sampling, score, head_trains):
    hidden, weight, ids, grad = case
    weight = weight.requires_grad_(head_trains)
    wanted = plain_score(hidden, weight, ids, sampling, score)
    inputs = [hidden, weight] if head_trains else [hidden]
    wanted_grads = torch.autograd.grad(wanted, inputs, grad)
    if head_trains:  # the rows' weights are known in the forward pass
        got = score_tokens(hidden, Head(weight), ids, sampling, score, lambda log_q, rows: grad[rows])
        got_grads, wanted = torch.autograd.grad(got.score.sum(), inputs), wanted * grad
    else:
        got = score_tokens(hidden, Head(weight), ids, sampling, score)
        got_grads = torch.autograd.grad(got.score, inputs, grad)
    torch.testing.assert_close(got.score, wanted, rtol=1e-12, atol=1e-12)
    for a, b in zip(got_grads, wanted_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


BENT = [{"bias": True}, {"scale": 1.7}, {"cap": 1.5}, {"bias": True, "scale": 1.7, "cap": 1.5}]


def bent(hidden, weight, bias=None, scale=1.0, cap=None):
    """The formula of the logits."""
    z = scale * (hidden @ weight.T if bias is None else hidden @ weight.T + bias)
    return z if cap is None else cap * torch.tanh(z / cap)


@pytest.mark.parametrize("form", BENT, ids=str)
@pytest.mark.parametrize("sampling", [PLAIN, Sampling(forbidden=torch.tensor([0, 5])), TRUNCATED])
@pytest.mark.parametrize("score", ["full", "sampled", "kl"])
def test_biased_scaled_and_capped_logits_and_the_gradients_of_all_three_parts(case, form, sampling, score):
    """By autograd on full logits, with a trained head; full_kl against a teacher that is bent in its own way."""
    hidden, weight, ids, grad = case
    form = form | {"bias": torch.linspace(-1, 1, 12, dtype=torch.float64).requires_grad_() if "bias" in form else None}
    inputs = [hidden, weight.requires_grad_(), *([form["bias"]] if form["bias"] is not None else [])]
    head, logits = Head(weight, **form), bent(hidden, weight, **form)

    def weigh(log_q, rows):
        return grad[rows]

    if score == "kl":
        theirs = hidden.detach().flip(0), weight.detach().flip(0), torch.ones(12).double(), 0.6, 2.5
        got = reverse_kl(hidden, head, theirs[0], Head(*theirs[1:]), ids, ids, sampling, weigh).kl
        log_q, log_p = logits.log_softmax(-1), bent(*theirs).log_softmax(-1)
        wanted = (log_q.exp() * (log_q - log_p)).sum(-1)
    else:
        got = score_tokens(hidden, head, ids, sampling, score, weigh).score
        wanted = score_of(logits, ids, sampling, score)
    torch.testing.assert_close(got, wanted * grad, rtol=1e-11, atol=1e-12)
    wanted_grads = torch.autograd.grad(wanted, inputs, grad)
    for a, b in zip(torch.autograd.grad(got.sum(), inputs), wanted_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_entropy_kept_mass_and_added_share(case, sampling):
    hidden, weight, ids, _ = case
    logits = (hidden @ weight.T).detach()
    probs = logits.softmax(-1)
    got = score_tokens(hidden, Head(weight), ids, sampling, "sampled")
    kept = [reference_kept(z / sampling.temperature, sampling) for z in logits]
    mass = torch.stack([p[sorted(k)].sum() for p, k in zip(probs, kept, strict=True)])
    torch.testing.assert_close(got.entropy, -(probs * probs.log()).sum(-1))
    torch.testing.assert_close(got.kept_mass, mass)
    assert got.added.tolist() == [float(i not in k) for i, k in zip(ids.tolist(), kept, strict=True)]
    torch.testing.assert_close(got.logprob, logits.log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1))


def test_worked_values_of_the_sampled_score():
    # Logits 2, 1, 0, -1, -2 under top-k 3: q, the renormalised three, and the mass they hold.
    head, hidden = torch.tensor([[2.0], [1.0], [0.0], [-1.0], [-2.0]], dtype=torch.float64), torch.ones(3, 1).double()
    got = score_tokens(hidden, Head(head), torch.tensor([0, 1, 2]), Sampling(top_k=3), "sampled")
    assert got.logprob.exp().tolist() == pytest.approx([0.636409, 0.234122, 0.086129], abs=1e-6)
    assert got.score.exp().tolist() == pytest.approx([0.665241, 0.244728, 0.090031], abs=1e-6)
    assert got.kept_mass.tolist() == pytest.approx([0.956659] * 3, abs=1e-6)


@pytest.mark.parametrize("sampling", [PLAIN, *SAMPLINGS[1:]])
def test_the_sampled_score_is_unbiased_and_the_full_score_is_not_under_truncation(sampling):
    """Every sample of a 5-token vocabulary, by enumeration: E[grad score] is 0 for a score function of what was sampled."""
    if sampling.forbidden is not None:
        sampling = Sampling(sampling.temperature, min(sampling.top_k, 3), sampling.top_p, torch.tensor([4]))
    hidden = torch.tensor([[0.3, -1.1, 0.7]], dtype=torch.float64)
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    z = (hidden @ weight.T)[0] / sampling.temperature
    kept = kept_ids(hidden @ weight.T, sampling)[0]
    drawn = z.masked_fill(~kept, -torch.inf).softmax(-1)
    mean = {}
    for score in ("sampled", "full"):
        h = hidden.expand(5, 3).clone().requires_grad_()
        scores = score_tokens(h, Head(weight), torch.arange(5), sampling, score).score
        (grads,) = torch.autograd.grad(scores.sum(), h)
        mean[score] = (drawn[:, None] * grads).sum(0)
    assert mean["sampled"].abs().max() < 1e-14
    assert (mean["full"].abs().max() < 1e-14) == sampling.is_plain
    if not sampling.is_plain:
        assert mean["full"].norm() > 0.01


def test_ties_at_the_threshold_are_all_kept():
    kept = kept_ids(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), Sampling(top_k=2))
    assert kept.tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("head_trains", [False, True])
@pytest.mark.parametrize("teacher_rows", [12, 9, 15])
def test_full_kl_equals_autograd_on_full_logits(case, head_trains, teacher_rows):
    hidden, weight, ids, grad = case
    weight = weight.requires_grad_(head_trains)
    g = torch.Generator().manual_seed(2)
    teacher_hidden = torch.randn(10, 7, generator=g, dtype=torch.float64)
    teacher_weight = torch.randn(teacher_rows, 7, generator=g, dtype=torch.float64)
    shared = min(12, teacher_rows)
    log_q = (hidden @ weight.T).log_softmax(-1)[:, :shared]
    log_p = (teacher_hidden @ teacher_weight.T).log_softmax(-1)[:, :shared]
    wanted = (log_q.exp() * (log_q - log_p)).sum(-1)
    inputs = [hidden, weight] if head_trains else [hidden]
    wanted_grads = torch.autograd.grad(wanted, inputs, grad)
    teacher_ids = ids.clamp_max(shared - 1)
    models = hidden, Head(weight), teacher_hidden, Head(teacher_weight)
    got = reverse_kl(*models, ids, teacher_ids, TRUNCATED, lambda log_q, rows: grad[rows])
    torch.testing.assert_close(got.kl, wanted * grad, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(got.kl.sum(), inputs), wanted_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    full_p = (teacher_hidden @ teacher_weight.T).log_softmax(-1)
    torch.testing.assert_close(got.teacher_logprob, full_p.gather(-1, teacher_ids[:, None]).squeeze(-1))


def test_bfloat16_head_gives_float32_logits(monkeypatch):
    """Rounding logits to bf16 would cost up to 0.06 in a log-prob; the float32 path is exact given the stored weights."""
    monkeypatch.setattr(products, "_VOCAB_BLOCK", 100)
    g = torch.Generator().manual_seed(4)
    hidden = (3 * torch.randn(6, 64, generator=g)).bfloat16().requires_grad_()
    weight, ids = torch.randn(333, 64, generator=g).bfloat16(), torch.randint(0, 333, (6,), generator=g)
    exact = hidden.detach().double().requires_grad_()
    wanted = score_tokens(exact, Head(weight.double()), ids, PLAIN, "full").score
    got = score_tokens(hidden, Head(weight), ids, PLAIN, "full").score
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=2e-5)
    (wanted_grad,) = torch.autograd.grad(wanted.sum(), exact)
    (got_grad,) = torch.autograd.grad(got.sum(), hidden)
    torch.testing.assert_close(got_grad.double(), wanted_grad, rtol=2**-8, atol=1e-2)


def test_autocast_does_not_round_the_logits():
    g = torch.Generator().manual_seed(8)
    hidden, weight = torch.randn(4, 64, generator=g), torch.randn(50, 64, generator=g)
    wanted = hidden @ weight.T
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(products.float_logits(hidden, Head(weight)), wanted - wanted.amax(-1, keepdim=True))
        half = products.float_logits(hidden.bfloat16(), Head(weight))
    assert half.dtype == torch.float32


class LargestTensor(TorchDispatchMode):
    """Records the elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_no_tensor_of_tokens_by_vocabulary_at_qwens_vocabulary():
    vocabulary, tokens, width = 151_936, 420, 16
    g = torch.Generator().manual_seed(5)
    hidden = torch.randn(tokens, width, generator=g, requires_grad=True)
    weight, ids = torch.randn(vocabulary, width, generator=g), torch.randint(0, vocabulary, (tokens,), generator=g)
    sampling = Sampling(top_k=20, top_p=0.95)
    for trains in (False, True):
        weight.requires_grad_(trains)
        with LargestTensor() as largest:
            score_tokens(
                hidden, Head(weight), ids, sampling, "sampled", lambda log_q, rows: log_q
            ).score.sum().backward()
            models = hidden, Head(weight), hidden.detach(), Head(weight.detach())
            reverse_kl(*models, ids, ids, sampling, lambda log_q, rows: log_q).kl.sum().backward()
        assert largest.elements <= products.LOGIT_ELEMENTS
        assert largest.elements < 0.4 * tokens * vocabulary


PEAK = """
import resource, torch
from poweropd_lite.kernels.products import Head
from poweropd_lite.method.logprobs import Sampling, score_tokens
torch.set_num_threads(1)
head = Head(torch.randn(151_936, 8))
for tokens in (256, 640):
    hidden = torch.randn(tokens, 8, requires_grad=True)
    score_tokens(hidden, head, torch.zeros(tokens, dtype=torch.long), Sampling(top_k=20), "sampled").score.sum().backward()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_peak_memory_does_not_grow_with_the_number_of_tokens(tmp_path):
    """Full float32 logits of the 384 more tokens would be 223 MiB, and several of them are needed."""
    few, many = map(int, forked.run("-c", PEAK, cwd=tmp_path).stdout.split())
    assert many - few < 100


def test_float32_agrees_with_cross_entropy():
    g = torch.Generator().manual_seed(6)
    hidden, weight = torch.randn(50, 32, generator=g), torch.randn(1000, 32, generator=g)
    ids = torch.randint(0, 1000, (50,), generator=g)
    got = score_tokens(hidden, Head(weight), ids, PLAIN, "full").score
    torch.testing.assert_close(got, -F.cross_entropy(hidden @ weight.T, ids, reduction="none"))


def test_truncation_facts_are_those_of_whole_distributions(case):
    """Row by row: the kept set in plain Python, both distributions whole, norms by their definition."""
    hidden, weight, ids, _ = case
    samplings = [PLAIN, *SAMPLINGS[1:], TRUNCATED]
    pull, facts = truncation_facts(hidden.detach(), Head(weight), ids, samplings)
    assert pull.dtype == torch.float64
    for n, logits in enumerate(hidden.detach() @ weight.T):
        q, target = logits.softmax(-1), ids[n].item()
        onehot = torch.nn.functional.one_hot(ids[n], 12).double()
        assert pull[n].item() == pytest.approx((onehot - q).norm().item(), abs=1e-12)
        for k, sampling in enumerate(samplings):
            kept = sorted(reference_kept(logits / sampling.temperature, sampling))
            s = torch.zeros_like(q)
            s[kept] = (logits[kept] / sampling.temperature).softmax(-1)
            expected = [q[kept].sum().item(), float(target in kept), (s - q).norm().item(), (onehot - s).norm().item()]
            assert facts[n, k].tolist() == pytest.approx(expected, abs=1e-12), (n, sampling)


def test_the_pull_of_a_token_that_is_nearly_certain_is_not_lost():
    """q = 1 - 4.1e-6: in float32 1 - 2q + sum q^2, which is 2e-11, would be rounding alone; the norm is 4.1e-6 sqrt(1 + 1/3)."""
    logits = torch.tensor([[13.5, 0.0, 0.0, 0.0]])
    pull, _ = truncation_facts(logits, Head(torch.eye(4)), torch.tensor([0]), [PLAIN])
    q = logits.double().softmax(-1)[0]
    exact = (torch.tensor([1.0, 0, 0, 0], dtype=torch.float64) - q).norm().item()
    assert pull.item() == pytest.approx(exact, rel=0.05) and exact == pytest.approx(4.75e-6, rel=0.01)


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_rewards_at_a_large_alpha_are_those_of_float64_on_the_same_logits(offset):
    """p^500 - q^500 of tokens that are nearly certain, from float32 logits near 0 and near 30: 5e-5 of it, and its sign."""
    g = torch.Generator().manual_seed(7)
    rows, vocabulary = 4000, 64
    student = torch.randn(rows, vocabulary, generator=g) - 12
    student[:, 0] = 4 * torch.rand(rows, generator=g)
    teacher = student + 0.1 * torch.randn(rows, vocabulary, generator=g)
    ids, log_probs, exact = torch.zeros(rows, dtype=torch.long), [], []
    for logits in (teacher + offset, student + offset):
        log_probs.append(score_tokens(logits, Head(torch.eye(vocabulary)), ids, PLAIN, "full").logprob)
        exact.append(logits.double().log_softmax(-1)[:, 0])
    ours, true = power(*log_probs, alpha=500.0).double(), power(*exact, alpha=500.0)
    size = torch.maximum(*((500 * e).exp() for e in exact))
    assert (size > 1e-3).sum() > 1000
    assert ((ours - true).abs() / size)[size > 1e-3].max() < 5e-5
    clear = true.abs() > 1e-4 * size
    assert (ours.sign() == true.sign())[clear].all()
