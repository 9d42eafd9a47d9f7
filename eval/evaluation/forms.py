"""What eval/tables.py reads of the records under results/, by the command that makes them (see `seerkit.io.records.Form`)."""

import re
from typing import Any

from seerkit.io.records import Form, positive
from seerkit.training.flags import OPTIMIZERS


def comparison(text: Any) -> bool:
    """a comparison with a number, as <= 40"""
    return isinstance(text, str) and re.fullmatch(r"[<>]=? [-+.e\d]*\d", text) is not None


def nothing(value: Any) -> bool:
    """an empty list"""
    return value == []


KEPT = ("folded", "layerwise")  # engines whose kept features are shown beside a count
KEPT_BYTES: Form = dict.fromkeys(KEPT, float)
CONDITIONS: Form = {"device": str, "threads": (None, int), "dtype": str, "versions": {"torch": str}, "date": str}
SIZE: Form = {"width": int, "height": int}


BLOCK_FIELDS = (
    ("depth", "depth_single_blocks"),
    ("num_layers", "num_single_layers"),
    ("mm_double_blocks_depth", "mm_single_blocks_depth"),
)
"""How configurations call the number of blocks, and that of single ones where there are double ones, too."""


def counted_blocks(config: Any) -> bool:
    """a configuration with the number of blocks"""
    return isinstance(config, dict) and any(many in config for many, _ in BLOCK_FIELDS)


# ------------------------------------------------------------------------------------------------- eval/busy_machine.py

BUSY_MACHINE: Form = {
    "settings": {"model": str, "batch_size": int},
    "cores": int,
    "rows": [{"spins": int, "neighbours": int, "median_ms": positive, "min_ms": positive, "max_ms": positive}],
    "conditions": CONDITIONS,
}


# -------------------------------------------------------------------------------------------------------- eval/flops.py


def _counts(settings: Form, **further: Form) -> Form:
    common = {"model": str, "num_steps": int, "precision": str, "rows": int}
    row = {
        "label": str, "method": str, "full_steps": [int], "flops_T": positive, "flops_T_uncached": positive,
        "flops_ratio": positive, "kept_bytes": (KEPT_BYTES, {"partial": float}), "settings": {**common, **settings},
        "conditions": CONDITIONS,
    }  # fmt: skip
    return {"rows": [{**row, **further}]}


_CONVENTION: Form = {"flops_T": float, "flops_T_uncached": float, "difference": [{"term": str, "flops_T": float}]}
_PUBLISHED: Form = {"schedule": {"interval": (None, int)}, "published_convention": (None, _CONVENTION)}
_WITHOUT_ATTENTION: Form = dict.fromkeys(("flops_T_without_attention", "flops_T_uncached_without_attention"), float)
_VIDEO: Form = {**SIZE, "frames": int, "tokens": int, "sites": int, "text_tokens": (None, int)}
_GOAL_GIB: Form = {"bound_gib": float, "value_gib": float, "met": bool}
VIDEO_COUNTS = _counts(_VIDEO, **_PUBLISHED, kept_goal=(None, _GOAL_GIB))
COUNTS: dict[str, Form] = {
    "dit": _counts({"config": {"input_size": int}}, **_PUBLISHED),
    "flux": _counts({**SIZE, "text_tokens": int}, **_PUBLISHED),
    "hunyuan": VIDEO_COUNTS,
    "wan": _counts(_VIDEO, **_PUBLISHED, **_WITHOUT_ATTENTION, kept_goal=(None, _GOAL_GIB)),
    "hidream": _counts(
        {**SIZE, "text_tokens": int, "tokens": int, "config": dict},
        flops_T_full_step=positive, flops_T_forecast_step=float, flops_T_without_attention=float,
    ),
}  # fmt: skip
"""By the folder of the records."""


# ---------------------------------------------------------------------------------------------------- eval/benchmark.py

