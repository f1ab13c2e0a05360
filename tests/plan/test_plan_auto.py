"""What auto takes on a card: by stated numbers, held by a resume, and traces in proportion against whole ones."""

from types import SimpleNamespace

import pytest
import torch

from poweropd_lite.base.config import Config, load_config
from poweropd_lite.base.config_files import changed, dump_yaml
from poweropd_lite.plan import auto, memory
from poweropd_lite.plan.auto import settled, words
from poweropd_lite.plan.cards import find_card
from poweropd_lite.plan.memory import GIB, _fused_chunk, plan_memory
from poweropd_lite.plan.trace import traces_of
from poweropd_lite.reproduce.grid import load_pair

PLAIN = (True, 8192, None)


def found(config: Config) -> tuple:
    return config.gradient_checkpointing, config.token_budget, config.teacher_token_budget


def qwen(config: Config) -> SimpleNamespace:
    """Qwen3-0.6B <- 4B as it was traced: GiB of rollouts, and of an update and a score by 1,024 tokens."""
    update = 4.5 + config.tokens_at_once / 1024 * (0.137 if config.recomputes else 1.27)
    score = 4.5 + config.teacher_tokens_at_once / 1024 * 0.0773
    return SimpleNamespace(needed=(0.6 + max(13.4, 1.05 * update, 1.05 * score)) * GIB)


@pytest.mark.parametrize(
    ("card", "sizes"),
    [
        ("12", PLAIN),  # which needs 14.0 GiB itself
        ("24", (True, 49_152, 65_536)),  # under the 14.0 GiB of the rollouts: 12.4; of 65,536 tokens it would be 14.5
        ("rtx4090", (True, 49_152, 65_536)),
        ("40", (False, 16_384, 65_536)),  # 26.7 of at most 36.2 GiB; of 24,576 tokens it would be 37.3
        ("48", (False, 24_576, 65_536)),
        ("80", (False, 49_152, 65_536)),  # 69.3 of 72.8
        ("h200", (False, 65_536, 65_536)),
    ],
)
def test_what_auto_takes_of_known_sizes(card, sizes):
    config, gib = load_config("qwen3-0.6b-4b"), find_card(card).gib
    chosen = settled(config, qwen, gib)
    assert found(chosen) == sizes and changed(chosen, **config.sizes) == settled(config, qwen, None)
    assert gib < 14.1 or qwen(chosen).needed <= (14.01 if gib < 24 else 0.92 * gib) * GIB


def test_a_number_wins_and_what_others_hold_counts():
    config = load_config("qwen3-0.6b-4b")
    assert found(settled(config, qwen, 79.1, others=40.0)) == (False, 16_384, 65_536)  # of 0.92 x 39.1 GiB
    assert found(settled(changed(config, token_budget=4096), qwen, 79.1)) == (False, 4096, 65_536)
    assert found(settled(changed(config, gradient_checkpointing=True), qwen, 79.1)) == (True, 65_536, 65_536)
    assert found(settled(changed(config, teacher_token_budget=5000), qwen, 79.1)) == (False, 49_152, 5000)
    given = changed(config, gradient_checkpointing=True, token_budget=9000, teacher_token_budget=None)
    assert settled(given, qwen, 79.1) == given
    assert found(settled(changed(config, reward="full_kl"), qwen, 79.1)) == (False, 49_152, None)
    assert found(settled(changed(config, batch_size=2), qwen, 79.1)) == (False, 8192, 8192)


