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


def flux_of_image(pipeline: str, in_channels: int = 4, **more: Any) -> Tiny:
    """FLUX that takes an image, too; more: parts of the pipeline, and images that it is called with."""
    parts = {name: part for name, part in more.items() if not isinstance(part, Tensor | int | bool)}
    model = flux(pipeline, in_channels, **parts)
    model.inputs |= {name: value for name, value in more.items() if name not in parts}
    return model


def image() -> Tensor:
    return torch.rand(1, 3, 16, 16)


def flux_kontext() -> Tiny:
    size = {"max_area": 16 * 16, "_auto_resize": False}
    return flux_of_image("FluxKontextPipeline", image_encoder=None, feature_extractor=None, image=image(), **size)


def flux_fill() -> Tiny:
    return flux_of_image("FluxFillPipeline", 12, image=image(), mask_image=torch.ones(1, 1, 16, 16))


def flux_control() -> Tiny:
    return flux_of_image("FluxControlPipeline", 8, control_image=image())


def flux_controlnet() -> Tiny:
    controlnet = randomised(
        diffusers.FluxControlNetModel(
            patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
        ),
        std=0.15,
    )  # fmt: skip
    return flux_of_image("FluxControlNetPipeline", controlnet=controlnet, control_image=image())


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


def wan22() -> Tiny:
    """Two transformers, the second one for steps of little noise."""
    one, other = wan(), wan()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=one.transformer, transformer_2=other.transformer,
        scheduler=scheduler, boundary_ratio=0.9,
    )  # fmt: skip
    return quiet(pipe, **one.inputs)


def wan22_5b() -> Tiny:
    """A time for each token, the same one of all in text to video."""
    model = wan()
    model.pipe.register_to_config(expand_timesteps=True)
    return model


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


def qwen_image_edit() -> Tiny:
    """Tokens of an image to be edited beside those of the new one, at the time of clean data."""
    transformer = randomised(
        diffusers.QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=16, axes_dims_rope=(4, 6, 6), zero_cond_t=True,
        )
    )  # fmt: skip
    inputs = {"encoder_hidden_states": torch.randn(1, 6, 16), "img_shapes": [[(1, 2, 4), (1, 2, 4)]]}
    return Tiny(Loop(transformer, 1, 16, 16), inputs)


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


WAN_SIZES: dict[str, Any] = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "out_channels": 16, "text_dim": 32,
    "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32,
}  # fmt: skip


def wan_vace() -> Tiny:
    """Blocks of its own add a given video's features between Wan's."""
    kind = diffusers.WanVACETransformer3DModel
    transformer = randomised(kind(**WAN_SIZES, in_channels=16, vace_layers=[0, 1], vace_in_channels=8))
    inputs = {"encoder_hidden_states": torch.randn(1, 6, 32), "control_hidden_states": torch.randn(1, 8, 2, 4, 4)}
    return Tiny(Loop(transformer, 1, 16, 2, 4, 4), inputs)


def chronoedit() -> Tiny:
    transformer = randomised(diffusers.ChronoEditTransformer3DModel(**WAN_SIZES, in_channels=16))
    return Tiny(Loop(transformer, 1, 16, 2, 4, 4), {"encoder_hidden_states": torch.randn(1, 6, 32)})


def latte() -> Tiny:
    transformer = randomised(
        diffusers.LatteTransformer3DModel(
            sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
            in_channels=4, cross_attention_dim=24, out_channels=4, attention_bias=True, activation_fn="gelu-approximate",
            norm_type="ada_norm_single", norm_elementwise_affine=False, video_length=2,
        )
    )  # fmt: skip
    return Tiny(Loop(transformer, 1, 4, 2, 8, 8), {"encoder_hidden_states": torch.randn(1, 6, 32)})


