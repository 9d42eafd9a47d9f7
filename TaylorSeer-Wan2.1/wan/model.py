"""Wan2.1 (Wan-Video/Wan2.1 model.py) as embed, blocks, head; parameter names are the official ones.

A block has three sites: self-attention, cross-attention to the text (and to CLIP tokens of a first frame), MLP. The residual
stream and all modulation are float32 whatever the weights are. Gates are a constant of the block plus a vector that all blocks
share; cross-attention has none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cache_dic import (
    ATTENTION,
    CROSS,
    MLP,
    Forecast,
    GateFactors,
    Parts,
    Site,
    Step,
    Streams,
    Tokens,
    UserError,
    residual,
)
from seerkit.devices.parallel import WHOLE
from seerkit.layers.activations import SiLU, TanhGELU
from seerkit.layers.attention import AttentionFn, attention_backend
from seerkit.layers.embeddings import apply_rope, rope_frequencies, timestep_embedding
from seerkit.layers.modulation import SLICE_BYTES, ModulationTable, Rows, modulate
from seerkit.layers.patches import Grid, grid_positions, patchify, token_grid, unpatchify, whole_grid
from seerkit.sampling.flops import step_flops
from wan.config import WanConfig

THETA = 10000.0  # base of the rotary frequencies
VECTORS = 6  # shift, scale and gate of self-attention and of the MLP
GATES = (2, 5)
IN_FLOAT32 = ("time_embedding.", "time_projection.", "modulation", "norm3.", "head.")  # parts of parameter names

Rope = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary angles, each (L, head_dim / 2)."""


class RMSNorm(nn.Module):
    """Over the full width, before the heads are split."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


class SelfAttention(nn.Module):
    def __init__(self, config: WanConfig, attend: AttentionFn) -> None:
        super().__init__()
        dim = config.dim
        self.num_heads, self.attend = config.num_heads, attend
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim, config.eps), RMSNorm(dim, config.eps)

    def split_heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b l (h d) -> b h l d", h=self.num_heads)

    def forward(self, x: Tensor, rope: Rope, site: Site = residual) -> Tensor:
        """x (B, L, D) -> (B, L, D)."""
        q, k, v = map(self.split_heads, (self.norm_q(self.q(x)), self.norm_k(self.k(x)), self.v(x)))
        q, k = apply_rope(q, *rope).to(v.dtype), apply_rope(k, *rope).to(v.dtype)
        attended = site.attend(self.attend, q, k, v)
        return self.o(rearrange(attended, "b h l d -> b l (h d)"))


class CrossAttention(SelfAttention):
    """Queries of the video, keys and values of the text; for i2v also of the image tokens, whose answer is added."""

    def __init__(self, config: WanConfig, attend: AttentionFn) -> None:
        super().__init__(config, attend)
        self.text_len = config.text_len
        if config.model_type == "i2v":
            self.k_img, self.v_img = nn.Linear(config.dim, config.dim), nn.Linear(config.dim, config.dim)
            self.norm_k_img = RMSNorm(config.dim, config.eps)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, L, D), context (B, image tokens + text_len, D) -> (B, L, D)."""
        text = context[:, -self.text_len :]
        q = self.split_heads(self.norm_q(self.q(x)))
        k, v = self.split_heads(self.norm_k(self.k(text))), self.split_heads(self.v(text))
        attended = self.attend(q.to(v.dtype), k.to(v.dtype), v)
        if hasattr(self, "k_img"):
            image = context[:, : -self.text_len]
            k, v = self.split_heads(self.norm_k_img(self.k_img(image))), self.split_heads(self.v_img(image))
            attended = attended + self.attend(q.to(v.dtype), k.to(v.dtype), v)
        return self.o(rearrange(attended, "b h l d -> b l (h d)"))


