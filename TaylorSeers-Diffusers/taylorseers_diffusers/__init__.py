"""Forecast caching on pipelines of diffusers, in two lines:

from taylorseers_diffusers import enable
enable(pipe, method="taylorseer", interval=6, max_order=2)
"""

from taylorseers_diffusers.front import disable, enable, report
from taylorseers_diffusers.report import Report

__all__ = ["Report", "disable", "enable", "report"]
