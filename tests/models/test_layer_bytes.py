"""How many bytes the compiled decoder layer of a student moves, counted from its kernels: no time is taken, nothing is run."""

import logging
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch._functorch.aot_autograd import aot_function, make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor import compile_fx, metrics
from torch._inductor import config as inductor
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.joint_graph import joint_graph_passes
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen3Config, Qwen3ForCausalLM

from poweropd_lite.models.adapter import uncast_inputs

LINES, WIDTH = 7, 1152  # a micro-batch of 8,064 tokens
aten = torch.ops.aten
MOVES_NOTHING = (
    aten.empty_like.default, aten.empty.memory_format, aten.detach.default, aten._unsafe_view.default
)  # fmt: skip


class Moved(TorchDispatchMode):
    """Adds up the bytes of each operation's inputs and outputs, views apart."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func.namespace == "aten" and func not in MOVES_NOTHING:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return out


class NoCode:
    """Stands for the module of a compiled graph, which is not written: its operations are fused, and that is all."""

    def call(self, *_: Tensor) -> None:
        raise AssertionError("nothing is run")


def fused_only(graph: GraphLowering) -> NoCode:
    graph.init_wrapper_code()
    graph._update_scheduler()
    graph.cache_key = graph.cache_path = ""
    graph.cache_linemap = []
    return NoCode()


def compiled(work: Callable) -> Callable:
    """Returns `work` as torch.compile compiles it, to be called with fake tensors: Inductor's kernels in count, eager in deed."""

    def forward_or_backward(backward: bool) -> Callable:
        def compile_(graph: torch.fx.GraphModule, inputs: list) -> Callable:
            compile_fx.compile_fx_inner(graph, list(inputs), is_backward=backward)
            return make_boxed_func(graph.forward)

        return compile_

    def cut(joint, inputs, **options):
        joint_graph_passes(joint)
        return min_cut_rematerialization_partition(joint, inputs, compiler="inductor", **options)

    return aot_function(
        work, forward_or_backward(False), forward_or_backward(True), cut, decompositions=select_decomp_table()
    )


def layer_of_qwen() -> torch.nn.Module:
    """One decoder layer of Qwen3-0.6B's shape in bfloat16, with an adapter of rank 32 on every product, without memory."""
    shape = Qwen3Config(
        vocab_size=64, hidden_size=1024, num_hidden_layers=1, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, intermediate_size=3072, attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device("meta"):
        model = Qwen3ForCausalLM(shape).to(torch.bfloat16)
        model = get_peft_model(model, LoraConfig(r=32, lora_alpha=64, target_modules="all-linear"))
    return model.get_base_model().model.layers[0].train()


def test_a_compiled_layer_moves_less_than_half_of_the_bytes(monkeypatch):
    monkeypatch.setattr(GraphLowering, "compile_to_module", fused_only)
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    log = compile_fx.inductor_metrics_log
    monkeypatch.setattr(log, "level", logging.INFO)  # else Inductor counts nothing
    log.manager._clear_cache()
    metrics.num_bytes_accessed = 0

    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    with fakes, torch.no_grad():
        compiled(lambda x: (x.sin() + 1.0).cos())(torch.empty(1024, 1024))
    assert metrics.num_bytes_accessed == 2 * 4 * 1024 * 1024  # one kernel: four bytes read and four written an element
    metrics.num_bytes_accessed = 0

    layer = layer_of_qwen()
    with fakes:
        weights = {
            name: torch.empty(p.shape, dtype=p.dtype, requires_grad=p.requires_grad)
            for name, p in layer.named_parameters()
        }
        hidden = torch.empty(LINES, WIDTH, 1024, dtype=torch.bfloat16, requires_grad=True)
        rotary = [torch.empty(1, WIDTH, 128, dtype=torch.bfloat16) for _ in range(2)]
    trained = [p for p in weights.values() if p.requires_grad]
    assert len(trained) == 14

    def forward(x: Tensor, cos: Tensor, sin: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(weights, parameters, strict=True))
        with torch.autocast("cpu", torch.bfloat16):
            return torch.func.functional_call(layer, named, (x,), {"position_embeddings": (cos, sin)})

    def both(run: Callable) -> None:
        out = run(hidden, *rotary, *weights.values())
        torch.autograd.grad(out, [hidden, *trained], torch.empty_like(out))

    moved = []
    for uncast in (False, True):
        if uncast:
            uncast_inputs(layer)
        with fakes, Moved() as counted:
            both(forward)
        moved.append(counted.bytes)
    with fakes:
        both(compiled(forward))
    fused = metrics.num_bytes_accessed
    # Counted: 12.6 GiB as PEFT casts, 10.8 without its casts, 4.3 compiled; the products and the attention alone are 2.3.
    assert moved[1] < 0.88 * moved[0]
    assert 2 * 2**30 < fused < 0.45 * moved[1], f"{fused / 2**30:.2f} of {moved[1] / 2**30:.2f} GiB"
