"""Products with a packed matrix against float64, and a student decoded with them against its own forward."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from poweropd_lite.engines.decode import FastDecoder
from poweropd_lite.kernels.packed import LEAST, pack
from poweropd_lite.models.loading import final_hidden
from poweropd_lite.models.student import Student


@pytest.mark.parametrize("rows", [1, 3, 4, 33])
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_those_of_float64(rows, biased):
    torch.manual_seed(0)
    matrix, x, bias = torch.randn(700, 401), torch.randn(rows, 700), torch.randn(401) if biased else None
    packed = pack(matrix)
    exact = x.double() @ matrix.double() + (0 if bias is None else bias.double())
    found = packed.product(x, bias)
    assert found.shape == (rows, 401) and (found - exact).norm() < 5e-7 * exact.norm()


def test_small_matrices_and_other_dtypes_are_left_as_they_are():
    assert pack(torch.randn(LEAST // 256 - 1, 256)) is None and pack(torch.randn(LEAST // 256, 256)) is not None
    assert pack(torch.randn(1024, 1024, dtype=torch.bfloat16)) is None


def test_a_student_of_large_matrices_is_decoded_as_its_own_forward_and_learns():
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=300, hidden_size=512, intermediate_size=512, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "o_proj", "gate_proj", "down_proj"])
    student = Student(get_peft_model(Qwen3ForCausalLM(config), lora), torch.device("cpu"), torch.float32)
    decoder = FastDecoder(student)
    ids = (torch.arange(60) * 7 % 300).view(3, 20)
    valid = torch.ones_like(ids, dtype=torch.bool)
    before = None
    for _ in range(2):  # the second time with other weights
        with torch.no_grad():
            for parameter in student.trainable().values():
                parameter.add_(0.05 * torch.randn_like(parameter))
            decoder.sync()
            packed = [
                p.packed is not None for p in (decoder.layers[0].qkv, decoder.layers[0].out, decoder.layers[0].gate_up)
            ]
            assert packed == [True, True, True]
            hidden = [decoder.prefill(ids[:, :1], valid[:, :1], 20)]
            hidden += [decoder.step(ids[:, i], torch.full((3,), i), i, valid[:, : i + 1]) for i in range(1, 20)]
            own = final_hidden(student.model, ids)
        found = torch.stack(hidden, 1)
        assert (found - own).norm() < 1e-5 * own.norm()
        assert before is None or (found - before).norm() > 0.1 * own.norm()
        before = found
    decoder.release()
    assert decoder.layers[0].qkv.packed is None
