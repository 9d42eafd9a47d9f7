"""The place of methods that compute part of a step, which say themselves what they keep (`cache_dic.partial_run`)."""

from cache_dic.engine.base import Engine, EngineSettings, Snapshots, Tokens
from cache_dic.plan import AnyPlan


class PartialEngine(Engine):
    """Features of every site; those of other streams, and what a method keeps beside them, are counted in a run."""

    name = "partial"
    needs_gates = False
    walks = True

    @staticmethod
    def kept_bytes(plan: AnyPlan, tokens: Tokens, settings: EngineSettings) -> int:
        return Snapshots.most(plan) * tokens.num_sites * tokens.numel * tokens.dtype.itemsize
