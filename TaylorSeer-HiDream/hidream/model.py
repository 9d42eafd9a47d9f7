"""HiDream-I1 (HiDream-ai/HiDream-I1 transformer_hidream_image.py) as embed, blocks, head, with the official parameter names.

Two streams, image and text, go through double-stream blocks with joint attention, then as one sequence, image first, through
single-stream blocks. Feed-forward layers of the image, and of the joint stream, are mixtures of experts. Every block also
attends to a hidden state of Llama of its own. The head reads the image tokens alone, so the sites are the image stream's.

The official code appends Llama's tokens to the text before each block and drops them behind it. What it computes for them
beyond keys and values is never read, so here they are keys and values alone.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cache_dic import ATTENTION, MLP, Forecast, Parts, Site, Step, Streams, Tokens, UserError, once, residual
from hidream.config import FREQUENCY_DIM, HiDreamConfig
from seerkit.layers.activations import SiLU, silu
from seerkit.layers.attention import attention_backend
from seerkit.layers.embeddings import apply_rope, rope_frequencies, timestep_embedding
from seerkit.layers.experts import Experts, rows_in_order
from seerkit.layers.few_rows import among_rows
from seerkit.layers.modulation import (
    FinalLayer,
    ModulationTable,
    TwoStreamModulation,
    modulate,
    project,
    split_blocks,
    two_stream_modulation,
    two_stream_table,
)
from seerkit.sampling.flops import step_flops

EPS = 1e-6  # of every LayerNorm
RMS_EPS = 1e-5  # of the norms of queries and keys
THETA = 10000  # base of the rotary frequencies

Rope = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary angles, each (1, 1, L, head_dim / 2), over image, text and Llama's tokens."""


# --------------------------------------------------------------------------------------------------------------- layers


class Embedder(nn.Module):
    """Two linear layers, inside a module of the official name."""

    def __init__(self, name: str, in_dim: int, dim: int) -> None:
        super().__init__()
        self.name = name
        layers = nn.ModuleDict({"linear_1": nn.Linear(in_dim, dim), "linear_2": nn.Linear(dim, dim)})
        self.add_module(name, layers)

    def forward(self, x: Tensor) -> Tensor:
        layers = self.get_submodule(self.name)
        first, second = layers["linear_1"], layers["linear_2"]
        return among_rows(lambda x: second(silu(first(x))), x.to(first.weight.dtype))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) · w3 x)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, width, bias=False)
        self.w2 = nn.Linear(width, dim, bias=False)
        self.w3 = nn.Linear(dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(silu(self.w1(x)) * self.w3(x))


class Gate(nn.Module):
    """The choice of experts; scores of the chosen ones are not brought to sum 1."""

    def __init__(self, config: HiDreamConfig) -> None:
        super().__init__()
        self.num_chosen = config.num_activated_experts
        self.weight = nn.Parameter(torch.empty(config.num_routed_experts, config.hidden_size))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows x (T, D) -> scores of all experts (T, E), numbers of the chosen (T, k)."""
        scores = F.linear(x, self.weight).softmax(dim=-1)
        return scores, scores.topk(self.num_chosen, dim=-1, sorted=False).indices


class MixtureOfExperts(nn.Module):
    """A feed-forward layer that all tokens go through, and k of E others that each token chooses."""

    def __init__(self, config: HiDreamConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.shared_experts = FeedForward(dim, config.shared_width)
        self.experts = Experts(config.num_routed_experts, dim, config.expert_width)
        self.gate = Gate(config)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, D) -> (B, L, D)."""
        rows = x.flatten(0, 1)  # (T, D)
        scores, chosen = self.gate(rows)  # (T, E), (T, k)
        k = chosen.shape[1]
        order = chosen.flatten().argsort(stable=True)  # of T · k rows, by expert
        counts = (chosen.reshape(-1, 1) == torch.arange(self.experts.count, device=x.device)).sum(0)
        inverse = order.argsort()
        answers = self.experts(rows_in_order(rows, order, inverse, k), counts.cumsum(0, dtype=torch.int32))
        answers = rows_in_order(answers, inverse, order).unflatten(0, (-1, k))  # (T, k, D)
        routed = (answers * scores.gather(1, chosen).unsqueeze(-1)).sum(1)
        return (routed + self.shared_experts(rows)).view_as(x)


class Attention(nn.Module):
    """Projections of the image, or joint, stream and of the text; names of the text's end in `_t`.

    streams: the endings, "" and "_t" in double-stream blocks, "" in single-stream ones.
    """

    def __init__(self, config: HiDreamConfig, streams: Sequence[str], backend: str) -> None:
        super().__init__()
        dim = config.hidden_size
        self.num_heads = config.num_attention_heads
        for stream in streams:
            for name in ("to_q", "to_k", "to_v", "to_out"):
                self.add_module(name + stream, nn.Linear(dim, dim))
            for name in ("q_rms_norm", "k_rms_norm"):
                self.add_module(name + stream, nn.RMSNorm(dim, RMS_EPS))
        self.attend = attention_backend(backend)

    def queries(self, x: Tensor, stream: str = "") -> Tensor:
        """x (B, L, D) -> normalised over the full width (B, L, D)."""
        return getattr(self, "q_rms_norm" + stream)(getattr(self, "to_q" + stream)(x))

    def keys(self, x: Tensor, stream: str = "") -> Tensor:
        return getattr(self, "k_rms_norm" + stream)(getattr(self, "to_k" + stream)(x))

    def values(self, x: Tensor, stream: str = "") -> Tensor:
        return getattr(self, "to_v" + stream)(x)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, rope: Rope, real: Tensor | None, site: Site = residual, **streams: int
    ) -> Tensor:
        """q (B, Lq, D), k and v (B, L, D) -> (B, Lq, D) before the output projection; queries are the first of L tokens.

        real (L, 1): 0 for keys of padding, 1 for others; None for no padding; streams as in `Site.attend`. A key of zeros still
        has its part in the softmax, as in the official code.
        """
        k = k if real is None else k * real.to(k.dtype)
        q, k, v = (rearrange(x, "b l (h d) -> b h l d", h=self.num_heads) for x in (q, k, v))
        rope_q = tuple(part[..., : q.shape[2], :] for part in rope)
        attended = site.attend(self.attend, apply_rope(q, *rope_q), apply_rope(k, *rope), v, **streams)
        return rearrange(attended, "b h l d -> b l (h d)")


