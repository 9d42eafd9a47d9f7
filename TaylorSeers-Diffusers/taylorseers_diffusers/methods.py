"""Which methods diffusers' blocks allow; needs no diffusers."""

from cache_dic import Cache, Partial, UserError


def check_method(cache: Cache) -> None:
    """UserError for a method that computes some tokens of a block, or looks into its attention."""
    decider = cache.decider()
    if isinstance(decider, Partial) and (decider.selects_tokens or decider.observes is not None):
        raise UserError(
            f"method {cache.method!r} computes some tokens of a block or looks into its attention, which diffusers' blocks do "
            "not allow; the commands of TaylorSeer-FLUX and the other backbones here have it, or take another method"
        )