def hunyuan_dit() -> Tiny:
    """Later blocks are given what earlier ones gave."""
    transformer = randomised(
        diffusers.HunyuanDiT2DModel(
            sample_size=8, num_layers=4, patch_size=2, attention_head_dim=8, num_attention_heads=2, in_channels=4,
            cross_attention_dim=16, cross_attention_dim_t5=16, pooled_projection_dim=4, hidden_size=16, text_len=4,
            text_len_t5=4, activation_fn="gelu-approximate",
        )
    )  # fmt: skip
    rotary = diffusers.models.embeddings.get_2d_rotary_pos_embed(8, ((0, 0), (4, 4)), (4, 4), output_type="pt")
    mask = torch.ones(1, 4, dtype=torch.int64)
    inputs = {
        "encoder_hidden_states": torch.randn(1, 4, 16), "text_embedding_mask": mask, "text_embedding_mask_t5": mask,
        "encoder_hidden_states_t5": torch.randn(1, 4, 16), "image_meta_size": torch.ones(1, 6), "style": torch.zeros(1).long(),
        "image_rotary_emb": rotary,
    }  # fmt: skip
    return Tiny(Loop(transformer, 1, 4, 8, 8), inputs)


def easyanimate() -> Tiny:
    transformer = randomised(
        diffusers.EasyAnimateTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2, text_embed_dim=16,
            num_layers=2, sample_width=16, sample_height=16, patch_size=2, mmdit_layers=1,
        )
    )  # fmt: skip
    return Tiny(Loop(transformer, 1, 4, 2, 8, 8), {"encoder_hidden_states": torch.randn(1, 6, 16)})


FLUX_SIZES: dict[str, Any] = {
    "patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 32,
}  # fmt: skip


def chroma() -> Tiny:
    transformer = randomised(
        diffusers.ChromaTransformer2DModel(
            **FLUX_SIZES, axes_dims_rope=(4, 4, 8), approximator_num_channels=8, approximator_hidden_dim=16,
            approximator_layers=1,
        )
    )  # fmt: skip
    given = {name: mask.bool() for name, mask in masks("prompt_attention_mask", 8).items()}
    inputs = {**pair("prompt_embeds", 1, 8, 32), **given, "guidance_scale": 2.0}
    return quiet(built("ChromaPipeline", transformer), **inputs, height=32, width=64)


def ovis() -> Tiny:
    transformer = randomised(
        diffusers.OvisImageTransformer2DModel(**FLUX_SIZES, out_channels=4, axes_dims_rope=(4, 4, 8))
    )
    inputs = {**pair("prompt_embeds", 1, 8, 32), "guidance_scale": 2.0, "negative_prompt": None}
    return quiet(built("OvisImagePipeline", transformer), **inputs, height=32, width=64)


class Loop:
    """What a pipeline does at its core: Euler's steps over a transformer, called with `inputs`."""

    def __init__(self, transformer: nn.Module, *shape: int) -> None:
        self.transformer, self.shape = transformer, shape
        self.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()

    def __call__(
        self, num_inference_steps: int, generator: torch.Generator, output_type: str, **inputs: Any
    ) -> tuple[Tensor]:
        self.scheduler.set_timesteps(num_inference_steps)
        x = torch.randn(self.shape, generator=generator)
        for t in self.scheduler.timesteps:
            given, time = (value.to(self.transformer.dtype) for value in (x, t.expand(len(x))))
            (output,) = self.transformer(hidden_states=given, timestep=time, **inputs, return_dict=False)
            x = self.scheduler.step(output[:, : x.shape[1]], t, x, return_dict=False)[0]  # without a variance
        return (x,)


