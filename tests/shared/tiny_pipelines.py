"""Pipelines of diffusers with tiny transformers at random weights, called with embeddings so that no text encoder is needed.

`tiny(name)` gives a pipeline and `call(num_steps, **more)`, which gives its latents. Where a pipeline of diffusers cannot be
called without a text encoder, a loop over its transformer stands in for it.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn


@dataclass
class Tiny:
    pipe: Any
    inputs: dict[str, Any]

    @property
    def transformer(self) -> nn.Module:
        return self.pipe.transformer

    def __call__(self, num_steps: int = 12, seed: int = 0, **more: Any) -> Tensor:
        given = {
            **self.inputs,
            "num_inference_steps": num_steps,
            "generator": torch.Generator().manual_seed(seed),
            **more,
        }
        with torch.no_grad():
            result = self.pipe(output_type="latent", **given)
        value = result[0] if isinstance(result, tuple) else next(iter(result.values()))
        return value if isinstance(value, Tensor) else torch.as_tensor(value)


def randomised(module: nn.Module, std: float = 0.1) -> nn.Module:
    """All weights drawn anew, gates and outputs, too, which a fresh model may have at zero."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.eval()


def quiet(pipe: Any, **inputs: Any) -> Tiny:
    pipe.set_progress_bar_config(disable=True)
    return Tiny(pipe, inputs)


def flux(pipeline: str = "FluxPipeline", in_channels: int = 4, **more: Any) -> Tiny:
    transformer = randomised(
        diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=in_channels, out_channels=4, num_layers=2, num_single_layers=3, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
            guidance_embeds=True,
        )
    )  # fmt: skip
    vae = randomised(
        diffusers.AutoencoderKL(
            block_out_channels=(4,), latent_channels=1, norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False,
            shift_factor=0.0609, scaling_factor=1.5035,
        )
    )  # fmt: skip
    pipe = getattr(diffusers, pipeline)(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None, transformer=transformer, **more,
    )  # fmt: skip
    return quiet(
        pipe, prompt_embeds=torch.randn(1, 8, 32), pooled_prompt_embeds=torch.randn(1, 32), height=16, width=16
    )


def hunyuan_video() -> Tiny:
    transformer = randomised(
        diffusers.HunyuanVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=2, num_single_layers=2,
            num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True, text_embed_dim=16,
            pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
        )
    )  # fmt: skip
    pipe = diffusers.HunyuanVideoPipeline(
        text_encoder=None, tokenizer=None, transformer=transformer, vae=None, text_encoder_2=None, tokenizer_2=None,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    )  # fmt: skip
    return quiet(
        pipe, prompt_embeds=torch.randn(1, 6, 16), pooled_prompt_embeds=torch.randn(1, 8),
        prompt_attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]]), height=32, width=32, num_frames=5,
    )  # fmt: skip


def wan() -> Tiny:
    transformer = randomised(
        diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16, text_dim=32,
            freq_dim=256, ffn_dim=32, num_layers=3, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
        )
    )  # fmt: skip
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    )  # fmt: skip
    return quiet(
        pipe, prompt_embeds=torch.randn(1, 6, 32), negative_prompt_embeds=torch.randn(1, 6, 32), height=32, width=32,
        num_frames=5, guidance_scale=3.0,
    )  # fmt: skip


def hidream() -> Tiny:
    transformer = randomised(
        diffusers.HiDreamImageTransformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=8,
            num_attention_heads=4, caption_channels=[32, 16], text_emb_dim=64, num_routed_experts=4, num_activated_experts=2,
            axes_dims_rope=(4, 2, 2), max_resolution=(32, 32), llama_layers=(0, 1, 0, 1),
        ),
        std=0.05,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=1)
    pipe = diffusers.HiDreamImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None, text_encoder_3=None, tokenizer_3=None, text_encoder_4=None, tokenizer_4=None, transformer=transformer,
    )  # fmt: skip
    pipe.default_sample_size = 8  # the pipeline makes every size this large, in latents
    embeds = {
        f"{negative}{name}": torch.randn(shape)
        for negative in ("", "negative_")
        for name, shape in (
            ("prompt_embeds_t5", (1, 6, 32)),
            ("prompt_embeds_llama3", (2, 1, 6, 16)),
            ("pooled_prompt_embeds", (1, 64)),
        )
    }
    return quiet(pipe, **embeds, height=16, width=16, guidance_scale=3.0)


def dit() -> Tiny:
    transformer = randomised(
        diffusers.DiTTransformer2DModel(
            sample_size=8,
            num_layers=3,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            in_channels=4,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_zero",
            norm_elementwise_affine=False,
        )
    )  # fmt: skip
    vae = randomised(diffusers.AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=1))
    pipe = diffusers.DiTPipeline(transformer=transformer, vae=vae, scheduler=diffusers.DDIMScheduler())
    return quiet(pipe, class_labels=[3], guidance_scale=2.0)


# ------------------------------------------------------------------------------------------------------- other classes


def built(pipeline: str, transformer: nn.Module, scheduler: Any = None, **parts: Any) -> Any:
    """A pipeline of a transformer and a scheduler, without other parts than those given."""
    kind = getattr(diffusers, pipeline)
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    scheduler = scheduler or diffusers.FlowMatchEulerDiscreteScheduler()
    missing = {parameter.name: None for parameter in parameters if parameter.default is parameter.empty}
    return kind(**{**missing, "transformer": transformer, "scheduler": scheduler, **parts})


