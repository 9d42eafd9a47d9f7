"""The embedded text-to-emoji FLUX inside diffusers' FluxPipeline, which needs no download.

    pipe = embedded_flux()
    enable(pipe, interval=6, max_order=2)
    image = pipe("red apple, noto").images[0]

The model works on pixels: in the autoencoder's place are pixels in the order in which the pipeline packs latents. Texts are
those of the shipped table of labels and styles.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, FluxPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from einops import rearrange
from torch import Tensor

from flux.config import CONFIGS, USAGE, patch_side
from flux.weights import load_flux
from seerkit.text.minilm import TEXT_TABLE, TextTable
from taylorseers_diffusers.convert import to_diffusers
from taylorseers_diffusers.official import official_scheduler

NAME = "flux-tiny"
PACKED = 2  # latents along the side of what the pipeline packs into a token


class PackedPixels(ModelMixin, ConfigMixin):
    """In place of an autoencoder: the pixels of a patch as channels, so that the pipeline's tokens are those of the model.

    The pipeline packs channels, then rows, then columns of PACKED x PACKED latents; the model's tokens are the channels, rows
    and columns of a patch. Rows of a patch, and the columns that a latent does not span, are channels here.
    """

    @register_to_config
    def __init__(
        self, patch: int, block_out_channels: tuple[int, ...] = (1, 1), scaling_factor: float = 1.0, shift_factor: float = 0.0
    ) -> None:  # fmt: skip
        super().__init__()
        self.register_buffer("place", torch.zeros(()), persistent=False)  # tells the device

    def decode(self, latents: Tensor, return_dict: bool = True) -> Any:
        """Latents (B, 3 p, H, W) of the pipeline -> images (B, 3, H p / 2, W p / 2) in [-1, 1]."""
        patch = self.config.patch
        image = rearrange(latents, "b (c p) (h r) (w s) -> b c (h p) (w r s)", p=patch, r=PACKED, s=patch // PACKED)
        return DecoderOutput(sample=image) if return_dict else (image,)


class EmbeddedFluxPipeline(FluxPipeline):
    """FluxPipeline whose prompts are encoded by the shipped table."""

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        prompt_2: str | list[str] | None = None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        **more: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As FluxPipeline's. UserError for prompts that are not in the table, where no encoder is installed."""
        if prompt_embeds is None:
            texts = TextTable.load(TEXT_TABLE).encode([prompt] if isinstance(prompt, str) else prompt)
            prompt_embeds, pooled_prompt_embeds = (
                part.to(device, self.transformer.dtype).repeat_interleave(num_images_per_prompt, dim=0)
                for part in texts
            )
        return super().encode_prompt(
            None, None, device, num_images_per_prompt, prompt_embeds, pooled_prompt_embeds, **more
        )


def embedded_flux(checkpoint: str | Path | None = None, *, dtype: torch.dtype = torch.float32) -> EmbeddedFluxPipeline:
    """The pipeline, on the CPU; images have 32 x 32 pixels unless others are asked for. checkpoint: in place of the weights."""
    transformer = to_diffusers(load_flux(NAME, checkpoint, dtype=dtype))
    pipe = EmbeddedFluxPipeline(
        scheduler=official_scheduler(transformer),
        vae=PackedPixels(patch_side(CONFIGS[NAME].in_channels, USAGE[NAME].latent_channels)),
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, transformer=transformer,
    )  # fmt: skip
    pipe.default_sample_size = USAGE[NAME].image_size // pipe.vae_scale_factor
    return pipe
