"""Small stand-ins for what the ComfyUI node meets: model patcher, sampler, and four transformers.

Names, call signatures and the structure of blocks are those of ComfyUI (comfy/model_patcher.py, comfy/samplers.py, comfy/ldm);
so is that blocks of Flux and HunyuanVideo, and control nets, add in place. What they compute is small and our own.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

DIM, HEADS, TEXT = 16, 2, 3


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of (B, L, D) each."""
    q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def norm() -> nn.LayerNorm:
    return nn.LayerNorm(DIM, eps=1e-6, elementwise_affine=False)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))


def patches(x: Tensor) -> Tensor:
    """Tokens (B, L, 4 C) of latents (B, C, H, W) or (B, C, T, H, W)."""
    x = x if x.ndim == 5 else x.unsqueeze(2)
    return rearrange(x, "b c t (h p) (w q) -> b (t h w) (c p q)", p=2, q=2)


def unpatched(tokens: Tensor, like: Tensor) -> Tensor:
    t, h, w = (like.shape[2] if like.ndim == 5 else 1), like.shape[-2] // 2, like.shape[-1] // 2
    return rearrange(tokens, "b (t h w) (c p q) -> b c t (h p) (w q)", t=t, h=h, w=w, p=2, q=2).reshape(like.shape)


class Times(nn.Module):
    """A vector (B, D) for a time (B,) from 0 to 1."""

    def __init__(self, span: float) -> None:
        super().__init__()
        self.span, self.out = span, nn.Linear(DIM, DIM)

    def forward(self, t: Tensor) -> Tensor:
        angles = (t / self.span)[:, None] * torch.arange(1, DIM // 2 + 1)
        return self.out(torch.cat([angles.cos(), angles.sin()], dim=1))


# ------------------------------------------------------------------------------------------------------ flux and hunyuan


class Modulation(nn.Module):
    def __init__(self, double: bool) -> None:
        super().__init__()
        self.lin = nn.Linear(DIM, (6 if double else 3) * DIM)

    def forward(self, vec: Tensor) -> tuple[Any, Any]:
        parts = self.lin(F.silu(vec[:, None] if vec.ndim == 2 else vec)).split(DIM, dim=-1)
        rows = [SimpleNamespace(shift=a, scale=b, gate=c) for a, b, c in zip(*[iter(parts)] * 3, strict=True)]
        return rows[0], rows[1] if len(rows) > 1 else None


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)


class DoubleStreamBlock(nn.Module):
    def __init__(self, flipped_img_txt: bool = False) -> None:
        super().__init__()
        self.flipped_img_txt = flipped_img_txt
        for stream in ("img", "txt"):
            self.add_module(f"{stream}_mod", Modulation(True))
            self.add_module(f"{stream}_attn", SelfAttention())
            self.add_module(f"{stream}_mlp", mlp())
            self.add_module(f"{stream}_norm1", norm())
            self.add_module(f"{stream}_norm2", norm())

    def forward(self, img: Tensor, txt: Tensor, vec: Tensor, pe: Any, attn_mask: Any = None) -> tuple[Tensor, Tensor]:
        (img1, img2), (txt1, txt2) = self.img_mod(vec), self.txt_mod(vec)
        img_qkv = self.img_attn.qkv((1 + img1.scale) * self.img_norm1(img) + img1.shift)
        txt_qkv = self.txt_attn.qkv((1 + txt1.scale) * self.txt_norm1(txt) + txt1.shift)
        order = (img_qkv, txt_qkv) if self.flipped_img_txt else (txt_qkv, img_qkv)
        joint = attend(*torch.cat(order, dim=1).chunk(3, dim=-1))
        first, second = joint.split([order[0].shape[1], order[1].shape[1]], dim=1)
        of_img, of_txt = (first, second) if self.flipped_img_txt else (second, first)
        img += img1.gate * self.img_attn.proj(of_img)
        img += img2.gate * self.img_mlp((1 + img2.scale) * self.img_norm2(img) + img2.shift)
        txt += txt1.gate * self.txt_attn.proj(of_txt)
        txt += txt2.gate * self.txt_mlp((1 + txt2.scale) * self.txt_norm2(txt) + txt2.shift)
        return img, txt


class SingleStreamBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(DIM, 5 * DIM), nn.Linear(3 * DIM, DIM)
        self.pre_norm, self.modulation = norm(), Modulation(False)

    def forward(self, x: Tensor, vec: Tensor, pe: Any, attn_mask: Any = None) -> Tensor:
        mod, _ = self.modulation(vec)
        qkv, hidden = self.linear1((1 + mod.scale) * self.pre_norm(x) + mod.shift).split([3 * DIM, 2 * DIM], dim=-1)
        x += mod.gate * self.linear2(torch.cat([attend(*qkv.chunk(3, dim=-1)), F.gelu(hidden)], dim=-1))
        return x


class _TwoStreams(nn.Module):
    patch_size: Any = 2
    flipped, span = False, 1.0

    def __init__(self) -> None:
        super().__init__()
        self.img_in, self.txt_in, self.vector_in = nn.Linear(8, DIM), nn.Linear(5, DIM), nn.Linear(4, DIM)
        self.time_in = Times(self.span)
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(self.flipped) for _ in range(2))
        self.single_blocks = nn.ModuleList(SingleStreamBlock() for _ in range(3))
        self.final_mod, self.final_norm, self.final = nn.Linear(DIM, DIM), norm(), nn.Linear(DIM, 8)

    def forward(
        self, x: Tensor, timestep: Tensor, context: Tensor, y: Tensor | None = None, guidance: Any = None,
        control: Any = None, transformer_options: Any = None, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        vec, img, txt = self.time_in(timestep) + self.vector_in(y), self.img_in(patches(x)), self.txt_in(context)
        replaced = transformer_options.get("patches_replace", {}).get("dit", {})
        for i, block in enumerate(self.double_blocks):
            if ("double_block", i) in replaced:
                out = replaced["double_block", i]({"img": img, "txt": txt, "vec": vec, "pe": None}, {})
                img, txt = out["img"], out["txt"]
            else:
                img, txt = block(img=img, txt=txt, vec=vec, pe=None, attn_mask=None)
            if control is not None:
                img += control["input"][i]
        joint = torch.cat([img, txt] if self.flipped else [txt, img], dim=1)
        image = slice(0, img.shape[1]) if self.flipped else slice(txt.shape[1], None)
        for i, block in enumerate(self.single_blocks):
            joint = block(joint, vec=vec, pe=None, attn_mask=None)
            if control is not None:
                joint[:, image] += control["output"][i]
        img = self.final(self.final_norm(joint[:, image]) * (1 + self.final_mod(vec)[:, None]))
        return unpatched(img, x)


class Flux(_TwoStreams):
    pass


class HunyuanVideo(_TwoStreams):
    patch_size: Any = (1, 2, 2)
    flipped, span = True, 1000.0


# -------------------------------------------------------------------------------------------------------------- wan


class WanAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(DIM, DIM) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.o(attend(self.q(x), self.k(context), self.v(context)))


class WanAttentionBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = norm(), norm(), nn.LayerNorm(DIM)
        self.self_attn, self.cross_attn, self.ffn = WanAttention(), WanAttention(), mlp()
        self.modulation = nn.Parameter(torch.randn(1, 6, DIM) / 4)

    def forward(
        self, x: Tensor, e: Tensor, freqs: Any, context: Tensor, context_img_len: int | None = None,
        transformer_options: Any = None,
    ) -> Tensor:  # fmt: skip
        e = (self.modulation.unsqueeze(0) + e).unbind(2)
        y = self.norm1(x) * (1 + e[1]) + e[0]
        x = x + self.self_attn(y, y) * e[2]
        x = x + self.cross_attn(self.norm3(x), context)
        return x + self.ffn(self.norm2(x) * (1 + e[4]) + e[3]) * e[5]


class WanModel(nn.Module):
    patch_size = (1, 2, 2)

    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding, self.text_embedding = nn.Linear(8, DIM), nn.Linear(5, DIM)
        self.time_embedding, self.time_projection = Times(1000.0), nn.Linear(DIM, 6 * DIM)
        self.blocks = nn.ModuleList(WanAttentionBlock() for _ in range(4))
        self.head, self.head_norm = nn.Linear(DIM, 8), norm()

    def forward(
        self, x: Tensor, timestep: Tensor, context: Tensor, clip_fea: Any = None, time_dim_concat: Any = None,
        transformer_options: Any = None, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        e = self.time_embedding(timestep.flatten()).reshape(len(x), -1, DIM)
        e0 = self.time_projection(e).unflatten(2, (6, DIM))
        tokens, text = self.patch_embedding(patches(x)), self.text_embedding(context)
        for block in self.blocks:
            tokens = block(tokens, e=e0, freqs=None, context=text, transformer_options=transformer_options)
        return unpatched(self.head(self.head_norm(tokens) * (1 + e)), x)


class VaceWanModel(WanModel):
    """Of a class that derives from a known one."""


# ---------------------------------------------------------------------------------------------------------- hidream


class HiDreamAttention(nn.Module):
    def __init__(self, single: bool) -> None:
        super().__init__()
        self.single = single
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(DIM, DIM) for _ in range(4))
        if not single:
            self.to_qkv_t, self.to_out_t = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, image: Tensor, masks: Any = None, text: Tensor | None = None, rope: Any = None) -> Any:
        qkv = [self.to_q(image), self.to_k(image), self.to_v(image)]
        if self.single:
            return self.to_out(attend(*qkv))
        qkv = [torch.cat(pair, dim=1) for pair in zip(qkv, self.to_qkv_t(text).chunk(3, dim=-1), strict=True)]
        of_image, of_text = attend(*qkv).split([image.shape[1], text.shape[1]], dim=1)
        return self.to_out(of_image), self.to_out_t(of_text)


class HiDreamImageTransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(DIM, 12 * DIM))
        self.norm1_i, self.norm1_t, self.norm3_i, self.norm3_t = norm(), norm(), norm(), norm()
        self.attn1, self.ff_i, self.ff_t = HiDreamAttention(False), mlp(), mlp()

    def forward(
        self, image_tokens: Tensor, image_tokens_masks: Any = None, text_tokens: Any = None, adaln_input: Any = None,
        rope: Any = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        i1, i2, i3, i4, i5, i6, t1, t2, t3, t4, t5, t6 = self.adaLN_modulation(adaln_input)[:, None].chunk(12, dim=-1)
        image, text = self.norm1_i(image_tokens) * (1 + i2) + i1, self.norm1_t(text_tokens) * (1 + t2) + t1
        of_image, of_text = self.attn1(image, image_tokens_masks, text, rope=rope)
        image, text = image_tokens + i3 * of_image, text_tokens + t3 * of_text
        image = image + i6 * self.ff_i(self.norm3_i(image) * (1 + i5) + i4)
        return image, text + t6 * self.ff_t(self.norm3_t(text) * (1 + t5) + t4)


class HiDreamImageSingleTransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(DIM, 6 * DIM))
        self.norm1_i, self.norm3_i = norm(), norm()
        self.attn1, self.ff_i = HiDreamAttention(True), mlp()

    def forward(
        self, image_tokens: Tensor, image_tokens_masks: Any = None, text_tokens: Any = None, adaln_input: Any = None,
        rope: Any = None,
    ) -> Tensor:  # fmt: skip
        a, b, c, d, e, f = self.adaLN_modulation(adaln_input)[:, None].chunk(6, dim=-1)
        x = image_tokens + c * self.attn1(self.norm1_i(image_tokens) * (1 + b) + a, image_tokens_masks, rope=rope)
        return x + f * self.ff_i(self.norm3_i(x) * (1 + e) + d)