class Block(nn.Module):
    SITES = ("self_attn", "cross_attn", "ffn")

    def __init__(self, config: WanConfig, attend: AttentionFn) -> None:
        super().__init__()
        dim, self.eps = config.dim, config.eps
        self.self_attn = SelfAttention(config, attend)
        self.norm3 = nn.LayerNorm(dim, config.eps)
        self.cross_attn = CrossAttention(config, attend)
        self.ffn = nn.Sequential(nn.Linear(dim, config.ffn_dim), TanhGELU(), nn.Linear(config.ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, VECTORS, dim) / dim**0.5)

    def forward(self, x: Tensor, shared: Tensor, context: Tensor, rope: Rope, site: Site = residual) -> Tensor:
        """x (B, L, D), the blocks' shared modulation (B or 1, 6, D), context (B, L', D) -> x."""
        dtype = self.self_attn.q.weight.dtype
        rows = (self.modulation + shared).unsqueeze(2).unbind(1)  # (B, 1, D) each
        shift1, scale1, gate1, shift2, scale2, gate2 = rows
        x = site(
            x, gate1, lambda x: self.self_attn(modulate(x, shift1, scale1, self.eps).to(dtype), rope, site),
            name="self_attn",
        )  # fmt: skip
        x = site(x, None, lambda x: self.cross_attn(self.norm3(x).to(dtype), context), name="cross_attn")
        return site(x, gate2, lambda x: self.ffn(modulate(x, shift2, scale2, self.eps).to(dtype)), name="ffn")


