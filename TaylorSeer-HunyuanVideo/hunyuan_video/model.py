"""HunyuanVideo (Tencent/HunyuanVideo modules/models.py) as embed, blocks, head; parameter names are the official ones.

Two streams, video and text, go through double-stream blocks with joint attention, then as one sequence, video first, through
single-stream blocks. The text is refined for every timestep before it enters. The head reads the video tokens alone: at a
forecast step nothing of the text is computed, and the sites are the video stream's, in single-stream blocks its part of the
joint stream.
"""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cache_dic import ATTENTION, FUSED, MLP, Forecast, Parts, Site, Step, Streams, Tokens, UserError, once, residual
from hunyuan_video.config import HunyuanVideoConfig
from seerkit.devices.parallel import WHOLE, Shard
from seerkit.layers.activations import SiLU, TanhGELU, gelu, silu
from seerkit.layers.attention import AttentionFn, attention_backend
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
from seerkit.layers.patches import Grid, grid_positions, patchify, token_grid, unpatchify, whole_grid
from seerkit.sampling.flops import step_flops

EPS = 1e-6  # of every LayerNorm and RMSNorm
FREQUENCY_DIM = 256  # channels of the sinusoidal embeddings
REFINER_MLP_RATIO = 4  # of the token refiner, whatever the blocks have

Rope = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary angles, each (L, head_dim / 2)."""


def trim_text(
    text_states: Tensor, text_mask: Tensor | None, *, static_shapes: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Text (B, L, D) and its mask (B, L) cut to the longest text of the batch; the mask is None where all of that is valid.

    static_shapes: several texts keep their mask, so that one compiled graph serves them whatever their lengths are. On the
    meta device, where a mask has no values, nothing is cut. Raises UserError for a text without a token.
    """
    if text_mask is None or text_mask.is_meta:
        return text_states, text_mask
    mask = text_mask.bool()
    if not mask.any(dim=1).all():
        raise UserError(
            "text_mask marks no token of a text; an empty prompt has at least the tokens that begin and end it"
        )
    length = int(mask.any(dim=0).nonzero().max()) + 1
    mask = mask[:, :length]
    needless = mask.all() and not (static_shapes and len(mask) > 1)
    return text_states[:, :length], None if needless else mask


def split_heads(qkv: Tensor, heads: int) -> Tensor:
    """(B, L, 3 · H · d) -> q, k, v as (3, B, H, L, d)."""
    return rearrange(qkv, "b l (qkv h d) -> qkv b h l d", qkv=3, h=heads)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, L, d) -> (B, L, H · d)."""
    return rearrange(x, "b h l d -> b l (h d)")


class PatchEmbed(nn.Module):
    """A convolution whose stride is its kernel: one product per patch."""

    def __init__(self, config: HunyuanVideoConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.proj = nn.Conv3d(config.in_channels, config.hidden_size, kernel_size=size, stride=size)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches (B, L, C · pt · ph · pw) -> (B, L, D)."""
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class TimestepEmbedder(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCY_DIM, dim), SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        return among_rows(self.mlp, timestep_embedding(t, FREQUENCY_DIM).to(self.mlp[0].weight.dtype))


class MLPEmbedder(nn.Module):
    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_dim, dim)
        self.out_layer = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return among_rows(lambda x: self.out_layer(silu(self.in_layer(x))), x.to(self.in_layer.weight.dtype))


class TextProjection(nn.Module):
    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return among_rows(lambda x: self.linear_2(silu(self.linear_1(x))), x)


class Mlp(nn.Module):
    def __init__(self, dim: int, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, width)
        self.act = activation
        self.fc2 = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class RefinerBlock(nn.Module):
    """Attention among the text tokens and an MLP, gated by timestep and text."""

    def __init__(self, config: HunyuanVideoConfig, backend: str) -> None:
        super().__init__()
        dim, self.heads = config.hidden_size, config.heads_num
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.self_attn_qkv = nn.Linear(dim, 3 * dim)
        self.self_attn_proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, REFINER_MLP_RATIO * dim, SiLU())
        self.adaLN_modulation = nn.Sequential(SiLU(), nn.Linear(dim, 2 * dim))
        self.attend = attention_backend(backend)

    def forward(self, x: Tensor, c: Tensor, mask: Tensor | None) -> Tensor:
        """Text tokens x (B, L, D), conditions c (B, D), mask (B, L) of the tokens that count -> (B, L, D)."""
        gate_attn, gate_mlp = among_rows(self.adaLN_modulation, c).unsqueeze(1).chunk(2, dim=-1)  # (B, 1, D)
        q, k, v = split_heads(self.self_attn_qkv(self.norm1(x)), self.heads)
        x = residual(x, gate_attn, self.self_attn_proj(join_heads(self.attend(q, k, v, mask))))
        return residual(x, gate_mlp, self.mlp(self.norm2(x)))


