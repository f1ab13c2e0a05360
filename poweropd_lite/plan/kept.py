"""What compiled decoder layers keep for the backward, less than the layers as they are written, which is what is traced.

The compiler keeps what is cheap to keep and makes the rest again, and it makes that choice on the layer's graph alone: so it
is asked here, on tensors without memory, and no code is generated.
"""

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from poweropd_lite.models.loading import model_body
from poweropd_lite.models.student import Student

LINES, WIDTH = 3, 683  # primes: their product divides the size of what is kept by token, and of no weight


def kept_less(student: Student) -> int:
    """Returns the bytes a token that all decoder layers of a student keep less when they are compiled.

    `student` is on fake tensors (trace.fake_student), without checkpointing. Of layers that are not of one kind it is 0: they
    run as they are written (compiled.py). Raises what a model's own code does where its graph can't be taken.
    """
    from functorch.compile import (  # type: ignore[import-untyped]
        aot_function,
        default_decompositions,
        make_boxed_func,
        min_cut_rematerialization_partition,
    )

    layers, calls = list(getattr(model_body(student.model), "layers", ())), list[tuple[tuple, dict]]()
    if len({type(layer) for layer in layers}) != 1:
        return 0
    taken = [
        layer.register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True)
        for layer in (layers[0], layers[-1])
    ]
    student.hidden(torch.zeros(LINES, WIDTH, dtype=torch.long))
    for hook in taken:
        hook.remove()

    def as_it_is(graph: torch.fx.GraphModule, _: list) -> Callable:
        return make_boxed_func(graph.forward)

    first, (run, tensors) = _call(student, layers[0], calls[0]), _call(student, layers[-1], calls[-1])
    compiled = aot_function(
        run, as_it_is, as_it_is, min_cut_rematerialization_partition, decompositions=default_decompositions
    )
    # Of a frozen embedding, the first layer keeps nothing for its input as it is written, and as the others compiled.
    written = _kept(*first) + (len(layers) - 1) * _kept(run, tensors)
    return (written - len(layers) * _kept(compiled, tensors)) // (LINES * WIDTH)


def _call(student: Student, layer: Any, call: tuple[tuple, dict]) -> tuple[Callable, list[Tensor]]:
    """Returns a layer's call as a function of tensors, which a compiler takes, and the tensors."""
    leaves, spec = tree_flatten(call)
    weights = dict(layer.named_parameters())

    def run(*given: Tensor) -> Any:
        parts = iter(given)
        named = dict(zip(weights, islice(parts, len(weights)), strict=True))
        args, kwargs = tree_unflatten([next(parts) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)
        with student.compute():
            return torch.func.functional_call(layer, named, args, kwargs)

    tensors = [leaf.detach().requires_grad_(leaf.requires_grad) for leaf in leaves if isinstance(leaf, Tensor)]
    return run, [*weights.values(), *tensors]


def _kept(run: Callable, tensors: list[Tensor]) -> int:
    """Bytes of all storages that a run keeps for its backward, weights apart."""
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.numel() % (LINES * WIDTH) == 0:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes(), tensor  # held, so that no other storage takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run(*tensors)
    return sum(size for size, _ in kept.values())