# --------------------------------------------------------------------------------------------------------------- blocks


class DoubleStreamBlock(nn.Module):
    SITES = ("img_attn", "img_ff")

    def __init__(self, config: HiDreamConfig, backend: str) -> None:
        super().__init__()
        dim = config.hidden_size
        self.adaLN_modulation = nn.Sequential(SiLU(), nn.Linear(dim, 12 * dim))
        self.attn1 = Attention(config, ("", "_t"), backend)
        self.ff_i = MixtureOfExperts(config)
        self.ff_t = FeedForward(dim, config.expert_width)

    def modulation(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Conditions (..., B, D) -> (..., B, 6, D) of the image and of the text stream."""
        return project(self.adaLN_modulation[1], c, 12).split(6, dim=-2)

    def gates(self, c: Tensor) -> Tensor:
        """Gates of the sites: conditions (S, B, D) -> (S, 2, B, D)."""
        return project(self.adaLN_modulation[1], c, 12, slice(2, 6, 3)).transpose(1, 2)

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        llama: Tensor,
        rope: Rope,
        modulation: tuple[Tensor, Tensor],
        part: slice,
        real: Tensor | None = None,
        site: Site = residual,
    ) -> tuple[Tensor, Tensor]:
        """img (B, Li, D), txt (B, Lt, D), llama (B, Ll, D), modulation of both streams (B, 6, D) -> img and txt.

        part: image tokens without padding; real as in `Attention`.
        """
        img_rows, txt_rows = (rows.unsqueeze(2).unbind(1) for rows in modulation)  # (B, 1, D) each
        img_shift1, img_scale1, img_gate1, img_shift2, img_scale2, img_gate2 = img_rows
        txt_shift1, txt_scale1, txt_gate1, txt_shift2, txt_scale2, txt_gate2 = txt_rows
        attn, num_img, num_txt, before = self.attn1, img.shape[1], txt.shape[1], (img, txt)

        @once
        def joint() -> Tensor:
            normed_img = modulate(before[0], img_shift1, img_scale1, EPS)
            normed_txt = modulate(torch.cat([before[1], llama], dim=1), txt_shift1, txt_scale1, EPS)
            return attn(
                torch.cat([attn.queries(normed_img), attn.queries(normed_txt[:, :num_txt], "_t")], dim=1),
                torch.cat([attn.keys(normed_img), attn.keys(normed_txt, "_t")], dim=1),
                torch.cat([attn.values(normed_img), attn.values(normed_txt, "_t")], dim=1),
                rope,
                real,
                site,
                img=num_img,
                txt=num_txt,
            )

        img = site(img, img_gate1, lambda _: attn.to_out(joint()[:, :num_img]), part, name="img_attn")
        img = site(img, img_gate2, lambda x: self.ff_i(modulate(x, img_shift2, img_scale2, EPS)), part, name="img_ff")
        txt = site(txt, txt_gate1, lambda _: attn.to_out_t(joint()[:, num_img:]), name="txt_attn", reaches_output=False)
        txt = site(
            txt, txt_gate2, lambda x: self.ff_t(modulate(x, txt_shift2, txt_scale2, EPS)), name="txt_ff",
            reaches_output=False,
        )  # fmt: skip
        return img, txt


class SingleStreamBlock(nn.Module):
    SITES = ("attn", "ff")

    def __init__(self, config: HiDreamConfig, backend: str) -> None:
        super().__init__()
        dim = config.hidden_size
        self.adaLN_modulation = nn.Sequential(SiLU(), nn.Linear(dim, 6 * dim))
        self.attn1 = Attention(config, ("",), backend)
        self.ff_i = MixtureOfExperts(config)

    def modulation(self, c: Tensor) -> Tensor:
        """Conditions (..., B, D) -> (..., B, 6, D)."""
        return project(self.adaLN_modulation[1], c, 6)

    def gates(self, c: Tensor) -> Tensor:
        """Gates of the sites: conditions (S, B, D) -> (S, 2, B, D)."""
        return project(self.adaLN_modulation[1], c, 6, slice(2, None, 3)).transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        llama: Tensor,
        rope: Rope,
        modulation: Tensor,
        part: slice,
        real: Tensor | None = None,
        site: Site = residual,
    ) -> Tensor:
        """x (B, Li + Lt, D), llama (B, Ll, D), modulation (B, 6, D) -> x; part and real as in the double-stream block."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unsqueeze(2).unbind(1)  # (B, 1, D)
        attn = self.attn1

        def attended(x: Tensor) -> Tensor:
            normed = modulate(torch.cat([x, llama], dim=1), shift1, scale1, EPS)
            queries = attn.queries(normed[:, : x.shape[1]])
            return attn.to_out(attn(queries, attn.keys(normed), attn.values(normed), rope, real, site))

        x = site(x, gate1, attended, part, name="attn")
        return site(x, gate2, lambda x: self.ff_i(modulate(x, shift2, scale2, EPS)), part, name="ff")


def _named(name: str, module: nn.Module) -> nn.ModuleDict:
    """A module inside another that only gives it the official name."""
    return nn.ModuleDict({name: module})


# ---------------------------------------------------------------------------------------------------------------- model


class HiDream(nn.Module):
    """HiDream-I1 in three parts: `embed`, `blocks`, `head`. Its output is data minus noise, the velocity's negative.

    attention: a name from `seerkit.layers.names.ATTENTION_BACKENDS`.
    """

    TIME = "timesteps"
    SITE_KINDS: ClassVar = {
        "img_attn": ATTENTION, "img_ff": MLP, "txt_attn": ATTENTION, "txt_ff": MLP, "attn": ATTENTION, "ff": MLP,
    }  # fmt: skip

    def __init__(self, config: HiDreamConfig, *, attention: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        dim, patch = config.hidden_size, config.patch_size
        self.t_embedder = Embedder("timestep_embedder", FREQUENCY_DIM, dim)
        self.p_embedder = Embedder("pooled_embedder", config.text_emb_dim, dim)
        self.x_embedder = _named("proj", nn.Linear(config.in_channels * patch**2, dim))
        self.double_stream_blocks = nn.ModuleList(
            [_named("block", DoubleStreamBlock(config, attention)) for _ in range(config.num_layers)]
        )
        self.single_stream_blocks = nn.ModuleList(
            [_named("block", SingleStreamBlock(config, attention)) for _ in range(config.num_single_layers)]
        )
        self.final_layer = FinalLayer(dim, config.out_channels * patch**2, EPS)
        t5, llama = config.caption_channels
        self.caption_projection = nn.ModuleList(
            [_named("linear", nn.Linear(size, dim, bias=False)) for size in (*[llama] * config.num_blocks, t5)]
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the residual streams."""
        return self.x_embedder["proj"].weight.dtype

    @property
    def double_blocks(self) -> list[DoubleStreamBlock]:
        return [named["block"] for named in self.double_stream_blocks]

    @property
    def single_blocks(self) -> list[SingleStreamBlock]:
        return [named["block"] for named in self.single_stream_blocks]

    def modulation_layers(self) -> list[nn.Linear]:
        """The layers whose products the modulation table replaces."""
        parts = (*self.double_blocks, *self.single_blocks, self.final_layer)
        return [part.adaLN_modulation[1] for part in parts]

    def grid(self, hidden_states: Tensor) -> tuple[int, int]:
        """Tokens along height and width of latents (B, C, H, W)."""
        patch = self.config.patch_size
        return hidden_states.shape[-2] // patch, hidden_states.shape[-1] // patch

    def embed(self, hidden_states: Tensor) -> Tensor:
        """Latents (B, C, H, W) -> image tokens (B, L, D)."""
        patch = self.config.patch_size
        patches = rearrange(hidden_states, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch)
        return self.x_embedder["proj"](patches)

    def captions(self, t5: Tensor, llama: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Text stream (B, Lt, D): T5 tokens and Llama's last used hidden state; and the hidden state of every block.

        t5 (B, L5, caption_channels[0]); llama (layers, B, Ll, caption_channels[1]).
        """
        *of_llama, of_t5 = (named["linear"] for named in self.caption_projection)
        states = [linear(llama[n]) for linear, n in zip(of_llama, self.config.llama_layers, strict=True)]
        return torch.cat([of_t5(t5), states[-1]], dim=1), states

    def rope(self, grid: tuple[int, int], length: int, device: torch.device) -> Rope:
        """The rotation of `length` tokens, those of the grid by row and column; padding and text stay as they are."""
        height, width = grid
        positions = torch.zeros(3, length, device=device)
        rows, columns = (torch.arange(side, dtype=positions.dtype, device=device) for side in grid)
        positions[1, : height * width] = rows.repeat_interleave(width)
        positions[2, : height * width] = columns.repeat(height)
        angles = [rope_frequencies(p, dim, THETA) for p, dim in zip(positions, self.config.axes_dims_rope, strict=True)]
        angle = torch.cat(angles, dim=-1)[None, None]  # (1, 1, L, d / 2)
        dtype = torch.promote_types(self.dtype, torch.float32)
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def condition(self, timesteps: Tensor, pooled: Tensor) -> Tensor:
        """SiLU of the embedded timestep and pooled text, which every modulation is linear in.

        timesteps: (B,) or (S, 1), from 1000, noise, to 0; pooled (B, text_emb_dim). Returns (B, D) or (S, B, D).
        """
        return silu(self.t_embedder(timestep_embedding(timesteps, FREQUENCY_DIM)) + self.p_embedder(pooled))

    def modulation(self, c: Tensor) -> TwoStreamModulation:
        """Modulation of one step for conditions c (B, D)."""
        return two_stream_modulation(self, c)

    def enter(self, hidden_states: Tensor, t5: Tensor, llama: Tensor) -> Streams:
        """The state before block 0: image tokens, padding and text tokens, and what the blocks read.

        Where the image is not square it is padded with embedded zeros, as in the official pipeline.
        """
        img, grid = self.embed(hidden_states), self.grid(hidden_states)
        txt, captions = self.captions(t5, llama)
        count = self.config.max_tokens - img.shape[1] if grid[0] != grid[1] else 0
        length = img.shape[1] + count + txt.shape[1] + captions[0].shape[1]
        padding, real = img[:, :0], None
        if count:
            padding = self.x_embedder["proj"].bias.expand(len(img), count, -1)
            real = torch.ones(length, 1, device=img.device)
            real[img.shape[1] : img.shape[1] + count] = 0
        return Streams(img, (padding, txt), (captions, self.rope(grid, length, img.device), real))

    def walk(
        self,
        streams: Streams,
        modulation: TwoStreamModulation,
        site: Site = residual,
        start: int = 0,
        stop: int | None = None,
    ) -> Streams:
        """The state after blocks start … stop - 1, of all double and single ones."""
        img, (padding, txt), (llama, rope, real) = streams
        part, num_txt = slice(img.shape[1]), txt.shape[1]
        if padding.shape[1]:
            img = torch.cat([img, padding], dim=1)
        double, single = split_blocks(modulation.blocks, start, stop)
        for index, rows in double:
            img, txt = self.double_blocks[index](img, txt, llama[index], rope, rows, part, real, site)
        if single:
            x, of_single, num_img = torch.cat([img, txt], dim=1), llama[len(self.double_stream_blocks) :], img.shape[1]
            for index, rows in single:
                x = self.single_blocks[index](x, of_single[index], rope, rows, part, real, site)
            img, txt = x[:, :num_img], x[:, num_img : num_img + num_txt]
        return Streams(img[:, part], (img[:, part.stop :], txt), streams.context)

    def head(self, img: Tensor, grid: tuple[int, int], modulation: TwoStreamModulation) -> Tensor:
        """Image tokens (B, L, D) -> output (B, out_channels, H, W)."""
        (height, width), patch = grid, self.config.patch_size
        patches = self.final_layer(img, modulation.head)
        return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=height, w=width, p=patch, q=patch)

    def forward(
        self,
        hidden_states: Tensor,
        timesteps: Tensor,
        t5: Tensor,
        llama: Tensor,
        pooled: Tensor,
        *,
        cache: Step | None = None,
    ) -> Tensor:
        """Data minus noise (B, out_channels, H, W) for latents hidden_states (B, in_channels, H, W).

        timesteps (B,) from 1000, noise, to 0; t5: its tokens (B, L5, caption_channels[0]); llama: its hidden states
        (layers, B, Ll, caption_channels[1]), the embedded tokens left out; pooled (B, text_emb_dim).
        cache: a step of a run that was started for these conditions; its table then stands for timesteps and pooled.
        """
        self.check(hidden_states, t5, llama, pooled)
        if cache is None:
            return self.full_step(hidden_states, t5, llama, self.modulation(self.condition(timesteps, pooled)))
        modulation = cache.modulation
        return cache(
            self.tokens(hidden_states),
            lambda site: self.full_step(hidden_states, t5, llama, modulation, site),
            lambda advance: self.forecast_step(hidden_states, modulation, advance),
            Parts(
                latents=hidden_states,
                modulated=lambda: self.modulated(hidden_states, modulation),
                enter=lambda: self.enter(hidden_states, t5, llama),
                walk=lambda streams, site, *blocks: self.walk(streams, modulation, site, *blocks),
                leave=lambda streams: self.head(streams.x, self.grid(hidden_states), modulation),
            ),
        )

    def modulated(self, hidden_states: Tensor, modulation: TwoStreamModulation) -> Tensor:
        """Latents -> image tokens after the first norm, shift and scale of block 0 (B, L, D)."""
        (img_rows, _), *_ = modulation.blocks[0]
        shift, scale = img_rows[:, :2].unsqueeze(2).unbind(1)
        return modulate(self.embed(hidden_states), shift, scale, EPS)

    def full_step(
        self, hidden_states: Tensor, t5: Tensor, llama: Tensor, modulation: TwoStreamModulation, site: Site = residual
    ) -> Tensor:
        """Latents -> output, through all blocks."""
        streams = self.walk(self.enter(hidden_states, t5, llama), modulation, site)
        return self.head(streams.x, self.grid(hidden_states), modulation)

    def forecast_step(self, hidden_states: Tensor, modulation: TwoStreamModulation, advance: Forecast) -> Tensor:
        """Latents -> output, the blocks replaced by `advance`; the text is not looked at."""
        return self.head(advance(self.embed(hidden_states)), self.grid(hidden_states), modulation)

    def check(self, hidden_states: Tensor, t5: Tensor, llama: Tensor, pooled: Tensor) -> None:
        """UserError where shapes do not fit the model or each other."""
        config, patch = self.config, self.config.patch_size
        shape = tuple(hidden_states.shape)
        if hidden_states.ndim != 4 or shape[1] != config.in_channels or shape[2] % patch or shape[3] % patch:
            raise UserError(
                f"hidden_states of shape {shape} must be (B, {config.in_channels}, H, W) with H and W multiples of {patch}"
            )
        height, width = self.grid(hidden_states)
        if height * width > config.max_tokens:
            raise UserError(
                f"hidden_states of shape {shape} have more than the {config.max_tokens} tokens of the model"
            )
        rows, layers = len(hidden_states), 1 + max(config.llama_layers)
        expected = {
            "t5": (t5, (rows, None, config.caption_channels[0])),
            "llama": (llama, (None, rows, None, config.caption_channels[1])),
            "pooled": (pooled, (rows, config.text_emb_dim)),
        }
        for name, (tensor, wanted) in expected.items():
            sizes = zip(tensor.shape, wanted, strict=False)
            if tensor.ndim != len(wanted) or any(size != want for size, want in sizes if want is not None):
                shown = ", ".join("any" if want is None else str(want) for want in wanted)
                raise UserError(f"{name} of shape {tuple(tensor.shape)} must be ({shown})")
        if len(llama) < layers:
            raise UserError(f"llama has {len(llama)} hidden states, the model reads the first {layers}")

    def tokens(self, latents: Tensor) -> Tokens:
        """The image stream, without padding, for latents (B, C, H, W)."""
        height, width = self.grid(latents)
        return Tokens(
            batch=len(latents),
            length=height * width,
            dim=self.config.hidden_size,
            num_sites=sum(len(block.SITES) for block in (*self.double_blocks, *self.single_blocks)),
            dtype=self.dtype,
            output_numel=latents[:, 0].numel() * self.config.out_channels,
        )

    def block_sites(self) -> list[tuple[str, ...]]:
        """Names of the sites by block."""
        return [block.SITES for block in (*self.double_blocks, *self.single_blocks)]

    def token_grid(self, latents: Tensor, **_: object) -> tuple[int, int]:
        """Rows and columns of the image tokens."""
        return self.grid(latents)

    def noise_levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Scale of image and noise in the latents at timesteps (S,)."""
        return 1 - timesteps / 1000, timesteps / 1000

    def time_signals(self, timesteps: Tensor, **_: object) -> dict[str, Tensor]:
        """`time_embedding` (S, D): the embedded timesteps."""
        return {"time_embedding": self.t_embedder(timestep_embedding(timesteps, FREQUENCY_DIM))}

    def modulation_table(
        self,
        timesteps: Tensor,
        full_steps: Sequence[int],
        gated_steps: Sequence[int],
        *,
        pooled: Tensor,
        t5: Tensor | None = None,
        llama: Tensor | None = None,
    ) -> ModulationTable[TwoStreamModulation]:
        """Modulation of a run over timesteps (S,): full rows, gates alone, head rows; text tokens play no part."""
        c = self.condition(timesteps.unsqueeze(1), pooled)  # (S, B, D)
        return two_stream_table(self, c, full_steps, gated_steps)

    def step_flops(self, latents: Tensor, **conditions: Tensor) -> tuple[int, int]:
        """Operations of a full and of a forecast step."""
        return step_flops(self, latents, conditions)

    def initialize(self, seed: int) -> "HiDream":
        """Weights to start training from, as the official code draws them: gates and output at zero."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
                elif isinstance(module, Experts):
                    for stacked in (module.w1, module.w2, module.w3):
                        for weight in stacked.weight:
                            nn.init.xavier_uniform_(weight)
                elif isinstance(module, Gate):
                    nn.init.kaiming_uniform_(module.weight, a=5**0.5)
            for embedder in (self.t_embedder, self.p_embedder):
                for linear in embedder.modules():
                    if isinstance(linear, nn.Linear):
                        nn.init.normal_(linear.weight, std=0.02)
            for linear in (*self.modulation_layers(), self.final_layer.linear):
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
        return self