class HiDreamImageBlock(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(
        self, image_tokens: Tensor, image_tokens_masks: Any = None, text_tokens: Any = None, adaln_input: Any = None,
        rope: Any = None,
    ) -> Any:  # fmt: skip
        return self.block(image_tokens, image_tokens_masks, text_tokens, adaln_input, rope)


class HiDreamImageTransformer2DModel(nn.Module):
    """Every block is given texts of its own beside those that go from block to block."""

    patch_size = 2

    def __init__(self) -> None:
        super().__init__()
        self.x_embedder, self.caption, self.p_embedder = nn.Linear(8, DIM), nn.Linear(5, DIM), nn.Linear(4, DIM)
        self.t_embedder = Times(1000.0)
        self.double_stream_blocks = nn.ModuleList(HiDreamImageBlock(HiDreamImageTransformerBlock()) for _ in range(2))
        self.single_stream_blocks = nn.ModuleList(
            HiDreamImageBlock(HiDreamImageSingleTransformerBlock()) for _ in range(2)
        )
        self.final, self.final_norm = nn.Linear(DIM, 8), norm()

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, context: Tensor | None = None,
        encoder_hidden_states_llama3: Any = None, image_cond: Any = None, control: Any = None,
        transformer_options: Any = None,
    ) -> Tensor:  # fmt: skip
        adaln_input, image, text = (
            self.t_embedder(t) + self.p_embedder(y),
            self.x_embedder(patches(x)),
            self.caption(context),
        )
        own = text[:, :1]
        for block in self.double_stream_blocks:
            image, text = block(
                image_tokens=image, image_tokens_masks=None, text_tokens=torch.cat([text, own], dim=1),
                adaln_input=adaln_input, rope=None,
            )  # fmt: skip
            text = text[:, :TEXT]
        length = image.shape[1]
        joint = torch.cat([image, text], dim=1)
        for block in self.single_stream_blocks:
            given = torch.cat([joint, own], dim=1)
            joint = block(
                image_tokens=given, image_tokens_masks=None, text_tokens=None, adaln_input=adaln_input, rope=None
            )
            joint = joint[:, : length + TEXT]
        return -unpatched(self.final(self.final_norm(joint[:, :length]) * (1 + adaln_input[:, None])), x)


MODELS: dict[str, type[nn.Module]] = {
    "flux": Flux,
    "hunyuan_video": HunyuanVideo,
    "wan": WanModel,
    "hidream": HiDreamImageTransformer2DModel,
}

# ---------------------------------------------------------------------------------------------------------- comfyui


class ModelSampling:
    """Of a flow; times are noise levels times `multiplier`."""

    def __init__(self, multiplier: float) -> None:
        self.multiplier = multiplier

    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma * self.multiplier

    def percent_to_sigma(self, percent: float) -> float:
        return 1.0 - percent


class BaseModel(nn.Module):
    def __init__(self, diffusion_model: nn.Module, multiplier: float) -> None:
        super().__init__()
        self.diffusion_model, self.model_sampling = diffusion_model, ModelSampling(multiplier)

    def apply_model(
        self, x: Tensor, t: Tensor, c_crossattn: Any = None, control: Any = None, transformer_options: Any = None, **kwargs: Any
    ) -> Tensor:  # fmt: skip
        time = self.model_sampling.timestep(t).float()
        out = self.diffusion_model(
            x, time, context=c_crossattn, control=control, transformer_options=dict(transformer_options), **kwargs
        )
        return x - out * t.reshape(-1, *[1] * (x.ndim - 1))