def positions(rows: int, columns: int) -> Tensor:
    """Of image tokens in FLUX's form (rows · columns, 3)."""
    at = torch.arange(rows * columns)
    return torch.stack([torch.zeros_like(at), at // columns, at % columns], dim=1).float()


def looped(transformer: nn.Module, **more: Any) -> Tiny:
    """A loop over a transformer of FLUX's arguments."""
    inputs = {"encoder_hidden_states": torch.randn(1, 8, 32), "txt_ids": torch.zeros(8, 3), "img_ids": positions(2, 4)}
    return Tiny(Loop(transformer, 1, 8, 4), {**inputs, **more})


def bria() -> Tiny:
    return looped(randomised(diffusers.BriaTransformer2DModel(**FLUX_SIZES, axes_dims_rope=[0, 8, 8])))


def bria_fibo() -> Tiny:
    kind = diffusers.BriaFiboTransformer2DModel
    transformer = randomised(kind(**FLUX_SIZES, axes_dims_rope=[0, 8, 8], text_encoder_dim=16))
    return looped(transformer, text_encoder_layers=[torch.randn(1, 8, 16) for _ in range(4)])


def longcat() -> Tiny:
    kind = diffusers.LongCatImageTransformer2DModel
    return looped(randomised(kind(**FLUX_SIZES, pooled_projection_dim=16, axes_dims_rope=[4, 4, 8])))


def hunyuan_image() -> Tiny:
    transformer = randomised(
        diffusers.HunyuanImageTransformer2DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=2, num_single_layers=2,
            num_refiner_layers=1, patch_size=(1, 1), guidance_embeds=False, text_embed_dim=16, rope_axes_dim=(6, 4),
        )
    )  # fmt: skip
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    inputs = {"encoder_hidden_states": torch.randn(1, 6, 16), "encoder_attention_mask": mask}
    return Tiny(Loop(transformer, 1, 4, 2, 4), inputs)


def hunyuan_video_15() -> Tiny:
    transformer = randomised(
        diffusers.HunyuanVideo15Transformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=3, num_refiner_layers=1,
            patch_size=1, patch_size_t=1, text_embed_dim=16, text_embed_2_dim=12, image_embed_dim=8, rope_axes_dim=(2, 4, 4),
            target_size=16, task_type="t2v",
        )
    )  # fmt: skip
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    texts = {
        "encoder_hidden_states": torch.randn(1, 6, 16),
        "encoder_hidden_states_2": torch.randn(1, 6, 12),
        "encoder_attention_mask": mask,
        "encoder_attention_mask_2": mask,
    }
    return Tiny(Loop(transformer, 1, 4, 2, 2, 4), {**texts, "image_embeds": torch.zeros(1, 4, 8)})


def token_replace() -> Tiny:
    """HunyuanVideo whose first frame is a given image, at the time of clean data."""
    transformer = randomised(
        diffusers.HunyuanVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=2,
            num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True, text_embed_dim=16,
            pooled_projection_dim=8, rope_axes_dim=(2, 4, 4), image_condition_type="token_replace",
        )
    )  # fmt: skip
    inputs = {
        "encoder_hidden_states": torch.randn(1, 6, 16),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]]),
        "pooled_projections": torch.randn(1, 8),
        "guidance": torch.tensor([6000.0]),
    }
    return Tiny(Loop(transformer, 1, 4, 2, 2, 4), inputs)


def cogview4() -> Tiny:
    transformer = randomised(
        diffusers.CogView4Transformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
            text_embed_dim=16, time_embed_dim=8, condition_dim=4, rope_axes_dim=(32, 32),
        ),
        std=0.2,
    )  # fmt: skip
    inputs = {**pair("prompt_embeds", 1, 8, 16), "guidance_scale": 2.0, "height": 32, "width": 64}
    return quiet(built("CogView4Pipeline", transformer), **inputs)


def cogview3() -> Tiny:
    transformer = randomised(
        diffusers.CogView3PlusTransformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
            text_embed_dim=16, time_embed_dim=8, condition_dim=4, pos_embed_max_size=8, sample_size=8,
        ),
        std=0.2,
    )  # fmt: skip
    inputs = {**pair("prompt_embeds", 1, 8, 16), "guidance_scale": 2.0, "height": 32, "width": 64}
    return quiet(built("CogView3PlusPipeline", transformer, diffusers.CogVideoXDDIMScheduler()), **inputs)


def sana() -> Tiny:
    transformer = randomised(
        diffusers.SanaTransformer2DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=4, num_layers=3,
            num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8, sample_size=4,
            patch_size=1,
        ),
        std=0.3,
    )  # fmt: skip
    inputs = {**pair("prompt_embeds", 1, 6, 8), **masks("prompt_attention_mask", 6), "negative_prompt": None}
    inputs |= {"guidance_scale": 2.0, "use_resolution_binning": False, "height": 64, "width": 128}
    return quiet(built("SanaPipeline", transformer), **inputs)


