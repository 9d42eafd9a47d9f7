"""What is known of the blocks of diffusers' transformers: their streams, their sites, and how their gates are computed.

A block whose additions are all `x + gate * feature`, with gates that a submodule or parameter of the block makes of the
embedded time alone, has the site form: its features are what submodules give, and its gates of another step can be had without
computing the step. Of any other block the tokens before and after it are known. (diffusers 0.42, models/transformers.)
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from cache_dic import ATTENTION, CROSS, FUSED, MLP, UserError

BLOCK_LISTS = (
    "transformer_blocks",
    "double_stream_blocks",
    "single_transformer_blocks",
    "single_stream_blocks",
    "temporal_transformer_blocks",
    "visual_transformer_blocks",
    "blocks",
    "layers",
)
"""Names that transformers of diffusers give the lists of their blocks."""

IMAGE_FIRST, IMAGE_LAST = "image first", "image last"


@dataclass(frozen=True)
class Feature:
    """A site: what a submodule of the block gives, before the gate.

    kind: ATTENTION, CROSS, MLP or FUSED. output: which of several it gives. joint: where the tokens of the image stand among
    those of a joint stream; None where there are no others. reaches_output: False for a stream that the model's output is not
    read from.
    """

    name: str
    module: str
    kind: str
    output: int | None = None
    joint: str | None = None
    reaches_output: bool = True


GatesOf = Callable[..., Sequence[Tensor | None]]
"""`gates(block, *conditions)`: of the features that reach the output, (B, D) or (B, 1, D) each, None for 1."""


@dataclass(frozen=True)
class BlockForm:
    """Streams and sites of a class of blocks.

    x, other: arguments that take the tokens of the image and those that the block also gives back, such as the text's.
    x_out, other_out: where they are among what it gives, None for a block that gives x alone. joint: x holds the text, too,
    where the image's tokens stand. conditions: arguments that the gates follow from. attentions: features that a method may
    leave out and reuse, in place of `features`; of blocks with parallel attention and MLP it is the attention alone.
    modulated(block, x, *conditions): tokens after the first norm, shift and scale. in_place: the block, or the forward around
    it, adds to the tensors that hold its streams.
    """

    x: str = "hidden_states"
    other: str | None = None
    x_out: int | None = None
    other_out: int | None = None
    joint: str | None = None
    features: tuple[Feature, ...] = ()
    conditions: tuple[str, ...] = ("temb",)
    gates: GatesOf | None = None
    partial: tuple[Feature, ...] | None = None
    modulated: Callable[..., Tensor] | None = None
    in_place: bool = False

    @property
    def sites(self) -> tuple[Feature, ...]:
        """Features on the way to the output."""
        return tuple(feature for feature in self.features if feature.reaches_output)

    @property
    def partial_features(self) -> tuple[Feature, ...]:
        """Those that methods which compute part of a step may leave out."""
        return self.features if self.partial is None else self.partial


# ---------------------------------------------------------------------------------------------------------------- gates


def no_tokens(c: Tensor, width: int) -> Tensor:
    """A stream of one token (B, 1, width) to call a norm with whose gates are wanted, for conditions c (B, …)."""
    return torch.zeros(len(c), 1, width, dtype=c.dtype, device=c.device)


def _adaln_zero(block: nn.Module, temb: Tensor) -> tuple[Tensor, Tensor]:
    """`AdaLayerNormZero`: gates of attention and MLP."""
    _, attention, *_, mlp = block.norm1(no_tokens(temb, temb.shape[-1]), emb=temb)
    return attention, mlp


def _adaln_single(block: nn.Module, temb: Tensor) -> tuple[Tensor]:
    """`AdaLayerNormZeroSingle`, of blocks with attention and MLP side by side."""
    return (block.norm(no_tokens(temb, temb.shape[-1]), emb=temb)[1],)


def _adaln_first(block: nn.Module, x: Tensor, temb: Tensor) -> Tensor:
    return block.norm1(x, emb=temb)[0]


def _chunks(values: Tensor, count: int, *indices: int) -> tuple[Tensor, ...]:
    """Some of `count` equal parts of (B, count · D)."""
    parts = values.chunk(count, dim=-1)
    return tuple(parts[i] for i in indices)


# ---------------------------------------------------------------------------------------------------------------- forms


def _two_streams(attn: str, mlp: str, txt_mlp: str) -> tuple[Feature, ...]:
    """Sites of a block of two streams with joint attention, by names of its submodules."""
    return (
        Feature("attn", attn, ATTENTION, 0),
        Feature("mlp", mlp, MLP),
        Feature("txt_attn", attn, ATTENTION, 1, reaches_output=False),
        Feature("txt_mlp", txt_mlp, MLP, reaches_output=False),
    )


def _flux_double(_: nn.Module) -> BlockForm:
    return BlockForm(
        other="encoder_hidden_states",
        x_out=1,
        other_out=0,
        features=_two_streams("attn", "ff", "ff_context"),
        gates=_adaln_zero,
        modulated=_adaln_first,
    )


def _flux_single(_: nn.Module) -> BlockForm:
    return BlockForm(
        other="encoder_hidden_states", x_out=1, other_out=0, gates=_adaln_single,
        features=(Feature("single", "proj_out", FUSED, joint=IMAGE_LAST),),
        partial=(Feature("attn", "attn", ATTENTION, joint=IMAGE_LAST),),
    )  # fmt: skip


def _hunyuan_double(_: nn.Module) -> BlockForm:
    return BlockForm(
        other="encoder_hidden_states",
        x_out=0,
        other_out=1,
        features=_two_streams("attn", "ff", "ff_context"),
        gates=_adaln_zero,
        modulated=_adaln_first,
    )


def _hunyuan_single(_: nn.Module) -> BlockForm:
    return BlockForm(
        other="encoder_hidden_states", x_out=0, other_out=1, gates=_adaln_single,
        features=(Feature("single", "proj_out", FUSED, joint=IMAGE_FIRST),),
        partial=(Feature("attn", "attn", ATTENTION, 0), Feature("txt_attn", "attn", ATTENTION, 1, reaches_output=False)),
    )  # fmt: skip


def _wan(block: nn.Module) -> BlockForm:
    def rows(block: nn.Module, temb: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale, gate, twice, of all tokens (B, 1, D) each; or (B, L, D) where each token has its own time."""
        if temb.ndim == 4:
            return (block.scale_shift_table.unsqueeze(0) + temb.float()).unbind(dim=2)
        return (block.scale_shift_table + temb.float()).chunk(6, dim=1)

    def gates(block: nn.Module, temb: Tensor) -> tuple[Tensor | None, ...]:
        parts = rows(block, temb)
        return parts[2], None, parts[5]

    def modulated(block: nn.Module, x: Tensor, temb: Tensor) -> Tensor:
        shift, scale, *_ = rows(block, temb)
        return (block.norm1(x.float()) * (1 + scale) + shift).type_as(x)

    features = (Feature("attn", "attn1", ATTENTION), Feature("cross", "attn2", CROSS), Feature("mlp", "ffn", MLP))
    return BlockForm(features=features, gates=gates, modulated=modulated)