class ModelPatcher:
    """Clones share the model; options are copied deeply, wrappers by list."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.wrappers: dict[str, dict[str, list[Callable[..., Any]]]] = {}

    def clone(self) -> "ModelPatcher":
        made = ModelPatcher(self.model)
        made.model_options = copy.deepcopy(self.model_options)
        made.wrappers = {kind: {key: list(of) for key, of in by.items()} for kind, by in self.wrappers.items()}
        return made

    def set_model_unet_function_wrapper(self, wrapper: Callable[..., Tensor]) -> None:
        self.model_options["model_function_wrapper"] = wrapper

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Callable[..., Any]) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind: str, key: str) -> None:
        self.wrappers.get(kind, {}).pop(key, None)


class InterruptProcessingException(Exception):  # noqa: N818 - ComfyUI's name
    """What ComfyUI raises in a sampler that is to stop."""


@dataclass(frozen=True)
class Call:
    """A call of the model: at a noise level, with what, and what it gave."""

    sigma: float
    given: Tensor
    time: Tensor
    c: dict[str, Any]
    output: Tensor


@dataclass
class Sampler:
    """Euler steps with guidance. batched: both branches in one call, or else one call each.

    calls: of the model in the last sampling. stop_at: the step before which
    it is interrupted. midpoint: a second call half way through every step. extra: options of every call.
    """

    patcher: ModelPatcher
    scale: float = 3.0
    batched: bool = False
    midpoint: bool = False
    stop_at: int | None = None
    control: Any = None
    extra: Any = None

    def __call__(self, sigmas: Tensor, size: tuple[int, int] = (4, 4), seed: int = 0) -> Tensor:
        self.calls: list[Call] = []
        run: Callable[..., Any] = self._sample
        for wrapper in [w for of in self.patcher.wrappers.get("outer_sample", {}).values() for w in of]:
            run = partial(wrapper, run)
        with torch.inference_mode():
            return run(sigmas, size, seed)

    def _sample(self, sigmas: Tensor, size: tuple[int, int], seed: int) -> Tensor:
        make = torch.Generator().manual_seed(seed)
        frames = () if isinstance(self.patcher.model.diffusion_model.patch_size, int) else (2,)
        x = torch.randn(1, 2, *frames, *size, generator=make)
        conds = [
            {"c_crossattn": torch.randn(1, TEXT, 5, generator=make), "y": torch.randn(1, 4, generator=make)}
            for _ in range(2 if self.scale != 1 else 1)
        ]
        options = {**self.patcher.model_options["transformer_options"], "sample_sigmas": sigmas, **(self.extra or {})}
        for i, (sigma, following) in enumerate(pairwise(sigmas)):
            if i == self.stop_at:
                raise InterruptProcessingException
            v = (x - self._denoised(x, sigma, conds, options)) / sigma
            if self.midpoint and following > 0:
                between = (sigma + following) / 2
                mid = x + v * (between - sigma)
                v = (mid - self._denoised(mid, between, conds, options)) / between
            x = x + v * (following - sigma)
        return x

    def _denoised(
        self, x: Tensor, sigma: Tensor, conds: Sequence[dict[str, Tensor]], options: dict[str, Any]
    ) -> Tensor:
        groups = [list(range(len(conds)))] if self.batched else [[i] for i in range(len(conds))]
        found: dict[int, Tensor] = {}
        for group in groups:
            c: dict[str, Any] = {name: torch.cat([conds[i][name] for i in group]) for name in conds[0]}
            time = sigma.expand(len(group))
            c["transformer_options"] = {**options, "cond_or_uncond": group, "uuids": group, "sigmas": time}
            if self.control is not None:
                c["control"] = self.control
            given = torch.cat([x] * len(group))
            apply_model = self.patcher.model.apply_model
            wrapper = self.patcher.model_options.get("model_function_wrapper")
            call = {"input": given, "timestep": time, "c": c, "cond_or_uncond": group}
            output = apply_model(given, time, **c) if wrapper is None else wrapper(apply_model, call)
            self.calls.append(Call(float(sigma), given, time, c, output))
            found |= dict(zip(group, output.chunk(len(group)), strict=True))
        return found[0] if len(conds) == 1 else found[1] + (found[0] - found[1]) * self.scale


def patcher(name: str, kind: type[nn.Module] | None = None) -> ModelPatcher:
    """A model of a family, or of another class with its times, random weights from one seed."""
    torch.manual_seed(0)
    model = BaseModel((kind or MODELS[name])(), 1.0 if name == "flux" else 1000.0)
    return ModelPatcher(model.requires_grad_(False).eval())


def shifted(num_steps: int, shift: float = 3.0) -> Tensor:
    """Noise levels (S + 1,) from 1 down to 0."""
    t = torch.linspace(1, 0, num_steps + 1)
    return shift * t / (1 + (shift - 1) * t)
