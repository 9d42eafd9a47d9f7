"""Forecast caching on pipelines of diffusers, in two lines:

from taylorseers_diffusers import enable
enable(pipe, method="taylorseer", interval=6, max_order=2)

`passes`, `forms` and `model` are imported without diffusers: they serve any transformer with a list of blocks.
"""

from typing import TYPE_CHECKING

from cache_dic.lazy import lazy_names

if TYPE_CHECKING:
    from taylorseers_diffusers.calibration import calibrate
    from taylorseers_diffusers.front import disable, enable, report
    from taylorseers_diffusers.reports import Report

__all__ = ["Report", "calibrate", "disable", "enable", "report"]

__getattr__, __dir__ = lazy_names(
    __name__, {"calibration": ("calibrate",), "front": ("disable", "enable", "report"), "reports": ("Report",)}
)
