"""What is known of ComfyUI's transformers (comfy/ldm): their lists of blocks, streams and sites, and published settings.

Blocks of Flux and HunyuanVideo write into the tensors that they are given, and so do control nets and VACE between blocks.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from cache_dic import ATTENTION, CROSS, FUSED, MLP, UserError
from taylorseers_diffusers.forms import IMAGE_FIRST, IMAGE_LAST, BlockForm, Feature, proper
from taylorseers_diffusers.model import CachedTransformer
from taylorseers_diffusers.passes import BlockCall, Passes, Walk

# ---------------------------------------------------------------------------------------------------------------- blocks


def _flux_double(block: nn.Module) -> BlockForm:
    """Of Flux and HunyuanVideo; a block whose modulation comes from outside, as in Flux 2, has no site form."""
    streams = BlockForm(x="img", other="txt", x_out=0, other_out=1, conditions=("vec",), in_place=True)
    if getattr(block, "img_mod", None) is None:
        return streams

    def modulated(block: nn.Module, x: Tensor, vec: Tensor) -> Tensor:
        first, _ = block.img_mod(vec)
        return (1 + first.scale) * block.img_norm1(x) + first.shift

    return replace(
        streams,
        features=(Feature("attn", "img_attn.proj", ATTENTION), Feature("mlp", "img_mlp", MLP)),
        gates=lambda block, vec: [part.gate for part in block.img_mod(vec)],
        modulated=modulated,
    )


def _flux_single(joint: str) -> Callable[[nn.Module], BlockForm]:
    def form(block: nn.Module) -> BlockForm:
        streams = BlockForm(x="x", joint=joint, conditions=("vec",), in_place=True)
        if getattr(block, "modulation", None) is None:
            return streams
        return replace(
            streams,
            features=(Feature("single", "linear2", FUSED, joint=joint),),
            gates=lambda block, vec: [block.modulation(vec)[0].gate],
        )

    return form


def _wan(_: nn.Module) -> BlockForm:
    def rows(block: nn.Module, e: Tensor) -> Sequence[Tensor]:
        """Shift, scale, gate, twice, from times of the video (B, 6, D) or of its frames (B, T, 6, D)."""
        if e.ndim == 4:
            return (block.modulation.to(e).unsqueeze(0) + e).unbind(2)
        return (block.modulation.to(e) + e).chunk(6, dim=1)

    def gates(block: nn.Module, e: Tensor) -> list[Tensor | None]:
        parts = rows(block, e)
        return [parts[2], None, parts[5]]

    def modulated(block: nn.Module, x: Tensor, e: Tensor) -> Tensor:
        shift, scale, *_ = rows(block, e)
        return block.norm1(x) * (1 + scale) + shift

    features = (
        Feature("attn", "self_attn", ATTENTION),
        Feature("cross", "cross_attn", CROSS),
        Feature("mlp", "ffn", MLP),
    )
    return BlockForm(x="x", conditions=("e",), features=features, gates=gates, modulated=modulated, in_place=True)


def _hidream(count: int, streams: BlockForm) -> Callable[[nn.Module], BlockForm]:
    """Of blocks with `count` rows of modulation."""

    def rows(block: nn.Module, adaln_input: Tensor) -> Sequence[Tensor]:
        return block.adaLN_modulation(adaln_input).unsqueeze(1).chunk(count, dim=-1)

    def gates(block: nn.Module, adaln_input: Tensor) -> list[Tensor]:
        parts = rows(block, adaln_input)
        return [parts[2], parts[5]]

    def modulated(block: nn.Module, x: Tensor, adaln_input: Tensor) -> Tensor:
        shift, scale, *_ = rows(block, adaln_input)
        return block.norm1_i(x).to(x.dtype) * (1 + scale) + shift

    form = replace(streams, conditions=("adaln_input",), gates=gates, modulated=modulated, in_place=True)
    return lambda _: form


_HIDREAM_DOUBLE = BlockForm(
    x="image_tokens", other="text_tokens", x_out=0, other_out=1,
    features=(Feature("attn", "attn1", ATTENTION, 0), Feature("mlp", "ff_i", MLP)),
)  # fmt: skip
_HIDREAM_SINGLE = BlockForm(
    x="image_tokens", joint=IMAGE_FIRST,
    features=(Feature("attn", "attn1", ATTENTION, joint=IMAGE_FIRST), Feature("mlp", "ff_i", MLP, joint=IMAGE_FIRST)),
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- models


@dataclass(frozen=True)
class Known:
    """preset: the backbone whose published settings are the usual ones. lists: attributes that hold the blocks, in the order of
    their calls. forms: of blocks, by class.
    """

    preset: str
    lists: tuple[str, ...]
    forms: Mapping[str, Callable[[nn.Module], BlockForm]]


_FLUX_LISTS = ("double_blocks", "single_blocks")

KNOWN: dict[str, Known] = {
    "Flux": Known(
        "flux", _FLUX_LISTS, {"DoubleStreamBlock": _flux_double, "SingleStreamBlock": _flux_single(IMAGE_LAST)}
    ),
    "HunyuanVideo": Known(
        "hunyuan_video",
        _FLUX_LISTS,
        {"DoubleStreamBlock": _flux_double, "SingleStreamBlock": _flux_single(IMAGE_FIRST)},
    ),
    "WanModel": Known("wan", ("blocks",), {"WanAttentionBlock": _wan}),
    "HiDreamImageTransformer2DModel": Known(
        "hidream",
        ("double_stream_blocks", "single_stream_blocks"),
        {
            "HiDreamImageTransformerBlock": _hidream(12, _HIDREAM_DOUBLE),
            "HiDreamImageSingleTransformerBlock": _hidream(6, _HIDREAM_SINGLE),
        },
    ),
}
"""By class of the transformer."""


def known(transformer: nn.Module) -> tuple[Known, bool]:
    """What is known of a transformer, and whether it is of that very class; UserError for another.

    A class derived from a known one, such as Wan's VACE, may add to the tokens between blocks, so that its sites are not all.
    """
    if hasattr(transformer, "_orig_mod"):
        raise UserError(
            f"{type(transformer._orig_mod).__name__} is compiled as a whole, one graph in which no block can be left out; take "
            "the node that compiles it off"
        )
    for kind in type(transformer).__mro__:
        if kind.__name__ in KNOWN:
            return KNOWN[kind.__name__], kind is type(transformer)
    raise UserError(
        f"{type(transformer).__name__} is no model whose blocks are known here; what is supported is "
        f"{', '.join(KNOWN)} and what derives from them"
    )


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """A module does something else when it is called."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