def pixart() -> Tiny:
    transformer = randomised(
        diffusers.PixArtTransformer2DModel(
            sample_size=8, num_layers=3, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=16,
            in_channels=4, cross_attention_dim=24, out_channels=8, use_additional_conditions=False,
        )
    )  # fmt: skip
    inputs = {**pair("prompt_embeds", 1, 6, 16), **masks("prompt_attention_mask", 6), "negative_prompt": None}
    inputs |= {
        "guidance_scale": 2.0,
        "use_resolution_binning": False,
        "clean_caption": False,
        "height": 32,
        "width": 64,
    }
    return quiet(built("PixArtAlphaPipeline", transformer, diffusers.DDIMScheduler()), **inputs)


def allegro() -> Tiny:
    transformer = randomised(
        diffusers.AllegroTransformer3DModel(
            num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=3, cross_attention_dim=24,
            sample_width=8, sample_height=8, sample_frames=8, caption_channels=24,
        )
    )  # fmt: skip
    inputs = {**pair("prompt_embeds", 1, 6, 24), **masks("prompt_attention_mask", 6), "negative_prompt": None}
    inputs |= {"guidance_scale": 2.0, "clean_caption": False, "height": 32, "width": 32, "num_frames": 8}
    return quiet(built("AllegroPipeline", transformer, diffusers.DDIMScheduler()), **inputs)


def skyreels() -> Tiny:
    transformer = randomised(
        diffusers.SkyReelsV2Transformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16, text_dim=16,
            freq_dim=32, ffn_dim=32, num_layers=3, cross_attn_norm=True, rope_max_seq_len=32,
        )
    )  # fmt: skip
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    inputs = {**pair("prompt_embeds", 1, 6, 16), "height": 32, "width": 32, "num_frames": 5, "guidance_scale": 2.0}
    return quiet(built("SkyReelsV2Pipeline", transformer, scheduler), **inputs)


def auraflow() -> Tiny:
    transformer = randomised(
        diffusers.AuraFlowTransformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=2, attention_head_dim=8,
            num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32, out_channels=4, pos_embed_max_size=64,
        )
    )  # fmt: skip
    inputs = {**pair("prompt_embeds", 1, 6, 32), **masks("prompt_attention_mask", 6), "guidance_scale": 2.0}
    return quiet(built("AuraFlowPipeline", transformer), **inputs, height=32, width=64)


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
"""Of other models that many use."""

RARER: dict[str, Callable[[], Tiny]] = {
    "chroma": chroma,
    "bria": bria,
    "bria_fibo": bria_fibo,
    "longcat": longcat,
    "ovis": ovis,
    "hunyuan_image": hunyuan_image,
    "hunyuan_video_15": hunyuan_video_15,
    "cogview3": cogview3,
    "cogview4": cogview4,
    "sana": sana,
    "pixart": pixart,
    "allegro": allegro,
    "skyreels": skyreels,
    "wan_vace": wan_vace,
    "chronoedit": chronoedit,
}
"""Of more models whose blocks have the site form."""

VARIANTS: dict[str, Callable[[], Tiny]] = {
    "flux_kontext": flux_kontext,
    "flux_fill": flux_fill,
    "flux_control": flux_control,
    "flux_controlnet": flux_controlnet,
    "wan22": wan22,
    "wan22_5b": wan22_5b,
}
"""Other pipelines of classes in `MAKERS`."""

WHOLE: dict[str, Callable[[], Tiny]] = {
    "auraflow": auraflow,
    "token_replace": token_replace,
    "hunyuan_dit": hunyuan_dit,
    "easyanimate": easyanimate,
}
"""Of models whose blocks have not."""


ALL = MAKERS | MORE | RARER | VARIANTS | WHOLE


def tiny(name: str) -> Tiny:
    torch.manual_seed(0)
    return ALL[name]()
