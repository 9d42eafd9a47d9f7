"""FLUX (black-forest-labs/flux model.py) as embed, blocks, head; parameter names are the official ones.

Two streams, text and image, go through double-stream blocks with joint attention, then as one sequence, text first, through
single-stream blocks. The head reads the image tokens alone: at a forecast step nothing of the text reaches it, so the sites
are the image stream's, in single-stream blocks the image part of the joint stream.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cache_dic import ATTENTION, FUSED, MLP, Forecast, Parts, Site, Step, Streams, Tokens, UserError, once, residual
from flux.config import FluxConfig
from seerkit.layers.activations import TanhGELU, gelu, silu
from seerkit.layers.attention import attention_backend
from seerkit.layers.embeddings import apply_rope, rope_frequencies, timestep_embedding
from seerkit.layers.few_rows import among_rows
from seerkit.layers.modulation import (
    FinalLayer,
    ModulationLayer,
    ModulationTable,
    TwoStreamModulation,
    last_outputs,
    modulate,
    split_blocks,
    two_stream_modulation,
    two_stream_table,
)
from seerkit.sampling.flops import step_flops

EPS = 1e-6  # of every LayerNorm and RMSNorm
FREQUENCY_DIM = 256  # channels of the sinusoidal embeddings
TIME_FACTOR = 1000.0  # timesteps in [0, 1] and guidance weights are embedded times this

Rope = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary angles, each (B, 1, L, head_dim / 2)."""


class MLPEmbedder(nn.Module):
    def __init__(self, in_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_dim, hidden_dim)
        self.out_layer = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        return among_rows(lambda x: self.out_layer(silu(self.in_layer(x))), x.to(self.in_layer.weight.dtype))


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.scale.to(x.dtype), EPS)


class QKNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(dim)
        self.key_norm = RMSNorm(dim)

    def forward(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """qkv (3, B, H, L, d) -> normalised q and k, and v."""
        q, k, v = qkv
        return self.query_norm(q), self.key_norm(k), v


class SelfAttention(nn.Module):
    """Projections of one stream; the attention itself is joint and belongs to the block."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.norm = QKNorm(config.head_dim)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, L, D) -> q, k, v (B, H, L, d)."""
        return self.norm(rearrange(self.qkv(x), "b l (qkv h d) -> qkv b h l d", qkv=3, h=self.num_heads))


def mlp(config: FluxConfig) -> nn.Sequential:
    dim = config.hidden_size
    return nn.Sequential(nn.Linear(dim, config.mlp_width), TanhGELU(), nn.Linear(config.mlp_width, dim))


class DoubleStreamBlock(nn.Module):
    SITES = ("img_attn", "img_mlp")

    def __init__(self, config: FluxConfig, backend: str) -> None:
        super().__init__()
        self.img_mod = ModulationLayer(config.hidden_size, 6, "lin")
        self.img_attn = SelfAttention(config)
        self.img_mlp = mlp(config)
        self.txt_mod = ModulationLayer(config.hidden_size, 6, "lin")
        self.txt_attn = SelfAttention(config)
        self.txt_mlp = mlp(config)
        self.attend = attention_backend(backend)

    def modulation(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Conditions (..., B, D) -> (..., B, 6, D) of the image and of the text stream."""
        return self.img_mod(c), self.txt_mod(c)

    def gates(self, c: Tensor) -> Tensor:
        """Gates of the sites: conditions (S, B, D) -> (S, 2, B, D)."""
        return self.img_mod.gates(c)

    def forward(
        self, img: Tensor, txt: Tensor, rope: Rope, modulation: tuple[Tensor, Tensor], site: Site = residual
    ) -> tuple[Tensor, Tensor]:
        """img (B, Li, D) and txt (B, Lt, D), modulation of both (B, 6, D) -> img and txt."""
        img_rows, txt_rows = (rows.unsqueeze(2).unbind(1) for rows in modulation)  # (B, 1, D) each
        img_shift1, img_scale1, img_gate1, img_shift2, img_scale2, img_gate2 = img_rows
        txt_shift1, txt_scale1, txt_gate1, txt_shift2, txt_scale2, txt_gate2 = txt_rows

        num_txt, before = txt.shape[1], (img, txt)

        @once
        def joint() -> Tensor:
            img_q, img_k, img_v = self.img_attn.project(modulate(before[0], img_shift1, img_scale1, EPS))
            txt_q, txt_k, txt_v = self.txt_attn.project(modulate(before[1], txt_shift1, txt_scale1, EPS))
            q, k, v = (torch.cat(pair, dim=2) for pair in ((txt_q, img_q), (txt_k, img_k), (txt_v, img_v)))
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
            attended = site.attend(self.attend, q, k, v, txt=num_txt, img=before[0].shape[1])
            return rearrange(attended, "b h l d -> b l (h d)")

        img = site(img, img_gate1, lambda _: self.img_attn.proj(joint()[:, num_txt:]), name="img_attn")
        img = site(img, img_gate2, lambda x: self.img_mlp(modulate(x, img_shift2, img_scale2, EPS)), name="img_mlp")
        txt = site(
            txt, txt_gate1, lambda _: self.txt_attn.proj(joint()[:, :num_txt]), name="txt_attn", reaches_output=False
        )
        txt = site(
            txt, txt_gate2, lambda x: self.txt_mlp(modulate(x, txt_shift2, txt_scale2, EPS)), name="txt_mlp",
            reaches_output=False,
        )  # fmt: skip
        return img, txt


class SingleStreamBlock(nn.Module):
    """Attention and MLP side by side on the joint stream, with fused projections."""

    SITES = ("single",)

    def __init__(self, config: FluxConfig, backend: str) -> None:
        super().__init__()
        dim, self.width = config.hidden_size, config.mlp_width
        self.num_heads = config.num_heads
        self.linear1 = nn.Linear(dim, 3 * dim + self.width)
        self.linear2 = nn.Linear(dim + self.width, dim)
        self.norm = QKNorm(config.head_dim)
        self.modulation = ModulationLayer(dim, 3, "lin")
        self.attend = attention_backend(backend)

    def gates(self, c: Tensor) -> Tensor:
        """Gate of the site: conditions (S, B, D) -> (S, 1, B, D)."""
        return self.modulation.gates(c)

    def forward(self, x: Tensor, rope: Rope, modulation: Tensor, img: slice, site: Site = residual) -> Tensor:
        """x (B, Lt + Li, D), modulation (B, 3, D) -> x; `img` are the image tokens."""
        shift, scale, gate = modulation.unsqueeze(2).unbind(1)  # (B, 1, D)

        @once
        def projected() -> tuple[Tensor, Tensor]:
            return self.linear1(modulate(x, shift, scale, EPS)).split((3 * x.shape[-1], self.width), dim=-1)

        def attended() -> Tensor:
            q, k, v = self.norm(rearrange(projected()[0], "b l (qkv h d) -> qkv b h l d", qkv=3, h=self.num_heads))
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
            return rearrange(site.attend(self.attend, q, k, v), "b h l d -> b l (h d)")

        def fused(x: Tensor, attended: Tensor) -> Tensor:
            if projected.made:
                hidden = projected()[1]
            else:
                hidden = last_outputs(self.linear1, modulate(x, shift, scale, EPS), self.width)
            return self.linear2(torch.cat([attended, gelu(hidden)], dim=-1))

        return site(x, gate, fused, img, name="single", attended=attended)


class Flux(nn.Module):
    """FLUX.1 in three parts: `embed`, `blocks`, `head`.

    attention: a name from `seerkit.layers.names.ATTENTION_BACKENDS`.
    """

    TIME, TIME_SPAN = "timesteps", 1.0
    SITE_KINDS: ClassVar = {
        "img_attn": ATTENTION,
        "img_mlp": MLP,
        "txt_attn": ATTENTION,
        "txt_mlp": MLP,
        "single": FUSED,
    }

    def __init__(self, config: FluxConfig, *, attention: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        dim = config.hidden_size
        self.img_in = nn.Linear(config.in_channels, dim)
        self.time_in = MLPEmbedder(FREQUENCY_DIM, dim)
        self.vector_in = MLPEmbedder(config.vec_in_dim, dim)
        if config.guidance_embed:
            self.guidance_in = MLPEmbedder(FREQUENCY_DIM, dim)
        self.txt_in = nn.Linear(config.context_in_dim, dim)
        self.double_blocks = nn.ModuleList([DoubleStreamBlock(config, attention) for _ in range(config.depth)])
        self.single_blocks = nn.ModuleList(
            [SingleStreamBlock(config, attention) for _ in range(config.depth_single_blocks)]
        )
        self.final_layer = FinalLayer(dim, config.out_channels, EPS)

    @property
    def dtype(self) -> torch.dtype:
        """Of the residual streams."""
        return self.img_in.weight.dtype

    def modulation_layers(self) -> list[nn.Linear]:
        """The layers whose products the modulation table replaces."""
        layers = [mod.lin for block in self.double_blocks for mod in (block.img_mod, block.txt_mod)]
        return [*layers, *(block.modulation.lin for block in self.single_blocks), self.final_layer.adaLN_modulation[1]]

    def embed(self, img: Tensor) -> Tensor:
        """Packed latents (B, Li, in_channels) -> image tokens (B, Li, D)."""
        return self.img_in(img)

    def rope(self, ids: Tensor) -> Rope:
        """Positions (B, L, axes) -> the rotation of queries and keys, computed in float64."""
        angles = [
            rope_frequencies(ids[..., axis], dim, self.config.theta) for axis, dim in enumerate(self.config.axes_dim)
        ]
        angle = torch.cat(angles, dim=-1).unsqueeze(1)  # (B, 1, L, d / 2)
        dtype = torch.promote_types(self.dtype, torch.float32)
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def condition(self, timesteps: Tensor, y: Tensor, guidance: Tensor | None = None) -> Tensor:
        """SiLU of the embedded timestep, guidance and pooled text, which every modulation is linear in.

        timesteps: (B,) or (S, 1), 1 is noise and 0 the image; y (B, vec_in_dim); guidance (B,). Returns (B, D) or (S, B, D).
        """
        if (guidance is None) == self.config.guidance_embed:
            has = "needs" if self.config.guidance_embed else "takes no"
            raise UserError(f"this model {has} guidance (FluxConfig.guidance_embed = {self.config.guidance_embed})")
        c = self.time_in(timestep_embedding(TIME_FACTOR * timesteps.float(), FREQUENCY_DIM)) + self.vector_in(y)
        if guidance is not None:
            c = c + self.guidance_in(timestep_embedding(TIME_FACTOR * guidance.float(), FREQUENCY_DIM))
        return silu(c)

    def modulation(self, c: Tensor) -> TwoStreamModulation:
        """Modulation of one step for conditions c (B, D)."""
        return two_stream_modulation(self, c)

    def blocks(
        self,
        img: Tensor,
        txt: Tensor,
        rope: Rope,
        modulation: TwoStreamModulation,
        site: Site = residual,
        start: int = 0,
        stop: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Image tokens (B, Li, D) and text tokens (B, Lt, D) after blocks start … stop - 1, of all double and single ones."""
        double, single = split_blocks(modulation.blocks, start, stop)
        for index, rows in double:
            img, txt = self.double_blocks[index](img, txt, rope, rows, site)
        if single:
            x, image = torch.cat([txt, img], dim=1), slice(txt.shape[1], None)
            for index, rows in single:
                x = self.single_blocks[index](x, rope, rows, image, site)
            img, txt = x[:, image], x[:, : txt.shape[1]]
        return img, txt

    def head(self, img: Tensor, modulation: TwoStreamModulation) -> Tensor:
        """Image tokens (B, Li, D) -> velocity (B, Li, out_channels)."""
        return self.final_layer(img, modulation.head)

    def forward(
        self,
        img: Tensor,
        img_ids: Tensor,
        txt: Tensor,
        txt_ids: Tensor,
        timesteps: Tensor,
        y: Tensor,
        guidance: Tensor | None = None,
        *,
        cache: Step | None = None,
    ) -> Tensor:
        """Velocity (B, Li, out_channels) of packed latents img (B, Li, in_channels).

        txt: text tokens (B, Lt, context_in_dim); ids (B, L, axes): positions; timesteps (B,) from 1, noise, to 0;
        y: pooled text (B, vec_in_dim); guidance (B,), for models that embed it.
        cache: a step of a run that was started for these conditions; its table then stands for timesteps, y and guidance.
        """
        self._check(img, img_ids, txt, txt_ids)
        if cache is None:
            modulation = self.modulation(self.condition(timesteps, y, guidance))
            return self.full_step(img, img_ids, txt, txt_ids, modulation)
        modulation = cache.modulation
        return cache(
            self.tokens(img),
            lambda site: self.full_step(img, img_ids, txt, txt_ids, modulation, site),
            lambda advance: self.forecast_step(img, modulation, advance),
            Parts(
                latents=img,
                modulated=lambda: self.modulated(img, modulation),
                enter=lambda: self.enter(img, img_ids, txt, txt_ids),
                walk=lambda streams, site, *blocks: self.walk(streams, modulation, site, *blocks),
                leave=lambda streams: self.head(streams.x, modulation),
            ),
        )

    def enter(self, img: Tensor, img_ids: Tensor, txt: Tensor, txt_ids: Tensor) -> Streams:
        """The state before block 0: image and text tokens, and the rotation of both."""
        rope = self.rope(torch.cat([txt_ids, img_ids], dim=1))
        return Streams(self.embed(img), (self.txt_in(txt),), rope)

    def walk(
        self,
        streams: Streams,
        modulation: TwoStreamModulation,
        site: Site = residual,
        start: int = 0,
        stop: int | None = None,
    ) -> Streams:
        """The state after blocks start … stop - 1."""
        img, txt = self.blocks(streams.x, *streams.others, streams.context, modulation, site, start, stop)
        return streams._replace(x=img, others=(txt,))

    def modulated(self, img: Tensor, modulation: TwoStreamModulation) -> Tensor:
        """Packed latents -> image tokens after the first norm, shift and scale of block 0 (B, Li, D)."""
        (img_rows, _), *_ = modulation.blocks[0]
        shift, scale = img_rows[:, :2].unsqueeze(2).unbind(1)
        return modulate(self.embed(img), shift, scale, EPS)

    def full_step(
        self,
        img: Tensor,
        img_ids: Tensor,
        txt: Tensor,
        txt_ids: Tensor,
        modulation: TwoStreamModulation,
        site: Site = residual,
    ) -> Tensor:
        """Packed latents -> velocity, through all blocks."""
        return self.head(self.walk(self.enter(img, img_ids, txt, txt_ids), modulation, site).x, modulation)

    def forecast_step(self, img: Tensor, modulation: TwoStreamModulation, advance: Forecast) -> Tensor:
        """Packed latents -> velocity, the blocks replaced by `advance`; the text is not looked at."""
        return self.head(advance(self.embed(img)), modulation)

    def _check(self, img: Tensor, img_ids: Tensor, txt: Tensor, txt_ids: Tensor) -> None:
        config, axes = self.config, len(self.config.axes_dim)
        for name, tensor, dim in (("img", img, config.in_channels), ("txt", txt, config.context_in_dim)):
            if tensor.ndim != 3 or tensor.shape[-1] != dim:
                raise UserError(f"{name} of shape {tuple(tensor.shape)} does not fit a model for (B, L, {dim})")
        for name, ids, tensor in (("img_ids", img_ids, img), ("txt_ids", txt_ids, txt)):
            if ids.shape != (*tensor.shape[:2], axes):
                raise UserError(f"{name} of shape {tuple(ids.shape)} must be {(*tensor.shape[:2], axes)}")

    def tokens(self, latents: Tensor) -> Tokens:
        """The image stream for packed latents (B, Li, in_channels)."""
        blocks = (*self.double_blocks, *self.single_blocks)
        return Tokens(
            batch=len(latents),
            length=latents.shape[1],
            dim=self.config.hidden_size,
            num_sites=sum(len(block.SITES) for block in blocks),
            dtype=self.dtype,
            output_numel=latents[..., 0].numel() * self.config.out_channels,
        )

    def block_sites(self) -> list[tuple[str, ...]]:
        """Names of the sites by block."""
        return [block.SITES for block in (*self.double_blocks, *self.single_blocks)]

    def token_grid(self, latents: Tensor, *, img_ids: Tensor, **_: object) -> tuple[int, int]:
        """Rows and columns of the image tokens, from their positions."""
        rows, columns = (1 + img_ids[0, :, axis].max().int() for axis in (1, 2))
        return int(rows), int(columns)

    def noise_levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Scale of image and noise in the latents at timesteps (S,)."""
        return 1 - timesteps, timesteps

    def time_signals(self, timesteps: Tensor, **_: object) -> dict[str, Tensor]:
        """`time_embedding` (S, D): the embedded timesteps."""
        return {"time_embedding": self.time_in(timestep_embedding(TIME_FACTOR * timesteps.float(), FREQUENCY_DIM))}

    def modulation_table(
        self,
        timesteps: Tensor,
        full_steps: Sequence[int],
        gated_steps: Sequence[int],
        *,
        y: Tensor,
        guidance: Tensor | None = None,
        img_ids: Tensor | None = None,
        txt: Tensor | None = None,
        txt_ids: Tensor | None = None,
    ) -> ModulationTable:
        """Modulation of a run over timesteps (S,): full rows, gates alone, head rows; positions and text play no part."""
        c = self.condition(timesteps.unsqueeze(1), y, guidance)  # (S, B, D)
        return two_stream_table(self, c, full_steps, gated_steps)

    def step_flops(self, latents: Tensor, **conditions: Tensor) -> tuple[int, int]:
        """Operations of a full and of a forecast step."""
        return step_flops(self, latents, conditions)

    def initialize(self, seed: int) -> "Flux":
        """Weights to start training from, drawn as DiT's: gates and output at zero."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
            for embedder in self.children():
                if isinstance(embedder, MLPEmbedder):
                    nn.init.normal_(embedder.in_layer.weight, std=0.02)
                    nn.init.normal_(embedder.out_layer.weight, std=0.02)
            for linear in (*self.modulation_layers(), self.final_layer.linear):
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
        return self
