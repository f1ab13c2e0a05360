"""Decoder layers that stay in the host's memory: each comes to the device once for all micro-batches of a step.

offload.py streams a model once a forward. Here the loop over layers is outside the one over micro-batches: embedding, masks
and rotary positions are made for every micro-batch; layer after layer is copied to the device, where all of them go
through it; the final norm comes last. Two buffers of the largest layer are all that layers take of the device: on a card
one is filled, from pinned memory and on a stream of its own, while the other computes. A CPU runs the same code, and copies
between two places of its memory.

Operations and their order are the resident model's for every micro-batch, and so are its numbers. Not run on a card so far.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from poweropd_lite.base.errors import UserError
from poweropd_lite.models.loading import final_hidden, head_of, model_body

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Forward = Callable[..., Tensor]  # a layer's
Given = tuple[tuple, dict[str, Any]]  # what a layer is given beside its hidden states: positional, and by name
_ALIGNED = 64  # bytes that a tensor's place is a multiple of, as torch's own allocations on a CPU


def decoder_layers(model: Any) -> "nn.ModuleList | None":
    """Returns the decoder layers of a causal LM that is embedding, layers, norm and head; None of any other."""
    body = model_body(model)
    layers = getattr(body, "layers", None)
    return layers if isinstance(layers, nn.ModuleList) and isinstance(getattr(body, "norm", None), nn.Module) else None


def not_streamable(name: str) -> str:
    """What is said of a teacher whose layers can't be taken one by one."""
    return (
        f"teacher_offload takes a decoder of embedding, layers, norm and head apart, and that of {name} is another; type "
        "--no-teacher-offload, or --teacher with a model such as Qwen3 or Llama"
    )


def before_layers(model: "PreTrainedModel", ids: Tensor) -> tuple[Tensor, list[Given]]:
    """Returns the hidden states [B, T, D] that go into the first layer, and what each layer is given beside them.

    By the model's own forward, in which every layer hands on what it is given; masks are those of the layer's kind.
    """
    first, given = list[Tensor](), list[Given]()

    def hand_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        first.append(hidden_states)
        given.append((args, kwargs))
        return hidden_states

    with _forwards(list(decoder_layers(model) or ()), hand_on):
        final_hidden(model, ids)
    return first[0], given


@torch.no_grad()
def layer_by_layer(
    model: "PreTrainedModel", several: Sequence[Tensor], layers: Sequence[Forward], turn: Callable[[int], None]
) -> Iterator[Tensor]:
    """Gives the final hidden states [B, T, D] of each of some ids [B, T], in order; `turn(i)` is called before layer i's."""
    begun = [before_layers(model, ids) for ids in several]
    states, given = [first for first, _ in begun], [beside for _, beside in begun]
    del begun
    for i, forward in enumerate(layers if states else ()):
        turn(i)
        for line, (args, kwargs) in enumerate(beside[i] for beside in given):
            states[line] = forward(states[line], *args, **kwargs)
    norm: Any = model_body(model).norm
    states.reverse()
    while states:
        yield norm(states.pop())


@contextmanager
def _forwards(layers: Sequence[nn.Module], forward: Any) -> Iterator[None]:
    """Puts `forward` in place of every layer's own, inside the block."""
    before = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.__dict__.pop("forward")
            if own is not None:
                layer.__dict__["forward"] = own


