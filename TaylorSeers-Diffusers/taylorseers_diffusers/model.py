"""A diffusers transformer as the caches see a backbone, for one run of one guidance branch."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from cache_dic import Forecast, Parts, Run, Site, Streams, Tokens, UserError
from cache_dic.engine import GateFactors, LayerwiseEngine, Recorder
from taylorseers_diffusers.attach import present
from taylorseers_diffusers.clock import Clock, Moment
from taylorseers_diffusers.forms import BlockForm, Feature
from taylorseers_diffusers.passes import Passes, Walk
from taylorseers_diffusers.transformers import known


class NotFiniteError(UserError):
    """NaN or infinity in every sample of a call."""


class GateTable:
    """Gates of any step of a run: the embeddings of its timestep go through the transformer, whose blocks are passed by."""

    factors: GateFactors | None = None

    def __init__(self, model: "CachedTransformer") -> None:
        self.model = model
        self.known: dict[int, Tensor] = {}

    def at(self, step: int) -> None:
        """Blocks compute their own modulation."""

    def gates(self, steps: Sequence[int]) -> Tensor:
        """(steps, sites, B or 1, D)."""
        for step in steps:
            if step not in self.known:
                self.known[step] = self.model.gates_at(step)
        return torch.stack([self.known[step] for step in steps])

    def forget_before(self, step: int) -> None:
        self.known = {s: gates for s, gates in self.known.items() if s >= step}


class CachedTransformer:
    """`cache_dic.cache.Backbone` and `cache_dic.look.Observable` for a transformer of diffusers.

    moment: of the first step of the run, with which its steps are counted. arguments: of the call at hand, by name. Tokens are
    those before block 0; sites those of the table of forms, or else the blocks themselves, with what they add. partial: for a
    method that computes part of a step, whose sites may be others.
    """

    TIME = "timestep"

    def __init__(
        self, passes: Passes, forward: Callable[..., Any], clock: Clock, moment: Moment, arguments: Mapping[str, Any],
        time: str, partial: bool, shard: Any = None,
    ) -> None:  # fmt: skip
        self.passes, self.forward, self.clock, self.first, self.time = passes, forward, clock, moment, time
        self.moment, self.arguments = moment, arguments
        self.partial = partial
        self.answers: dict[bool, tuple[type, bool]] = {}  # by whether a dictionary is wanted, what the forward gives
        self.gates: Tensor | None = None  # of all sites at the call at hand, where its blocks are to be checked
        if shard is not None:
            self.shard = shard

    # -------------------------------------------------------------------------------------------------------- passes

    def walked(self, walk: Walk, arguments: Mapping[str, Any] | None = None) -> Tensor:
        """The output of a pass."""
        given = self.passes.run(self.forward, self.arguments if arguments is None else arguments, walk)
        self.answers[self._wants_dictionary] = type(given), isinstance(given[0], Tensor)
        return as_batch(given[0])

    @property
    def _wants_dictionary(self) -> bool:
        return bool(self.arguments.get("return_dict", True))

    def answer(self, output: Tensor) -> Any:
        """An output in the form that the caller wants, as any pass for such a caller shows it."""
        if self._wants_dictionary not in self.answers:
            self.walked(Walk(stop=0, has_output=False))
        kind, is_tensor = self.answers[self._wants_dictionary]
        sample = output if is_tensor else list(output.unbind(0))
        return (sample,) if kind is tuple else kind(sample=sample)

    def step(self, run: Run, step: int) -> Tensor:
        """The output of the call at hand, as a step of its run; NotFiniteError where a first one has nothing else."""
        needs_gates = run.engine.needs_gates
        caches = step == 0 and needs_gates and run.plan.least_full < run.plan.num_steps
        self.gates = run.table.gates([step])[0] if caches else None

        def forecast(advance: Forecast) -> Tensor:
            if isinstance(run.engine, LayerwiseEngine):
                run.table.gates([step])  # which it would else ask for within the pass
            return self.forecast_step(advance, needs_gates)

        output = run.at(step)(run.tokens, self.full_step, forecast, self.parts())
        if step == 0 and not bool(output.isfinite().flatten(1).all(dim=1).any()):
            raise NotFiniteError(
                f"every sample that {self.name} was called with came out of the first step with NaN or infinity; take "
                "torch.float32 or a lower guidance scale"
            )
        return output

    def enter(self) -> Streams:
        """The state before block 0."""
        walk = Walk(stop=0, has_output=False)
        self.walked(walk)
        assert walk.entered is not None, "a transformer calls its blocks"
        return walk.entered

    def full_step(self, site: Site) -> Tensor:
        """The output through all blocks."""
        walk = Walk(site=site, gates=self.gates)
        output = self.walked(walk)
        _show_ends(site, walk.entered, walk.left)
        return output

    def forecast_step(self, advance: Forecast, by_site: bool) -> Tensor:
        """The output with `advance` in place of the blocks.

        What is added between blocks, by a control net, is that of this step in the site form; elsewhere it is part of what is
        forecast.
        """
        return self.walked(Walk(stop=0, last=lambda x0, x: advance(x if by_site else x0)))

    def parts(self) -> Parts:
        entered: list[Streams] = []

        def enter() -> Streams:
            if not entered:
                entered.append(self.enter())
            return entered[0]

        def walk(streams: Streams, site: Site, start: int, stop: int | None) -> Streams:
            stop = len(self.passes.blocks) if stop is None else stop
            if start == stop:
                return streams
            gates = None if self.gates is None else self.gates[sum(map(len, self.block_sites()[:start])) :]
            walk = Walk(start, stop, inject=streams, site=site, gates=gates, has_output=False)
            self.walked(walk)
            _show_ends(site, streams, walk.left)
            assert walk.left is not None, "a transformer calls its blocks"
            return walk.left

        def leave(streams: Streams) -> Tensor:
            count = len(self.passes.blocks)
            return self.walked(Walk(count, count, inject=streams))

        return Parts(latents=self.latents, modulated=self.modulated, enter=enter, walk=walk, leave=leave)

    # ------------------------------------------------------------------------------------------------------- backbone

    @property
    def latents(self) -> Tensor:
        return latents_of(self.arguments)

    @property
    def name(self) -> str:
        return type(self.passes.transformer).__name__

    def tokens(self, latents: Tensor) -> Tokens:
        walk = Walk(stop=0, before_blocks=[], has_output=False)
        self.walked(walk)
        if not self.partial and _laid_out_anew(walk.before_blocks or []):
            raise UserError(
                f"{self.name} lays out its tokens anew between blocks, by frame and by place, so what the blocks add is no "
                "sum; take a method that computes a part of each block, such as 'pab'"
            )
        assert walk.entered is not None, "a transformer calls its blocks"
        x = walk.entered.x
        return Tokens(
            batch=len(x), length=x.shape[1], dim=x.shape[-1], dtype=x.dtype, output_numel=latents.numel(),
            num_sites=sum(map(len, self.block_sites())),
        )  # fmt: skip

    def block_sites(self) -> list[tuple[str, ...]]:
        features = self._features()
        if not self.passes.site_form:
            return [("block",)] * len(features)
        return [tuple(feature.name for feature in of_block if feature.reaches_output) for of_block in features]

    @property
    def SITE_KINDS(self) -> dict[str, str]:  # noqa: N802 - the protocol's name
        return {feature.name: feature.kind for of_block in self._features() for feature in of_block}

    def _features(self) -> list[tuple[Feature, ...]]:
        """By block."""
        forms = [self.passes.forms[id(block)] for block in self.passes.blocks]
        return [form.partial_features if self.partial else form.features for form in forms]

    def modulation_table(self, timesteps: Tensor, full: Sequence[int], gated: Sequence[int], **_: Any) -> GateTable:
        if gated and not self.passes.site_form:
            raise UserError(f"the gates of {self.name} are not known; leave out engine, or take engine='stack'")
        if gated and self.moment.reading is None:
            raise UserError(
                f"what the pipeline makes of its timesteps before it calls {self.name} is not known, so gates of other steps "
                "cannot be had; take engine='stack'"
            )
        if gated and not self.moment.is_known(self.arguments[self.time]):
            raise UserError(
                f"{self.name} was called with several timesteps at once, of which the scheduler tells one, so gates of other "
                "steps cannot be had; take engine='stack'"
            )
        return GateTable(self)

    def gates_at(self, step: int) -> Tensor:
        """Gates of the sites (sites, B or 1, D) at a step of this run."""
        found: list[Tensor | None] = []

        def skipped(block: nn.Module, form: BlockForm, conditions: Sequence[Any]) -> None:
            assert form.gates is not None, "asked of the site form"
            with present(block):
                found.extend(form.gates(block, *conditions))

        given = self.arguments[self.time]
        then = self.moment.argument(self.first.step + step, given)
        self.walked(Walk(stop=0, skipped=skipped, has_output=False), {**self.arguments, self.time: then})
        return as_rows(found, self.name)

    # ------------------------------------------------------------------------------------------------------ observable

    def modulated(self) -> Tensor:
        """Tokens after the first norm, shift and scale of block 0 (B, L, D)."""
        found: list[Tensor] = []
        walk = Walk(stop=0, has_output=False)

        def skipped(block: nn.Module, form: BlockForm, conditions: Sequence[Any]) -> None:
            if found:
                return
            if form.modulated is None:
                raise UserError(
                    f"what block 0 of {self.name} makes of its tokens first is not known, and this method looks at it; take "
                    "another method, or one of its signals that follow from the latents"
                )
            assert walk.entered is not None, "before the first block is passed by"
            with present(block):
                found.append(form.modulated(block, walk.entered.x, *conditions))

        walk.skipped = skipped
        self.walked(walk)
        return found[0]

    def noise_levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        levels = self.clock.noise_levels(timesteps)
        if levels is None:
            raise UserError("the pipeline's scheduler tells no noise levels, which this method looks at")
        return levels

    def token_grid(self, latents: Tensor, **_: Any) -> tuple[int, ...]:
        grid = known(self.passes.transformer).grid
        if grid is None:
            raise UserError(
                f"rows and columns of the tokens of {self.name} are not known, and this method looks at them"
            )
        return grid(self.passes.transformer, self.arguments)

    def time_signals(self, timesteps: Tensor, **_: Any) -> dict[str, Tensor]:
        signals = known(self.passes.transformer).signals
        if signals is None:
            raise UserError(f"what {self.name} embeds the timestep as is not known, and this method looks at it")
        found: dict[str, list[Tensor]] = {}
        given = self.arguments[self.time]
        for step in range(len(timesteps)):
            then = self.moment.argument(self.first.step + step, given)
            for name, value in signals(self.passes.transformer, {**self.arguments, self.time: then}).items():
                found.setdefault(name, []).append(value)
        return {name: torch.stack(values) for name, values in found.items()}


def as_batch(value: Tensor | Sequence[Tensor]) -> Tensor:
    """A batch, of tensors one by one where a transformer takes or gives them so."""
    if isinstance(value, Tensor):
        return value
    if len({one.shape for one in value}) > 1:
        raise UserError(
            "latents of several sizes in one call cannot be cached; sample them one by one, or disable the cache"
        )
    return torch.stack(list(value))


def latents_of(arguments: Mapping[str, Any]) -> Tensor:
    """The first argument of tensors."""
    first = next(
        value
        for value in arguments.values()
        if isinstance(value, Tensor) or (isinstance(value, list) and value and isinstance(value[0], Tensor))
    )
    return as_batch(first)


def _laid_out_anew(before_blocks: Sequence[Tensor]) -> bool:
    """Whether tokens that no block has changed, before each of them, are in other places before some."""
    first, last = before_blocks[0], before_blocks[-1]
    others = [(a, b) for a, b in pairwise(before_blocks) if a is not b and a.shape == b.shape and not torch.equal(a, b)]
    moved = (torch.equal(a.flatten().sort().values, b.flatten().sort().values) for a, b in others)
    return first.shape != last.shape or any(moved)


def _show_ends(site: Site, before: Streams | None, after: Streams | None) -> None:
    """The tokens at both ends of a walk to a site that holds them; what it was handed are features alone."""
    if isinstance(site, Recorder) and site.ends:
        assert before is not None, "a transformer calls its blocks"
        assert after is not None, "a transformer calls its blocks"
        site.x0, site.x_final = before.x.detach(), after.x.detach()


def as_rows(gates: Sequence[Tensor | None], name: str) -> Tensor:
    """Gates of all sites as one tensor (sites, B or 1, D)."""
    like = next((gate for gate in gates if gate is not None), None)
    if like is None:
        raise UserError(f"no site of {name} has a gate")
    rows = []
    for gate in gates:
        row = torch.ones_like(like) if gate is None else gate
        if row.ndim == 3:
            numbers = row.nan_to_num()  # NaN differs from itself
            if not torch.equal(numbers, numbers[:, :1].expand_as(numbers)):
                raise UserError(
                    f"each token of {name} has a time of its own here, so gates differ by token; take engine='stack'"
                )
            row = row[:, 0]
        rows.append(row)
    return torch.stack(rows)
