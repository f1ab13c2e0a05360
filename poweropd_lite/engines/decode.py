"""The student's forward written out for decoding: transformers' numbers, without what one token a row has no use for.

Covers Llama, Mistral, Qwen2 and Qwen3 without a sliding window: grouped-query attention, RMS norms, rotary positions, a
gated MLP. It is checked against the model itself when it is made (loop.make_decoder); any other model is decoded by
transformers (any_model.py), which is slower. On a card fused.py makes it faster.

What it saves: query heads of one group are the rows of one attention product, so keys and values are never repeated;
projections that read the same input are one matmul; in float32 the adapter is merged into them (a copy; the base is never
touched), in half precision, where merging would round a small update away, its A matrices are one matmul. Nothing here
waits for the device, so a step can be captured in a CUDA graph.

Shapes: B lines, S new ids a line, D hidden size, Hq and Hk heads of size Dh, T columns of the cache.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poweropd_lite.kernels.packed import Packed, pack
from poweropd_lite.kernels.products import Head
from poweropd_lite.models.adapter import ADAPTER, has_dora
from poweropd_lite.models.loading import head_of, model_body, weight_of
from poweropd_lite.models.student import Student

KNOWN = ("llama", "mistral", "qwen2", "qwen3")  # the model types that this forward is the forward of


class Unlike(ValueError):
    """The model is not built as `FastDecoder` expects; the text says where."""


class Decoder(Protocol):
    """The forward of a student's body with a KV cache. `sync` before decoding, for the weights may have moved."""

    graphs: bool  # whether a step never waits for the device and has fixed shapes, so that it can be captured
    masked: bool  # whether a step reads its mask and costs what that is wide; if not, the mask is None

    @property
    def head(self) -> Head:
        """What makes logits of the hidden states."""

    def sync(self) -> None:
        """Takes over the adapter's (or, in full fine-tuning, every matrix's) present values; none of one switched off."""

    def prefill(self, ids: Tensor, valid: Tensor, length: int) -> Tensor:
        """Starts a batch: left-padded ids and their validity [B, S], room for `length` columns; returns the last hidden [B, D]."""

    def step(
        self, token: Tensor, position: Tensor, column: int | Tensor, mask: Tensor | None, alive: Tensor | None = None
    ) -> Tensor:
        """Returns the hidden states [B, D] of one more id a line; `mask` [B, width] is what each line may look at.

        `column` is where the cache is written: a number or, with `graphs`, an int64 tensor on the device, [1] or [B]. Of
        lines that are not `alive` (bool [B]) any finite numbers will do.
        """

    def keep(self, lines: Tensor) -> None:
        """Keeps only these lines of the cache, [K] int64, ascending."""

    def drop_cache(self) -> None:
        """Frees the cache."""

    def release(self) -> None:
        """Frees the cache and every copy of a weight; `sync` makes them anew."""


