"""Weights under other names than ours: layouts, prefixes, several models in a file; and the scales beside 8-bit weights."""

import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cache_dic import UserError

State = dict[str, Tensor]
log = logging.getLogger("seerkit.weights")

WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # of torch
PREFIX_PARTS = 4  # between dots, that the names of one of several models in a file have in common at most
AVERAGED = re.compile(r"(^|[._])ema([._]|$)")
LORA = re.compile(r"(^|[._])lora(?![a-z])|(^|[._])(hada_w\d|lokr_w\d|oft_blocks|oft_diag|dora_scale)([._]|$)")
PACKED = re.compile(  # beside or in place of weights: GPTQ and AWQ, bitsandbytes, SVDQuant, compressed-tensors, NVFP4, quanto
    r"\.(qweight|qzeros|g_idx|absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+|SCB|weight_format|wscales|"
    r"weight_packed|weight_zero_point|weight_scale_2|weight_scale_inv|_data|_scale)$"
)
WEIGHT_SCALE = re.compile(r"(?P<layer>(?:.*\.)?)(?:scale_weight|weight_scale)")  # of ComfyUI; of diffusers and vLLM
ACTIVATIONS = re.compile(r"(?:.*\.)?(?:scale_input|input_scale|scale_output|output_scale|scaled_fp8)")  # not of weights
FORMAT = re.compile(r"(?:.*\.)?comfy_quant")  # ComfyUI's description of a layer's weights, JSON in bytes


class Rule:
    """`Rule(target, *sources)`: the tensor `target` is its `sources` concatenated along dimension 0; one is a rename.

    `{x}` in a name stands for one part between dots. Where the sources have a placeholder that the target lacks, they
    are copies: they must be equal, and the first is kept. `transform` is applied last; it is its own inverse.
    """

    def __init__(self, target: str, *sources: str, transform: Callable[[Tensor], Tensor] | None = None) -> None:
        self.target, self.sources, self.transform = target, sources, transform
        self._patterns = [re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^.]+)", re.escape(source))) for source in sources]

    def match(self, name: str) -> tuple[str, int] | None:
        """The target that `name` is a part of, and which part; None if it is none of the sources."""
        for position, pattern in enumerate(self._patterns):
            if found := pattern.fullmatch(name):
                return self.target.format(**found.groupdict()), position
        return None


