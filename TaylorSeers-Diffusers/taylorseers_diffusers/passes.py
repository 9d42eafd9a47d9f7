"""A forward pass of a diffusers transformer with some of its blocks computed and the others passed by.

The transformer's own forward does what is before, between and after the blocks; while it runs, stand-ins are in its lists of
blocks. So embeddings, rotations, control nets and heads are diffusers', whatever its version does there, and a block that is
left out is not called: neither its offloading nor its compiled graph notices.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from cache_dic import Site, Streams, UserError, residual
from cache_dic.engine import Recorder
from cache_dic.partial_run import PartialSite
from cache_dic.site import Addition
from taylorseers_diffusers.attach import hook_on, put_on, take_off
from taylorseers_diffusers.forms import IMAGE_FIRST, MIXED_BETWEEN, BlockForm, Feature, block_lists, form_of, proper
from taylorseers_diffusers.shards import already_split, split, ungathered

HOOK = "taylorseers_site"
"""Name of the hooks at the features of blocks, before a number: models that share blocks have one each."""

SITE_TOLERANCE = 0.02
"""Of what a block adds, by which the sum of gate times feature may miss it; rounding of the stream comes on top."""

Skipped = Callable[[nn.Module, BlockForm, Sequence[Any]], None]
"""Called at a block that is passed by: the block, its form, and the arguments that its gates follow from."""


class Handed(Addition):
    """A feature that its block adds itself: a site gives back the feature in place of the tokens after it."""

    def of(self, value: Tensor) -> Tensor:
        return value


@dataclass(eq=False)
class Walk:
    """What a pass does with the blocks.

    start, stop: blocks start … stop - 1 are computed. inject: the state put in before block `start`. last: makes the tokens
    after the last block of those before the first block and those that came through. site: what features are handed to.
    gates: of all sites at this step, to check that the blocks have the form that their table says. skipped: as above.
    before_blocks: if a list, is filled with the tokens before each block.
    has_output: False where nobody looks at the output, which processes that share the tokens then need not put together.
    blocks: those called so far. entered, left: the state before block 0 and after block stop - 1, once the pass has ended.
    """

    start: int = 0
    stop: int | None = None
    inject: Streams | None = None
    last: Callable[[Tensor, Tensor], Tensor] | None = None
    site: Site = residual
    gates: Tensor | None = None
    skipped: Skipped | None = None
    before_blocks: list[Tensor] | None = None
    has_output: bool = True
    entered: Streams | None = None
    left: Streams | None = None
    blocks: list[nn.Module] = field(default_factory=list)
    sites_seen: int = 0


class Stand(nn.Module):
    """In place of a block while a pass is under way; whatever else is asked of it is the block's."""

    def __init__(self, block: nn.Module, passes: "Passes") -> None:
        super().__init__()
        self.block = block
        self.__dict__["passes"] = passes  # no submodule: it holds the transformer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # past what else torch does around a forward
        return self.passes.at_block(self.block, args, kwargs)


@cache
def _parameters(kind: type) -> tuple[str, ...]:
    return tuple(inspect.signature(kind.forward).parameters)[1:]


