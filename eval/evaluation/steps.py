"""Single steps of a cached run on a case, to be timed or to have their operations counted."""

from torch import Tensor

from cache_dic import Plan, Run
from seerkit.sampling.workload import Case


def take_step(case: Case, run: Run, timesteps: Tensor) -> Tensor:
    """The model's output at the next step of a run over `timesteps` (S,)."""
    step = len(run.steps)
    time = {case.model.TIME: timesteps[step].expand(case.rows)}
    return case.model(case.latents, **time, **case.conditions, cache=run.at(step))


def touch_table(run: Run, step: int) -> None:
    """Have the rows of the modulation table computed that this step of a run reads."""
    run.table.at(step)
    if run.cache.engine == "folded" and run.plan.is_full(step):
        gated = list(run.plan.targets[step])
    elif run.cache.engine == "layerwise" and not run.plan.is_full(step):
        gated = [step]
    else:
        gated = []
    if gated:
        run.table.gates(gated)


def most_sources(plan: Plan) -> int:
    """The most full steps that a forecast of a plan is made from, as every one in its steady state is."""
    return max(len(row) for row in plan.weights.values())
