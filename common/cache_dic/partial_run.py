"""A sampling run of a method that computes part of a step (`cache_dic.partial`): its site, what it keeps, and its steps."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from cache_dic.decide import decided, learned
from cache_dic.errors import UserError, check_choice, is_ours, run_of_user_code, shown, source_of
from cache_dic.look import Look, Parts, Streams
from cache_dic.partial import (
    ATTENTION,
    EVERYTHING,
    FUSED,
    HIDDEN,
    NOTHING,
    RESIDUAL,
    REST,
    TEMPORAL,
    TOKENWISE,
    WALK,
    Call,
    Kept,
    Partial,
    Range,
    take_rows,
)
from cache_dic.plan import OpenPlan
from cache_dic.run import Run, numbers_of
from cache_dic.settings import GROUP_BYTES
from cache_dic.site import Addition, Site

log = logging.getLogger("cache_dic")


def asked(method: Partial, name: str, step: int, *args: Any) -> Any:
    """What a method answers at a step; UserError where it fails."""
    kind = type(method)
    with run_of_user_code(f"method {kind.__name__} failed at step {step}", *source_of(kind, name)):
        return getattr(method, name)(*args)


def of_user(method: Partial, name: str) -> bool:
    """Whether what a method answers comes from a file of a user's, so that it is looked at more closely."""
    file, _ = source_of(type(method), name)
    return file is None or not is_ours(file)


INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
"""Types of indices."""

Like = tuple[tuple[int, ...], torch.dtype, torch.device]
"""Shape, type and device of a feature."""


def form_of(value: Tensor) -> Like:
    return tuple(value.shape), value.dtype, value.device


Work = tuple[int, str, "int | str"]
"""Block, name of the site, and what it computed: EVERYTHING, NOTHING, REST or how many tokens."""