_TIMING: Form = {"median_s": positive, "repeats": int}
_SETTINGS: Form = {
    "model": str, "num_steps": int, "rows": int, "tokens": int, "text_tokens": (None, int), "precision": str,
    "attention": str, "compile": bool, "reduced_depth": bool, "config": counted_blocks,
}  # fmt: skip
_GOAL: Form = {"name": str, "goal": comparison, "value": (None, float), "met": (None, bool)}
BENCHMARK: Form = {
    "label": str,
    "settings": ({**_SETTINGS, "frames": (None,)}, {**_SETTINGS, **SIZE, "frames": int}),
    "full_step": {"plain": _TIMING, "folded": _TIMING},
    "forecast_step": {str: _TIMING},
    "whole_run": (None, {str: _TIMING}),
    "speedup": {"measured": (None, float), "composed": float, "flops": float},
    "goals": {str: _GOAL},
    "diffusers": (None, {"ours_over_theirs": {"median": float}}),
    "kernels": (None, int),
    "peak_bytes": (None, {"uncached": float, "folded": float}),
    "flops": {"kept_bytes": KEPT_BYTES},
    "conditions": CONDITIONS,
}


# ---------------------------------------------------------------------------------------------------- sampling commands

PSNR: Form = {
    **dict.fromkeys(("mean_db", "low_db", "high_db"), (None, float)), "num_images": (None, int), "num_identical": (None, int),
}  # fmt: skip
INTERVAL: Form = dict.fromkeys(("mean", "low", "high"), (None, float))
SCORES = ("score", "class_accuracy", "flicker")
"""Of samples without a reference, by their keys in rows."""
_SCORED: Form = {key: (None, INTERVAL) for score in SCORES for key in (score, f"{score}_change")}
SAMPLES: Form = {
    "settings": {
        "model": str, "batch_size": int, "seed": int, "solver": (None, str),
        "guidance": (None, float), "guidance_scale": (None, float),
    },
    "num_samples": int,
    "rows": [
        {
            "label": str, "full_steps": [int], "num_steps": int, "flops_ratio": positive, "kept_bytes": float,
            "latency": (None, {"ratio": (None, float)}), "psnr": (None, PSNR),
            "conditions": (None, CONDITIONS), **_SCORED,
        }
    ],
    "scorer": (None, {"ceiling": float, "ceiling_new_labels": float, "floor": float}),
    "real_test_accuracy": (None, float),
    "conditions": CONDITIONS,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------ eval/compare.py

_COMPARED: Form = {
    "label": str, "name": str, "form": (None, str), "groups": list, "num_steps": int,
    "computed": {"mean": float, "min": int, "max": int}, "partial_steps": (None, list), "flops_ratio": positive,
    "kept_bytes": float,
    "latency": {"ratio": positive, "processor_ratio": (None, positive)},
    "psnr": (None, PSNR),
    "ssim": (None, INTERVAL), "lite0": (None, INTERVAL), "samples": {"psnr_db": (None, [(None, float)])},
    **_SCORED,
}  # fmt: skip
COMPARISON: Form = {
    "settings": {"model": str, "num_steps": int, "seed": int},
    "num_samples": int,
    "batch_size": int,
    "rows": [(_COMPARED, {"name": str, "error": str})],
    "conditions": CONDITIONS,
}


# ------------------------------------------------------------------------------------------------------- eval/beyond.py

_OF_PAIRS: Form = (
    {"mean": float, "low": float, "high": float, "wins": float, "losses": float, "num": int},
    {"mean": (None, float), "low": None, "high": None, "wins": (None, float), "losses": (None, float), "num": int},
)
_DIFFERENCES: Form = {"psnr_db": _OF_PAIRS, "ssim": (None, *_OF_PAIRS), "lite0": (None, *_OF_PAIRS)}
_TRIED: Form = {"name": str, "role": str, "label": str, "flops_ratio": positive, "psnr_db": (None, float)}
_CALIBRATED: Form = {"name": str, "digest": str, "full_steps": [int]}
_PLACED: Form = {"role": str, "label": str, "name": str}
_ROWS: Form = [({**_COMPARED, "full_steps": list}, {"label": str, "name": str, "error": str})]
BEYOND: Form = {
    "seed": int,
    "settings": {"model": str, "num_steps": int, "seed": int, "ckpt": (None, str)},
    "num_samples": int,
    "num_rival_samples": int,
    "batch_size": int,
    "reference": str,
    "budgets": [
        {
            "full_steps": int,
            "flops_ratio": positive,
            "calibration": _CALIBRATED,
            "rows": [({**_PLACED, "differences": (None, _DIFFERENCES)}, {**_PLACED, "error": str})],
            "over_reference": (None, _DIFFERENCES),
            "parts": {str: _OF_PAIRS},
            "tried": ([(_TRIED, {"name": str, "role": str, "error": str})], nothing),
            "not_tried": {str: str},
        }
    ],
    "rows": _ROWS,
    "conditions": CONDITIONS,
}
STUDY: Form = {
    "study": str,
    "seed": int,
    "settings": {"model": str, "num_steps": int, "seed": int, "ckpt": (None, str)},
    "full_steps": int,
    "num_samples": int,
    "contests": [{"flags": list, "prompts": str, "against": {str: str}, "rows": _ROWS}],
    "cases": [
        (
            {
                "group": str, "label": str, "contest": int, "row": str, "calibration": _CALIBRATED,
                "over": {str: _DIFFERENCES},
            },
            {"group": str, "label": str, "error": str},
        )
    ],
    "conditions": CONDITIONS,
}  # fmt: skip


# -------------------------------------------------------------------------- eval/schedule_gains.py, eval/method_costs.py

GAINS: Form = {
    "model": str, "num_steps": int, "num_samples": int, "forecaster": {"max_order": int},
    "rows": [
        {
            "schedule": str, "count": int, "full_steps": [int], "psnr": PSNR,
            "gain": (None, {str: {"mean_db": (None, float), "ci95_db": (None, float)}}),
        }
    ],
    "conditions": CONDITIONS,
}  # fmt: skip
_COST: Form = {
    "label": str, "decided": str, "engine": str, "kept_bytes": float, "decide_s": float, "forecast_s": (None, float),
    "forecast_step_s": (None, float),
}  # fmt: skip
METHOD_COSTS: Form = {
    "settings": {"model": str, "timed": {"depth": (None, int), "tokens": int}, "counted": {"tokens": int}},
    "full_step_s": positive,
    "rows": [(_COST, {"label": str, "error": str})],
    "conditions": CONDITIONS,
}


# ------------------------------------------------------------------------------------------------ eval/partial_steps.py

_MIDDLE: Form = dict.fromkeys(("median", "min", "max"), float)
_KIND: Form = dict.fromkeys(("time", "processor_time", "observing", "flops"), _MIDDLE)
PARTIAL_STEPS: Form = {
    "settings": {"model": str, "depth": (None, int), "tokens": int, "rows": int, "repeats": int},
    "full_step_s": positive,
    "machine": {"processors": int, "load_before": float},
    "rows": [
        (
            {"label": str, "num_steps": int, "kinds": {str: {"steps": int, "flops": _MIDDLE}}, "steps": {str: _KIND}},
            {"label": str, "error": str},
        )
    ],
    "conditions": CONDITIONS,
}


# ------------------------------------------------------------------------------------------- eval/nearest.py, op_counts.py

NEAREST: Form = {
    "nearest": list, "training_images": int, "num_real_test_images": int, "samples": {str: float},
    "real_test_images": {str: float},
}  # fmt: skip
OP_COUNTS: Form = {
    "settings": {"depth": int, "depth_single_blocks": int, "sites": int, "max_order": int},
    "units": str,
    "rows": [{"label": str, "package": (None, str), "operations": (None, positive)}],
    "conditions": CONDITIONS,
}
_STEP: Form = (None, {"median_s": positive})
FRONTS: Form = {
    "settings": {
        "num_steps": int, "repeats": int, "interval": int, "max_order": int, "warmup_steps": int,
        "sizes": {str: {"double_blocks": int, "single_blocks": int, "width": int, "tokens": int}},
    },
    "units": str,
    "rows": [
        {
            "model": str, "label": str, "package": (None, str), "skipped": (None, str), "compiling": (None, str),
            "operations": (None, int), "full_operations": (None, int), "full_step": _STEP, "forecast_step": _STEP,
            "forecast_over_full": (None, {"median": positive, "min": positive, "max": positive}),
            "kept_bytes": (None, int), "graphs": (None, int), "graph_breaks": (None, int),
        }
    ],
    "conditions": CONDITIONS,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- eval/validate_measures.py


def digits(value: Any) -> bool:
    """a number of digits, 0 to 9"""
    return type(value) is int and 0 <= value < 10


_FIGURE: Form = {"value": float, "half": float}
_DIFFERENCE: Form = {**_FIGURE, "needed": (None, int), "half_at": {"100": float, "1000": float}}
VALIDATION: Form = {
    "model": str,
    "settings": {
        "num_samples": int, "num_real": int, "num_reference": int, "num_pairs": int, "steps": [int], "methods": [str],
        "data": str, "seed": int,
    },
    "rules": [str],
    "rows": [
        {
            "name": str, "title": str, "kind": str, "digits": digits, "scale": float, "num": int,
            "num_real": (None, int), "shown": bool,
            "least_samples": (None, int),
            "floor": (None, {**_FIGURE, "mildest_step": float, "passes": bool}),
            "ladders": [
                {
                    "name": str, "unit": str, "spearman": (None, float), "passes": bool,
                    "rungs": [{"strength": float, **_FIGURE, "step": (None, _FIGURE)}],
                }
            ],
            "agreement": {"by": {str: (None, float)}, "passes": bool},
            "order": {
                "values": [{"steps": int, **_FIGURE}],
                "differences": [{"from": int, "to": int, **_DIFFERENCE}],
                "passes": bool,
            },
            "methods": {
                "values": [{"label": str, **_FIGURE}], "differences": [{"from": str, "to": str, **_DIFFERENCE}]
            },
        }
    ],
    "conditions": CONDITIONS,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- track.py

_TRACKED: Form = [
    {
        "motion": (None, str), "num": positive, "chance": float,
        **dict.fromkeys(
            ("right_object", "right_colour", "right_motion", "right_background", "right_everything"), int
        ),
    }
]  # fmt: skip
TRACKING: Form = {
    "model": str, "settings": {"num_steps": int, "seed": int, "guidance": float},
    "rows": {"generated": _TRACKED, "real": _TRACKED}, "conditions": CONDITIONS,
}  # fmt: skip

# ------------------------------------------------------------------------------------------------------------- train.py


def _optimizer(value: Any) -> bool:
    """the name of an optimiser that a training command takes"""
    return isinstance(value, str) and value in OPTIMIZERS


def _training(losses: Form, config: Form, **further: Form) -> Form:
    settings = {
        "steps": int, "batch_size": int, "lr": float, "lr_schedule": str, "lr_warmup_steps": int, "ema_decay": float,
        "precision": str, "seed": int, "optimizer": (None, _optimizer),
    }  # fmt: skip
    return {
        "config": config, "num_parameters": int, "training": settings, "images_seen": int, "seconds": float,
        "final_loss": losses, "conditions": {**CONDITIONS, "python": str}, **further,
    }  # fmt: skip


_FLOW: Form = {"flow": float}
TRAINING: dict[str, Form] = {
    "dit": _training(
        {"simple": float, "vlb": float}, dict.fromkeys(("depth", "hidden_size", "num_heads", "patch_size"), int)
    ),
    "flux": _training(
        _FLOW,
        dict.fromkeys(("depth", "depth_single_blocks", "hidden_size", "num_heads"), int),
        training_images=positive,
    ),
    "hidream": _training(_FLOW, dict, training_images=positive, expert_shares=[[float]]),
    "hunyuan": _training(
        _FLOW,
        {
            **dict.fromkeys(("mm_double_blocks_depth", "mm_single_blocks_depth", "hidden_size", "heads_num"), int),
            "patch_size": [int],
        },
    ),
    "wan": _training(_FLOW, {**dict.fromkeys(("num_layers", "dim", "num_heads"), int), "patch_size": [int]}),
}