@dataclass
class BlockCall:
    """Streams of a call of a block, read from its arguments and written into them; length: of the image's tokens."""

    block: nn.Module
    form: BlockForm
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    length: int = 0

    def argument(self, name: str) -> Any:
        if name in self.kwargs:
            return self.kwargs[name]
        names = _parameters(type(self.block))
        place = names.index(name) if name in names else len(self.args)
        return self.args[place] if place < len(self.args) else None

    def replace(self, name: str, value: Any) -> None:
        names = _parameters(type(self.block))
        if name not in self.kwargs and name in names[: len(self.args)]:
            place = names.index(name)
            self.args = (*self.args[:place], value, *self.args[place + 1 :])
        else:
            self.kwargs = {**self.kwargs, name: value}

    @property
    def conditions(self) -> list[Any]:
        return [self.argument(name) for name in self.form.conditions]

    def computed(self) -> Any:
        """What the block gives."""
        with already_split(self.block):
            return self.block(*self.args, **self.kwargs)

    def streams(self) -> Streams:
        """Before the block."""
        form = self.form
        return self._split(self.argument(form.x), None if form.other is None else self.argument(form.other))

    def passed(self) -> Any:
        """What the block would give if it added nothing."""
        x = self.argument(self.form.x)
        return self._given(x, None if self.form.other is None else self.argument(self.form.other))

    def enter(self, streams: Streams) -> None:
        """Put another state before the block."""
        x, other = self._join(streams)
        self.replace(self.form.x, x)
        if self.form.other is not None:
            self.replace(self.form.other, other)

    def output(self, streams: Streams) -> Any:
        """What the block would give where this is the state after it."""
        return self._given(*self._join(streams))

    def _given(self, x: Tensor, other: Tensor | None) -> Any:
        form = self.form
        if form.other_out is None:
            return x
        given = [None] * (1 + max(form.other_out, form.x_out or 0))
        given[form.x_out or 0], given[form.other_out] = x, other
        return tuple(given)

    def after(self, output: Any) -> Streams:
        """The state after the block, of what it gave."""
        form = self.form
        if isinstance(output, Tensor):
            return self._split(output, None)
        if form.x_out is None or len(output) != 1 + max(form.x_out, form.other_out or 0):
            raise UserError(
                f"{type(self.block).__name__} gives {len(output)} values, of which it is not known what they are, so blocks of "
                "that class cannot be left out"
            )
        return self._split(output[form.x_out], None if form.other_out is None else output[form.other_out])

    def _split(self, x: Tensor, other: Tensor | None) -> Streams:
        x, other = self._own(x), self._own(other)
        if self.form.joint is None or not self.length:
            return Streams(x, () if other is None else (other,))
        text = x.shape[1] - self.length
        parts = (self.length, text) if self.form.joint == IMAGE_FIRST else (text, self.length)
        first, second = x.split(parts, dim=1)
        return Streams(first, (second,)) if self.form.joint == IMAGE_FIRST else Streams(second, (first,))

    def _join(self, streams: Streams) -> tuple[Tensor, Tensor | None]:
        x, others = streams.x, streams.others
        if self.form.joint is None or not others:
            return self._own(x), self._own(others[0]) if others else None
        return torch.cat([x, *others] if self.form.joint == IMAGE_FIRST else [*others, x], dim=1), None

    def _own(self, tokens: Tensor | None) -> Tensor | None:
        """Tokens that nobody else writes into."""
        return tokens.clone() if self.form.in_place and tokens is not None else tokens


