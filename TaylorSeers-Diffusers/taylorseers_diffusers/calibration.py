"""Calibrations of TeaCache and MagCache for any pipeline, from uncached runs of it."""

import os
from collections.abc import Callable
from typing import Any

from cache_dic import UserError
from cache_dic.calibration import MEASURED, calibration_of, measured_steps, measuring
from cache_dic.errors import check_choice, shown
from cache_dic.methods.teacache import SIGNALS
from seerkit.io.files import writable_file, write_json
from taylorseers_diffusers.front import disable, hooks_of, install, report


def calibrate(
    pipe: Any,
    *calls: Callable[[], Any],
    out: str | os.PathLike[str] | None = None,
    method: str = "teacache",
    signal: str = SIGNALS[0],
) -> dict[str, Any]:
    """The polynomial of `teacache`, or the table of `magcache`, of a pipeline that none is published for.

        calibrate(pipe, lambda: pipe("a fox", num_inference_steps=50), out="own.json")
        enable(pipe, "teacache", calibration="own.json", threshold=0.1)

    calls: each makes one sample with the pipeline, of another prompt than those that results are shown on. out: the file.
    method: "teacache" or "magcache", whose file is for `table`. signal: of the polynomial, "modulated", "embedded_latent",
    "time_embedding" or "time_projection". Samples are the uncached ones; a cache that is on is put back in the end. Raises
    UserError for numbers that are not finite, for too few steps, and for what the transformer does not tell.
    """
    check_choice("method", method, tuple(MEASURED))
    check_choice("signal", signal, SIGNALS)
    if not calls:
        raise UserError("calibrate() needs what to measure; give it a call of the pipeline, as lambda: pipe('a fox')")
    for call in calls:
        if not callable(call):
            raise UserError(f"calibrate() takes calls of the pipeline, as lambda: pipe('a fox'), not {shown(call)}")
    if getattr(pipe, "transformer_2", None) is not None:
        raise UserError(
            f"{type(pipe).__name__} has two transformers, of which each would need a calibration of its own"
        )
    if out is not None:
        writable_file(out)
    before = [hook.cache for hook in hooks_of(pipe)]
    install(pipe, measuring(signal if method == "teacache" else "embedded_latent"))
    try:
        measured = [_measured(pipe, call) for call in calls]
        model = report(pipe).model
    finally:
        disable(pipe)
        if before:
            install(pipe, *before)
    counts = sorted({1 + len(branch) for sample in measured for branch in sample})
    if len(counts) > 1:
        raise UserError(
            f"samples of {' and '.join(map(str, counts))} steps cannot be measured together; take one number"
        )
    (num_steps,) = counts
    made = calibration_of(
        method, measured, source=f"taylorseers_diffusers.calibrate, {len(calls)} samples of {type(pipe).__name__}",
        made_with={"transformer": model, "num_steps": num_steps}, signal=signal, num_steps=num_steps,
    )  # fmt: skip
    if out is not None:
        write_json(out, made)
    return made


def _measured(pipe: Any, call: Callable[[], Any]) -> list[list[dict[str, float | None]]]:
    """Of one sample, by branch and step from the second on."""
    call()
    sample = [measured_steps(records[-1]) for records in report(pipe).branches.values()]
    if not sample or not all(sample):
        raise UserError("the pipeline took no second step, so there is nothing to measure; sample with more steps")
    if any(value is None for branch in sample for step in branch for value in step.values()):
        raise UserError("the sample came out with NaN or infinity; take torch.float32")
    return sample