class Head(nn.Module):
    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.patch_size, self.eps = config.patch_size, config.eps
        self.head = nn.Linear(config.dim, config.out_dim * math.prod(config.patch_size))
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x (B, L, D), modulation (B or 1, 2, D) -> patches (B, L, out_dim · pt · ph · pw)."""
        shift, scale = modulation.unsqueeze(2).unbind(1)
        values = self.head(modulate(x, shift, scale, self.eps))
        return rearrange(values, "b l (p c) -> b l (c p)", p=math.prod(self.patch_size))  # the layer has channels last


class ImageEmbedder(nn.Module):
    """CLIP tokens of the first frame to context tokens."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        width, dim = config.image_dim, config.dim
        self.proj = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, dim), nn.LayerNorm(dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


@dataclass(frozen=True)
class Modulation:
    """Of a step: `blocks` (1, 6, D), to which each block adds its constants, None at a forecast step; `head` (1, 2, D)."""

    blocks: Tensor | None
    head: Tensor


class Wan(nn.Module):
    """Wan2.1 in three parts: `embed`, `blocks`, `head`.

    attention: a name from `seerkit.layers.names.ATTENTION_BACKENDS`.
    """

    TIME = "t"
    SITE_KINDS: ClassVar = {"self_attn": ATTENTION, "cross_attn": CROSS, "ffn": MLP}

    def __init__(self, config: WanConfig, *, attention: str = "sdpa") -> None:
        super().__init__()
        self.config, self.shard = config, WHOLE
        dim, attend = config.dim, attention_backend(attention)
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, config.patch_size, config.patch_size)
        self.text_embedding = nn.Sequential(nn.Linear(config.text_dim, dim), TanhGELU(), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(SiLU(), nn.Linear(dim, VECTORS * dim))
        self.blocks = nn.ModuleList([Block(config, attend) for _ in range(config.num_layers)])
        self.head = Head(config)
        if config.model_type == "i2v":
            self.img_emb = ImageEmbedder(config)

    @property
    def dtype(self) -> torch.dtype:
        """Of the blocks' products and so of the features; the residual stream is in float32 at least."""
        return self.patch_embedding.weight.dtype

    @property
    def stream_dtype(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def cast(self, dtype: torch.dtype) -> "Wan":
        """Bring the weights to a dtype, but those of modulation, head and affine norms, which stay float32 or wider."""
        wide = torch.promote_types(dtype, torch.float32)
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(wide if any(part in name for part in IN_FLOAT32) else dtype)
        return self

    def set_attention(self, attend: AttentionFn) -> None:
        """Replace the attention of video tokens to each other."""
        for block in self.blocks:
            block.self_attn.attend = attend

    # ------------------------------------------------------------------------------------------------------ three parts

    def embed(self, patches: Tensor) -> Tensor:
        """Patches (B, L, in_dim · pt · ph · pw) -> tokens (B, L, D): the convolution over patches as a product."""
        weight, bias = self.patch_embedding.weight, self.patch_embedding.bias
        return F.linear(patches.to(self.dtype), weight.flatten(1), bias).to(self.stream_dtype)

    def embed_context(self, context: Tensor, clip_fea: Tensor | None = None) -> Tensor:
        """Text (B, text_len, text_dim) and CLIP tokens (B, L', image_dim) -> (B, L' + text_len, D), image tokens first."""
        text = self.text_embedding(context.to(self.dtype))
        return text if clip_fea is None else torch.cat([self.img_emb(clip_fea.to(self.dtype)), text], dim=1)

    def pad_context(self, context: Tensor | Sequence[Tensor]) -> Tensor:
        """Texts (L, text_dim) each, or (B, L, text_dim) -> (B, text_len, text_dim), zeros behind each."""
        config = self.config
        for text in context:
            if text.ndim != 2 or text.shape[1] != config.text_dim or len(text) > config.text_len:
                raise UserError(
                    f"a text of shape {tuple(text.shape)} does not fit; at most ({config.text_len}, {config.text_dim})"
                )
        return torch.stack([F.pad(text, (0, 0, 0, config.text_len - len(text))) for text in context])

    def rope(self, grid: Grid, device: torch.device | str) -> Rope:
        """The rotation of this process's queries and keys, computed in float64."""
        positions = grid_positions(grid, device)
        angles = [rope_frequencies(positions[:, axis], dim, THETA) for axis, dim in enumerate(self.config.rope_dims)]
        angle = self.shard.split(torch.cat(angles, dim=-1), dim=0)
        return angle.cos().to(self.stream_dtype), angle.sin().to(self.stream_dtype)

    def time_vector(self, t: Tensor) -> Tensor:
        """Times (S,) in [0, 1000] -> their embedding (S, D)."""
        embedded = timestep_embedding(t, self.config.freq_dim, dtype=torch.float64)
        return self.time_embedding(embedded.to(self.stream_dtype))

    def condition(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Times (S,) in [0, 1000] -> modulation that the blocks share (S, 6, D), and of the head (S, 2, D)."""
        vector = self.time_vector(t)
        return self.time_projection(vector).unflatten(-1, (VECTORS, -1)), self.head.modulation + vector.unsqueeze(1)

    # ----------------------------------------------------------------------------------------------------------- a call

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | Sequence[Tensor],
        clip_fea: Tensor | None = None,
        y: Tensor | None = None,
        *,
        grid: Grid | None = None,
        cache: Step | None = None,
    ) -> Tensor:
        """Velocity (B, out_dim, T, H, W) of latents x (B, C, T, H, W).

        t (B,): times in [0, 1000]; context: texts (B, L, text_dim) or a list of (L, text_dim). Of i2v models alone: clip_fea
        (B, L', image_dim), CLIP tokens of the first frame; y (B, in_dim - C, T, H, W), mask and latents of it.
        grid: given where processes share the tokens, x, y and the velocity are this process's patches, as in `velocity`.
        cache: a step of a run that was started for these times; its table then stands for t.
        """
        context, patch = self.pad_context(context), self.config.patch_size
        if grid is not None:
            return self.velocity(x, grid, t, context, clip_fea, y, cache=cache)
        self.check(x, context, clip_fea, y)
        grid = token_grid(x.shape, patch)
        patches, given = (None if v is None else self.shard.split(patchify(v, patch)) for v in (x, y))
        v = self.velocity(patches, grid, t, context, clip_fea, given, cache=cache)
        return unpatchify(self.shard.gather(v, math.prod(grid)), grid, patch)

    def check(self, x: Tensor, context: Tensor, clip_fea: Tensor | None = None, y: Tensor | None = None) -> None:
        """UserError for latents, padded texts or image conditions that do not fit the model or each other."""
        config, batch = self.config, len(x)
        if x.ndim != 5 or x.shape[1] != config.out_dim:
            raise UserError(f"latents of shape {tuple(x.shape)} do not fit a model for (B, {config.out_dim}, T, H, W)")
        if len(context) != batch:
            raise UserError(f"{batch} samples need as many texts, got {len(context)}")
        if self.time_embedding[0].weight.dtype != self.stream_dtype:
            raise UserError(
                f"a model in {self.dtype} needs its modulation in {self.stream_dtype}; bring it there by "
                f"model.cast({self.dtype}), not by model.to"
            )
        has_image = config.model_type == "i2v"
        for name, value in (("clip_fea", clip_fea), ("y", y)):
            if (value is not None) != has_image:
                verb = "needs" if has_image else "takes no"
                raise UserError(f"this model {verb} {name} (WanConfig.model_type = {config.model_type})")
        if not has_image:
            return
        if clip_fea.ndim != 3 or (len(clip_fea), clip_fea.shape[2]) != (batch, config.image_dim):
            raise UserError(f"clip_fea of shape {tuple(clip_fea.shape)} must be ({batch}, L, {config.image_dim})")
        wanted = (batch, config.in_dim - config.out_dim, *x.shape[2:])
        if y.shape != wanted:
            raise UserError(f"y of shape {tuple(y.shape)} must be {wanted}")

    def velocity(
        self,
        patches: Tensor,
        grid: Grid,
        t: Tensor,
        context: Tensor,
        clip_fea: Tensor | None = None,
        y: Tensor | None = None,
        *,
        cache: Step | None = None,
    ) -> Tensor:
        """The same for the patches (B, l, C · pt · ph · pw) that this process holds, y in patches, too, context padded.

        The caller has let `check` see the whole.
        """
        noisy = patches
        if y is not None:
            patches = torch.cat([patches, y.to(patches.dtype)], dim=-1)
        if cache is None:
            return self.full_step(patches, grid, context, clip_fea, Modulation(*self.condition(t)))
        modulation = cache.modulation
        return cache(
            self.tokens(patches),
            lambda site: self.full_step(patches, grid, context, clip_fea, modulation, site),
            lambda advance: self.forecast_step(patches, modulation, advance),
            Parts(
                latents=noisy,
                modulated=lambda: self.modulated(patches, modulation),
                enter=lambda: self.enter(patches, grid, context, clip_fea),
                walk=lambda streams, site, *blocks: self.walk(streams, modulation, site, *blocks),
                leave=lambda streams: self.head(streams.x, modulation.head),
            ),
        )

    def enter(self, patches: Tensor, grid: Grid, context: Tensor, clip_fea: Tensor | None) -> Streams:
        """The state before block 0: video tokens, the embedded context, the rotation."""
        x, rope = self.embed(patches), self.rope(grid, patches.device)
        return Streams(x, (), (self.embed_context(context, clip_fea), rope))

    def walk(
        self, streams: Streams, modulation: Modulation, site: Site = residual, start: int = 0, stop: int | None = None
    ) -> Streams:
        """The state after blocks start … stop - 1."""
        x, (context, rope) = streams.x, streams.context
        for block in self.blocks[start:stop]:
            x = block(x, modulation.blocks, context, rope, site)
        return streams._replace(x=x)

    def modulated(self, patches: Tensor, modulation: Modulation) -> Tensor:
        """Patches -> video tokens after the first norm, shift and scale of block 0 (B, L, D)."""
        block = self.blocks[0]
        shift, scale = (block.modulation + modulation.blocks)[:, :2].unsqueeze(2).unbind(1)
        return modulate(self.embed(patches), shift, scale, block.eps)

    def full_step(
        self,
        patches: Tensor,
        grid: Grid,
        context: Tensor,
        clip_fea: Tensor | None,
        modulation: Modulation,
        site: Site = residual,
    ) -> Tensor:
        """Patches -> velocity, through all blocks."""
        return self.head(self.walk(self.enter(patches, grid, context, clip_fea), modulation, site).x, modulation.head)

    def forecast_step(self, patches: Tensor, modulation: Modulation, advance: Forecast) -> Tensor:
        """Patches -> velocity, the blocks replaced by `advance`; text and image are not looked at."""
        return self.head(advance(self.embed(patches)), modulation.head)

    # ---------------------------------------------------------------------------------------------------------- caching

    def tokens(self, latents: Tensor) -> Tokens:
        """The stream for latents (B, C, T, H, W), or for this process's patches of them (B, l, ·)."""
        if latents.ndim == 5:
            whole = self.shard.bounds(math.prod(token_grid(latents.shape, self.config.patch_size)))
            length = whole.stop - whole.start
        else:
            length = latents.shape[1]
        return Tokens(
            batch=len(latents),
            length=length,
            dim=self.config.dim,
            num_sites=len(Block.SITES) * self.config.num_layers,
            dtype=self.dtype,
            stream_dtype=self.stream_dtype,
            gate_rank=1 + len(GATES),
            output_numel=len(latents) * length * self.config.out_dim * math.prod(self.config.patch_size),
        )

    def block_sites(self) -> list[tuple[str, ...]]:
        """Names of the sites by block."""
        return [Block.SITES] * self.config.num_layers

    def token_grid(self, latents: Tensor, **_: object) -> Grid:
        """Frames, rows and columns of the tokens."""
        return whole_grid(latents, self.config.patch_size)

    def noise_levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Scale of video and noise in the latents at timesteps (S,)."""
        return 1 - timesteps / 1000, timesteps / 1000

    def time_signals(self, timesteps: Tensor, **_: object) -> dict[str, Tensor]:
        """`time_embedding` (S, D), and `time_projection` (S, 6, D), the modulation that all blocks share."""
        vector = self.time_vector(timesteps)
        return {"time_embedding": vector, "time_projection": self.time_projection(vector).unflatten(-1, (VECTORS, -1))}

    def modulation_table(
        self, timesteps: Tensor, full_steps: Sequence[int], gated_steps: Sequence[int], **conditions: object
    ) -> ModulationTable:
        """Modulation of a run over timesteps (S,), on which alone it depends: its batch is 1."""
        shared, head = self.condition(timesteps)
        constants = torch.stack([block.modulation[0, GATES] for block in self.blocks])  # (layers, 2, D)

        def gate_rows(steps: list[int]) -> Tensor:
            attn, mlp = (constants + shared[steps][:, None, GATES]).unbind(2)  # (steps, layers, D) each
            return torch.stack([attn, torch.ones_like(attn), mlp], dim=2).flatten(1, 2).unsqueeze(2)

        def vectors(steps: Sequence[int]) -> Tensor:
            gates = shared[list(steps)][:, GATES]  # (steps, 2, D)
            return torch.cat([torch.ones_like(gates[:, :1]), gates], dim=1).unsqueeze(2)

        return ModulationTable(
            blocks=Rows(lambda steps: shared[steps].unsqueeze(1), full_steps, len(full_steps)),
            gates=Rows(gate_rows, gated_steps, SLICE_BYTES // (constants.nbytes // 2 * 3)),
            head=Rows(lambda steps: head[steps].unsqueeze(1), range(len(head)), len(head)),
            assemble=Modulation,
            factors=GateFactors(self._gate_constants(constants), vectors),
        )

    def _gate_constants(self, constants: Tensor) -> Tensor:
        """(3, sites, D): the blocks' own gates, 1 where the shared vector of self-attention counts, 1 for that of the MLP."""
        own, attn, mlp = (
            torch.zeros(len(constants), len(Block.SITES), self.config.dim).to(constants) for _ in range(3)
        )
        own[:, 0], own[:, 1], own[:, 2] = constants[:, 0], 1, constants[:, 1]
        attn[:, 0], mlp[:, 2] = 1, 1
        return torch.stack([own, attn, mlp]).flatten(1, 2)

    def step_flops(self, latents: Tensor, **conditions: Tensor | None) -> tuple[int, int]:
        """Operations of a full and of a forecast step on a video, or this process's share of them for its patches."""
        latents, given, processes = self.whole_call(latents, **conditions)
        full, forecast = step_flops(self, latents, given)
        return full // processes, forecast // processes

    def whole_call(self, latents: Tensor, **conditions: Tensor | None) -> tuple[Tensor, dict[str, Tensor], int]:
        """Shapes of a call on the video of `latents`, which may be this process's patches, and how many processes share it."""
        given = {name: value for name, value in conditions.items() if value is not None}
        if latents.ndim == 5:
            return latents, given, 1
        (batch, length, _), (pt, ph, pw), processes = latents.shape, self.config.patch_size, self.shard.size
        row = (pt, ph, pw * length * processes)  # the same tokens in one row
        if "y" in given:
            given["y"] = torch.empty(batch, self.config.in_dim - self.config.out_dim, *row, device="meta")
        return torch.empty(batch, self.config.out_dim, *row, device="meta"), given, processes

    def initialize(self, seed: int) -> "Wan":
        """Weights to start training from: output and biases at zero, the rest drawn as the official code does."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)
            nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
            nn.init.zeros_(self.patch_embedding.bias)
            for layer in (*self.text_embedding, *self.time_embedding):
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=0.02)
            for part in (*self.blocks, self.head):
                nn.init.normal_(part.modulation, std=self.config.dim**-0.5)
            nn.init.zeros_(self.head.head.weight)
        return self
