"""The node: a model goes in, the model with a cache comes out."""

from collections.abc import Mapping
from typing import Any, ClassVar

from cache_dic import METHODS, UserError, accepted_settings, read_setting

NONE, AUTO = "none", "auto"
PUBLISHED = -1
"""Of a number: what has been published for the model."""

OF_CACHE = ("model", "schedule")
"""Names among further settings that are of the cache as a whole: text as it is."""


def _methods() -> list[str]:
    """Those that leave out whole steps, which is what ComfyUI's blocks allow."""
    return [
        name for name, method in METHODS.items() if method.engine not in ("partial", "walked") and name != "uncached"
    ]


def _number(
    kind: str, default: float, least: float, most: float, tooltip: str, **more: Any
) -> tuple[str, dict[str, Any]]:
    return kind, {"default": default, "min": least, "max": most, "tooltip": tooltip, **more}


class TaylorSeer:
    """See `DESCRIPTION`, and the tooltips of `INPUT_TYPES`."""

    DESCRIPTION = (
        "Computes the model in some steps of sampling and forecasts it in the others. For models of the classes Flux, "
        "HunyuanVideo, WanModel and HiDream. Put it last, after nodes that load LoRAs or change the model."
    )
    CATEGORY = "advanced/model"
    FUNCTION = "patch"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS: ClassVar = ("The model with the cache; the one that came in stays as it was.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:  # noqa: N802 - ComfyUI's name
        percent = {"step": 0.01, "round": 0.001}
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model to cache."}),
                "method": (
                    [*_methods(), NONE],
                    {"default": "taylorseer", "tooltip": "How steps are chosen and forecast; 'none' passes the model on."},
                ),
                "interval": _number(
                    "INT", PUBLISHED, PUBLISHED, 1000,
                    "Every how many steps the model is computed: 5 is one of five. -1: as published for this model. Methods "
                    "that decide while sampling have a threshold instead, under settings.",
                ),
                "order": _number(
                    "INT", PUBLISHED, PUBLISHED, 10,
                    "Highest order of the forecast: 0 reuses the last computed step, 1 is linear, 2 quadratic. -1: as "
                    "published for this model.",
                ),
                "start_percent": _number(
                    "FLOAT", 0.0, 0.0, 1.0,
                    "Where caching begins, as a part of sampling; every step before it is computed.", **percent,
                ),
                "end_percent": _number(
                    "FLOAT", 1.0, 0.0, 1.0,
                    "Where caching ends, as a part of sampling; every step after it is computed.", **percent,
                ),
            },
            "optional": {
                "start_at_step": _number("INT", 0, 0, 10000, "The first step that may be forecast, counted from 0."),
                "end_at_step": _number("INT", 10000, 1, 10000, "From this step on every one is computed."),
                "warmup_steps": _number(
                    "INT", PUBLISHED, PUBLISHED, 1000,
                    "Steps that are computed before the first forecast, from where caching begins. -1: as published for this "
                    "model.",
                ),
                "engine": (
                    [AUTO, "folded", "stack", "hidden"],
                    {
                        "default": AUTO,
                        "tooltip": "What is kept between computed steps. folded: every layer's features, in a few tensors; "
                        "stack: what all blocks together add; hidden: tokens after the last block. auto: the method's own "
                        "where the blocks allow it, else stack.",
                    },
                ),
                "settings": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "Further settings of the method, name=value, one on each line: threshold=0.1. Published "
                        "ones by model: model=flux-dev.",
                    },
                ),
            },
        }  # fmt: skip

    def patch(
        self, model: Any, method: str, interval: int = PUBLISHED, order: int = PUBLISHED, start_percent: float = 0.0,
        end_percent: float = 1.0, start_at_step: int = 0, end_at_step: int = 10000, warmup_steps: int = PUBLISHED,
        engine: str = AUTO, settings: str = "",
    ) -> tuple[Any]:  # fmt: skip
        """The model that came in for "none", a clone with a cache otherwise; UserError for what cannot be cached so."""
        if method == NONE:
            return (model,)
        from .sampling import Window, made_cache, patched

        window = Window(
            start_percent=start_percent, end_percent=end_percent, start_at_step=start_at_step, end_at_step=end_at_step
        )
        order_name = "order" if "order" in accepted_settings(method) else "max_order"
        numbers = {"interval": interval, order_name: order, "warmup_steps": warmup_steps}
        given = {name: value for name, value in numbers.items() if value != PUBLISHED}
        cache = made_cache(
            model.model.diffusion_model, method, None if engine == AUTO else engine, {**given, **read(method, settings)}
        )
        return (patched(model, cache, window),)


def read(method: str, settings: str) -> Mapping[str, Any]:
    """Settings written as name=value, one on each line."""
    lines = [line.strip() for line in settings.splitlines() if line.strip()]
    if wrong := next((line for line in lines if "=" not in line), None):
        raise UserError(f"settings: {wrong!r} is no setting; write name=value, one on each line, such as threshold=0.1")
    texts = {name.strip(): text.strip() for name, _, text in (line.partition("=") for line in lines)}
    schedule = texts.get("schedule")
    return {
        name: text if name in OF_CACHE else read_setting(method, name, text, schedule) for name, text in texts.items()
    }


NODE_CLASS_MAPPINGS = {"TaylorSeer": TaylorSeer}
NODE_DISPLAY_NAME_MAPPINGS = {"TaylorSeer": "TaylorSeer (forecast caching)"}