def _hidream_double(_: nn.Module) -> BlockForm:
    return BlockForm(
        other="encoder_hidden_states", x_out=0, other_out=1, features=_two_streams("attn1", "ff_i", "ff_t"),
        gates=lambda block, temb: _chunks(block.adaLN_modulation(temb), 12, 2, 5), modulated=_hidream_first(12),
    )  # fmt: skip


def _hidream_single(_: nn.Module) -> BlockForm:
    features = (
        Feature("attn", "attn1", ATTENTION, joint=IMAGE_FIRST),
        Feature("mlp", "ff_i", MLP, joint=IMAGE_FIRST),
    )
    return BlockForm(
        joint=IMAGE_FIRST, features=features, modulated=_hidream_first(6),
        gates=lambda block, temb: _chunks(block.adaLN_modulation(temb), 6, 2, 5),
    )  # fmt: skip


def _hidream_first(count: int) -> Callable[..., Tensor]:
    def modulated(block: nn.Module, x: Tensor, temb: Tensor) -> Tensor:
        shift, scale = (part.unsqueeze(1) for part in _chunks(block.adaLN_modulation(temb), count, 0, 1))
        return block.norm1_i(x).to(x.dtype) * (1 + scale) + shift

    return modulated


def _dit(block: nn.Module) -> BlockForm | None:
    if getattr(block, "norm_type", None) != "ada_norm_zero":
        return None

    def normed(block: nn.Module, x: Tensor, timestep: Tensor, labels: Tensor) -> Sequence[Tensor]:
        return block.norm1(x, timestep, labels, hidden_dtype=x.dtype)

    def gates(block: nn.Module, timestep: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.zeros(len(labels), 1, block.norm1.linear.in_features, device=labels.device)
        _, attention, *_, mlp = normed(block, x, timestep, labels)
        return attention, mlp

    return BlockForm(
        features=(Feature("attn", "attn1", ATTENTION), Feature("mlp", "ff", MLP)),
        conditions=("timestep", "class_labels"),
        gates=gates,
        modulated=lambda block, x, *conditions: normed(block, x, *conditions)[0],
    )


FORMS: dict[str, Callable[[nn.Module], BlockForm | None]] = {
    "FluxTransformerBlock": _flux_double,
    "FluxSingleTransformerBlock": _flux_single,
    "HunyuanVideoTransformerBlock": _hunyuan_double,
    "HunyuanVideoSingleTransformerBlock": _hunyuan_single,
    "WanTransformerBlock": _wan,
    "HiDreamImageTransformerBlock": _hidream_double,
    "HiDreamImageSingleTransformerBlock": _hidream_single,
    "BasicTransformerBlock": _dit,
}
"""By class of block; None for a block of that class without the site form."""

WRAPPERS = {"HiDreamBlock": "block", "HiDreamImageBlock": "block"}
"""Classes that hold the block proper in an attribute."""


# ------------------------------------------------------------------------------------------------------------ of a block


def proper(block: nn.Module) -> nn.Module:
    """The block that does the work: without a wrapper around it."""
    block = getattr(block, "_orig_mod", block)
    return getattr(block, WRAPPERS.get(type(block).__name__, ""), block)


def form_of(block: nn.Module) -> BlockForm:
    """That of the table, or what diffusers says about the class; without sites where there is no more."""
    inner = proper(block)
    known = FORMS.get(type(inner).__name__)
    form = None if known is None else known(inner)
    return form or _streams_of(type(inner))


@cache
def _streams_of(kind: type) -> BlockForm:
    """Streams of a class without the site form, as diffusers' registry of blocks or its signature has them."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    names = list(inspect.signature(kind.forward).parameters)[1:]
    try:
        told = TransformerBlockRegistry.get(kind)
    except ValueError:
        x = "hidden_states" if "hidden_states" in names else names[0]
        return BlockForm(x=x, conditions=())
    other = told.return_encoder_hidden_states_index
    return BlockForm(
        x=told.hidden_states_argument_name,
        other=None if other is None else told.encoder_hidden_states_argument_name,
        x_out=told.return_hidden_states_index,
        other_out=other,
        conditions=(),
    )


def block_lists(transformer: nn.Module) -> dict[str, nn.ModuleList]:
    """Lists of blocks among a transformer's children, by name; UserError for a model without."""
    found = {
        name: child
        for name, child in transformer.named_children()
        if name in BLOCK_LISTS and isinstance(child, nn.ModuleList) and len(child)
    }
    if not found:
        raise UserError(
            f"{type(transformer).__name__} has no list of blocks, so there is nothing to cache; a transformer is supported "
            f"whose blocks are in one of {', '.join(BLOCK_LISTS)}"
        )
    return found