class TokenRefiner(nn.Module):
    """Text tokens for a timestep (Tencent/HunyuanVideo modules/token_refiner.py).

    There, padding attends to the first token alone; here to the text, as every token. It reaches no other token in either.
    """

    def __init__(self, config: HunyuanVideoConfig, backend: str) -> None:
        super().__init__()
        dim = config.hidden_size
        self.input_embedder = nn.Linear(config.text_states_dim, dim)
        self.t_embedder = TimestepEmbedder(dim)
        self.c_embedder = TextProjection(config.text_states_dim, dim)
        self.individual_token_refiner = nn.ModuleDict(
            {"blocks": nn.ModuleList([RefinerBlock(config, backend) for _ in range(config.refiner_depth)])}
        )

    def forward(self, text: Tensor, t: Tensor, mask: Tensor | None) -> Tensor:
        """text (B, L, text_states_dim), t (B,), mask (B, L) bool of the tokens that count, None for all -> (B, L, D)."""
        text = text.to(self.input_embedder.weight.dtype)
        if mask is not None:
            text = text.masked_fill(~mask.unsqueeze(-1), 0)  # whatever stands in the padding, NaN too, stays out
        count = text.shape[1] if mask is None else mask.sum(dim=1, keepdim=True)
        mean = text.sum(dim=1, dtype=torch.promote_types(text.dtype, torch.float32)) / count
        c = self.t_embedder(t) + self.c_embedder(mean.to(text.dtype))  # (B, D)
        x = self.input_embedder(text)
        for block in self.individual_token_refiner["blocks"]:
            x = block(x, c, mask)
        return x


