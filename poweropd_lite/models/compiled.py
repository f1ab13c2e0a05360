"""Decoder layers compiled by torch: norms, rotary positions, activations and casts fused, one code for every layer and length.

All layers of a model are of one class and share one compiled forward: their weights are its inputs. It is made for dynamic
lengths, in two forms, for one line and for several, since torch makes a dimension of 1 a constant. Each form is made on ids
of a fixed shape just before its first use, never on a step's own, since what the compiler chooses may hang on the first
shape it sees: so a resumed run computes what the run computed before.

Only what `hidden` runs is compiled: a forward with a KV cache, or of the other kind (with gradient, without), runs as the
model is written. Modules, their names and what is saved stay as they are, and a copy of the model is a plain one.
"""

import importlib.util
import time
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from poweropd_lite.base.errors import UserError
from poweropd_lite.base.memory import is_out_of_memory
from poweropd_lite.models.loading import model_body

# Lines and tokens of the ids that a form is made on, many or few: primes, for a length equal to another size of the model
# (its width, a head's) would be taken for it.
_SEVERAL, _ALONE = {True: (3, 683), False: (3, 23)}, {True: (1, 2039), False: (1, 61)}


def choose_compile(asked: str, loader: str, device: torch.device) -> str:
    """Returns "on" or "off": as asked or, for "auto", on a card with triton; off for Unsloth, which compiles itself."""
    if loader == "unsloth":
        if asked == "on":
            raise UserError("loader unsloth compiles its layers itself; type --compile off, or --loader peft")
        return "off"
    if asked != "auto":
        return asked
    return "on" if device.type == "cuda" and importlib.util.find_spec("triton") is not None else "off"


class CompiledLayers:
    """The compiled forward of a model's decoder layers, put on them; `role` is whose they are, for what is said.

    `learns`: forwards with gradient are compiled, and their backwards; else those without.
    """

    def __init__(self, model: Any, role: str, learns: bool, say: Callable[[str], None]) -> None:
        self.model, self.role, self.learns, self.say = model, role, learns, say
        self.seconds = 0.0  # spent on compiling so far
        self._made: set[bool] = set()  # forms that are there: for one line (True) and for several
        self._layers = list(getattr(model_body(model), "layers", ()))
        kinds = {type(layer) for layer in self._layers}
        if len(kinds) != 1 or any("forward" in layer.__dict__ for layer in self._layers):
            self.say(f"the {role}'s layers are not of one kind, or are streamed: they run uncompiled")
            self._layers = []
            return
        self._forward = torch.compile(_own_code(kinds.pop().forward), dynamic=True)
        for layer in self._layers:
            # What nn.Module.compile sets: called in place of forward and its hooks, within checkpointing, left out of copies.
            layer._compiled_call_impl = partial(self._call, layer)

    def make(self, lines: int, hidden: Callable[[Tensor], Tensor]) -> None:
        """Compiles what `hidden` of ids [lines, T] needs, if it is not there. Where that fails, all runs uncompiled from now on."""
        alone = lines == 1
        if alone in self._made or not self._layers or torch.is_grad_enabled() != self.learns:
            return
        started, device = time.monotonic(), self.model.device
        shape = (_ALONE if alone else _SEVERAL)[device.type == "cuda"]
        try:
            with torch.set_grad_enabled(
                not self.learns
            ):  # as written: what layers settle at their first call is settled
                hidden(torch.zeros(1, 2, dtype=torch.long, device=device))
            out = hidden(torch.zeros(shape, dtype=torch.long, device=device))
            if self.learns:
                first = next(p for p in self.model.parameters() if p.requires_grad)
                torch.autograd.grad(out.float().sum(), first)  # through every layer, and no room for all gradients
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        except Exception as error:  # a compiler fails in its own ways
            if is_out_of_memory(error):
                raise
            for layer in self._layers:
                layer._compiled_call_impl = None
            self._layers = []
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self.say(f"the {self.role}'s layers can't be compiled here, and run as they are ({reason})")
            return
        finally:  # a try that failed has taken its time, too
            spent = time.monotonic() - started
            self.seconds += spent
        self._made.add(alone)
        self.say(f"compiled the {self.role}'s layers for {'one line' if alone else 'several lines'} in {spent:.0f} s")

    def _call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() != self.learns or kwargs.get("past_key_values") is not None:
            return layer._call_impl(*args, **kwargs)
        if self.learns and args and not args[0].requires_grad:
            # Of a frozen embedding: with a gradient like every other layer's input, it needs no code of its own.
            args = (args[0].detach().requires_grad_(), *args[1:])
        return self._forward(layer, *args, **kwargs)


def _own_code(forward: Any) -> Any:
    """Returns a copy of a function with a code object of its own: torch keeps, and limits, what it compiled by code object."""
    mine = types.FunctionType(
        forward.__code__.replace(), forward.__globals__, forward.__name__, forward.__defaults__, forward.__closure__
    )
    mine.__kwdefaults__ = forward.__kwdefaults__
    return mine