def pair(name: str, *shape: int) -> dict[str, Tensor]:
    """A prompt's and a negative one's, as pipelines name them."""
    return {name: torch.randn(shape), f"negative_{name}": torch.randn(shape)}


def masks(name: str, length: int) -> dict[str, Tensor]:
    """Of texts without padding."""
    return {of: torch.ones(1, length, dtype=torch.int64) for of in (name, f"negative_{name}")}


def qwen_image() -> Tiny:
    transformer = randomised(
        diffusers.QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
        )
    )  # fmt: skip
    inputs = {**pair("prompt_embeds", 1, 6, 16), "true_cfg_scale": 2.0, "height": 32, "width": 64}
    mask = torch.ones(1, 6, dtype=torch.int64)
    inputs |= {"prompt_embeds_mask": mask, "negative_prompt_embeds_mask": mask}
    return quiet(built("QwenImagePipeline", transformer), **inputs)


def sd3() -> Tiny:
    """The first block has a second attention, the last one makes nothing of its text."""
    transformer = randomised(
        diffusers.SD3Transformer2DModel(
            sample_size=32, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8,
            num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=64,
            pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
        )
    )  # fmt: skip
    inputs = {**pair("prompt_embeds", 1, 6, 32), **pair("pooled_prompt_embeds", 1, 64), "guidance_scale": 3.0}
    return quiet(built("StableDiffusion3Pipeline", transformer), **inputs, height=32, width=64)


def lumina2() -> Tiny:
    transformer = randomised(
        diffusers.Lumina2Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=3, num_refiner_layers=1,
            num_attention_heads=3, num_kv_heads=1, multiple_of=2, cap_feat_dim=8, axes_dim_rope=(4, 2, 2),
            axes_lens=(32, 32, 32),
        ),
        std=0.3,
    )  # fmt: skip
    inputs = {**pair("prompt_embeds", 1, 6, 8), **masks("prompt_attention_mask", 6), "guidance_scale": 3.0}
    return quiet(built("Lumina2Pipeline", transformer), **inputs, height=32, width=64)


def cogvideox() -> Tiny:
    transformer = randomised(
        diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=16, text_embed_dim=32,
            num_layers=3, sample_width=4, sample_height=4, sample_frames=9, patch_size=2, temporal_compression_ratio=4,
            max_text_seq_length=6,
        ),
        std=0.3,
    )  # fmt: skip
    inputs = {**pair("prompt_embeds", 1, 6, 32), "height": 32, "width": 32, "num_frames": 8, "guidance_scale": 3.0}
    return quiet(built("CogVideoXPipeline", transformer, diffusers.CogVideoXDDIMScheduler()), **inputs)


def mochi() -> Tiny:
    transformer = randomised(
        diffusers.MochiTransformer3DModel(
            patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=3, pooled_projection_dim=16, in_channels=12,
            qk_norm="rms_norm", text_embed_dim=32, time_embed_dim=4, activation_fn="swiglu", max_sequence_length=6,
        )
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    inputs = {**pair("prompt_embeds", 1, 6, 32), "guidance_scale": 3.0, "height": 32, "width": 32, "num_frames": 7}
    given = {name: mask.bool() for name, mask in masks("prompt_attention_mask", 6).items()}
    return quiet(built("MochiPipeline", transformer, scheduler), **inputs, **given)


def ltx() -> Tiny:
    transformer = randomised(
        diffusers.LTXVideoTransformer3DModel(
            in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=4, attention_head_dim=8,
            cross_attention_dim=32, num_layers=3, caption_channels=32,
        )
    )  # fmt: skip
    inputs = {**pair("prompt_embeds", 1, 6, 32), **masks("prompt_attention_mask", 6), "guidance_scale": 3.0}
    return quiet(built("LTXPipeline", transformer), **inputs, height=64, width=64, num_frames=9)


def flux2() -> Tiny:
    transformer = randomised(
        diffusers.Flux2Transformer2DModel(
            patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=16, timestep_guidance_channels=32, axes_dims_rope=[4, 4, 4, 4],
        )
    )  # fmt: skip
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), block_out_channels=(4,),
        layers_per_block=1, latent_channels=1, norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    return quiet(built("Flux2Pipeline", transformer, vae=vae), prompt_embeds=torch.randn(1, 6, 16), height=8, width=16)


def z_image() -> Tiny:
    transformer = randomised(
        diffusers.ZImageTransformer2DModel(
            all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=3, n_refiner_layers=1, n_heads=2,
            n_kv_heads=2, cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
        )
    )  # fmt: skip
    prompts = {name: [value] for name, value in pair("prompt_embeds", 6, 16).items()}
    return quiet(built("ZImagePipeline", transformer), **prompts, height=32, width=64, guidance_scale=3.0)


MAKERS: dict[str, Callable[[], Tiny]] = {
    "flux": flux,
    "hunyuan_video": hunyuan_video,
    "wan": wan,
    "hidream": hidream,
    "dit": dit,
}
"""Of this repository's families."""

MORE: dict[str, Callable[[], Tiny]] = {
    "qwen_image": qwen_image,
    "sd3": sd3,
    "lumina2": lumina2,
    "cogvideox": cogvideox,
    "mochi": mochi,
    "ltx": ltx,
    "flux2": flux2,
    "z_image": z_image,
}
"""Of other models."""


def tiny(name: str) -> Tiny:
    torch.manual_seed(0)
    return (MAKERS | MORE)[name]()
