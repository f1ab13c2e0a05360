"""Random models, made on the device in a second or two: nothing is initialised twice, copied to the host or downloaded."""

from pathlib import Path

import torch
from parts import Step
from shapes import SHAPES, TOKENS, body_weights, device, model_config

from poweropd_lite.base.config import Config
from poweropd_lite.base.config_files import changed
from poweropd_lite.models.adapter import with_adapter
from poweropd_lite.models.loading import quiet_dropout, stay_unpacked
from poweropd_lite.models.offload import layer_map, placing
from poweropd_lite.models.student import Student, load_student, recompute
from poweropd_lite.models.teacher import Teacher, load_teacher


@torch.no_grad()
def make(name: str, dtype: torch.dtype):
    """Returns a random Qwen3 of a shape, on the device, in `dtype`."""
    from transformers import Qwen3ForCausalLM
    from transformers.initialization import no_init_weights

    config = model_config(name)
    standing = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device(), no_init_weights():
            model = Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(standing)
    model.tie_weights()
    generator = torch.Generator(device()).manual_seed(len(name) + config.hidden_size)
    for parameter in model.parameters():
        if parameter.ndim == 2:  # the others are norms, which are ones
            parameter.normal_(0.0, config.initializer_range, generator=generator)
    quiet_dropout(model)
    return model


@torch.no_grad()
def stir(student: Student) -> Student:
    """Gives the adapter some effect, about a tenth of its base's: at B = 0 half of the gradients would be 0."""
    generator = torch.Generator(device()).manual_seed(0)
    for name, parameter in student.trainable().items():
        if "lora_B" in name:
            parameter.normal_(0.0, 0.01, generator=generator)
    return student


def make_student(name: str, config: Config, dtype: torch.dtype) -> Student:
    """Returns a student as load_student makes it, from random weights."""
    model = make(name, torch.float32 if config.full_finetune else dtype)
    if not config.full_finetune:
        model = with_adapter(model, config)
        for p in model.parameters():
            if p.requires_grad:
                p.data = p.data.float()
    if config.recomputes:
        recompute(model)
    return stir(Student(model, device(), dtype))


def make_teacher(name: str, dtype: torch.dtype) -> tuple[Teacher, int]:
    """Returns a teacher and its bits: 4 (NF4, double quantisation) where bitsandbytes is installed, else 16."""
    model = make(name, dtype).requires_grad_(False).eval()
    try:
        from bitsandbytes.nn import Linear4bit
    except ImportError:
        return Teacher(model), 16
    for parent in list(model.model.modules()):
        for child, linear in list(parent.named_children()):
            if type(linear) is torch.nn.Linear:
                sizes = linear.in_features, linear.out_features
                four = {"compress_statistics": True, "quant_type": "nf4"}
                layer = Linear4bit(*sizes, bias=False, compute_dtype=dtype, device="meta", **four)
                # Where the numbers are already, so that nothing goes through the host.
                layer.weight = type(layer.weight)(linear.weight.data, requires_grad=False, module=layer, **four)
                setattr(parent, child, layer.to(device()))
    stay_unpacked(model)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Teacher(model), 4


def save(name: str, folder: Path, dtype: torch.dtype) -> str:
    """Saves a random model with a tokenizer for it, as the hub would have it; returns the folder."""
    from tokenizer import make_tokenizer

    model, rows = make(name, dtype), SHAPES[name].vocabulary
    tokenizer = make_tokenizer(min(TOKENS, rows - 10))
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def student_of(step: Step, config: Config, dtype: torch.dtype, folder: Path) -> tuple[Student, Config]:
    """Returns the student of a step and its config; one that the product's own loader must load is saved first."""
    if step.student_bits == 16 and step.loader == "peft":
        return make_student(step.student, config, dtype), config
    config = changed(config, student=save(step.student, folder / "student", dtype))
    shared = step.loader == "unsloth" and step.engine == "vllm"
    return stir(load_student(config, device(), dtype, step.loader, fast_inference=shared)), config


def teacher_of(step: Step, dtype: torch.dtype, folder: Path, stack) -> tuple[Teacher, int]:
    """Returns the teacher of a step and its bits; `stack` is an ExitStack that a streamed one needs to last."""
    if step.teacher_bits == 4 and not step.streamed:
        return make_teacher(step.teacher, dtype)
    name, options = save(step.teacher, folder / "teacher", dtype), {}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if step.streamed:
        shape = SHAPES[step.teacher]
        layer = body_weights(step.teacher) // shape.layers * dtype.itemsize
        fixed = shape.vocabulary * shape.hidden * (1 if shape.tied else 2) * dtype.itemsize
        # Half of the layers, and the one at hand, which layer_map leaves room for.
        places = layer_map(name, device(), dtype, room=fixed + (shape.layers // 2 + 1.5) * layer)
        options = stack.enter_context(placing(places, device()))
    return load_teacher(name, step.teacher_bits, device(), dtype, **options), step.teacher_bits