class DoubleStreamBlock(nn.Module):
    SITES = ("img_attn", "img_mlp")

    def __init__(self, config: HunyuanVideoConfig, backend: str) -> None:
        super().__init__()
        dim, self.heads = config.hidden_size, config.heads_num
        for stream in ("img", "txt"):
            self.add_module(f"{stream}_mod", ModulationLayer(dim, 6, "linear"))
            self.add_module(f"{stream}_attn_qkv", nn.Linear(dim, 3 * dim, bias=config.qkv_bias))
            self.add_module(f"{stream}_attn_q_norm", nn.RMSNorm(config.head_dim, eps=EPS))
            self.add_module(f"{stream}_attn_k_norm", nn.RMSNorm(config.head_dim, eps=EPS))
            self.add_module(f"{stream}_attn_proj", nn.Linear(dim, dim, bias=config.qkv_bias))
            self.add_module(f"{stream}_mlp", Mlp(dim, config.mlp_width, TanhGELU()))
        self.attend = attention_backend(backend)

    def modulation(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Conditions (..., B, D) -> (..., B, 6, D) of the video and of the text stream."""
        return self.img_mod(c), self.txt_mod(c)

    def gates(self, c: Tensor) -> Tensor:
        """Gates of the sites: conditions (S, B, D) -> (S, 2, B, D)."""
        return self.img_mod.gates(c)

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        rope: Rope,
        modulation: tuple[Tensor, Tensor],
        site: Site = residual,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """img (B, Li, D) and txt (B, Lt, D), modulation of both (B, 6, D) -> img and txt; keys (B, Li + Lt) that count."""
        img_rows, txt_rows = (rows.unsqueeze(2).unbind(1) for rows in modulation)  # (B, 1, D) each
        img_shift1, img_scale1, img_gate1, img_shift2, img_scale2, img_gate2 = img_rows
        txt_shift1, txt_scale1, txt_gate1, txt_shift2, txt_scale2, txt_gate2 = txt_rows

        num_img, before = img.shape[1], (img, txt)

        @once
        def joint() -> Tensor:
            img_qkv = self.img_attn_qkv(modulate(before[0], img_shift1, img_scale1, EPS))
            txt_qkv = self.txt_attn_qkv(modulate(before[1], txt_shift1, txt_scale1, EPS))
            (img_q, img_k, img_v), (txt_q, txt_k, txt_v) = (split_heads(qkv, self.heads) for qkv in (img_qkv, txt_qkv))
            q = torch.cat([self.img_attn_q_norm(img_q), self.txt_attn_q_norm(txt_q)], dim=2)
            k = torch.cat([self.img_attn_k_norm(img_k), self.txt_attn_k_norm(txt_k)], dim=2)
            v = torch.cat([img_v, txt_v], dim=2)
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
            return join_heads(site.attend(self.attend, q, k, v, keys, img=num_img, txt=before[1].shape[1]))

        img = site(img, img_gate1, lambda _: self.img_attn_proj(joint()[:, :num_img]), name="img_attn")
        img = site(img, img_gate2, lambda x: self.img_mlp(modulate(x, img_shift2, img_scale2, EPS)), name="img_mlp")
        txt = site(
            txt, txt_gate1, lambda _: self.txt_attn_proj(joint()[:, num_img:]), name="txt_attn", reaches_output=False
        )
        txt = site(
            txt, txt_gate2, lambda x: self.txt_mlp(modulate(x, txt_shift2, txt_scale2, EPS)), name="txt_mlp",
            reaches_output=False,
        )  # fmt: skip
        return img, txt


class SingleStreamBlock(nn.Module):
    """Attention and MLP side by side on the joint stream, with fused projections."""

    SITES = ("single",)

    def __init__(self, config: HunyuanVideoConfig, backend: str) -> None:
        super().__init__()
        dim, self.width, self.heads = config.hidden_size, config.mlp_width, config.heads_num
        self.linear1 = nn.Linear(dim, 3 * dim + self.width)
        self.linear2 = nn.Linear(dim + self.width, dim)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=EPS)
        self.k_norm = nn.RMSNorm(config.head_dim, eps=EPS)
        self.modulation = ModulationLayer(dim, 3, "linear")
        self.attend = attention_backend(backend)

    def gates(self, c: Tensor) -> Tensor:
        """Gate of the site: conditions (S, B, D) -> (S, 1, B, D)."""
        return self.modulation.gates(c)

    def forward(
        self,
        x: Tensor,
        rope: Rope,
        modulation: Tensor,
        img: slice,
        site: Site = residual,
        keys: Tensor | None = None,
    ) -> Tensor:
        """x (B, Li + Lt, D), modulation (B, 3, D) -> x; `img` are the video tokens, keys (B, Li + Lt) those that count."""
        shift, scale, gate = modulation.unsqueeze(2).unbind(1)  # (B, 1, D)

        @once
        def projected() -> tuple[Tensor, Tensor]:
            return self.linear1(modulate(x, shift, scale, EPS)).split((3 * x.shape[-1], self.width), dim=-1)

        def attended() -> Tensor:
            q, k, v = split_heads(projected()[0], self.heads)
            q, k = apply_rope(self.q_norm(q), *rope), apply_rope(self.k_norm(k), *rope)
            return join_heads(site.attend(self.attend, q, k, v, keys))

        def fused(x: Tensor, attended: Tensor) -> Tensor:
            if projected.made:
                hidden = projected()[1]
            else:
                hidden = last_outputs(self.linear1, modulate(x, shift, scale, EPS), self.width)
            return self.linear2(torch.cat([attended, gelu(hidden)], dim=-1))

        return site(x, gate, fused, img, name="single", attended=attended)


class HunyuanVideo(nn.Module):
    """HunyuanVideo in three parts: `embed`, `blocks`, `head`.

    attention: a name from `seerkit.layers.names.ATTENTION_BACKENDS`. shard: which tokens, of video and text, this process has.
    """

    TIME = "t"
    SITE_KINDS: ClassVar = {
        "img_attn": ATTENTION,
        "img_mlp": MLP,
        "txt_attn": ATTENTION,
        "txt_mlp": MLP,
        "single": FUSED,
    }
    OF_ANY_LENGTH = (
        "text_states",
        "text_mask",
    )  # for `seerkit.devices.compile`: texts are cut to the longest of a batch

    def __init__(self, config: HunyuanVideoConfig, *, attention: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.shard: Shard = WHOLE
        dim = config.hidden_size
        self.img_in = PatchEmbed(config)
        self.txt_in = TokenRefiner(config, attention)
        self.time_in = TimestepEmbedder(dim)
        self.vector_in = MLPEmbedder(config.text_states_dim_2, dim)
        if config.guidance_embed:
            self.guidance_in = TimestepEmbedder(dim)
        self.double_blocks = nn.ModuleList(
            [DoubleStreamBlock(config, attention) for _ in range(config.mm_double_blocks_depth)]
        )
        self.single_blocks = nn.ModuleList(
            [SingleStreamBlock(config, attention) for _ in range(config.mm_single_blocks_depth)]
        )
        self.final_layer = FinalLayer(dim, math.prod(config.patch_size) * config.out_channels, EPS)

    @property
    def dtype(self) -> torch.dtype:
        """Of the residual streams."""
        return self.img_in.proj.weight.dtype

    def set_attention(self, attend: AttentionFn) -> None:
        """Attention of the blocks from now on, over the tokens of all processes; the text is refined where it is."""
        for block in (*self.double_blocks, *self.single_blocks):
            block.attend = attend

    def modulation_layers(self) -> list[nn.Linear]:
        """The layers whose products the modulation table replaces."""
        layers = [mod.linear for block in self.double_blocks for mod in (block.img_mod, block.txt_mod)]
        singles = [block.modulation.linear for block in self.single_blocks]
        return [*layers, *singles, self.final_layer.adaLN_modulation[1]]

    def embed(self, patches: Tensor) -> Tensor:
        """Patches (B, Li, C · pt · ph · pw) -> video tokens (B, Li, D)."""
        return self.img_in(patches)

    def rope(self, grid: Grid, text_tokens: int) -> Rope:
        """Rotation of this process's tokens, computed in float64: by frame, row and column; text tokens do not turn."""
        config = self.config
        positions = self.shard.split(grid_positions(grid, self.img_in.proj.weight.device), dim=0)  # (Li, 3)
        angles = [
            rope_frequencies(positions[:, axis], dim, config.rope_theta)
            for axis, dim in enumerate(config.rope_dim_list)
        ]
        angle = F.pad(torch.cat(angles, dim=-1), (0, 0, 0, text_tokens))  # (Li + Lt, d / 2)
        dtype = torch.promote_types(self.dtype, torch.float32)
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def condition(self, t: Tensor, text_states_2: Tensor, guidance: Tensor | None = None) -> Tensor:
        """SiLU of the embedded timestep, guidance and pooled text, which every modulation is linear in.

        t: (B,) or (S, 1) from 1000, noise, to 0; text_states_2 (B, text_states_dim_2); guidance (B,), 1000 times the weight.
        Returns (B, D) or (S, B, D).
        """
        if (guidance is None) == self.config.guidance_embed:
            has = "needs" if self.config.guidance_embed else "takes no"
            raise UserError(
                f"this model {has} guidance (HunyuanVideoConfig.guidance_embed = {self.config.guidance_embed})"
            )
        c = self.time_in(t) + self.vector_in(text_states_2)
        if guidance is not None:
            c = c + self.guidance_in(guidance)
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
        keys: Tensor | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Video tokens (B, Li, D) and text tokens (B, Lt, D) after blocks start … stop - 1, of all double and single ones.

        keys (B, Li + Lt): tokens that count.
        """
        double, single = split_blocks(modulation.blocks, start, stop)
        for index, rows in double:
            img, txt = self.double_blocks[index](img, txt, rope, rows, site, keys)
        if single:
            x, video = torch.cat([img, txt], dim=1), slice(0, img.shape[1])
            for index, rows in single:
                x = self.single_blocks[index](x, rope, rows, video, site, keys)
            img, txt = x[:, video], x[:, img.shape[1] :]
        return img, txt

    def head(self, img: Tensor, modulation: TwoStreamModulation) -> Tensor:
        """Video tokens (B, Li, D) -> velocity as patches (B, Li, C · pt · ph · pw)."""
        return self.final_layer(img, modulation.head)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text_states: Tensor,
        text_mask: Tensor | None = None,
        text_states_2: Tensor | None = None,
        guidance: Tensor | None = None,
        *,
        grid: Grid | None = None,
        cache: Step | None = None,
    ) -> Tensor:
        """Velocity (B, out_channels, T, H, W) of latents x (B, in_channels, T, H, W).

        t (B,) from 1000, noise, to 0; text_states (B, Lt, text_states_dim) with text_mask (B, Lt), true where a token counts,
        None for all; text_states_2: pooled text (B, text_states_dim_2); guidance (B,), for models that embed it: 1000 times
        the weight, as in Tencent/HunyuanVideo pipeline_hunyuan_video.py.
        grid: given where processes share the tokens, x and the velocity are this process's patches, as in `velocity`.
        cache: a step of a run that was started for these conditions; its table stands for the conditions of the modulation.
        """
        if grid is not None:
            return self.velocity(x, grid, t, text_states, text_mask, text_states_2, guidance, cache=cache)
        patch, channels = self.config.patch_size, self.config.in_channels
        if x.ndim != 5 or x.shape[1] != channels:
            raise UserError(f"x of shape {tuple(x.shape)} does not fit a model for (B, {channels}, T, H, W)")
        self.check_text(text_states, text_mask, text_states_2)
        grid = token_grid(x.shape, patch)
        patches = self.shard.split(patchify(x, patch))
        static = cache is not None and cache.static_shapes
        text_states, text_mask = trim_text(text_states, text_mask, static_shapes=static)
        velocity = self.velocity(patches, grid, t, text_states, text_mask, text_states_2, guidance, cache=cache)
        return unpatchify(self.shard.gather(velocity, math.prod(grid)), grid, patch)

    def velocity(
        self,
        patches: Tensor,
        grid: Grid,
        t: Tensor,
        text_states: Tensor,
        text_mask: Tensor | None = None,
        text_states_2: Tensor | None = None,
        guidance: Tensor | None = None,
        *,
        cache: Step | None = None,
    ) -> Tensor:
        """Velocity (B, l, out_channels · pt · ph · pw) of this process's patches (B, l, in_channels · pt · ph · pw).

        grid: of all tokens. The rest as in `forward`; text that `trim_text` has cut once costs less in every full step.
        """
        self._check(patches, grid, text_states, text_mask, text_states_2)
        if cache is None:
            modulation = self.modulation(self.condition(t, text_states_2, guidance))
            return self.full_step(patches, grid, t, text_states, text_mask, modulation)
        modulation = cache.modulation
        return cache(
            self.tokens(patches),
            lambda site: self.full_step(patches, grid, t, text_states, text_mask, modulation, site),
            lambda advance: self.forecast_step(patches, modulation, advance),
            Parts(
                latents=patches,
                modulated=lambda: self.modulated(patches, modulation),
                enter=lambda: self.enter(patches, grid, t, text_states, text_mask),
                walk=lambda streams, site, *blocks: self.walk(streams, modulation, site, *blocks),
                leave=lambda streams: self.head(streams.x, modulation),
            ),
        )

    def enter(self, patches: Tensor, grid: Grid, t: Tensor, text_states: Tensor, text_mask: Tensor | None) -> Streams:
        """The state before block 0: tokens of the video and of the refined text, the rotation of both, keys that count."""
        mask = None if text_mask is None else text_mask.bool()
        img, txt = self.embed(patches), self.shard.split(self.txt_in(text_states, t, mask))
        keys = None if mask is None else torch.cat([mask.new_ones(img.shape[:2]), self.shard.split(mask)], dim=1)
        return Streams(img, (txt,), (self.rope(grid, txt.shape[1]), keys))

    def walk(
        self,
        streams: Streams,
        modulation: TwoStreamModulation,
        site: Site = residual,
        start: int = 0,
        stop: int | None = None,
    ) -> Streams:
        """The state after blocks start … stop - 1."""
        rope, keys = streams.context
        img, txt = self.blocks(streams.x, *streams.others, rope, modulation, site, keys, start, stop)
        return streams._replace(x=img, others=(txt,))

    def modulated(self, patches: Tensor, modulation: TwoStreamModulation) -> Tensor:
        """Patches -> video tokens after the first norm, shift and scale of block 0 (B, Li, D)."""
        (img_rows, _), *_ = modulation.blocks[0]
        shift, scale = img_rows[:, :2].unsqueeze(2).unbind(1)
        return modulate(self.embed(patches), shift, scale, EPS)

    def full_step(
        self,
        patches: Tensor,
        grid: Grid,
        t: Tensor,
        text_states: Tensor,
        text_mask: Tensor | None,
        modulation: TwoStreamModulation,
        site: Site = residual,
    ) -> Tensor:
        """Patches -> velocity, through the token refiner and all blocks."""
        streams = self.enter(patches, grid, t, text_states, text_mask)
        return self.head(self.walk(streams, modulation, site).x, modulation)

    def forecast_step(self, patches: Tensor, modulation: TwoStreamModulation, advance: Forecast) -> Tensor:
        """Patches -> velocity, the blocks replaced by `advance`; the text is not looked at."""
        return self.head(advance(self.embed(patches)), modulation)

    def check_text(self, text_states: Tensor, text_mask: Tensor | None, text_states_2: Tensor | None) -> None:
        """UserError for texts or a mask of another shape than the model takes."""
        dim, pooled = self.config.text_states_dim, (len(text_states), self.config.text_states_dim_2)
        if text_states.ndim != 3 or text_states.shape[-1] != dim:
            raise UserError(f"text_states of shape {tuple(text_states.shape)} does not fit a model for (B, L, {dim})")
        if text_mask is not None and text_mask.shape != text_states.shape[:2]:
            raise UserError(f"text_mask of shape {tuple(text_mask.shape)} must be {tuple(text_states.shape[:2])}")
        if text_states_2 is None or text_states_2.shape != pooled:
            shape = None if text_states_2 is None else tuple(text_states_2.shape)
            raise UserError(f"text_states_2, the pooled text, of shape {shape} must be {pooled}")

    def _check(
        self, patches: Tensor, grid: Grid, text_states: Tensor, text_mask: Tensor | None, text_states_2: Tensor | None
    ) -> None:
        config = self.config
        self.check_text(text_states, text_mask, text_states_2)
        wanted = (len(text_states), self._own(grid), config.in_channels * math.prod(config.patch_size))
        if patches.shape != wanted:
            raise UserError(
                f"patches of shape {tuple(patches.shape)} must be {wanted} for {len(text_states)} texts and a grid of "
                f"{' x '.join(map(str, grid))} tokens"
            )

    def _own(self, grid: Grid) -> int:
        """Tokens of this process."""
        part = self.shard.bounds(math.prod(grid))
        return part.stop - part.start

    def tokens(self, latents: Tensor) -> Tokens:
        """The video stream of this process for latents (B, C, T, H, W), or for its patches (B, l, C · pt · ph · pw)."""
        is_video = latents.ndim == 5
        blocks = (*self.double_blocks, *self.single_blocks)
        length = self._own(token_grid(latents.shape, self.config.patch_size)) if is_video else latents.shape[1]
        return Tokens(
            batch=len(latents),
            length=length,
            dim=self.config.hidden_size,
            num_sites=sum(len(block.SITES) for block in blocks),
            dtype=self.dtype,
            output_numel=length * len(latents) * self.config.out_channels * math.prod(self.config.patch_size),
        )

    def block_sites(self) -> list[tuple[str, ...]]:
        """Names of the sites by block."""
        return [block.SITES for block in (*self.double_blocks, *self.single_blocks)]

    def token_grid(self, latents: Tensor, **_: object) -> Grid:
        """Frames, rows and columns of the tokens."""
        return whole_grid(latents, self.config.patch_size)

    def noise_levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Scale of video and noise in the latents at timesteps (S,)."""
        return 1 - timesteps / 1000, timesteps / 1000

    def time_signals(self, timesteps: Tensor, **_: object) -> dict[str, Tensor]:
        """`time_embedding` (S, D): the embedded timesteps."""
        return {"time_embedding": self.time_in(timesteps)}

    def modulation_table(
        self,
        timesteps: Tensor,
        full_steps: Sequence[int],
        gated_steps: Sequence[int],
        *,
        text_states_2: Tensor,
        guidance: Tensor | None = None,
        text_states: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> ModulationTable:
        """Modulation of a run over timesteps (S,): full rows, gates alone, head rows; the text tokens play no part."""
        c = self.condition(timesteps.unsqueeze(1), text_states_2, guidance)  # (S, B, D)
        return two_stream_table(self, c, full_steps, gated_steps)

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
        video = torch.empty(batch, self.config.in_channels, pt, ph, pw * length * processes, device="meta")
        return video, given, processes

    def initialize(self, seed: int) -> "HunyuanVideo":
        """Weights to start training from, drawn as DiT's: gates, also the refiner's, and output at zero."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Conv3d):
                    nn.init.xavier_uniform_(module.weight.flatten(1))
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
            for module in self.modules():
                if isinstance(module, TimestepEmbedder | MLPEmbedder):
                    for linear in (part for part in module.modules() if isinstance(part, nn.Linear)):
                        nn.init.normal_(linear.weight, std=0.02)
            refiner = [block.adaLN_modulation[1] for block in self.txt_in.individual_token_refiner["blocks"]]
            for linear in (*refiner, *self.modulation_layers(), self.final_layer.linear):
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
        return self