def attention_received(q: Tensor, k: Tensor, keys: Tensor | None = None) -> Tensor:
    """How much attention each key gets, averaged over heads and queries: q (B, H, Lq, d), k (B, H, Lk, d) -> (B, Lk).

    keys (B, Lk): which count, None for all. The map of a head is (B, Lq, Lk); heads are taken together as memory allows.
    """
    batch, heads, length, _ = q.shape
    count = max(1, GROUP_BYTES // max(1, 4 * batch * length * k.shape[2]))
    total = q.new_zeros(batch, k.shape[2], dtype=torch.promote_types(q.dtype, torch.float32))
    for first in range(0, heads, count):
        some = slice(first, first + count)
        scores = (q[:, some] * q.shape[-1] ** -0.5) @ k[:, some].transpose(-2, -1)
        if keys is not None:
            scores = scores.masked_fill(~keys[:, None, None], -torch.inf)
        total += scores.softmax(dim=-1, dtype=total.dtype).sum(dim=(1, 2))
    return total / (heads * length)


OBSERVERS: dict[str, Callable[..., Tensor]] = {
    "attention": lambda q, k, v, keys=None: attention_received(q, k, keys),
    "values": lambda q, k, v, keys=None: v.norm(dim=-1, dtype=torch.promote_types(v.dtype, torch.float32)).mean(dim=1),
}
"""By what `Partial.observes` may be: queries, keys and values (B, H, L, d) -> (B, L)."""


@dataclass
class State:
    """What is kept from step to step.

    kept: by block and site. observed: by block, and stream where several are joined (else ""). residuals: by range of blocks,
    what they added. counts: by site, how often each token was computed (B, L); parts: which of them reach the output. calls: of
    the model so far, of all guidance branches that share this. forms: by block and site, of what is computed there, the feature
    and of a fused one what its attention gave.
    """

    kept: dict[tuple[int, str], Kept] = field(default_factory=dict)
    observed: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    residuals: dict[tuple[int, int], Streams] = field(default_factory=dict)
    hidden: Tensor | None = None
    counts: dict[str, Tensor] = field(default_factory=dict)
    parts: dict[str, slice | None] = field(default_factory=dict)
    calls: int = 0
    forms: "dict[tuple[int, str], tuple[Like, Like | None]]" = field(default_factory=dict)

    def tensors(self, others: Any = ()) -> list[Tensor]:
        """Those that are kept, and those among others, each once."""
        found: list[Tensor] = [t for seen in self.observed.values() for t in seen.values()]
        found += _tensors(others)
        for kept in self.kept.values():
            found += _tensors([kept.values, kept.attended, kept.age, kept.state])
        for moved in self.residuals.values():
            found += [moved.x, *moved.others]
        if self.hidden is not None:
            found.append(self.hidden)
        return list({id(t): t for t in found}.values())

    def num_bytes(self, others: Any = ()) -> int:
        """Of the tensors that are kept, and of those among others."""
        return sum(t.numel() * t.element_size() for t in self.tensors(others))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [t for item in value for t in _tensors(item)]
    return [t for item in value.values() for t in _tensors(item)] if isinstance(value, Mapping) else []


class PartialSite(Site):
    """Asks the method at every call what to compute, keeps what was computed, and notes it in `work`.

    full: everything is computed, without asking. block_sites: names of the sites that reach the output, by block. layers: by
    block, its number among those with the same sites, and how many these are.
    Not compiled: what a step computes differs from the step before, in sites and in how many tokens, so that each would be a
    graph of its own.
    """

    compiles = False

    def __init__(
        self,
        method: Partial,
        state: State,
        look: Look,
        kinds: Mapping[str, str],
        block_sites: Sequence[Sequence[str]],
        layers: Sequence[tuple[int, int]],
        *,
        full: bool,
    ) -> None:
        self.method, self.state, self.look, self.kinds, self.full = method, state, look, kinds, full
        self.block_sites, self.layers = block_sites, layers
        self.work: list[Work] = []
        self.block, self._left = -1, 0

    def enter(self, block: int) -> None:
        """A walk begins at this block."""
        self.block, self._left = block - 1, 0

    def add(self, addition: Addition) -> Tensor:
        name = addition.name
        if name is None or name not in self.kinds:
            raise UserError(
                f"a site called {shown(name)} has no kind in the model's SITE_KINDS, which says what each of its sites is"
            )
        if addition.reaches_output:
            self._count_in(name)
        call = self._call(addition, name)
        nothing_kept = not (call.kept.values or call.kept.attended)
        work = EVERYTHING if self.full or nothing_kept else self._asked(call)
        value = self._value(call, work, addition)
        self.work.append((call.block, name, work if isinstance(work, str) else work.shape[1]))
        self._count(call, work)
        tokens = addition.of(value)
        if isinstance(work, str) and work == EVERYTHING:
            self._answer("learn_tokens", call, tokens.detach())
        return tokens

    def _count_in(self, name: str) -> None:
        """The next site on the way to the output is this one; RuntimeError where the model declares another or none."""
        if not self._left:
            self.block += 1
            if self.block == len(self.block_sites):
                raise RuntimeError(f"the blocks called site {name} after all that the model declares")
            self._left = len(self.block_sites[self.block])
        declared = self.block_sites[self.block][-self._left]
        if name != declared:
            raise RuntimeError(f"the blocks called site {name} where the model declares {self.block}.{declared}")
        self._left -= 1

    def _call(self, addition: Addition, name: str) -> Call:
        place, x = self.block, addition.x

        def observed() -> Tensor:
            if place not in self.state.observed:
                raise UserError(
                    f"nothing was seen of the attention in block {place}: set observes to one of {', '.join(OBSERVERS)}"
                )
            streams, length = self.state.observed[place], x.shape[1]
            return streams[name.split("_")[0]] if "" not in streams else streams[""][:, :length]

        kept = self.state.kept.setdefault((place, name), Kept())
        return Call(
            self.look,
            place,
            *self.layers[place],
            name,
            self.kinds[name],
            x,
            addition.part,
            addition.reaches_output,
            kept,
            observed,
        )

    def _asked(self, call: Call) -> str | Tensor:
        """What the method wants computed, checked."""
        method = self.method
        work = asked(method, "work", call.look.step, call)
        if isinstance(work, Tensor) and work.ndim == 2 and len(work) == len(call.x) and work.dtype in INTEGERS:
            if not method.selects_tokens:
                raise UserError(
                    f"{type(method).__name__} selects tokens and does not say so: set selects_tokens = True"
                )
            if call.kind not in (*TOKENWISE, FUSED):
                raise UserError(
                    f"{type(method).__name__} wants some tokens of site {call.name}, in which tokens attend to each other; it "
                    "can have EVERYTHING or NOTHING of it"
                )
            return self._checked_rows(call, work)
        if isinstance(work, str) and work in (EVERYTHING, NOTHING, *([REST] if call.kind == FUSED else [])):
            return work
        raise UserError(
            f"{type(method).__name__} wants {shown(work)} of site {call.name}, where EVERYTHING, NOTHING or the tokens to "
            "compute, (B, rows) indices, are wanted"
        )

    def _checked_rows(self, call: Call, rows: Tensor) -> Tensor:
        """Tokens to compute as int64; a user's are known to be among those that there are, before a device trips over them."""
        length = call.x.shape[1]
        if of_user(self.method, "work") and rows.numel():
            if rows.device != call.x.device:
                raise UserError(
                    f"{type(self.method).__name__} wants tokens of site {call.name} by indices on {rows.device}; the "
                    f"tokens are on {call.x.device}"
                )
            least, most = (int(end) for end in rows.aminmax())
            if least < 0 or most >= length:
                wrong = least if least < 0 else most
                raise UserError(
                    f"{type(self.method).__name__} wants token {wrong} of site {call.name}, whose {length} "
                    f"tokens are 0 … {length - 1}"
                )
        return rows.long()

    def _answer(self, name: str, call: Call, *args: Any) -> Any:
        """What the method answers about a site."""
        return asked(self.method, name, call.look.step, call, *args)

    def _made(self, name: str, call: Call, like: Like | None, *args: Any) -> Tensor:
        """A feature that the method makes, of the form of the one that was last computed there."""
        made = self._answer(name, call, *args)
        if like is None or not of_user(self.method, name):
            return made
        if not isinstance(made, Tensor) or form_of(made) != like:
            shape, dtype, device = like
            found = f"{tuple(made.shape)} in {made.dtype} on {made.device}" if isinstance(made, Tensor) else shown(made)
            raise UserError(
                f"{name} of {type(self.method).__name__} gave {found} for site {call.name} at step {call.look.step}, where a "
                f"tensor {shape} in {dtype} on {device} is wanted"
            )
        return made

    def _value(self, call: Call, work: str | Tensor, addition: Addition) -> Tensor:
        """The feature, computed as asked."""
        kept, feature, attended, like = call.kept, addition.feature, addition.attended, self.state.forms.get(call.place)
        of_feature, of_attended = like or (None, None)
        if isinstance(work, Tensor):
            some = [take_rows(call.x, work)]
            if attended is not None:
                some.append(take_rows(self._made("forecast", call, of_attended, kept.attended), work))
            assert callable(feature), "a site whose tokens are computed apart is handed the computation"
            value = self._made("refresh", call, of_feature, work, feature(*some))
            if kept.age is not None:
                kept.age = (kept.age + 1).scatter_(1, work, 0)
            return value
        if work == NOTHING:
            if kept.age is not None:
                kept.age = kept.age + 1
            return self._made("forecast", call, of_feature, kept.values)
        found: list[Tensor] = []
        if work == REST:
            found.append(self._made("forecast", call, of_attended, kept.attended))
        elif attended is not None:
            found.append(attended().detach())
        value = addition._replace(attended=(lambda: found[0]) if found else None).value().detach()
        if of_feature is None:
            self.state.forms[call.place] = form_of(value), form_of(found[0]) if found else None
        self._answer("learn_feature", call, value, found[0] if work == EVERYTHING and found else None)
        if self.method.keeps_age and call.kind != ATTENTION:
            kept.age = torch.zeros(call.x.shape[:2], dtype=torch.int64, device=call.x.device)
        return value

    def attend(
        self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *mask: Any, **streams: int
    ) -> Tensor:
        if self.method.observes is not None:
            seen = OBSERVERS[self.method.observes](q, k, v, *mask)
            lengths = [*streams.values(), seen.shape[1] - sum(streams.values())]
            self.state.observed[self.block] = (
                dict(zip(streams, seen.split(lengths, dim=1), strict=False)) if streams else {"": seen}
            )
        return attention(q, k, v, *mask)

    def _count(self, call: Call, work: str | Tensor) -> None:
        """Which tokens on the way to the output were computed, of methods that select some."""
        if not (self.method.selects_tokens and call.reaches_output and call.kind not in (ATTENTION, TEMPORAL)):
            return
        counts, name = self.state.counts, call.name
        if name not in counts:
            counts[name] = torch.zeros(call.x.shape[:2], dtype=torch.int32, device=call.x.device)
        self.state.parts[name] = call.part
        if isinstance(work, Tensor):
            once_more = counts[name].gather(1, work) + 1  # also where a token is asked for twice
            counts[name].scatter_(1, work, once_more)
        elif work != NOTHING:
            counts[name] += 1


class PartialRun(Run):
    """A run whose steps may compute part of the blocks; made by `Cache.start` for methods that are `Partial`."""

    def __init__(self, *args: Any, decider: Partial, **given: Any) -> None:
        super().__init__(*args, decider=decider, **given)
        shard = getattr(self.inputs.model, "shard", None)
        if decider.selects_tokens and shard is not None and shard.size > 1:
            raise UserError(
                f"method {self.cache.method!r} selects tokens among all of them, and {shard.size} processes share them here; "
                "sample in one process, or take a method that computes all tokens or none"
            )
        if self.cache.telemetry:
            log.warning(f"{self.cache.label}: telemetry has no effect on a method that computes part of a step")
        self.method = decider
        if decider.observes is not None:
            check_choice(f"what {type(decider).__name__} observes,", decider.observes, OBSERVERS)
        self.beside = self.leader if isinstance(self.leader, PartialRun) else None  # the leading run, where it is here
        self.shares = self.beside is not None and decider.shares_kept
        self.state: State = self.beside.state if self.beside is not None and self.shares else State()
        self.last_output: Tensor | None = None  # for the other guidance branch
        self.bytes_seen = 0
        self.work_by_step: list[tuple[Work, ...]] = []

    @property
    def site_kinds(self) -> Mapping[str, str]:
        kinds = getattr(self.inputs.model, "SITE_KINDS", None)
        if kinds is None:
            raise UserError(
                f"{type(self.inputs.model).__name__} has no SITE_KINDS, which says what each of its sites is; "
                "see docs/backbones.md"
            )
        return kinds

    @cached_property
    def _layers(self) -> list[tuple[int, int]]:
        """By block, its number among those with the same sites, and how many these are."""
        alike = [tuple(names) for names in self._block_sites]
        return [(alike[:block].count(names), alike.count(names)) for block, names in enumerate(alike)]

    def take(self, step: int, full: Any, forecast: Any, parts: Parts | None) -> Tensor:
        """The model's output at `step`."""
        leader = self.beside
        if leader is not None:
            leader.decision(step)  # it has been there
        full_steps = leader.plan.full_steps if leader is not None and self.shares else self.plan.full_steps
        look = Look(self.inputs, step, self.plan.num_steps, full_steps, parts)
        look.calls = self.state.calls
        look.leading = None if leader is None else leader.last_output
        output = None if leader is None else asked(self.method, "from_leader", step, look)
        if output is not None:
            self._check_output(output, step)
            entry: dict[str, Any] = {"kind": "forecast", "sites": 0, "made_of": "the other guidance branch"}
            self.work_by_step.append(())
        else:
            output, entry = self._walked_step(look)
        self.last_output = output
        learned(self.method, look, output)
        self.state.calls += 1
        self.bytes_seen = max(self.bytes_seen, self.state.num_bytes(vars(self.method)))
        beside = 0 if leader is None else leader.kept_bytes
        self.cache.check_kept(beside + (0 if self.shares else self.bytes_seen), self.tokens.batch)
        self._add_entry(step, entry, look.reported)
        self.table.forget_before(step + 1)
        return output

    def _check_output(self, output: Any, step: int) -> None:
        """UserError unless what a method makes of the other branch's output is like that."""
        assert self.beside is not None, "what was made is of it"
        leading = self.beside.last_output
        assert leading is not None, "of the same step"
        if not isinstance(output, Tensor) or form_of(output) != form_of(leading):
            found = f"{tuple(output.shape)} in {output.dtype}" if isinstance(output, Tensor) else shown(output)
            raise UserError(
                f"from_leader of {type(self.method).__name__} gave {found} at step {step}, where an output like that of the "
                f"leading branch is wanted, {tuple(leading.shape)} in {leading.dtype}, or None to compute it"
            )

    def _walked_step(self, look: Look) -> tuple[Tensor, dict[str, Any]]:
        parts, state, num_blocks = look.parts, self.state, len(self._block_sites)
        is_full = decided(self.method, look, self.plan.num_steps)
        if self.leader is not None and not self.shares:
            is_full = self.leader.decision(look.step) or not any(self.work_by_step)
        if self.announce is not None:
            self.announce(is_full)
        whole = [Range(0, num_blocks)]
        course = (
            whole if is_full else checked_course(asked(self.method, "course", look.step, look, num_blocks), num_blocks)
        )
        site = PartialSite(self.method, state, look, self.site_kinds, self._block_sites, self._layers, full=is_full)
        kept_ranges = checked_boundaries(asked(self.method, "boundaries", look.step, num_blocks), num_blocks)
        hidden_after = checked_hidden(asked(self.method, "hidden_after", look.step, num_blocks), num_blocks)
        check_kept(course, kept_ranges, hidden_after)
        stops = {0, num_blocks, *(at for ends in kept_ranges for at in ends)}
        stops |= set() if hidden_after is None else {hidden_after}

        streams = parts.enter() if any(part.how != HIDDEN for part in course) else None
        passed: dict[int, Streams] = {}
        for start, stop, how in course:
            if how == HIDDEN:
                streams = (streams or Streams(state.hidden))._replace(x=state.hidden)
                continue
            assert streams is not None, "entered"
            if how == RESIDUAL:
                streams = _moved(streams, state.residuals[start, stop])
                continue
            for first, last in pairwise(_between(stops, start, stop)):
                passed[first] = streams
                site.enter(first)
                streams = parts.walk(streams, site, first, last if last < num_blocks else None)
                passed[last] = streams
        assert streams is not None, "a course has a range"
        for start, stop in kept_ranges:
            if any(part.start <= start and stop <= part.stop and part.how == WALK for part in course):
                state.residuals[start, stop] = _difference(passed[stop], passed[start])
        if hidden_after is not None:
            state.hidden = passed.get(hidden_after, streams).x
        output = parts.leave(streams)
        self.work_by_step.append(tuple(site.work))
        if is_full:
            assert isinstance(self.plan, OpenPlan), "full steps are decided as they come"
            self.plan.add(look.step)
        return output, self._entry(look.step, is_full, site, course)

    def _entry(self, step: int, is_full: bool, site: PartialSite, course: Sequence[Range]) -> dict[str, Any]:
        """What was computed: `sites` whole ones, and of a partial step by site how many tokens in each block."""
        whole = sum(work == EVERYTHING for _, _, work in site.work)
        if is_full:
            return {"kind": "full", "sites": whole}
        kind = "partial" if any(work != NOTHING for *_, work in site.work) else "forecast"
        by_site: dict[str, list[int | str]] = {}
        for _, name, work in site.work:
            by_site.setdefault(name, []).append(work)
        entry: dict[str, Any] = {"kind": kind, "sites": whole}
        if by_site:
            entry["computed"] = {name: done[0] if len(set(done)) == 1 else done for name, done in by_site.items()}
        if any(part.how != WALK for part in course):
            entry["blocks"] = [list(part) for part in course]
        return entry

    # --------------------------------------------------------------------------------------------------------- accounts

    @property
    def kept_bytes(self) -> int:
        """The most bytes kept from one step to the next, where the leading branch does not keep them, too; before the first
        one, what the shape of the tokens tells."""
        return 0 if self.shares else self.bytes_seen or super().kept_bytes

    def site_names(self) -> list[list[str]]:
        """Of all streams, by block, as the first full step called them; of a branch that had none, those of the leading one."""
        first = next(
            (work for work, entry in zip(self.work_by_step, self.steps, strict=True) if entry["kind"] == "full"), None
        )
        if first is None:
            assert self.beside is not None, "the first step of a leading branch is full"
            return self.beside.site_names()
        names: list[list[str]] = [[] for _ in self._block_sites]
        for block, name, _ in first:
            names[block].append(name)
        return names

    @property
    def partial_steps(self) -> list[int]:
        """Those that computed something, but not all."""
        return numbers_of(self.steps, "partial")

    @property
    def work_flops(self) -> int:
        """None that are counted apart: what stands for features is theirs."""
        return 0

    def describe(self, step_flops: tuple[int, int] | None) -> str:
        """What the run will do, in one line, as far as the shape of its tokens tells."""
        t, kept = self.tokens, self.cache.branches * super().kept_bytes
        return (
            f"{self.cache.label}: steps between full ones are computed in part, {t.num_sites} sites of "
            f"{t.batch}x{t.length}x{t.dim} {t.dtype}, features of one stream take {kept / 2**20:.1f} MiB"
        )

    def record(self) -> dict[str, Any]:
        record = super().record() | {"partial_steps": self.partial_steps}
        if (tokens := self.token_counts()) is not None:
            record["tokens_computed"] = tokens
        return record

    def token_counts(self) -> dict[str, Any] | None:
        """How often the tokens that reach the output were computed, a share of all sites of all steps, averaged over the batch,
        on their grid; None of a method that selects none."""
        state, sites = self.state, [name for names in self.site_names() for name in names]
        if not state.counts:
            return None
        grid = self.inputs.grid
        parts = [(counts, state.parts[name] or slice(None)) for name, counts in state.counts.items()]
        means = [counts[:, part][:, : math.prod(grid)].double().mean(dim=0) for counts, part in parts]
        total = torch.stack(means).sum(dim=0)
        chances = sum(map(sites.count, state.counts)) * len(self.steps)
        shares = (total / chances).reshape(grid)
        return {
            "grid": list(grid),
            "share": [[round(v, 4) for v in row] for row in shares.reshape(-1, grid[-1]).tolist()],
        }


def checked_course(course: Any, num_blocks: int) -> list[Range]:
    """What happens to the blocks, of a method; UserError where it is not all of them in order."""
    try:
        given = [Range(*part) for part in course]
    except TypeError:
        given = []
    ends = [0, *(part.stop for part in given)]
    fits = all(type(end) is int for part in given for end in part[:2])
    fits = fits and [part.start for part in given] == ends[:-1] and ends[-1] == num_blocks
    if not fits or any(part.how not in (WALK, RESIDUAL, HIDDEN) or part.start > part.stop for part in given):
        raise UserError(
            f"a course of {shown([tuple(part) for part in given] or course)} must lead through all {num_blocks} blocks, each "
            f"range (start, stop, {WALK}, {RESIDUAL} or {HIDDEN})"
        )
    return [part for part in given if part.start < part.stop]


def checked_boundaries(ranges: Any, num_blocks: int) -> list[tuple[int, int]]:
    """Ranges of blocks whose residual is kept, of a method."""
    try:
        given = [(start, stop) for start, stop in ranges]
    except (TypeError, ValueError):
        given = [(-1, -1)]
    if any(type(end) is not int for ends in given for end in ends) or any(
        not 0 <= start < stop <= num_blocks for start, stop in given
    ):
        raise UserError(
            f"boundaries = {shown(ranges)} must be ranges (start, stop) of the {num_blocks} blocks, 0 ≤ start < stop ≤ "
            f"{num_blocks}"
        )
    return given


def checked_hidden(after: Any, num_blocks: int) -> int | None:
    """After how many blocks tokens are kept, of a method."""
    if after is not None and (type(after) is not int or not 0 <= after <= num_blocks):
        raise UserError(
            f"hidden_after = {shown(after)} must be None or how many of this model's {num_blocks} blocks come before"
        )
    return after


def check_kept(course: Sequence[Range], kept_ranges: Sequence[tuple[int, int]], hidden_after: int | None) -> None:
    """UserError for a course that takes what is not kept."""
    for start, stop, how in course:
        if how == RESIDUAL and (start, stop) not in kept_ranges:
            raise UserError(
                f"a course takes the residual of blocks {start} … {stop - 1}, which is not kept; let boundaries name "
                f"({start}, {stop})"
            )
        if how == HIDDEN and hidden_after is None:
            raise UserError(
                "a course takes the tokens after the last block, which are not kept; let hidden_after say after how many "
                "blocks they are"
            )


def _between(stops: set[int], start: int, stop: int) -> list[int]:
    return sorted({start, stop, *(at for at in stops if start < at < stop)})


def _difference(after: Streams, before: Streams) -> Streams:
    others = tuple(b - a for a, b in zip(before.others, after.others, strict=True))
    return Streams(after.x - before.x, others)


def _moved(streams: Streams, by: Streams) -> Streams:
    others = tuple(a + b for a, b in zip(streams.others, by.others, strict=True))
    return streams._replace(x=streams.x + by.x, others=others)
