"""What student and teacher have in common: finding a model, its tokenizer, its body and its head.

A causal LM is used as two parts: the body, which turns ids into final hidden states, and the head's weight, which
`logprobs` multiplies a few rows at a time. A model whose logits are anything but hidden @ head^T is refused.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from poweropd_lite.base.config import BUNDLED
from poweropd_lite.base.errors import UserError
from poweropd_lite.kernels.products import float_logits

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def model_path(name: str, role: str) -> str:
    """Returns what transformers loads for `name` in the role "student" or "teacher".

    "bundled" is that role's model inside the package, bundled-student and bundled-teacher are these in any role.
    """
    shipped = {BUNDLED: role, f"{BUNDLED}-student": "student", f"{BUNDLED}-teacher": "teacher"}
    return str(Path(__file__).parent.parent / "tiny" / shipped[name]) if name in shipped else name


def load_tokenizer(name: str, role: str, remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """Returns the tokenizer of a model; raises UserError if there is none."""
    from transformers import AutoTokenizer

    with explained_load(name, role, "tokenizer"):
        return AutoTokenizer.from_pretrained(model_path(name, role), trust_remote_code=remote_code)


def load_model_config(name: str, role: str, remote_code: bool = False) -> tuple["PretrainedConfig", list[int]]:
    """Returns a model's config and the stop ids of its generation config; raises UserError if there is no model."""
    from transformers import AutoConfig, GenerationConfig

    path = model_path(name, role)
    with explained_load(name, role, "model config"):
        model_config = AutoConfig.from_pretrained(path, trust_remote_code=remote_code)
    try:
        stops = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError as error:
        if (Path(path) / "generation_config.json").exists():
            raise UserError(f"{path}/generation_config.json can't be read: {error}") from None
        stops = model_config.eos_token_id  # a model need not have one; its config may name the stop
    stops = [] if stops is None else [stops] if isinstance(stops, int) else stops
    if not isinstance(stops, list) or not all(isinstance(i, int) for i in stops):
        raise UserError(f"eos_token_id of the {role} '{name}' is {stops!r}; it must be an id or a list of ids")
    return model_config, stops


def load_causal_lm(
    name: str, role: str, dtype: torch.dtype, remote_code: bool = False, **options: Any
) -> "PreTrainedModel":
    """Returns the model's weights in `dtype` with every dropout off; raises UserError if it is not a causal LM."""
    from transformers import AutoModelForCausalLM

    with explained_load(name, role, "causal language model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model_path(name, role),
            dtype=dtype,
            attn_implementation="sdpa",
            trust_remote_code=remote_code,
            output_loading_info=True,
            **options,
        )
    model, info = loaded
    lost = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if lost:
        raise UserError(
            f"the weights of the {role} '{name}' lack {len(lost)} tensors of its config ({lost[0]}, ...), which would be random "
            "numbers; is the download whole?"
        )
    quiet_dropout(model)
    return model


def quiet_dropout(model: "PreTrainedModel") -> None:
    """Turns every dropout off."""
    module: Any
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


def nf4(dtype: torch.dtype) -> Any:
    """Returns transformers' setting for NF4 with double quantisation, computed in `dtype`."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def stay_unpacked(model: "PreTrainedModel | PeftModel") -> None:
    """Keeps bitsandbytes from repacking 4-bit weights at the first forward, as it does on some CPUs.

    Repacked, they have bfloat16 scales and arithmetic (other numbers than elsewhere), are slower at small sizes, and give
    wrong gradients to what is trained through them.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def unwrapped(model: Any) -> Any:
    """Returns the PreTrainedModel of a PeftModel, or of one itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def model_body(model: "PreTrainedModel | PeftModel") -> Any:
    """Returns the module of a causal LM that makes the final hidden states."""
    return unwrapped(model).get_decoder()


def head_weight(model: "PreTrainedModel | PeftModel") -> Tensor:
    """Returns the head's weight [V, D]; the trained copy, where PEFT keeps one and it is not switched off."""
    return weight_of(unwrapped(model).get_output_embeddings())


def weight_of(module: Any) -> Tensor:
    """Returns a module's weight; of one that PEFT trains whole (`modules_to_save`) the copy that is in use."""
    if hasattr(module, "modules_to_save") and not module.disable_adapters:
        module = module.modules_to_save[module.active_adapters[0]]
    return module.weight


def final_hidden(model: "PreTrainedModel | PeftModel", ids: Tensor) -> Tensor:
    """Returns the final hidden states [B, T, D] of right-padded ids [B, T].

    No mask is needed: under a causal mask no token sees the padding that follows it.
    """
    return model_body(model)(input_ids=ids, use_cache=False).last_hidden_state


def check_finite(model: "PreTrainedModel | PeftModel", name: str) -> None:
    """Raises UserError where weights, or what they give on a few ids, are not finite numbers."""
    broken = [
        key
        for key, p in model.named_parameters()
        if p.is_floating_point() and p.element_size() > 1 and not p.isfinite().all()
    ]
    ids = torch.arange(8, device=model.device)[None] % head_weight(model).shape[0]
    with torch.no_grad():
        sound = not broken and bool(final_hidden(model, ids).isfinite().all())
    if not sound:
        which = f"{len(broken)} weights of {name}, for one {broken[0]}, are" if broken else f"what {name} computes is"
        raise UserError(
            f"{which} not finite numbers: damaged, or made by a training that went wrong; take it from elsewhere"
        )


def check_head(model: "PreTrainedModel | PeftModel", name: str) -> None:
    """Raises UserError unless the model's logits are its final hidden states times its head, on a few ids.

    Soft-capped, scaled or biased logits would make every log-prob here silently wrong.
    """
    base = unwrapped(model)
    ids = torch.arange(8, device=base.device)[None] % head_weight(model).shape[0]
    with torch.no_grad():
        logits = base(input_ids=ids, use_cache=False).logits[0].float()
        logits -= logits.amax(-1, keepdim=True)  # as float_logits
        ours = float_logits(final_hidden(model, ids)[0], head_weight(model))
    gap = (logits - ours).abs().max().item()
    # bfloat16 logits are rounded to 8 bits.
    limit = (1e-3 if base.dtype == torch.float32 else 0.03) * max(1.0, logits.abs().max().item())
    if getattr(base.get_output_embeddings(), "bias", None) is not None:
        raise UserError(
            f"the head of {name} has a bias, which the chunked log-probs don't add; use a model such as Qwen3"
        )
    if not logits.isfinite().all():
        raise UserError(f"the weights of {name} give logits that are not finite numbers; is the download whole?")
    if gap > limit:
        raise UserError(
            f"the logits of {name} are not its final hidden states times its head (they differ by up to {gap:.3g}): it "
            "caps, scales or biases them, which the chunked log-probs don't do; use a model such as Qwen3 or Llama"
        )


@contextlib.contextmanager
def explained_load(name: str, role: str, what: str) -> Iterator[None]:
    """Turns what the libraries raise for a model that can't be loaded into a UserError."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        folder = Path(name)
        run = next(
            (f for f in (folder, folder.parent) if (f / "config.yaml").exists() and (f / "adapter").is_dir()), None
        )
        if run is not None or (folder / "adapter_config.json").exists():
            raise UserError(
                f"{name} is {'a run' if run == folder else 'an adapter'}, not a whole model; make one of it first: "
                f"python -m poweropd_lite.export {run or name} --to merged-16bit, and type --{role} with its folder"
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"no {what} for the {role} at '{name}': {reason}\n"
            f"type --{role} with a hub id, a folder that save_pretrained wrote, or '{BUNDLED}'"
        ) from error
