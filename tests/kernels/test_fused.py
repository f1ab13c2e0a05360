"""The fused decoder against the plain one, on tiny random models and the bundled student."""

import interpreter  # noqa: F401  # mends what Triton runs the kernels with here
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from poweropd_lite.base.config import load_config
from poweropd_lite.engines import loop
from poweropd_lite.engines.decode import FastDecoder, Unlike
from poweropd_lite.engines.fused import FusedDecoder
from poweropd_lite.kernels import attention, decode
from poweropd_lite.method.logprobs import Sampling
from poweropd_lite.method.rollout import TRAINING, Draws
from poweropd_lite.models.adapter import with_adapter
from poweropd_lite.models.student import Student, load_student

CPU = torch.device("cpu")
KINDS = {  # query heads, key heads, head size
    "qwen3": (4, 2, 16),
    "llama": (3, 1, 16),
    "qwen2": (2, 1, 24),
}


def tiny(kind, dtype=torch.bfloat16, layers=2, **settings):
    """A random student whose adapter (rank 5, padded to 16), norms and biases are not those it starts with."""
    from transformers import AutoConfig, AutoModelForCausalLM

    heads, kv_heads, size = KINDS[kind]
    torch.manual_seed(1)
    shape = AutoConfig.for_model(
        kind, vocab_size=101, hidden_size=heads * size, intermediate_size=80, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=size, max_position_embeddings=64,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(shape, dtype=dtype)
    model = with_adapter(model, load_config("bundled", lora_rank=5, **settings))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.data = torch.randn_like(p, dtype=torch.float32) * 0.1
            elif "norm" in name or "bias" in name:
                p.add_(torch.randn_like(p), alpha=0.2)
    return Student(model.eval(), CPU, dtype)


@torch.no_grad()
def hidden_states(decoder, alive=None):
    """[2, 3, D]: prompts of 9 and 4 ids and 2 ids more, by the step that a card runs."""
    ids = torch.arange(22).view(2, 11) * 7 % 101
    valid = torch.ones(2, 11, dtype=torch.bool)
    valid[1, :5] = False
    decoder.sync()
    out = [decoder.prefill(ids[:, :9], valid[:, :9], 11)]
    for column in range(9, 11):
        seen = valid & (torch.arange(11) <= column)
        position = seen.sum(-1) - 1
        mask = seen if decoder.masked else None
        out.append(decoder.step(ids[:, column], position, torch.tensor([column]), mask, alive))
    return torch.stack(out, 1).float()


def gap(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype, most", [(torch.bfloat16, 0.03), (torch.float16, 0.004)], ids=str)
def test_hidden_states_are_the_plain_decoders_to_rounding(kind, dtype, most):
    """An eighth apart in float16, whose numbers have three bits more; and from float32's about as far as the plain decoder."""
    student = tiny(kind, dtype)
    fused, plain = FusedDecoder(student), FastDecoder(student)
    ours, theirs = hidden_states(fused), hidden_states(plain)
    assert gap(ours, theirs) < most
    exact = hidden_states(FastDecoder(Student(student.model.float(), CPU, torch.float32)))
    assert gap(ours, exact) < 1.5 * gap(theirs, exact)


@torch.no_grad()
def begun(decoder):
    """[4, D]: prompts of 6 and 3 ids, a token of both, and 5 ids in the first one's place, the other line a token on."""
    ids = torch.arange(30).view(2, 15) * 7 % 101
    decoder.sync()
    decoder.make_room(2, 12)
    out = [decoder.begin(torch.tensor([1, 0]), ids[:, :6], torch.tensor([3, 6]))]  # the longer one in line 0
    for position in (torch.tensor([6, 3]), torch.tensor([5, 4])):
        seen = torch.arange(12) <= position[:, None]
        out.append(decoder.step(ids[:, 8], position, position, seen if decoder.masked else None, None))
        if position[0] == 6:
            decoder.begin(torch.tensor([0]), ids[:1, 7:12], torch.tensor([5]))
    return torch.cat(out)


def test_a_line_begun_again_is_as_if_it_were_alone():
    """Each line at a column of its own; the last hidden states against the same ids in one batch, padded on the left."""
    student = tiny("llama", layers=1)
    ours, theirs = begun(FusedDecoder(student)), begun(FastDecoder(student))
    assert gap(ours.float(), theirs.float()) < 0.03
    ids = torch.arange(30).view(2, 15) * 7 % 101
    plain, texts = FastDecoder(student), [[*ids[0, 7:12], ids[0, 8]], [*ids[0, :3], ids[1, 8], ids[1, 8]]]
    plain.sync()
    for hidden, text in zip(theirs[-2:], texts, strict=True):
        alone = plain.prefill(torch.tensor([text]), torch.ones(1, len(text), dtype=torch.bool), 8)
        assert gap(hidden.float(), alone[0].float()) < 0.02


def test_an_adapter_that_is_switched_off_is_off_and_on_again_afterwards():
    student = tiny("llama")
    fused = FusedDecoder(student)
    on = hidden_states(fused)
    with student.without_adapter():
        off = hidden_states(fused)
        assert gap(off, hidden_states(FastDecoder(student))) < 0.02
    assert gap(off, on) > 0.1
    assert torch.equal(hidden_states(fused), on)


def test_lines_that_have_ended_change_nothing_for_the_others_and_stay_finite():
    decoder = FusedDecoder(tiny("llama"))
    whole, part = hidden_states(decoder), hidden_states(decoder, torch.tensor([True, False]))
    assert torch.equal(part[0], whole[0])
    assert part.isfinite().all() and not torch.equal(part[1], whole[1])


@pytest.mark.parametrize("targets", ["q_proj,down_proj", "v_proj"])
def test_an_adapter_on_some_layers_alone(targets):
    student = tiny("qwen2", layers=1, lora_targets=targets)
    assert gap(hidden_states(FusedDecoder(student)), hidden_states(FastDecoder(student))) < 0.02


def matrices(decoder):
    return [p for layer in decoder.layers for p in (layer.qkv, layer.out, layer.gate_up, layer.down)]


def test_every_weight_trained():
    """Float32 masters: the matrices are a copy in half precision, made anew at every sync and freed by release."""
    student = Student(tiny("qwen2").model.unload().float(), CPU, torch.bfloat16)
    fused = FusedDecoder(student)
    for _ in range(2):
        assert gap(hidden_states(fused), hidden_states(FastDecoder(student))) < 0.02
        with torch.no_grad():
            student.model.model.layers[0].mlp.up_proj.weight.mul_(2)
    fused.release()
    assert all(p.stack.numel() == p.weight.numel() == 0 for p in matrices(fused))


def test_a_frozen_base_is_there_once_and_unchanged():
    """Its weights are rows of the decoder's matrices, bit for bit what they were, and the model's forward is too."""
    student, ids = tiny("qwen2"), torch.arange(20)[None]
    before = {name: p.clone() for name, p in student.model.named_parameters()}
    with torch.no_grad(), student.compute():
        logits = student.model(input_ids=ids).logits
        fused = FusedDecoder(student)
        hidden_states(fused)
        fused.release()
        assert torch.equal(student.model(input_ids=ids).logits, logits)
    assert all(torch.equal(p, before[name]) for name, p in student.model.named_parameters())
    for p in matrices(fused):
        stack = p.stack.untyped_storage().data_ptr()
        assert all(b.weight.untyped_storage().data_ptr() == stack and b.weight.is_contiguous() for b in p.bases)


def test_a_base_that_was_put_in_anothers_place_is_decoded_and_stands_there_once():
    student = tiny("llama", layers=1)
    fused = FusedDecoder(student)
    before = hidden_states(fused)
    mlp = student.model.get_base_model().model.layers[0].mlp
    with torch.no_grad():
        mlp.down_proj.get_base_layer().weight.data = 2 * mlp.down_proj.get_base_layer().weight  # another tensor
        mlp.up_proj.base_layer.weight = torch.nn.Parameter(
            0.5 * mlp.up_proj.base_layer.weight, False
        )  # another parameter
    after = hidden_states(fused)
    assert gap(after, hidden_states(FastDecoder(student))) < 0.02 < 0.1 < gap(after, before)
    for p in matrices(fused):
        assert all(b.weight.untyped_storage().data_ptr() == p.stack.untyped_storage().data_ptr() for b in p.bases)


def test_the_loop_samples_the_same(prompts, pair, monkeypatch):
    """The bundled student with an embedding trained whole, in bfloat16: a draw is another only where rounding decided it."""
    student = load_student(load_config("bundled", modules_to_save="embed_tokens"), CPU, torch.bfloat16)
    with torch.no_grad():
        torch.manual_seed(0)
        for name, p in student.trainable().items():
            p.add_(torch.randn_like(p), alpha=0.02 if "lora_" in name else 0.0)
    engine = loop.LoopEngine(student, pair.stop_ids, say=print)
    engine.fixed = True
    monkeypatch.setattr(attention, "PROGRAMS", 1)  # the interpreter takes its time for each
    ids, draws = [p.ids for p in prompts[:2]], Draws(0, TRAINING, 0, (0, 1))
    found = []
    for made in (FastDecoder, FusedDecoder):
        engine.decoder = made(student)
        engine.sync()
        found.append(engine.sample(ids, draws, Sampling(forbidden=torch.tensor(pair.forbidden)), 3))
    for ours, theirs in zip(*found, strict=True):
        assert ours.completion_ids == theirs.completion_ids
        torch.testing.assert_close(torch.tensor(ours.logprobs), torch.tensor(theirs.logprobs), atol=0.1, rtol=0)


def test_fourteen_launches_a_layer_and_token(monkeypatch):
    """What the second layer adds to a step: 8 products and 6 kernels of ours. The plain decoder has three times as many."""
    counts = []
    for layers in (1, 2):
        for make in (FusedDecoder, FastDecoder):
            with monkeypatch.context() as patched:
                counter = Launches()
                for module in (attention, decode):
                    for name in ("_share", "_join", "_add_rms", "_rotate_and_store", "_silu_mul"):
                        if hasattr(module, name):
                            patched.setattr(module, name, counter.kernel(getattr(module, name)))
                decoder = make(tiny("qwen3", layers=layers))
                decoder.sync()
                decoder.prefill(torch.arange(6).view(2, 3), torch.ones(2, 3, dtype=torch.bool), 5)
                token, mask = torch.tensor([1, 2]), torch.ones(2, 5, dtype=torch.bool)
                counter.found.clear()
                with counter:
                    decoder.step(token, torch.tensor([3, 3]), torch.tensor([3]), mask, None)
                counts.append(len(counter.found))
    fused, plain = counts[2] - counts[0], counts[3] - counts[1]
    assert fused == 14 and plain > 36, counter.found


class Launches(TorchDispatchMode):
    """The names of what a device would run: kernels of ours, and torch's operations that are not views or new memory."""

    FREE = ("view", "_unsafe_view", "t", "transpose", "slice", "select", "split", "unsqueeze", "squeeze", "expand", "empty",
            "empty_like", "detach", "alias", "as_strided", "unbind", "permute", "chunk", "split_with_sizes")  # fmt: skip

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in self.FREE:
            self.found.append(name)
        return func(*args, **(kwargs or {}))

    def kernel(self, kernel):
        counter = self

        class Counted:
            def __getitem__(self, grid):
                def launch(*args, **options):
                    counter.found.append(kernel.fn.__name__)
                    with _disable_current_modes():
                        kernel[grid](*args, **options)

                return launch

        return Counted()


def test_what_the_fused_decoder_leaves_to_the_plain_one(monkeypatch):
    """On a card (here a CPU that passes for one) it is taken; off, or if anything in it fails, the plain one is, said once."""
    said = []
    student = tiny("llama", layers=1)
    monkeypatch.setattr(loop, "_is_card", lambda device: True)
    assert type(loop.make_decoder(student, said.append)) is FusedDecoder and said == []
    assert type(loop.make_decoder(student, said.append, "off")) is FastDecoder and said == []
    with monkeypatch.context() as broken:
        broken.setattr(decode, "_silu_mul", None)
        assert type(loop.make_decoder(student, said.append)) is FastDecoder
    with monkeypatch.context() as wrong:
        wrong.setattr(FusedDecoder, "step", lambda self, token, *rest: torch.ones(len(token), 48))
        assert type(loop.make_decoder(student, said.append)) is FastDecoder
    assert "rollouts without the kernels for a card, which is slower: TypeError(" in said[0]
    assert "which is slower: its hidden states differ by" in said[1] and len(said) == 2
    with pytest.raises(Unlike, match="its linear layers are Linear4bit"):
        FusedDecoder(load_student(load_config("bundled", student_bits=4), CPU, torch.bfloat16))
