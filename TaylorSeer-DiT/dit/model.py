"""DiT (Peebles & Xie 2023, arXiv 2212.09748) as embed, blocks, head; parameter names are facebookresearch/DiT's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from cache_dic import ATTENTION, MLP, Forecast, Parts, Site, Step, Streams, Tokens, UserError, residual
from dit.config import DiTConfig
from dit.diffusion import linear_betas
from seerkit.layers.activations import SiLU, gelu, silu
from seerkit.layers.attention import attention_backend
from seerkit.layers.embeddings import sincos_position_2d, timestep_embedding
from seerkit.layers.modulation import FinalLayer, ModulationLayer, ModulationTable, condition_table, modulate
from seerkit.sampling.flops import step_flops

EPS = 1e-6  # of every LayerNorm
FREQUENCY_DIM = 256  # channels of the sinusoidal timestep embedding


class PatchEmbed(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.proj = nn.Conv2d(config.in_channels, config.hidden_size, kernel_size=size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.proj(x), "b d h w -> b (h w) d")


class TimestepEmbedder(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.mlp = nn.Sequential(nn.Linear(FREQUENCY_DIM, dim), SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        frequencies = timestep_embedding(t, FREQUENCY_DIM)
        return self.mlp(frequencies.to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(config.num_classes + config.has_null_class, config.hidden_size)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


class Attention(nn.Module):
    def __init__(self, config: DiTConfig, backend: str) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.attend = attention_backend(backend)

    def forward(self, x: Tensor, site: Site = residual) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b l (qkv h d) -> qkv b h l d", qkv=3, h=self.num_heads)
        return self.proj(rearrange(site.attend(self.attend, q, k, v), "b h l d -> b l (h d)"))


class Mlp(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = int(config.hidden_size * config.mlp_ratio)
        self.fc1 = nn.Linear(config.hidden_size, width)
        self.fc2 = nn.Linear(width, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


class DiTBlock(nn.Module):
    SITES = ("attn", "mlp")

    def __init__(self, config: DiTConfig, backend: str) -> None:
        super().__init__()
        self.attn = Attention(config, backend)
        self.mlp = Mlp(config)
        self.adaLN_modulation = ModulationLayer(config.hidden_size, 6, "1")

    def modulation(self, c: Tensor) -> Tensor:
        """Conditions (..., B, D) -> (..., B, 6, D)."""
        return self.adaLN_modulation(c)

    def gates(self, c: Tensor) -> Tensor:
        """Gates of the sites: conditions (S, B, D) -> (S, 2, B, D)."""
        return self.adaLN_modulation.gates(c)

    def forward(self, x: Tensor, modulation: Tensor, site: Site = residual) -> Tensor:
        """x (B, L, D), modulation (B, 6, D) -> (B, L, D)."""
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation.unsqueeze(2).unbind(1)  # (B, 1, D)
        x = site(x, gate_msa, lambda x: self.attn(modulate(x, shift_msa, scale_msa, EPS), site), name="attn")
        x = site(x, gate_mlp, lambda x: self.mlp(modulate(x, shift_mlp, scale_mlp, EPS)), name="mlp")
        return x


@dataclass(frozen=True)
class Modulation:
    """Shift, scale and gate: `blocks` holds (B, 6, D) a block, None at a forecast step; `head` is (B, 2, D)."""

    blocks: Sequence[Tensor] | None
    head: Tensor


class Blocks(nn.ModuleList):
    """The transformer blocks in order; called, those from start to stop - 1 are the residual additions alone."""

    def forward(
        self, x: Tensor, modulation: Modulation, site: Site = residual, start: int = 0, stop: int | None = None
    ) -> Tensor:
        for block, rows in list(zip(self, modulation.blocks, strict=True))[start:stop]:
            x = block(x, rows, site)
        return x


class DiT(nn.Module):
    """Diffusion transformer with adaLN-Zero blocks, in three parts: `embed`, `blocks`, `head`.

    attention: a name from `seerkit.layers.names.ATTENTION_BACKENDS`.
    """

    TIME = "t"
    SITE_KINDS: ClassVar = {"attn": ATTENTION, "mlp": MLP}

    def __init__(self, config: DiTConfig, *, attention: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        side = config.input_size // config.patch_size
        self.register_buffer("pos_embed", sincos_position_2d(config.hidden_size, side, side).unsqueeze(0))
        self.x_embedder = PatchEmbed(config)
        self.t_embedder = TimestepEmbedder(config)
        self.y_embedder = LabelEmbedder(config)
        self.blocks = Blocks([DiTBlock(config, attention) for _ in range(config.depth)])
        self.final_layer = FinalLayer(config.hidden_size, config.patch_size**2 * config.out_channels, EPS)

    @property
    def dtype(self) -> torch.dtype:
        """Of the residual stream."""
        return self.x_embedder.proj.weight.dtype

    def modulation_layers(self) -> list[nn.Linear]:
        """The layers whose products the modulation table replaces."""
        return [*(block.adaLN_modulation.product for block in self.blocks), self.final_layer.adaLN_modulation[1]]

    def embed(self, x: Tensor) -> Tensor:
        """Latents (B, C, H, W) -> tokens (B, L, D)."""
        return self.x_embedder(x) + self.pos_embed

    def condition(self, t: Tensor, y: Tensor) -> Tensor:
        """SiLU of timestep plus class embedding, which every modulation is linear in.

        t: timesteps (B,) or (S, 1); y: labels (B,), num_classes standing for "no class". Returns (B, D) or (S, B, D).
        """
        return silu(self.t_embedder(t) + self.y_embedder(y))

    def modulation(self, c: Tensor) -> Modulation:
        """Modulation of one step for conditions c (B, D)."""
        return Modulation([block.modulation(c) for block in self.blocks], self.final_layer.modulation(c))

    def head(self, x: Tensor, modulation: Modulation) -> Tensor:
        """Tokens (B, L, D) -> prediction (B, out_channels, H, W)."""
        patches = self.final_layer(x, modulation.head)  # (B, L, p·p·C)
        size, side = self.config.patch_size, self.config.input_size // self.config.patch_size
        return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=side, w=side, p=size, q=size)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, cache: Step | None = None) -> Tensor:
        """Predict noise (and variance) of latents x (B, C, H, W) at timesteps t (B,) for classes y (B,).

        cache: a step of a run that was started for these timesteps and classes; its table then stands for t and y.
        """
        self._check(x)
        if cache is None:
            return self.full_step(x, self.modulation(self.condition(t, y)))
        modulation = cache.modulation
        return cache(
            self.tokens(x),
            lambda site: self.full_step(x, modulation, site),
            lambda advance: self.forecast_step(x, modulation, advance),
            Parts(
                latents=x,
                modulated=lambda: self.modulated(x, modulation),
                enter=lambda: Streams(self.embed(x)),
                walk=lambda streams, site, *blocks: self.walk(streams, modulation, site, *blocks),
                leave=lambda streams: self.head(streams.x, modulation),
            ),
        )

    def walk(
        self, streams: Streams, modulation: Modulation, site: Site = residual, start: int = 0, stop: int | None = None
    ) -> Streams:
        """The state after blocks start … stop - 1."""
        return streams._replace(x=self.blocks(streams.x, modulation, site, start, stop))

    def modulated(self, x: Tensor, modulation: Modulation) -> Tensor:
        """Latents -> tokens after the first norm, shift and scale of block 0 (B, L, D)."""
        shift, scale = modulation.blocks[0][:, :2].unsqueeze(2).unbind(1)
        return modulate(self.embed(x), shift, scale, EPS)

    def full_step(self, x: Tensor, modulation: Modulation, site: Site = residual) -> Tensor:
        """Latents (B, C, H, W) -> prediction, through all blocks."""
        return self.head(self.blocks(self.embed(x), modulation, site), modulation)

    def forecast_step(self, x: Tensor, modulation: Modulation, advance: Forecast) -> Tensor:
        """Latents (B, C, H, W) -> prediction, the blocks replaced by `advance`."""
        return self.head(advance(self.embed(x)), modulation)

    def _check(self, x: Tensor) -> None:
        channels, size = self.config.in_channels, self.config.input_size
        if x.shape[1:] != (channels, size, size):
            raise UserError(f"latents of shape {tuple(x.shape)} do not fit a model for (B, {channels}, {size}, {size})")

    def tokens(self, latents: Tensor) -> Tokens:
        """The token stream for latents (B, C, H, W)."""
        return Tokens(
            batch=len(latents),
            length=self.config.num_tokens,
            dim=self.config.hidden_size,
            num_sites=sum(len(block.SITES) for block in self.blocks),
            dtype=self.dtype,
            output_numel=latents[:, 0].numel() * self.config.out_channels,
        )

    def block_sites(self) -> list[tuple[str, ...]]:
        """Names of the sites by block."""
        return [block.SITES for block in self.blocks]

    def token_grid(self, latents: Tensor, **_: object) -> tuple[int, int]:
        """Rows and columns of the tokens."""
        side = self.config.input_size // self.config.patch_size
        return side, side

    def noise_levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Scale of image and noise in the latents at timesteps (S,): √ᾱ and √(1 - ᾱ)."""
        alphas_bar = torch.cumprod(1 - linear_betas(), dim=0)[timesteps.long()]
        return alphas_bar.sqrt(), (1 - alphas_bar).sqrt()

    def time_signals(self, timesteps: Tensor, **_: object) -> dict[str, Tensor]:
        """`time_embedding` (S, D): the embedded timesteps."""
        return {"time_embedding": self.t_embedder(timesteps)}

    def modulation_table(
        self, timesteps: Tensor, full_steps: Sequence[int], gated_steps: Sequence[int], *, y: Tensor
    ) -> ModulationTable:
        """Modulation of a run over timesteps (S,) for classes y (B,): full rows, gates alone, head rows."""
        c = self.condition(timesteps.unsqueeze(1), y)  # (S, B, D)

        def block_rows(c: Tensor) -> list[tuple[Tensor, ...]]:
            return list(zip(*(block.modulation(c) for block in self.blocks), strict=True))

        return condition_table(
            c, full_steps, gated_steps, blocks=self.blocks, block_rows=block_rows, vectors=6 * len(self.blocks),
            final_layer=self.final_layer, assemble=Modulation,
        )  # fmt: skip

    def step_flops(self, latents: Tensor, *, y: Tensor) -> tuple[int, int]:
        """Operations of a full and of a forecast step."""
        return step_flops(self, latents, {"y": y})

    def initialize(self, seed: int) -> "DiT":
        """Weights to start training from, as facebookresearch/DiT draws them: gates and output at zero."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)
            nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
            nn.init.zeros_(self.x_embedder.proj.bias)
            for weight in (self.y_embedder.embedding_table.weight, *(self.t_embedder.mlp[i].weight for i in (0, 2))):
                nn.init.normal_(weight, std=0.02)
            for linear in (*self.modulation_layers(), self.final_layer.linear):
                nn.init.zeros_(linear.weight)
        return self