class ComfyPasses(Passes):
    """Passes through a transformer of ComfyUI; features are handed over by modules whose forward is replaced meanwhile."""

    def __init__(self, transformer: nn.Module) -> None:
        self.known, self.is_exact = known(transformer)
        super().__init__(transformer)

    def block_lists(self) -> dict[str, nn.ModuleList]:
        found = {name: blocks for name in self.known.lists if len(blocks := getattr(self.transformer, name))}
        if not found:
            raise UserError(f"{type(self.transformer).__name__} has no blocks in {', '.join(self.known.lists)}")
        return found

    def form_of(self, block: nn.Module) -> BlockForm:
        inner = proper(block)
        for kind in type(inner).__mro__:
            if kind.__name__ in self.known.forms:
                form = self.known.forms[kind.__name__](inner)
                return form if self.is_exact and kind is type(inner) else replace(form, features=(), gates=None)
        raise UserError(
            f"{type(inner).__name__} in {type(self.transformer).__name__} is no block that is known here; what is supported is "
            f"{', '.join(self.known.forms)}"
        )

    def compute(self, call: BlockCall) -> Any:
        with ExitStack() as replaced:
            for feature in call.form.features if self.hand is not None else ():
                module = proper(call.block).get_submodule(feature.module)
                forward = partial(_handed, self.hand, feature.module, module.forward)
                replaced.enter_context(replaced_forward(module, forward))
            return super().compute(call)


def _handed(hand: Callable[..., Any], module: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return hand(module, forward, args, kwargs)


class ComfyModel(CachedTransformer):
    """A transformer of ComfyUI for one run of one branch; its times are noise levels, from 1 down to 0."""

    TIME_SPAN = 1.0

    def walked(self, walk: Walk, arguments: Mapping[str, Any] | None = None) -> Tensor:
        return self.passes.run(self.forward, self.arguments if arguments is None else arguments, walk)

    def token_grid(self, latents: Tensor, **_: Any) -> tuple[int, ...]:
        sizes, patch = latents.shape[2:], getattr(self.passes.transformer, "patch_size", None)
        patch = (patch,) * len(sizes) if isinstance(patch, int) else patch
        grid = () if patch is None else tuple(-(-size // p) for size, p in zip(sizes, patch, strict=True))
        length = self.enter().x.shape[1]
        if math.prod(grid) != length:
            raise UserError(
                f"the {length} tokens of {self.name} are not those of its latents {tuple(latents.shape)} alone, and this "
                "method looks at their rows and columns; take another method"
            )
        return grid

    def time_signals(self, timesteps: Tensor, **_: Any) -> dict[str, Tensor]:
        raise UserError(f"what {self.name} embeds its time as is not known here, and this method looks at it")