class Passes:
    """Passes through a transformer's forward.

    site_form: whether every block has one. hand: what features are given to, (module, forward, args, kwargs), while a block
    is computed for a site.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer = transformer
        self.hook = f"{HOOK}_{id(self)}"
        self.stands: dict[str, nn.ModuleList] = {}
        self.watched: list[nn.Module] = []
        self.forms: dict[int, BlockForm] = {}
        self.hand: Callable[..., Any] | None = None
        self.walk = Walk()
        self.collected: list[tuple[str, Any]] = []
        self.length = 0
        self.refresh()

    # ---------------------------------------------------------------------------------------------------------- blocks

    def refresh(self) -> None:
        """Take up the blocks as they are now: lists may have been replaced since."""
        lists = self.block_lists()
        held = [stand.block for stands in self.stands.values() for stand in stands]
        blocks = [block for blocks in lists.values() for block in blocks]
        if len(held) == len(blocks) and all(a is b for a, b in zip(held, blocks, strict=True)):
            return
        self.stands = {name: nn.ModuleList(Stand(block, self) for block in blocks) for name, blocks in lists.items()}
        self.blocks = blocks
        self.forms = {id(block): self.form_of(block) for block in blocks}

    def block_lists(self) -> dict[str, nn.ModuleList]:
        """The transformer's lists of blocks, by name."""
        return block_lists(self.transformer)

    def form_of(self, block: nn.Module) -> BlockForm:
        return form_of(block)

    @property
    def site_form(self) -> bool:
        mixed = type(self.transformer).__name__ in MIXED_BETWEEN
        return not mixed and all(form.gates is not None for form in self.forms.values())

    def features(self) -> list[tuple[nn.Module, Feature]]:
        """Submodules whose results are features, with the feature."""
        found = []
        for block in self.blocks:
            form = self.forms[id(block)]
            for feature in dict.fromkeys((*form.features, *form.partial_features)):
                found.append((proper(block).get_submodule(feature.module), feature))
        return found

    def watch(self) -> None:
        """Put hooks at the features, which are other modules once an adapter has taken the place of some."""
        from taylorseers_diffusers.hooks import FeatureHook

        features = {id(module): (module, feature) for module, feature in self.features()}
        for module in self.watched:
            if id(module) not in features:
                take_off(module, self.hook)
        for module, feature in features.values():
            if hook_on(module, self.hook) is None:
                put_on(module, FeatureHook(feature.module, self), self.hook)
        self.watched = [module for module, _ in features.values()]

    def unwatch(self) -> None:
        """Take them away."""
        for module in self.watched:
            take_off(module, self.hook)
        self.watched = []

    # ---------------------------------------------------------------------------------------------------------- a pass

    def run(self, forward: Callable[..., Any], arguments: Mapping[str, Any], walk: Walk) -> Any:
        """What the transformer's forward gives, its blocks treated as `walk` says."""
        modules = self.transformer._modules
        assert not any(modules[name] is stands for name, stands in self.stands.items()), "a pass within a pass"
        real = {name: modules[name] for name in self.stands}
        walk.stop = len(self.blocks) if walk.stop is None else walk.stop
        if self.watched and walk.start < walk.stop:
            self.watch()
        self.walk, self.length = walk, 0
        given = {name: dict(value) if isinstance(value, dict) else value for name, value in arguments.items()}
        try:
            modules.update(self.stands)
            with nullcontext() if walk.has_output else ungathered(self.transformer):
                output = forward(**given)
        finally:
            modules.update(real)
            self.walk, self.hand, self.collected = Walk(), None, []  # what they hold is the run's
        if isinstance(output, tuple | Mapping) and len(output) != 1:
            raise UserError(
                f"{type(self.transformer).__name__} gave {len(output)} values in this call, of which a cache forecasts one; "
                "leave out what asks for the others, or disable the cache"
            )
        if len(walk.blocks) != len(self.blocks):
            raise UserError(
                f"{type(self.transformer).__name__} called {len(walk.blocks)} of its {len(self.blocks)} blocks; a call that "
                "leaves out blocks (as guidance by skipped layers does) cannot be cached: leave it out, or disable the cache"
            )
        self.blocks = walk.blocks  # in the order of their calls, which may go from list to list and back
        return output

    def at_block(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A block's turn."""
        walk, form = self.walk, self.forms[id(block)]
        index = len(walk.blocks)
        walk.blocks.append(block)
        call = BlockCall(block, form, *split(block, args, kwargs), self.length)
        if walk.before_blocks is not None:
            walk.before_blocks.append(call.streams().x)
        inside = 0 < index < len(self.blocks) - 1 and not walk.start - 1 <= index < walk.stop
        if inside and walk.skipped is None:
            return call.passed()
        if index == 0:
            walk.entered = call.streams()
            self.length = call.length = walk.entered.x.shape[1]
            if walk.start == 0 and walk.inject is not None:
                call.enter(walk.inject)
            if isinstance(walk.site, PartialSite):
                walk.site.enter(walk.start)
        if walk.start <= index < walk.stop:
            output = self._computed(call)
        else:
            if walk.skipped is not None:
                walk.skipped(proper(block), form, call.conditions)
            output = call.passed()
        if walk.inject is not None and index == walk.start - 1:
            output = call.output(walk.inject)
        if index == walk.stop - 1:
            walk.left = call.after(output)
            if walk.left.x.shape != walk.entered.x.shape:
                before, after = tuple(walk.entered.x.shape), tuple(walk.left.x.shape)
                raise UserError(
                    f"tokens of {type(self.transformer).__name__} have the shape {before} before its blocks and {after} after "
                    "them, so no block can be left out"
                )
        if walk.last is not None and index == len(self.blocks) - 1:
            after = call.after(output)
            output = call.output(after._replace(x=walk.last(walk.entered.x, after.x)))
        return output

    def _computed(self, call: BlockCall) -> Any:
        site = self.walk.site
        if type(site) is Site:
            return self.compute(call)
        if not isinstance(site, Recorder):
            return self._directed(call, site)
        before = call.streams()
        self.hand = self._collect if call.form.gates is not None and self.site_form else None
        output = self.compute(call)
        self.hand, collected, self.collected = None, self.collected, []
        after = call.after(output)
        if not self.site_form:
            site.add(Handed(before.x, None, after.x, name="block"))
            return output
        first = self.walk.sites_seen
        added: list[Tensor] = []
        calls: Counter[str] = Counter()
        for module, given in collected:
            for feature in call.form.features:
                if (feature.module, feature.call) == (module, calls[module]):
                    added += self._record(site, feature, given, before.x)
            calls[module] += 1
        if self.walk.gates is not None:
            self._check(call.block, before.x, after.x, added, self.walk.gates[first : self.walk.sites_seen])
        return output

    def compute(self, call: BlockCall) -> Any:
        """What a block gives; its features are handed over meanwhile where `hand` is set."""
        return call.computed()

    def _collect(self, module: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        given = forward(*args, **kwargs)
        self.collected.append((module, given))
        return given

    def _part(self, feature: Feature) -> slice | None:
        if feature.joint is None:
            return None
        return slice(0, self.length) if feature.joint == IMAGE_FIRST else slice(-self.length, None)

    def _record(self, site: Recorder, feature: Feature, given: Any, x: Tensor) -> list[Tensor]:
        """Show a site what a submodule gave; returns it where it reaches the output."""
        value = given if feature.output is None else given[feature.output]
        value = (value.flatten(2).transpose(1, 2) if feature.is_map else value).to(x.dtype)
        part, gate = self._part(feature), None
        if feature.reaches_output:
            gates = self.walk.gates
            gate = None if gates is None else gates[self.walk.sites_seen].unsqueeze(1)
            self.walk.sites_seen += 1
        site.add(Handed(x, gate, value, part, feature.name, feature.reaches_output))
        if not feature.reaches_output:
            return []
        return [value if part is None else value[:, part]]

    def _check(self, block: nn.Module, before: Tensor, after: Tensor, added: list[Tensor], gates: Tensor) -> None:
        """UserError unless the block added the sum of gate times feature.

        Samples with NaN or infinity, which say nothing of that, are left out; they are told by the output.
        """
        total = sum((g.unsqueeze(1) * f for g, f in zip(gates, added, strict=True)), torch.zeros_like(before))
        moved = (after - before).detach().float()
        missed = moved - total.detach().float()
        finite = missed.isfinite().flatten(1).all(dim=1)
        rounding = 4 * torch.finfo(before.dtype).eps * float(after.detach()[finite].float().norm())
        if float(missed[finite].norm()) > SITE_TOLERANCE * float(moved[finite].norm()) + rounding:
            raise UserError(
                f"{type(proper(block)).__name__} added something else than its gates times its features (an adapter for "
                "images, or another version of diffusers), so its site form is not exact; take engine='stack'"
            )

    def _directed(self, call: BlockCall, site: Site) -> Any:
        """A block in which a site says what stands for each feature, computed or not."""
        features = call.form.partial_features if isinstance(site, PartialSite) else call.form.features
        if not features:
            raise UserError(
                f"the features of {type(proper(call.block)).__name__} are not known, so a method that computes a part of a "
                "block cannot be had; take one that leaves out whole steps"
            )

        calls: Counter[str] = Counter()

        def hand(module: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            here = [feature for feature in features if (feature.module, feature.call) == (module, calls[module])]
            calls[module] += 1
            if not here:
                return forward(*args, **kwargs)
            x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            given: list[Any] = []

            def made() -> Any:
                if not given:
                    given.append(forward(*args, **kwargs))
                    several = 0 if isinstance(given[0], Tensor) else len(given[0])
                    if several and several != len(here):
                        raise UserError(
                            f"{module} of {type(proper(call.block)).__name__} gives {several} values where {len(here)} "
                            "features are known (of an adapter for images, or another version of diffusers); take a method "
                            "that leaves out whole steps"
                        )
                return given[0]

            def value(feature: Feature) -> Tensor:
                return made() if feature.output is None else made()[feature.output]

            results = [
                site.add(Handed(x, None, lambda _, f=f: value(f), self._part(f), f.name, f.reaches_output))
                for f in here
            ]
            if here[0].output is None:
                return results[0]
            by_output = dict(zip((feature.output for feature in here), results, strict=True))
            return tuple(by_output[place] for place in sorted(by_output))

        self.hand = hand
        try:
            # What is computed differs from block to block and step to step.
            with torch.compiler.set_stance("force_eager"):
                return self.compute(call)
        finally:
            self.hand = None