class StreamedLayers:
    """The decoder layers of a frozen model, in the host's memory; the rest of it is on `device`.

    Made of a model on the CPU, which it changes: layer i's weights are views of buffer i % 2 from then on, filled when the
    layer is brought. The model's own forward brings each layer at its turn. Raises UserError for a model that is not
    embedding, layers, norm and head.
    """

    def __init__(self, model: "PreTrainedModel", device: torch.device, name: str) -> None:
        self.model, self.device, self.name = model, device, name
        self.bytes_brought = 0  # to the device so far: `host_bytes` a step
        layers = decoder_layers(model)
        if layers is None:
            raise UserError(not_streamable(name))
        sizes = [sum(_padded(getattr(*place)) for place in _places(layer)) for layer in layers]
        self.host_bytes, self._stream = sum(sizes), torch.cuda.Stream(device) if device.type == "cuda" else None
        self._buffers = [torch.empty(max(sizes), dtype=torch.uint8, device=device) for _ in range(min(2, len(layers)))]
        self._host = [self._taken(layer, i, size) for i, (layer, size) in enumerate(zip(layers, sizes, strict=True))]
        self._layers = [layer.forward for layer in layers]
        for i, layer in enumerate(layers):
            layer.__dict__["forward"] = partial(self._brought, i)
        for parameter in model.parameters():  # those that are left
            if parameter.device != device:
                parameter.data = parameter.data.to(device)
        for module in model.modules():
            for key, buffer in module._buffers.items():
                module._buffers[key] = buffer if buffer is None else buffer.to(device)

    def check(self) -> None:
        """Raises UserError unless `hiddens` makes what the model's own forward makes, on a few ids."""
        ids = torch.arange(8, device=self.device)[None] % len(head_of(self.model).weight)
        with torch.no_grad():
            own, ours = final_hidden(self.model, ids), next(self.hiddens([ids]))
        if not (own - ours).abs().max() <= 1e-3 * own.abs().max():
            raise UserError(not_streamable(self.name))

    def hiddens(self, several: Sequence[Tensor]) -> Iterator[Tensor]:
        """Gives the final hidden states [B, T, D] of each of some ids [B, T], in order; the layers are brought once for all.

        The states of all of them are on the device in between.
        """
        return layer_by_layer(self.model, several, self._layers, self._turn)

    def _turn(self, i: int) -> None:
        """Has layer i in its buffer, and the next one under way to the other."""
        if i == 0:
            self._bring(0)
        self._wait()
        if i + 1 < len(self._layers):
            self._bring(i + 1)

    def _brought(self, i: int, *args: Any, **kwargs: Any) -> Any:
        """Layer i's forward within the model's own."""
        self._bring(i)
        self._wait()
        return self._layers[i](*args, **kwargs)

    def _bring(self, i: int) -> None:
        """Begins to copy layer i to its buffer, once all is over that was begun with the layer that is in it."""
        buffer, host = self._buffers[i % 2], self._host[i]
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):  # (of None: the stream at hand)
            buffer[: host.numel()].copy_(host, non_blocking=True)
        self.bytes_brought += host.numel()

    def _wait(self) -> None:
        """Has what follows wait for all that was begun to be brought."""
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def _taken(self, layer: nn.Module, i: int, size: int) -> Tensor:
        """Returns layer i's tensors, one behind the other, in the host's memory, and makes them views of its buffer."""
        host, start = _host_memory(size, self.device), 0
        for holder, name in _places(layer):
            tensor = getattr(holder, name)
            here, there = (m[start : start + tensor.nbytes].view(tensor.dtype) for m in (host, self._buffers[i % 2]))
            here.view(tensor.shape).copy_(tensor)
            setattr(holder, name, there.view(tensor.shape))
            start += _padded(tensor)
        return host


def _places(layer: nn.Module) -> list[tuple[Any, str]]:
    """Returns where a layer keeps its tensors, as (holder, attribute): weights, buffers, and NF4's scales and tables."""
    found: dict[tuple[int, str], tuple[Any, str]] = {}
    for module in layer.modules():
        weights = [p for p in module._parameters.values() if p is not None]
        places: list[tuple[Any, str]] = [(p, "data") for p in weights]
        places += [(module, name) for name, buffer in module._buffers.items() if buffer is not None]
        for holder in (module, *weights):
            state = getattr(holder, "quant_state", None)
            for part in filter(None, (state, getattr(state, "state2", None))):
                places += [(part, key) for key, value in vars(part).items() if isinstance(value, Tensor)]
        found |= {(id(holder), name): (holder, name) for holder, name in places}  # what is shared is brought once
    return list(found.values())


def _padded(tensor: Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNED) * _ALIGNED


def _host_memory(size: int, device: torch.device) -> Tensor:
    """Returns `size` bytes of the host's memory, pinned for a card: torch's own pinned memory is rounded up to a power of 2."""
    memory = torch.empty(size, dtype=torch.uint8)
    if device.type == "cuda":
        cuda: Any = torch.cuda.cudart()
        torch.cuda.check_error(cuda.cudaHostRegister(memory.data_ptr(), size, 0))
        weakref.finalize(memory, cuda.cudaHostUnregister, memory.data_ptr())
    return memory