class FastDecoder:
    """The decoder of the models in KNOWN; raises Unlike for others."""

    graphs = masked = True

    def __init__(self, student: Student, projection: "type[Projection] | None" = None) -> None:
        from transformers.cache_utils import DynamicCache

        body, self.student, self.dtype = model_body(student.model), student, student.dtype
        config, self.head = body.config, Head(torch.empty(0))
        if config.model_type not in KNOWN:
            raise Unlike(f"its type is {config.model_type}")
        if any(DynamicCache(config=config).is_sliding):
            raise Unlike(f"its layers have a window of {config.sliding_window} tokens")
        if hasattr(body.embed_tokens, "lora_embedding_A"):
            raise Unlike("its embedding has an adapter")
        if getattr(config, "hidden_act", None) != "silu":
            raise Unlike(f"its activation is {getattr(config, 'hidden_act', None)}")
        self.kv_heads = config.num_key_value_heads
        self.heads = config.num_attention_heads
        self.head_size = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.embed, self.norm, self.eps = body.embed_tokens, body.norm, config.rms_norm_eps
        self.cos, self.sin = _rotary_table(config, self.head_size, student.device, self.dtype)
        try:
            self.layers = [_Layer(layer, self.dtype, projection or Projection) for layer in body.layers]
        except AttributeError as error:
            raise Unlike(str(error)) from None
        self.keys = self.values = torch.empty(0)

    @torch.no_grad()
    def sync(self) -> None:
        for layer in self.layers:
            layer.sync()
        self.head = head = head_of(self.student.model).learnt()  # the copy of before is given back first
        if head.weight.is_cuda and self.dtype != torch.float32:
            # On a card the logits are a half-precision product: one cast here, not one a token.
            self.head = head._replace(weight=head.weight.to(self.dtype))
        elif (packed := pack(head.weight.T.detach())) is not None:
            self.head = head._replace(packed=packed)

    def prefill(self, ids: Tensor, valid: Tensor, length: int) -> Tensor:
        lines, width = ids.shape
        self.make_room(lines, length)
        positions = (valid.cumsum(-1) - 1).clamp_min(0)
        return self._forward(ids, positions, slice(0, width), width, prompt_mask(valid)).view(lines, width, -1)[:, -1]

    def make_room(self, lines: int, length: int) -> None:
        """Makes an empty cache of `length` columns, in which lines `begin` (refill.py)."""
        self.drop_cache()  # of the batch before
        shape = (len(self.layers), lines, self.kv_heads, length, self.head_size)
        # Zeros, not garbage: columns that are masked out are still multiplied by 0, and 0 times NaN is NaN.
        self.keys, self.values = (torch.zeros(shape, dtype=self.dtype, device=self.cos.device) for _ in range(2))

    def begin(self, rows: Tensor, ids: Tensor, sizes: Tensor) -> Tensor:
        """Puts prompts, right-padded ids [R, S] of `sizes` [R], into lines `rows` [R] of the cache from its first column on,
        over what was there; returns the hidden states [R, D] of their last ids. Columns behind a prompt hold padding.
        """
        places = torch.arange(ids.shape[1], device=ids.device)
        mask = prompt_mask(places < sizes[:, None])
        hidden = self._forward(ids, places.expand_as(ids), slice(0, ids.shape[1]), 0, mask, rows)
        return hidden.view(*ids.shape, -1)[torch.arange(len(ids), device=ids.device), sizes - 1]

    def step(
        self, token: Tensor, position: Tensor, column: int | Tensor, mask: Tensor | None, alive: Tensor | None = None
    ) -> Tensor:
        assert mask is not None
        return self._forward(token[:, None], position[:, None], column, mask.shape[-1], mask[:, None, None])

    def keep(self, lines: Tensor) -> None:
        # Moved down in place, in ascending order: another cache's pages cost more than the lines.
        for to, line in enumerate(lines.tolist()):
            if to < line:
                self.keys[:, to], self.values[:, to] = self.keys[:, line], self.values[:, line]
        self.keys, self.values = self.keys[:, : len(lines)], self.values[:, : len(lines)]

    def drop_cache(self) -> None:
        self.keys = self.values = torch.empty(0)

    def release(self) -> None:
        self.drop_cache()
        for layer in self.layers:
            layer.release()
        self.head = Head(torch.empty(0))

    @torch.no_grad()
    def _forward(
        self,
        ids: Tensor,
        positions: Tensor,
        at: int | slice | Tensor,
        width: int,
        mask: Tensor,
        rows: Tensor | None = None,
    ) -> Tensor:
        lines, new = ids.shape
        group, size = self.heads // self.kv_heads, self.head_size
        x = F.embedding(ids, weight_of(self.embed)).view(lines * new, -1)
        cos, sin = (table[positions].unsqueeze(2) for table in (self.cos, self.sin))
        every = torch.arange(lines, device=ids.device) if isinstance(at, Tensor) and len(at) > 1 else None
        for i, layer in enumerate(self.layers):
            qkv = layer.qkv(self._rms(x, layer.norm)).view(lines, new, -1, size)
            qk, v = qkv[:, :, : -self.kv_heads], qkv[:, :, -self.kv_heads :]
            if layer.qk_norm is not None:
                qk = F.rms_norm(qk, (size,), eps=layer.qk_eps) * layer.qk_norm
            # rotate_half(x) * sin, with the sign moved into the table.
            qk = torch.addcmul(qk * cos, qk.roll(size // 2, -1), sin)
            q, k = qk[:, :, : self.heads], qk[:, :, self.heads :].transpose(1, 2)
            keys, values = self.keys[i], self.values[i]
            v = v.transpose(1, 2)
            if rows is not None:  # whole prompts, which read nothing else
                keys[rows, :, at], values[rows, :, at] = k, v
                keys, values = k, v
            elif not isinstance(at, Tensor):
                place = at if isinstance(at, slice) else slice(at, at + 1)
                keys[:, :, place], values[:, :, place] = k, v
            elif len(at) == 1:
                keys.index_copy_(2, at, k)
                values.index_copy_(2, at, v)
            else:
                keys[every, :, at], values[every, :, at] = k[:, :, 0], v[:, :, 0]
            if rows is None:
                keys, values = keys[:, :, :width], values[:, :, :width]
            if new == 1:  # the query heads of a group stand where queries of one head would
                q = q.view(lines, self.kv_heads, group, size)
                out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=layer.scale)
            else:
                keys, values = (t.repeat_interleave(group, dim=1) for t in (keys, values))
                out = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask, scale=layer.scale)
                out = out.transpose(1, 2)
            x = x + layer.out(out.reshape(lines * new, -1))
            gate, up = layer.gate_up(self._rms(x, layer.mlp_norm)).chunk(2, dim=-1)
            x = x + layer.down(F.silu(gate) * up)
        return self._rms(x, self.norm).to(self.dtype)

    def _rms(self, x: Tensor, norm: Any) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], norm.weight, self.eps)


