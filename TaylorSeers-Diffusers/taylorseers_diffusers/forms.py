"""What is known of the blocks of diffusers' transformers: their streams, their sites, and how their gates are computed.

A block whose additions are all `x + gate * feature`, with gates that a submodule or parameter of the block makes of the
embedded time alone, has the site form: its features are what submodules give, and its gates of another step can be had without
computing the step. Of any other block the tokens before and after it are known. (diffusers 0.42, models/transformers.)
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from cache_dic import ATTENTION, CROSS, FUSED, MLP, UserError

BLOCK_LISTS = (
    "transformer_blocks",
    "joint_transformer_blocks",
    "double_stream_blocks",
    "double_blocks",
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

    kind: ATTENTION, CROSS, MLP or FUSED. output: which of several it gives. call: which of several calls of it in a block.
    joint: where the tokens of the image stand among those of a joint stream; None where there are no others. is_map: it gives
    tokens as a map (B, D, rows, columns). reaches_output: False for a stream that the model's output is not read from.
    """

    name: str
    module: str
    kind: str
    output: int | None = None
    call: int = 0
    joint: str | None = None
    is_map: bool = False
    reaches_output: bool = True


GatesOf = Callable[..., Sequence[Tensor | None]]
"""`gates(block, *conditions)`: of the features that reach the output, (B, D) or (B, 1, D) each, None for 1."""


