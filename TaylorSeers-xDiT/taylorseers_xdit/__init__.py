"""Caches on pipelines of diffusers whose tokens several processes share, by xfuser's USP or diffusers' context parallelism.

share(pipe, "xfuser", ulysses=4, ring=2)
enable(pipe, method="taylorseer", interval=6, max_order=1)

`share` and `enable` load torch; flags of the commands do not.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taylorseers_diffusers import disable, enable, report
    from taylorseers_xdit.shared import share

__all__ = ["disable", "enable", "report", "share"]


def __getattr__(name: str) -> Any:
    if name == "share":
        from taylorseers_xdit.shared import share

        return share
    if name in __all__:
        import taylorseers_diffusers

        return getattr(taylorseers_diffusers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