def test_a_run_on_a_card_says_and_keeps_what_it_found_and_a_cpu_plans_nothing(monkeypatch, tmp_path):
    said: list[str] = []
    kernels: list[bool] = []
    on = torch.float32, "loop", False, said.append
    config = load_config("bundled", token_budget="auto", gradient_checkpointing="auto", batch_size=64)
    monkeypatch.setattr(auto, "plan_memory", None)
    assert found(auto.settle_run(config, torch.device("cpu"), *on)) == PLAIN and said == []
    monkeypatch.setattr(auto, "plan_memory", lambda of, *_, fused: kernels.append(fused) or qwen(of))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (79.1 * GIB, 79.1 * GIB))
    chosen = auto.settle_run(config, torch.device("cuda"), *on)
    assert found(chosen) == (False, 64 * 240, 64 * 240) and set(kernels) == {False}  # no card is here
    assert said == [
        "auto: no checkpointing, micro-batches of 15,360 tokens (student) and 15,360 (teacher): planned 25.3 of 79.1 GiB"
    ]
    # A resume reads them from config.yaml: there is nothing left for a smaller card to choose.
    (tmp_path / "config.yaml").write_text(dump_yaml(chosen))
    again = load_config(tmp_path / "config.yaml")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20.0 * GIB, 23.5 * GIB))
    assert auto.settle_run(again, torch.device("cuda"), *on) == again == chosen and len(said) == 1
    monkeypatch.setattr(auto, "plan_memory", None)  # a model that can't be traced: train goes on, and plan says why
    assert found(auto.settle_run(config, torch.device("cuda"), *on)) == PLAIN


@pytest.mark.parametrize("checkpointing", [True, False])
def test_many_tokens_in_proportion_are_as_traced_or_a_little_more(checkpointing, monkeypatch):
    """72 lines of 240 tokens from 34, against a trace of all of them."""
    config = load_config("bundled", gradient_checkpointing=checkpointing)
    traces, head = traces_of(config, torch.bfloat16), (1, 1)
    student = traces.student(config, head, 72, 240).update
    teacher = traces.teacher(config, torch.bfloat16, 72, 240)[1]
    monkeypatch.setattr("poweropd_lite.plan.trace.PLAIN_BUDGET", 10**6)
    assert 1 <= student / traces.student(config, head, 72, 240).update < 1.02
    assert 1 <= teacher / traces.teacher(config, torch.bfloat16, 72, 240)[1] < 1.02


def test_the_bundled_pair_as_plan_would_run_it_on_a_card(monkeypatch):
    config = load_config("bundled", token_budget="auto", gradient_checkpointing="auto")
    traces = traces_of(config, torch.bfloat16)
    plain = settled(config, lambda of: plan_memory(of, traces, True), None)
    on = settled(config, lambda of: plan_memory(of, traces, True), 40.0)
    assert found(plain) == PLAIN and found(on) == (False, 8192, 8192)  # 32 x 240 are no more than 8,192
    assert words(on) == "no checkpointing, micro-batches of 8,192 tokens (student) and 8,192 (teacher)"
    monkeypatch.setattr(memory, "LOGIT_ELEMENTS", 512 * 8)  # so that a micro-batch has several chunks of 512 ids
    with_them, without = (plan_memory(on, traces, True, fused=fused).phases["update"] for fused in (True, False))
    chunk = with_them.pop("kernels' chunk")
    assert with_them == without and chunk == 512 * (32 * 240 * 6 - 8 * 8)


def test_the_kernels_chunk_of_the_head():
    """512 rows of 151,936 float32 logits and bfloat16 gradients, less 165 rows of twice float32, which are traced."""
    shape, batch = SimpleNamespace(head=(151_936, 1024)), (4, 2048)
    more = {"kernels' chunk": 151_936 * (512 * 6 - 165 * 8)}
    assert _fused_chunk(load_config("qwen3-0.6b-4b"), shape, batch) == more
    assert _fused_chunk(load_config("qwen3-0.6b-4b", kernels="off"), shape, batch) == {}


def test_a_grid_keeps_the_plain_sizes():
    """Its runs may share a card, and their costs are compared."""
    assert found(load_pair("qwen3-0.6b-4b", {})) == PLAIN
    assert found(load_pair("qwen3-0.6b-4b", {"token_budget": 4096})) == (True, 4096, None)