@dataclass(frozen=True)
class Layout:
    """Another layout of a model's weights: its name, and the rules that make our tensors of its own."""

    name: str
    rules: tuple[Rule, ...]

    def covers(self, name: str) -> bool:
        return any(rule.match(name) for rule in self.rules)

    def targets(self, names: Iterable[str]) -> set[str]:
        """Names of ours that tensors of these names go into."""
        return {match[0] for name in names for rule in self.rules if (match := rule.match(name))}

    def convert(self, state: Mapping[str, Tensor], computed: Mapping[str, Tensor] | None = None) -> State:
        """The state dict in our layout, with tensors that the other does not store added from `computed`.

        Works on the meta device. Raises UserError for names without a rule, missing parts, and copies that differ.
        """
        unknown = [name for name in state if not self.covers(name)]
        if unknown:
            raise UserError(f"{len(unknown)} names are not of the {self.name} layout ({listed(unknown)})")
        result: State = {}
        for rule in self.rules:
            for target, parts in _parts(rule, state).items():
                whole = torch.cat(parts) if len(parts) > 1 else parts[0]
                result[target] = rule.transform(whole) if rule.transform else whole
        return result | dict(computed or {})

    def revert(self, state: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> State:
        """Our state dict in the other layout, whose names and shapes `theirs` has: the inverse of `convert`.

        What is a part of ours is a view of it. Raises UserError for names without a rule and for parts that do not fill ours.
        """
        unknown = [name for name in theirs if not self.covers(name)]
        if unknown:
            raise UserError(f"{len(unknown)} names are not of the {self.name} layout ({listed(unknown)})")
        result: State = {}
        for rule in self.rules:
            matches = {name: match for name in theirs if (match := rule.match(name))}
            rows: dict[str, dict[int, int]] = {}
            for name, (target, position) in matches.items():
                rows.setdefault(target, {})[position] = theirs[name].shape[0]
            for name, (target, position) in matches.items():
                sizes = [rows[target].get(i, 0) for i in range(len(rule.sources))]
                whole = state.get(target)
                if whole is None or len(whole) != sum(sizes):
                    raise UserError(f"{name} is a part of {target}, which is missing or of another size")
                whole = rule.transform(whole) if rule.transform else whole
                result[name] = whole.split(sizes)[position]
        return result


def _parts(rule: Rule, state: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """Target name -> the tensors that a rule makes it of, in order."""
    found: dict[str, list[str]] = {}
    for name in state:
        if not (match := rule.match(name)):
            continue
        target, position = match
        names = found.setdefault(target, [""] * len(rule.sources))
        if not names[position]:
            names[position] = name
        elif not _same(state[names[position]], state[name]):
            raise UserError(
                f"{names[position]} and {name}, copies for {target}, differ: a damaged checkpoint or another model"
            )
    lacking = [target for target, names in found.items() if not all(names)]
    if lacking:
        raise UserError(f"parts of {listed(lacking)} are missing; it is made of {', '.join(rule.sources)}")
    return {target: [state[name] for name in names] for target, names in found.items()}


def swap_halves(rows: Tensor) -> Tensor:
    """Rows (scale, shift), as diffusers has those of a head, -> (shift, scale)."""
    return torch.cat(rows.chunk(2)[::-1])


def recognise_layout(names: Collection[str], ours: Collection[str], layouts: Sequence[Layout]) -> Layout | None:
    """The layout that most of `names` belong to, None for `ours`; UserError if fewer than half fit any."""
    best, fitting = _best_layout(names, set(ours), layouts)
    if 2 * len(fitting) < max(1, len(names)):
        known = ", ".join(dict.fromkeys(["official", *(layout.name for layout in layouts)]))
        raise UserError(f"the weights are of an unknown layout ({listed(list(names))}); known are: {known}")
    return best


def _best_layout(
    names: Collection[str], ours: set[str], layouts: Sequence[Layout]
) -> tuple[Layout | None, Sequence[str]]:
    """The layout, None for ours, that has most of `names`, and these."""
    fitting: dict[Layout | None, Sequence[str]] = {None: [name for name in names if name in ours]}
    fitting |= {layout: [name for name in names if layout.covers(name)] for layout in layouts}
    best = max(fitting, key=lambda layout: len(fitting[layout]))
    return best, fitting[best]


# ---------------------------------------------------------------------------------------------------------------- part


def find_part(
    state: Mapping[str, Tensor], ours: Collection[str], layouts: Sequence[Layout], *, source: object
) -> tuple[State, Layout | None]:
    """The tensors of a checkpoint that are the model's, by names of one of its layouts, and that layout, None for ours.

    What torch and training scripts put before all names (`module._orig_mod.`) is dropped, and of a file with several models
    (`model.diffusion_model.` beside `first_stage_model.`) the part that fits is taken, of equal ones the averaged (`ema`);
    the log says so of `source`. Raises UserError for a LoRA, for packed weights, and for names that fit nothing or twice.
    """
    dropped = sorted({found for name in state for found in WRAPPERS.findall(name)})
    state = {WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    ours = set(ours)
    names = [name for name in state if not _is_beside(name)]
    prefix = _prefix(names, ours, layouts)
    part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    _refuse_changes(part)
    layout = recognise_layout([name for name in part if not _is_beside(name)], ours, layouts)
    if prefix:
        dropped.append(prefix)
    left = [name for name in names if not name.startswith(prefix)]
    if dropped or left:
        others = f"; {len(left)} tensors of other models are left out ({listed(_beginnings(left))})" if left else ""
        log.warning("%s", f"{source}: names are read without {' and '.join(map(repr, dropped))}{others}")
    return part, layout


def _prefix(names: Sequence[str], ours: set[str], layouts: Sequence[Layout]) -> str:
    """What comes before the model's names; nothing where most are its own as they are, or none are."""
    if 2 * len(_best_layout(names, ours, layouts)[1]) >= len(names):
        return ""
    covered = {}
    for prefix in _prefixes(names):
        stripped = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        layout, fitting = _best_layout(stripped, ours, layouts)
        targets = ours.intersection(fitting if layout is None else layout.targets(fitting))
        if 2 * len(fitting) >= len(stripped) and 2 * len(targets) >= len(ours):
            covered[prefix] = len(targets)
    most = [prefix for prefix, count in covered.items() if count == max(covered.values())]
    chosen = [prefix for prefix in most if AVERAGED.search(prefix)] if len(most) > 1 else most
    if len(most) > 1 and len(chosen) != 1:
        raise UserError(
            f"the file holds several such models, under {' and '.join(map(repr, most))}; save one of them alone"
        )
    return chosen[0] if chosen else ""


def _prefixes(names: Sequence[str]) -> Iterable[str]:
    """Beginnings of names, up to a dot; and of all names together, up to any sign."""
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")[:-1]
        found |= dict.fromkeys(".".join(parts[:count]) + "." for count in range(1, min(PREFIX_PARTS, len(parts)) + 1))
    common = os.path.commonprefix(names)  # noqa: RUF071, of characters
    return found | dict.fromkeys(common[: sign.end()] for sign in re.finditer(r"[^0-9A-Za-z]", common))


def _beginnings(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.split(".")[0] + "." for name in names))


def _refuse_changes(state: Mapping[str, Tensor]) -> None:
    """UserError for what is no model's weights as they are: changes to them, or weights packed for other kernels."""
    if changes := [name for name in state if LORA.search(name)]:
        raise UserError(
            f"this is a LoRA, {len(changes)} tensors that change a model's weights ({listed(changes)}), not a model; merge it "
            "into the model's weights and name the merged file"
        )
    packed = [name for name, tensor in state.items() if PACKED.search(name) or tensor.dtype is torch.float4_e2m1fn_x2]
    packed += [name for name, tensor in state.items() if FORMAT.fullmatch(name) and not _is_float8_format(tensor)]
    if packed:
        raise UserError(
            f"the weights are packed in a way that is not read, as by GPTQ, AWQ, bitsandbytes or NVFP4 ({listed(packed)}); "
            "take the checkpoint in bf16, fp16 or fp8"
        )


# --------------------------------------------------------------------------------------------------------------- scales


def _is_beside(name: str) -> bool:
    """Whether a tensor describes weights, and is none."""
    return any(pattern.fullmatch(name) for pattern in (WEIGHT_SCALE, ACTIVATIONS, FORMAT))


def _is_float8_format(description: Tensor) -> bool:
    try:
        return str(json.loads(bytes(description.flatten().tolist()))["format"]).startswith("float8")
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def apply_scales(state: Mapping[str, Tensor], dtype: torch.dtype) -> State:
    """Weights times the scales that lie beside them, in `dtype`; the others as they are, scales of activations dropped.

    A scale is one number or one for each row of a weight. Raises UserError for one without its weight or of another shape,
    and where a product does not fit `dtype`.
    """
    result = {name: tensor for name, tensor in state.items() if not _is_beside(name)}
    for name, scale in state.items():
        if not (found := WEIGHT_SCALE.fullmatch(name)):
            continue
        weight = state.get(target := f"{found['layer']}weight")
        if weight is None:
            raise UserError(f"{name} is a scale without its weight, {target}; fetch the checkpoint again")
        rows = scale.reshape(-1, *[1] * (weight.ndim - 1)) if scale.ndim == 1 else scale
        fits = rows.ndim == weight.ndim and all(
            size in (1, whole) for size, whole in zip(rows.shape, weight.shape, strict=True)
        )
        if not weight.is_floating_point() or not (scale.numel() == 1 or fits):
            raise UserError(
                f"{name} of shape {tuple(scale.shape)} for {target}, {tuple(weight.shape)} of {weight.dtype}, is not read: one "
                "scale for a weight, or for each of its rows, can be; take the checkpoint in bf16 or fp16"
            )
        product = weight.float() * (scale.reshape(()) if scale.numel() == 1 else rows).float()
        result[target] = product.to(dtype)
        if not product.is_meta and bool(product.isfinite().all()) and not bool(result[target].isfinite().all()):
            raise UserError(f"values of {target} do not fit {dtype}; choose another dtype")
    return result


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal shapes, dtypes and values, NaN equal to NaN; on the meta device shapes alone."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    if a.is_floating_point() and a.element_size() == 1:  # which few operations know
        a, b = a.float(), b.float()
    return a.is_meta or b.is_meta or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def listed(items: Sequence[str], limit: int = 4) -> str:
    """Items for a message: those that differ by numbers alone (blocks) as one with its count, and at most `limit`."""
    groups: dict[str, list[str]] = {}
    for item in items:
        groups.setdefault(re.sub(r"\.\d+\.", ".*.", item), []).append(item)
    shown = [
        f"{group[0]} and {len(group) - 1} like it" if len(group) > 1 else group[0]
        for group in list(groups.values())[:limit]
    ]
    rest = sum(len(group) for group in list(groups.values())[limit:])
    return ", ".join(shown) + (f", … {rest} more" if rest else "")