@dataclass(frozen=True)
class BlockForm:
    """Streams and sites of a class of blocks.

    x, other: arguments that take the tokens of the image and those that the block also gives back, such as the text's.
    x_out, other_out: where they are among what it gives, None for a block that gives x alone. joint: x holds the text, too,
    where the image's tokens stand. conditions: arguments that the gates follow from. partial: features that a method may
    leave out and reuse, in place of `features`: of blocks with parallel attention and MLP the attention alone, of those with a
    norm after them what the norm takes.
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


Form = Callable[[nn.Module], BlockForm | None]
"""The form of a block of a class."""


# ---------------------------------------------------------------------------------------------------------------- gates


def no_tokens(c: Tensor, width: int) -> Tensor:
    """A stream of one token (B, 1, width) to call a norm with whose gates are wanted, for conditions c (B, …)."""
    return torch.zeros(len(c), 1, width, dtype=c.dtype, device=c.device)


def _adaln_zero(block: nn.Module, temb: Tensor) -> tuple[Tensor, ...]:
    """`AdaLayerNormZero`: gates of attention and MLP; of `SD35AdaLayerNormZeroX` that of a second attention between them."""
    _, attention, _, _, mlp, *second = block.norm1(no_tokens(temb, temb.shape[-1]), emb=temb)
    return attention, *second[1:], mlp


def _adaln_single(block: nn.Module, temb: Tensor) -> tuple[Tensor]:
    """`AdaLayerNormZeroSingle`, of blocks with attention and MLP side by side."""
    return (block.norm(no_tokens(temb, temb.shape[-1]), emb=temb)[1],)


def _adaln_first(block: nn.Module, x: Tensor, temb: Tensor) -> Tensor:
    return block.norm1(x, emb=temb)[0]


def _chunks(values: Tensor, count: int, *indices: int) -> tuple[Tensor, ...]:
    """Some of `count` equal parts of (B, count · D)."""
    parts = values.chunk(count, dim=-1)
    return tuple(parts[i] for i in indices)


def _tanh_gates(norm: nn.Module, temb: Tensor) -> tuple[Tensor, Tensor]:
    """`LuminaRMSNormZero` and `MochiRMSNormZero`: gates of attention and MLP, which blocks put through a tanh."""
    attention, mlp = _chunks(norm.linear(norm.silu(temb)), 4, 1, 3)
    return attention.tanh(), mlp.tanh()


def _table_rows(block: nn.Module, c: Tensor) -> tuple[Tensor, ...]:
    """`scale_shift_table` + c (B, …, 6 · D): shift, scale, gate, twice, (B, 1, D) each; (B, L, D) for a time by token."""
    table = block.scale_shift_table
    return (table + c.reshape(len(c), -1, 6, table.shape[-1])).unbind(dim=2)


def _table_gates(block: nn.Module, c: Tensor) -> tuple[Tensor, Tensor]:
    """Of attention and MLP."""
    rows = _table_rows(block, c)
    return rows[2], rows[5]


def _table_first(block: nn.Module, x: Tensor, c: Tensor) -> Tensor:
    shift, scale, *_ = _table_rows(block, c)
    return (block.norm1(x) * (1 + scale) + shift).to(x.dtype)


# ---------------------------------------------------------------------------------------------------------------- forms

TEXT = "encoder_hidden_states"
TEXT_FIRST = {"other": TEXT, "x_out": 1, "other_out": 0}
TEXT_LAST = {"other": TEXT, "x_out": 0, "other_out": 1}
"""Two streams, by their order in what a block gives."""


def _two_streams(attn: str, mlp: str, txt_mlp: str) -> tuple[Feature, ...]:
    """Sites of a block of two streams with joint attention, by names of its submodules."""
    return (
        Feature("attn", attn, ATTENTION, 0),
        Feature("mlp", mlp, MLP),
        Feature("txt_attn", attn, ATTENTION, 1, reaches_output=False),
        Feature("txt_mlp", txt_mlp, MLP, reaches_output=False),
    )


def _double(streams: dict[str, Any]) -> Form:
    """Joint attention of two streams, and an MLP for each."""
    form = BlockForm(
        **streams, features=_two_streams("attn", "ff", "ff_context"), gates=_adaln_zero, modulated=_adaln_first
    )
    return lambda _: form


FUSED_LAST = (Feature("single", "proj_out", FUSED, joint=IMAGE_LAST),)
ATTENTION_LAST = (Feature("attn", "attn", ATTENTION, joint=IMAGE_LAST),)


def _flux_single(_: nn.Module) -> BlockForm:
    return BlockForm(**TEXT_FIRST, gates=_adaln_single, features=FUSED_LAST, partial=ATTENTION_LAST)


def _joint_single(_: nn.Module) -> BlockForm:
    return BlockForm(joint=IMAGE_LAST, gates=_adaln_single, features=FUSED_LAST, partial=ATTENTION_LAST)


def _hunyuan_single(_: nn.Module) -> BlockForm:
    return BlockForm(
        **TEXT_LAST, gates=_adaln_single,
        features=(Feature("single", "proj_out", FUSED, joint=IMAGE_FIRST),),
        partial=(Feature("attn", "attn", ATTENTION, 0), Feature("txt_attn", "attn", ATTENTION, 1, reaches_output=False)),
    )  # fmt: skip


def _chroma_double(_: nn.Module) -> BlockForm:
    """Its modulation (B, 12, D) comes ready made, that of the image first."""
    return BlockForm(
        **TEXT_FIRST, features=_two_streams("attn", "ff", "ff_context"),
        gates=lambda block, temb: _adaln_zero(block, temb[:, :6]),
        modulated=lambda block, x, temb: _adaln_first(block, x, temb[:, :6]),
    )  # fmt: skip


def _sd3(block: nn.Module) -> BlockForm:
    """The last block makes nothing of its text, and some have a second attention, of the image alone."""
    attn, mlp, txt_attn, txt_mlp = _two_streams("attn", "ff", "ff_context")
    second = (Feature("attn2", "attn2", ATTENTION),) if block.use_dual_attention else ()
    text = (txt_attn,) if block.context_pre_only else (txt_attn, txt_mlp)
    return BlockForm(**TEXT_FIRST, features=(attn, *second, mlp, *text), gates=_adaln_zero, modulated=_adaln_first)


def _qwen(_: nn.Module) -> BlockForm:
    def of_half(block: nn.Module, x: Tensor, temb: Tensor, index: Any, half: int) -> tuple[Tensor, Tensor]:
        """Modulated tokens and gate; `index` (B, L) tells tokens of another time."""
        return block._modulate(x, block.img_mod(temb).chunk(2, dim=-1)[half], index)

    def gates(block: nn.Module, temb: Tensor, index: Any) -> tuple[Tensor, ...]:
        x = no_tokens(temb, block.dim)[: None if index is None else len(index)]
        return tuple(of_half(block, x, temb, index, half)[1] for half in (0, 1))

    return BlockForm(
        **TEXT_FIRST, features=_two_streams("attn", "img_mlp", "txt_mlp"), conditions=("temb", "modulate_index"), gates=gates,
        modulated=lambda block, x, temb, index: of_half(block, block.img_norm1(x), temb, index, 0)[0],
    )  # fmt: skip


def _lumina2(_: nn.Module) -> BlockForm:
    """Text and image are one stream, all of which is kept."""
    return BlockForm(
        features=(Feature("attn", "norm2", ATTENTION), Feature("mlp", "ffn_norm2", MLP)),
        partial=(Feature("attn", "attn", ATTENTION), Feature("mlp", "feed_forward", MLP)),
        gates=lambda block, temb: _tanh_gates(block.norm1, temb), modulated=_adaln_first,
    )  # fmt: skip


def _z_image(_: nn.Module) -> BlockForm:
    """Image and text are one stream, all of which is kept."""

    def rows(block: nn.Module, c: Tensor | None) -> tuple[Tensor, ...]:
        if c is None:
            raise UserError(
                "tokens of given images have a time of their own here, so gates differ by token; take engine='stack'"
            )
        return block.adaLN_modulation(c).unsqueeze(1).chunk(4, dim=-1)

    return BlockForm(
        x="x", conditions=("adaln_input",),
        features=(Feature("attn", "attention_norm2", ATTENTION), Feature("mlp", "ffn_norm2", MLP)),
        partial=(Feature("attn", "attention", ATTENTION), Feature("mlp", "feed_forward", MLP)),
        gates=lambda block, c: [rows(block, c)[i].tanh() for i in (1, 3)],
        modulated=lambda block, x, c: block.attention_norm1(x) * (1 + rows(block, c)[0]),
    )  # fmt: skip


def _mochi(block: nn.Module) -> BlockForm:
    """Features are normed; the last block makes nothing of its text."""
    txt_attn = Feature("txt_attn", "attn1", ATTENTION, 1, reaches_output=False)
    txt_mlp = Feature("txt_mlp", "ff_context", MLP, reaches_output=False)
    normed = (
        replace(txt_attn, module="norm2_context.norm", output=None),
        replace(txt_mlp, module="norm4_context.norm"),
    )
    ends = block.context_pre_only
    return BlockForm(
        **TEXT_LAST,
        features=(
            Feature("attn", "norm2.norm", ATTENTION),
            Feature("mlp", "norm4.norm", MLP),
            *(() if ends else normed),
        ),
        partial=(
            Feature("attn", "attn1", ATTENTION, 0),
            Feature("mlp", "ff", MLP),
            txt_attn,
            *(() if ends else (txt_mlp,)),
        ),
        gates=lambda block, temb: _tanh_gates(block.norm1, temb),
        modulated=lambda block, x, temb: block.norm1(x, temb)[0],
    )


JOINT_MLP = (
    Feature("attn", "attn1", ATTENTION, 0),
    Feature("mlp", "ff", MLP, joint=IMAGE_LAST),
    Feature("txt_attn", "attn1", ATTENTION, 1, reaches_output=False),
)
"""Of a block of two streams whose MLP takes both at once, text first."""


def _cogvideox(_: nn.Module) -> BlockForm:
    def gate(norm: nn.Module, temb: Tensor) -> Tensor:
        return norm.linear(norm.silu(temb)).chunk(6, dim=-1)[2]

    return BlockForm(
        **TEXT_LAST, features=JOINT_MLP, gates=lambda block, temb: (gate(block.norm1, temb), gate(block.norm2, temb)),
        modulated=lambda block, x, temb: block.norm1(x, no_tokens(x, x.shape[-1]), temb)[0],
    )  # fmt: skip


def _cogview(features: tuple[Feature, ...], condition: str) -> Form:
    def normed(block: nn.Module, x: Tensor, temb: Tensor) -> Sequence[Tensor]:
        return block.norm1(x, no_tokens(x, x.shape[-1]), temb)

    def gates(block: nn.Module, temb: Tensor) -> tuple[Tensor, Tensor]:
        _, attention, _, _, mlp, *_ = normed(block, no_tokens(temb, block.norm1.linear.out_features // 12), temb)
        return attention, mlp

    form = BlockForm(
        **TEXT_LAST, features=features, conditions=(condition,), gates=gates,
        modulated=lambda block, x, temb: normed(block, x, temb)[0],
    )  # fmt: skip
    return lambda _: form


SHARED_MLP = (
    Feature("attn", "attn1", ATTENTION, 0),
    Feature("mlp", "ff", MLP),
    Feature("txt_attn", "attn1", ATTENTION, 1, reaches_output=False),
    Feature("txt_mlp", "ff", MLP, call=1, reaches_output=False),
)
"""Of a block of two streams whose MLP is called for the one, then for the other."""


def _flux2_double(_: nn.Module) -> BlockForm:
    def modulated(block: nn.Module, x: Tensor, mod: Tensor) -> Tensor:
        shift, scale = _chunks(_by_token(mod), 6, 0, 1)
        return (1 + scale) * block.norm1(x) + shift

    return BlockForm(
        **TEXT_FIRST, features=_two_streams("attn", "ff", "ff_context"), conditions=("temb_mod_img",),
        gates=lambda _, mod: _chunks(mod, 6, 2, 5), modulated=modulated,
    )  # fmt: skip


def _flux2_single(_: nn.Module) -> BlockForm:
    return BlockForm(
        joint=IMAGE_LAST, features=(Feature("single", "attn", FUSED, joint=IMAGE_LAST),), conditions=("temb_mod",),
        gates=lambda _, mod: _chunks(mod, 3, 2),
    )  # fmt: skip


def _by_token(values: Tensor) -> Tensor:
    """(B, D) as (B, 1, D); what has an axis of tokens stays."""
    return values.unsqueeze(1) if values.ndim == 2 else values


CROSSED = (Feature("attn", "attn1", ATTENTION), Feature("cross", "attn2", CROSS))
"""Of a block of one stream that looks at the text by cross-attention, whose gate is 1."""


def _wan(_: nn.Module) -> BlockForm:
    def gates(block: nn.Module, temb: Tensor) -> tuple[Tensor | None, ...]:
        attention, mlp = _table_gates(block, temb.float())
        return attention, None, mlp

    return BlockForm(
        features=(*CROSSED, Feature("mlp", "ffn", MLP)), gates=gates,
        modulated=lambda block, x, temb: _table_first(block, x.float(), temb.float()).type_as(x),
    )  # fmt: skip


def _skyreels(block: nn.Module) -> BlockForm:
    """Wan's, but for a time by token the axis of shifts, scales and gates is before that of tokens."""
    form = _wan(block)

    def as_wan(temb: Tensor) -> Tensor:
        return temb.transpose(1, 2) if temb.ndim == 4 else temb

    return replace(
        form, gates=lambda block, temb: form.gates(block, as_wan(temb)),
        modulated=lambda block, x, temb: form.modulated(block, x, as_wan(temb)),
    )  # fmt: skip