class _Layer:
    """One decoder layer: its norms as they are, its projections ready for decoding."""

    def __init__(self, layer: Any, dtype: torch.dtype, projection: "type[Projection]") -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.norm, self.mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = projection([attention.q_proj, attention.k_proj, attention.v_proj], dtype)
        self.out = projection([attention.o_proj], dtype)
        self.gate_up = projection([mlp.gate_proj, mlp.up_proj], dtype)
        self.down = projection([mlp.down_proj], dtype)
        self.scale = attention.scaling
        self.norms: list[Any] = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self.head_counts = [p.out_features // attention.head_dim for p in (attention.q_proj, attention.k_proj)]
        self.qk_eps, self.dtype = 0.0, dtype
        self.qk_norm: Tensor | None = None  # [Hq + Hk, Dh]

    def sync(self) -> None:
        for projection in (self.qkv, self.out, self.gate_up, self.down):
            projection.sync()
        if self.norms[0] is not None:
            self.qk_eps = getattr(self.norms[0], "variance_epsilon", 1e-6)
            pairs = zip(self.norms, self.head_counts, strict=True)
            self.qk_norm = torch.cat([n.weight.expand(count, -1) for n, count in pairs]).to(self.dtype)

    def release(self) -> None:
        for projection in (self.qkv, self.out, self.gate_up, self.down):
            projection.release()


class Projection:
    """Linear layers that read the same input, as one: [N, in] -> [N, sum of outs]."""

    def __init__(self, modules: list[Any], dtype: torch.dtype) -> None:
        self.modules, self.dtype = modules, dtype
        self.bases = [m.get_base_layer() if hasattr(m, "get_base_layer") else m for m in modules]
        self.adapted = [hasattr(m, "lora_A") and ADAPTER in m.lora_A for m in modules]
        if any(map(has_dora, modules)):
            raise Unlike("its adapter is DoRA's")
        weights = [base.weight for base in self.bases]
        full = all(type(base) is nn.Linear for base in self.bases)
        # A matrix of our own: in float32, merged; where the master weights are wider than what is computed in, cast.
        self.owned = full and (dtype == torch.float32 or any(w.dtype != dtype for w in weights))
        # [in, out]: on a CPU a few rows times this are up to twice as fast as times [out, in]. Empty until `sync`.
        self.weight = torch.empty(0)
        self.packed: Packed | None = None  # the same, where that is faster
        self.bias: Tensor | None = None
        self.down: Tensor | None = None  # the adapter's A matrices, where they are not merged [sum of ranks, in]

    def sync(self) -> None:
        if not self.owned:
            self._sync_adapter()
            return
        if len(self.bases) == 1 and not self.adapted[0] and self.bases[0].weight.dtype == self.dtype:
            self.weight, self.bias = self.bases[0].weight.T, self.bases[0].bias
            return
        self.packed = None
        if not self.weight.numel():
            size = self.bases[0].in_features, sum(base.out_features for base in self.bases)
            self.weight = torch.empty(size, dtype=self.dtype, device=self.bases[0].weight.device)
        start = 0
        for module, base, adapted in zip(self.modules, self.bases, self.adapted, strict=True):
            columns = self.weight[:, start : start + base.out_features]
            columns.copy_(base.weight.T)
            if adapted and not module.disable_adapters:
                a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
                columns.addmm_(a.T, b.T, alpha=module.scaling[ADAPTER])
            start += base.out_features
        if (packed := pack(self.weight)) is not None:
            self.packed, self.weight = packed, torch.empty(0)
        if any(base.bias is not None for base in self.bases):
            zero = torch.zeros(1, dtype=self.dtype, device=self.weight.device)
            parts = [zero.expand(b.out_features) if b.bias is None else b.bias.to(self.dtype) for b in self.bases]
            self.bias = torch.cat(parts)

    def release(self) -> None:
        self.weight, self.packed, self.down = torch.empty(0), None, None

    def _sync_adapter(self) -> None:
        adapted = [m for m, yes in zip(self.modules, self.adapted, strict=True) if yes]
        self.down = None
        if adapted and not any(m.disable_adapters for m in adapted):
            self.down = torch.cat([m.lora_A[ADAPTER].weight for m in adapted]).to(self.dtype)
            self.ranks = [m.lora_A[ADAPTER].weight.shape[0] for m in adapted]
            self.ups = [m.lora_B[ADAPTER].weight.T.to(self.dtype) for m in adapted]
            self.scales = [m.scaling[ADAPTER] for m in adapted]

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if self.packed is not None:
            return self.packed.product(x, self.bias)
        if self.owned:
            return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)
        outs = [base(x) for base in self.bases]
        if self.down is not None:
            updates = zip(F.linear(x, self.down).split(self.ranks, dim=-1), self.ups, self.scales, strict=True)
            for i, (low, up, scale) in zip((i for i, yes in enumerate(self.adapted) if yes), updates, strict=True):
                outs[i] = torch.addmm(outs[i], low, up, alpha=scale)
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=-1)


def prompt_mask(valid: Tensor) -> Tensor:
    """Returns what each id of left-padded prompts may look at, bool [B, 1, S, S], from their validity [B, S]."""
    causal = torch.ones(valid.shape[1], valid.shape[1], dtype=torch.bool, device=valid.device).tril()
    # Padding looks at itself, for a row of attention that sees nothing is NaN.
    itself = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    return ((causal & valid[:, None]) | itself)[:, None]


def _rotary_table(config: Any, size: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns cos and sin [positions, Dh], sin with rotate_half's sign in it."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind == "default" and rope.get("partial_rotary_factor", 1.0) == 1.0:
        exponents = torch.arange(0, size, 2, dtype=torch.float32) / size
        frequencies, scale = 1.0 / (rope["rope_theta"] ** exponents), 1.0
    elif kind in ("linear", "llama3", "yarn"):
        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    else:
        raise Unlike(f"its rotary positions are of kind {kind}")
    angles = torch.arange(config.max_position_embeddings, dtype=torch.float32)[:, None] * frequencies.float()
    cos, sin = angles.cos() * scale, angles.sin() * scale
    cos, sin = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
    return cos.to(device, dtype), sin.to(device, dtype)
