"""Tables of the registered methods: what each is, where it can be had, and its settings. They are made from the registry."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_dic import METHODS, Partial, UserError, make_cache
from cache_dic.methods.toca import RECIPES, ToCa
from cache_dic.settings import json_value
from evaluation.backbones import BACKBONES, PACKAGES, count_case, workload
from seerkit.io.tables import markdown_table, number

if TYPE_CHECKING:
    from cache_dic import Cache

NUM_STEPS = 50
MODELS = {
    "FLUX": ("flux-dev", "flux-tiny"),
    "HiDream": ("hidream-full", "hidream-tiny"),
    "HunyuanVideo": ("hunyuan-video", "hunyuan-tiny"),
    "Wan2.1": ("wan-t2v-1.3B", "wan-tiny"),
    "DiT": ("DiT-XL/2", "fashion-mnist"),
}
"""By backbone, a published model and the embedded one."""
SIZED = "flux-dev"
"""The model that bytes are counted for, at its own resolution."""
LONGEST = 40
"""Characters of a setting that a table shows whole."""


def methods(_: Path) -> str:
    """A row for each method; what is kept is counted for `SIZED` in bfloat16."""
    import torch

    with torch.device("meta"):
        case = BACKBONES[SIZED].build(workload(SIZED), torch.bfloat16)
    rows = []

    def kept_mib(cache: "Cache") -> float:
        return count_case(BACKBONES[SIZED], case, cache, NUM_STEPS)["kept_bytes"][cache.engine] / 2**20

    for name, method in METHODS.items():
        if name == "uncached":
            continue
        caches = {model: cache_for(name, model) for models in MODELS.values() for model in models}
        known = [cache for cache in caches.values() if not isinstance(cache, str)]
        sized = caches[SIZED]
        kept = None if isinstance(sized, str) else kept_mib(sized)
        rows.append(
            [
                f"`{name}`",
                link(method.paper),
                "; ".join(dict.fromkeys(when(cache) for cache in known)) or "–",
                "; ".join(dict.fromkeys(cache.engine for cache in known)) or method.engine,
                number(kept, 1 if kept is not None and kept < 10 else 0),
                *(standing(name, caches, *models) for models in MODELS.values()),
            ]
        )
    header = ["method", "paper", "a full step is decided", "form", "MiB kept, FLUX.1-dev", *MODELS]
    reasons = dict.fromkeys(
        f"`{name}` for {', '.join(method.undefined)}: {reason}"
        for name, method in METHODS.items()
        for reason in dict.fromkeys(method.undefined.values())
    )
    where = f"kept: in {NUM_STEPS} steps of {SIZED} at its own size, features in bfloat16, sums in float32"
    notes = "\n".join(f"- {reason}" for reason in reasons)
    return f"{markdown_table(header, rows, left=set(range(len(header))) - {4})}\n\n*{where}*\n\nNot defined:\n\n{notes}"


def presets(_: Path) -> str:
    """A row for each method and the models that it has the same settings for, in the order in which a comparison shows them."""
    rows = []
    for name, method in METHODS.items():
        models: dict[str, list[str]] = {}
        for key, of_key in method.presets.items():
            if not key.endswith("debug"):
                shown = "; ".join(dict.fromkeys(map(settings, of_key)))
                models.setdefault(shown, []).append("others" if key == "*" else f"`{key}`")
        rows += [[f"`{name}`", ", ".join(keys), shown] for shown, keys in models.items()]
    return markdown_table(["method", "for", "settings"], rows, left=(0, 1, 2))


def recipes(_: Path) -> str:
    """A row for each recipe of ToCa and DuCa: which models come with it, and what it fixes."""
    rows = []
    for name, recipe in RECIPES.items():
        comes_with = [
            f"`{method}`: {', '.join(keys)}" for method in ("toca", "duca") if (keys := with_recipe(method, name))
        ]
        first = "the first" if recipe.warmup_steps == 1 else f"the first {recipe.warmup_steps}"
        rows.append(
            [
                f"`{name}`",
                "; ".join(comes_with) or "–",
                "counted down" if recipe.rule == "counted_down" else f"{first}, then every `interval`",
                f"{recipe.factor:g}",
                f"{recipe.double_factor:g}",
                f"{recipe.cross_factor:g}",
                ends(-recipe.step_weight),
                ends(recipe.layer_weight),
                f"{recipe.bonus:g} in {recipe.cell} × {recipe.cell}" if recipe.cell else "–",
            ]
        )
    header = [
        "recipe", "comes with", "full steps", "of one stream", "of separate streams", "attention to a text", "over the run",
        "over the layers", "bonus of the best token",
    ]  # fmt: skip
    return markdown_table(header, rows, left=(0, 1, 2))


def with_recipe(method: str, name: str) -> list[str]:
    """What the settings of a method are for that take a recipe."""
    presets = METHODS[method].presets.items()
    return [
        "others" if key == "*" else f"`{key}`"
        for key, of_key in presets
        if any(row.get("recipe", ToCa.recipe) == name for row in of_key)
    ]


def ends(weight: float) -> str:
    """The factors at the beginning and the end of a ramp from 1 + w to 1 - w, a dash for none."""
    return f"{1 + weight:g} to {1 - weight:g}" if weight else "–"


def cache_for(name: str, model: str) -> "Cache | str":
    """The cache that a method has for a model of itself, or why it has none."""
    try:
        cache = make_cache(name, preset=PACKAGES[model], model=model)
        cache.plan(NUM_STEPS)
    except UserError as error:
        return str(error)
    return cache


def when(cache: "Cache") -> str:
    """What is known when it is decided which steps are full."""
    decider = cache.decider()
    if decider is None:
        return "before the run"
    if isinstance(decider, Partial):
        return "before the run; between full steps a part is computed"
    if decider.of_time:
        return "before the run, by its times"
    if decider.first_blocks:
        count = decider.first_blocks
        return "after the first block" if count == 1 else f"after {count} blocks"
    if decider.verifies:
        return "by the last block of the step before"
    return "before the blocks"


def standing(name: str, caches: "Mapping[str, Cache | str]", published: str, embedded: str) -> str:
    """Whose settings a method has for a backbone's published model, and for the embedded one where that differs."""
    there, here = (source(name, caches[model], model) for model in (published, embedded))
    return there if there == here else f"{there}; embedded: {here}"


def source(name: str, cache: "Cache | str", model: str) -> str:
    method, package = METHODS[name], PACKAGES[model]
    if {model, package} & method.undefined.keys():
        return "no"
    if isinstance(cache, str):
        return "settings wanted"
    if {model, package} & method.presets.keys():
        return "its own"
    return "general" if "*" in method.presets else "TaylorSeer's"


def settings(row: Mapping[str, Any]) -> str:
    """A row of settings on one line, long values cut."""
    return ", ".join(
        f"{name} {shown if len(shown) <= LONGEST else shown[:LONGEST] + '…'}" for name, shown in written(row)
    )


def written(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, str(json_value(value))) for name, value in row.items()]


def link(paper: str) -> str:
    """A paper as a link, of "arXiv 2503.06923"; a dash for none."""
    place, _, identifier = paper.partition(" ")
    return f"[{identifier}](https://arxiv.org/abs/{identifier})" if place == "arXiv" else paper or "–"
