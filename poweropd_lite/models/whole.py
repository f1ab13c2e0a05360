"""Checkpoints of text and images (`...ForConditionalGeneration`), of which the language model alone is taken.

transformers' AutoModelForCausalLM makes the whole of one family and the language model of another. Here it is the language model
of any whose config has a causal LM's in it, so that nothing else is read, counted or trained.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from poweropd_lite.models.logits import logit_form

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_PART = r"^(?:model\.)?(?:language_model|text_model)\."  # in files of either age, and in the classes
OWN_NAMES = {rf"{_PART}lm_head\.": "lm_head.", rf"{_PART}(?:model\.)?": "model."}  # of its tensors, as patterns
_LOGGER = logging.getLogger("transformers.modeling_utils")


def own_name(name: str) -> str:
    """Returns what the language model itself calls a tensor or module of the whole; what is none of it keeps its name."""
    for pattern, own in OWN_NAMES.items():
        name, found = re.subn(pattern, own, name)
        if found:
            break
    return name


def language_model(config: "PretrainedConfig", remote_code: bool = False) -> "PretrainedConfig":
    """Returns the config of the causal LM in a checkpoint's config, with what the whole says of it; `config` where none is taken."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as CAUSAL

    text = _part(config)
    if (
        text is None
        or type(text) not in CAUSAL
        or _unfit(config, text)
        or (remote_code and hasattr(config, "auto_map"))
    ):
        return config
    causal: Any = CAUSAL[type(text)]
    text.architectures = [causal.__name__]
    text.name_or_path, text._commit_hash = config.name_or_path, getattr(config, "_commit_hash", None)
    # transformers ties by what the whole says.
    text.tie_word_embeddings = getattr(config, "tie_word_embeddings", text.tie_word_embeddings)
    for name in ("dtype", "quantization_config", "bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(text, name, None) is None and getattr(config, name, None) is not None:
            setattr(text, name, getattr(config, name))
    return text


def no_language_model(config: "PretrainedConfig") -> str | None:
    """Returns why the language model of a checkpoint of text and images can't be taken; None if it can, or of any other model."""
    text = _part(config)
    fault = None if text is None or hasattr(config, "auto_map") else _unfit(config, text)
    return fault and f"its class is {class_of(config)}, {fault}; use a text model, or a Gemma 3 or Qwen3.5"


def _unfit(config: "PretrainedConfig", text: "PretrainedConfig") -> str | None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING as CAUSAL

    if type(text) not in CAUSAL and type(config) not in CAUSAL:
        return f"whose language model ({text.model_type}) has no class of its own in transformers"
    if text.model_type == "llama4_text":  # Llama4ForCausalLM gives itself for its decoder
        return f"whose language model ({text.model_type}) keeps its layers where they are not looked for here"
    if type(text).__module__ != type(config).__module__ and logit_form(text) != (1.0, None):  # Aya Vision, PaliGemma 2
        return f"whose head leaves out how its language model ({text.model_type}) scales or caps logits"
    return None


def class_of(config: "PretrainedConfig") -> str:
    """Returns a checkpoint's class by its config, for a reader."""
    return next(iter(config.architectures or ()), config.model_type)


def _part(config: "PretrainedConfig") -> Any:
    text = getattr(config, "text_config", None) if "text_config" in config.sub_configs else None
    return None if text is config else text


@contextmanager
def unreported() -> Iterator[None]:
    """Keeps transformers from listing every tensor of the other parts while a language model is read."""

    def is_told(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    _LOGGER.addFilter(is_told)
    try:
        yield
    finally:
        _LOGGER.removeFilter(is_told)


def say_strays(model: Any, unexpected: Iterable[str]) -> None:
    """Logs how many tensors the files have in the language model's own parts that its config has not."""
    parts = tuple({".".join(name.split(".")[:2]) + "." for name in model.state_dict()})
    if strays := sorted(name for name in unexpected if name.startswith(parts)):
        _LOGGER.warning(
            f"{len(strays)} tensors of the language model are not in its config and are left out, such as {strays[0]}"
        )