def _by_table(condition: str, is_map: bool = False) -> Form:
    """Attention, cross-attention where there is one, MLP; shifts, scales and gates are a table plus the embedded time."""

    def form(block: nn.Module) -> BlockForm:
        has_cross = block.attn2 is not None

        def gates(block: nn.Module, c: Tensor) -> tuple[Tensor | None, ...]:
            attention, mlp = _table_gates(block, c)
            return (attention, None, mlp) if has_cross else (attention, mlp)

        attentions = CROSSED if has_cross else CROSSED[:1]
        return BlockForm(
            features=(*attentions, Feature("mlp", "ff", MLP, is_map=is_map)), conditions=(condition,), gates=gates,
            modulated=_table_first,
        )  # fmt: skip

    return form


def _hidream_double(_: nn.Module) -> BlockForm:
    return BlockForm(
        **TEXT_LAST, features=_two_streams("attn1", "ff_i", "ff_t"), modulated=_hidream_first(12),
        gates=lambda block, temb: _chunks(block.adaLN_modulation(temb), 12, 2, 5),
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


def _basic(block: nn.Module) -> BlockForm | None:
    """Of DiT and of PixArt; of other kinds of norm there are no gates."""
    if block.norm_type == "ada_norm_single":
        return _by_table("timestep")(block)
    if block.norm_type != "ada_norm_zero":
        return None

    def normed(block: nn.Module, x: Tensor, timestep: Tensor, labels: Tensor) -> Sequence[Tensor]:
        return block.norm1(x, timestep, labels, hidden_dtype=x.dtype)

    def gates(block: nn.Module, x: Tensor, timestep: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        _, attention, *_, mlp = normed(block, x[:, :1], timestep, labels)
        return attention, mlp

    return BlockForm(
        features=(Feature("attn", "attn1", ATTENTION), Feature("mlp", "ff", MLP)),
        conditions=("hidden_states", "timestep", "class_labels"),
        gates=gates,
        modulated=lambda block, x, _, *conditions: normed(block, x, *conditions)[0],
    )


FORMS: dict[str, Form] = {
    "FluxTransformerBlock": _double(TEXT_FIRST),
    "FluxSingleTransformerBlock": _flux_single,
    "Flux2TransformerBlock": _flux2_double,
    "Flux2SingleTransformerBlock": _flux2_single,
    "ChromaTransformerBlock": _chroma_double,
    "ChromaSingleTransformerBlock": _joint_single,
    "BriaTransformerBlock": _double(TEXT_FIRST),
    "BriaSingleTransformerBlock": _flux_single,
    "BriaFiboTransformerBlock": _double(TEXT_FIRST),
    "BriaFiboSingleTransformerBlock": _joint_single,
    "LongCatImageTransformerBlock": _double(TEXT_FIRST),
    "LongCatImageSingleTransformerBlock": _flux_single,
    "OvisImageTransformerBlock": _double(TEXT_FIRST),
    "OvisImageSingleTransformerBlock": _flux_single,
    "QwenImageTransformerBlock": _qwen,
    "JointTransformerBlock": _sd3,
    "HunyuanVideoTransformerBlock": _double(TEXT_LAST),
    "HunyuanVideoSingleTransformerBlock": _hunyuan_single,
    "HunyuanVideo15TransformerBlock": _double(TEXT_LAST),
    "HunyuanImageTransformerBlock": _double(TEXT_LAST),
    "HunyuanImageSingleTransformerBlock": _hunyuan_single,
    "WanTransformerBlock": _wan,
    "SkyReelsV2TransformerBlock": _skyreels,
    "HiDreamImageTransformerBlock": _hidream_double,
    "HiDreamImageSingleTransformerBlock": _hidream_single,
    "Lumina2TransformerBlock": _lumina2,
    "ZImageTransformerBlock": _z_image,
    "CogVideoXBlock": _cogvideox,
    "CogView3PlusTransformerBlock": _cogview(JOINT_MLP, "emb"),
    "CogView4TransformerBlock": _cogview(SHARED_MLP, "temb"),
    "MochiTransformerBlock": _mochi,
    "LTXVideoTransformerBlock": _by_table("temb"),
    "AllegroTransformerBlock": _by_table("temb"),
    "SanaTransformerBlock": _by_table("timestep", is_map=True),
    "BasicTransformerBlock": _basic,
}
"""By class of block; None for a block of that class of which no more is known than of any other."""

STREAMS = {"AuraFlowSingleTransformerBlock": BlockForm(joint=IMAGE_LAST, conditions=())}
"""Classes without the site form whose streams are told neither by diffusers' registry nor by what they give."""

WRAPPERS = {"HiDreamBlock": "block", "HiDreamImageBlock": "block"}
"""Classes that hold the block proper in an attribute."""

MIXED_BETWEEN = ("ConsisIDTransformer3DModel", "WanAnimateTransformer3DModel")
"""Transformers that add between blocks what they compute of the tokens there: blocks cannot be passed by one by one."""


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
    return form or streams_of(type(inner))


@cache
def streams_of(kind: type) -> BlockForm:
    """Streams of a class without the site form: as diffusers' registry of blocks has them, or as its forward names them."""
    if kind.__name__ in STREAMS:
        return STREAMS[kind.__name__]
    from diffusers.hooks._helpers import TransformerBlockRegistry

    try:
        told = TransformerBlockRegistry.get(kind)
    except ValueError:
        names = list(inspect.signature(kind.forward).parameters)[1:]
        x = "hidden_states" if "hidden_states" in names else names[0]
        given = given_names(kind)
        if set(given) != {x, TEXT}:
            return BlockForm(x=x, conditions=())
        return BlockForm(x=x, other=TEXT, x_out=given.index(x), other_out=given.index(TEXT), conditions=())
    other = told.return_encoder_hidden_states_index
    return BlockForm(
        x=told.hidden_states_argument_name,
        other=None if other is None else told.encoder_hidden_states_argument_name,
        x_out=told.return_hidden_states_index,
        other_out=other,
        conditions=(),
    )


def given_names(kind: type) -> list[str]:
    """Names of the several values that a class's forward always gives, in its source; none where it may give one."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))
    except (OSError, TypeError):
        return []
    given = {ast.unparse(n.value): n.value for n in ast.walk(tree) if isinstance(n, ast.Return) and n.value is not None}
    if not all(isinstance(value, ast.Tuple) for value in given.values()):
        return []
    return [ast.unparse(element) for value in given.values() for element in value.elts]


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
