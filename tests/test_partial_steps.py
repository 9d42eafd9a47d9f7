"""Steps that are computed in part, on every backbone: what is asked for is computed, kept, counted and recorded."""

import copy
import json
import re
from dataclasses import dataclass, replace

import pytest
import reference
import torch
from torch.utils.flop_counter import FlopCounterMode

import cache_dic.partial_run
from cache_dic import (
    ATTENTION,
    CROSS,
    EVERYTHING,
    FUSED,
    METHODS,
    MLP,
    NOTHING,
    REST,
    Partial,
    Range,
    UserError,
    make_cache,
    register,
)
from cache_dic.partial_run import attention_received
from seerkit.devices.offload import store_fp8
from seerkit.devices.parallel import Shard
from seerkit.sampling.flops import COUNTED, run_flops, sampling_flops

BACKBONES = tuple(reference.CONFIGS)
NUM_STEPS = 6
TOLERANCE = 1e-5  # of float32, of the largest element


@dataclass(kw_only=True)
class Asking(Partial):
    """Every other step is full, the others do what the test says."""

    interval: int = 2
    ratio: float = 0.5
    selects_tokens = True

    def decide(self, look):
        return look.step % self.interval == 0


class Reusing(Asking):
    """What FORA does."""


class Rows(Asking):
    def work(self, call):
        return NOTHING if call.kind == ATTENTION else call.top(call.random(), self.ratio)


class Modules(Asking):
    """Attention is reused, MLPs are computed."""

    def work(self, call):
        return {ATTENTION: NOTHING, FUSED: REST}.get(call.kind, EVERYTHING)


class Everything(Asking):
    def work(self, call):
        return EVERYTHING


class Front(Asking):
    """Block 0 is computed; what the others added is added again."""

    def course(self, look, num_blocks):
        return [Range(0, 1), Range(1, num_blocks, "residual")]

    def boundaries(self, num_blocks):
        return [(1, num_blocks)]

    def work(self, call):
        return EVERYTHING


class Hidden(Asking):
    def course(self, look, num_blocks):
        return [Range(0, num_blocks, "hidden")]

    def hidden_after(self, num_blocks):
        return num_blocks


ASKING = (Reusing, Rows, Modules, Everything, Front, Hidden)


@pytest.fixture(autouse=True)
def _registered():
    for made in ASKING:
        register(made.__name__.lower())(dataclass(kw_only=True)(made))


def outputs(name, method, num_steps=NUM_STEPS, **settings):
    with torch.no_grad():
        runs, rows = reference.play(name, reference.open_loop(name, num_steps), make_cache(method, **settings))
    return runs, rows


def far(ours, theirs) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", [made.__name__.lower() for made in ASKING])
def test_full_steps_are_the_uncached_model_to_the_bit(backbone, method):
    runs, ours = outputs(backbone, method, interval=1)
    _, uncached = outputs(backbone, "uncached")
    assert all(torch.equal(a, b) for a, b in zip(ours, uncached, strict=True))
    cached, plain = run_flops(runs[0])
    assert cached == plain


@pytest.mark.parametrize("backbone", BACKBONES)
def test_computing_everything_is_the_uncached_model(backbone):
    _, ours = outputs(backbone, "everything")
    _, uncached = outputs(backbone, "uncached")
    assert all(torch.equal(a, b) for a, b in zip(ours, uncached, strict=True))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_reusing_every_site_is_fora(backbone):
    runs, ours = outputs(backbone, "reusing")
    _, fora = outputs(backbone, "fora", full_steps=[0, 2, 4], engine="layerwise")
    assert far(ours, fora) <= TOLERANCE
    assert [entry["kind"] for entry in runs[0].steps] == ["full", "forecast"] * 3


@pytest.mark.parametrize("backbone", BACKBONES)
def test_computing_all_tokens_apart_is_computing_the_modules(backbone):
    """Of every MLP, and of fused sites with the attention that is kept: gather, compute and scatter change nothing."""
    apart, rows = outputs(backbone, "rows", ratio=1.0)
    runs, modules = outputs(backbone, "modules")
    assert far(rows, modules) <= TOLERANCE
    assert far(modules, outputs(backbone, "reusing")[1]) > 100 * TOLERANCE
    assert run_flops(apart[0]) == run_flops(runs[0])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_some_tokens_are_computed_and_the_others_stay(backbone):
    runs, ours = outputs(backbone, "rows", ratio=0.5)
    modules, reusing = outputs(backbone, "modules")[1], outputs(backbone, "reusing")[1]
    assert far(ours, modules) > 100 * TOLERANCE
    assert far(ours, reusing) > 100 * TOLERANCE
    entry = runs[0].steps[1]
    lengths = {name: counts.shape[1] for name, counts in runs[0].state.counts.items()}
    assert entry["kind"] == "partial"
    for name, done in entry["computed"].items():
        kind = runs[0].site_kinds[name]
        assert (done == NOTHING) if kind == ATTENTION else (name not in lengths or done == lengths[name] // 2)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_sample_chooses_its_own_tokens(backbone):
    """Other rows of the batch, and their number, do not matter."""
    loop, model = reference.open_loop(backbone, 2), reference.network(backbone)
    seeds = []
    for rows in (len(loop.latents[0]), 1):
        batch = {key: value[:, :rows] if key == "llama" else value[:rows] for key, value in loop.branches[0].items()}
        run = make_cache("rows").start(model, loop.latents[0][:rows], loop.timesteps, **batch)
        seeds.append(run.inputs.row_seeds)
    assert seeds[0][0] == seeds[1][0]
    assert len(set(seeds[0].tolist())) == len(seeds[0]), "rows that differ in their order alone choose apart"


@pytest.mark.parametrize("backbone", BACKBONES)
def test_blocks_are_left_out_and_what_they_added_is_added_again(backbone):
    model, loop = reference.network(backbone), reference.open_loop(backbone, 2)
    runs, ours = outputs(backbone, "front", num_steps=2)
    assert runs[0].steps[1]["blocks"] == [[0, 1, "walk"], [1, len(model.block_sites()), "residual"]]
    # dbcache does the same: the first block in every step, the residual of the others.
    cache = make_cache("dbcache", Fn_compute_blocks=1, residual_diff_threshold=1.0, max_warmup_steps=1, max_order=0)
    with torch.no_grad():
        _, theirs = reference.play(backbone, loop, cache)
    assert far(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("backbone", BACKBONES)
def test_no_block_is_entered_where_the_tokens_after_the_last_are_kept(backbone):
    runs, ours = outputs(backbone, "hidden")
    _, theirs = outputs(backbone, "fora", full_steps=[0, 2, 4], engine="hidden")
    assert far(ours, theirs) <= TOLERANCE
    assert runs[0].work_by_step[1] == ()


# --------------------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", ["reusing", "rows", "modules", "front"])
def test_operations_are_those_performed(backbone, method):
    """By PyTorch's counter over the real calls, attention written out since it gives fused attention on a CPU none."""
    loop, model = reference.open_loop(backbone, 2), reference.network(backbone)
    for module in model.modules():
        if hasattr(module, "attend"):
            module.attend = _written_out
    cache, conditions, counts = make_cache(method), loop.branches[0], []
    with torch.no_grad():
        run = cache.start(model, loop.latents[0], loop.timesteps, sigmas=None, **conditions)
        for step, latents in enumerate(loop.latents):
            given = {model.TIME: loop.timesteps[step].expand(len(latents))}
            modulation = run.table.at(step)  # counted with the others, and made here
            assert modulation is not None
            with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
                model(latents, **given, **conditions, cache=run.at(step))
            counts.append(counter.get_total_flops())
    full_run, _ = run_flops(run)
    twice = reference.play(backbone, loop, make_cache("everything", interval=1))[0][0]
    assert run_flops(twice)[0] - full_run == counts[0] - counts[1]


def _written_out(q, k, v, keys=None):
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if keys is not None:
        scores = scores.masked_fill(~keys[:, None, None], -torch.inf)
    return scores.softmax(dim=-1) @ v


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", ["rows", "modules", "front", "hidden", "toca", "duca", "clusca", "delta_dit", "pab"])
def test_a_run_is_counted_before_it_is_made(backbone, method):
    loop, model = reference.open_loop(backbone, NUM_STEPS), reference.network(backbone)
    times = loop.timesteps
    before = sampling_flops(model, make_cache(method), NUM_STEPS, loop.latents[0], times=times, **loop.branches[0])
    run = outputs(backbone, method)[0][0]
    cached, uncached = run_flops(run)
    assert before["flops_ratio"] == pytest.approx(uncached / cached, rel=1e-12)
    assert (before["full_steps"], before["partial_steps"]) == (run.full_steps, run.partial_steps)
    assert before["kept_bytes"]["partial"] == run.kept_bytes > 0


@pytest.mark.parametrize("method", ["toca", "clusca", "delta_dit"])
def test_a_memory_limit_is_for_what_is_kept(method):
    """By the count before a run, and in a run that nobody has counted."""
    loop, model = reference.open_loop("flux", NUM_STEPS), reference.network("flux")
    kept = outputs("flux", method)[0][0].kept_bytes
    fits, not_quite = (make_cache(method, memory_limit=limit) for limit in (kept, kept - 1))
    counted = sampling_flops(model, fits, NUM_STEPS, loop.latents[0], **loop.branches[0])
    assert counted["kept_bytes"]["partial"] == kept
    outputs("flux", method, memory_limit=kept)
    message = f"{method}.* keeps .*, but the limit is .*; what would fit: a batch of 1 rows instead of 2"
    with pytest.raises(UserError, match=message):
        sampling_flops(model, not_quite, NUM_STEPS, loop.latents[0], **loop.branches[0])
    with pytest.raises(UserError, match=message):
        outputs("flux", method, memory_limit=kept - 1)


@pytest.mark.parametrize("method", ["toca", "clusca", "delta_dit"])
def test_bytes_are_counted_in_the_type_that_they_are_kept_in(method):
    """Features in bf16, what is seen of attention and centroids in float32."""
    network = reference.network("flux").to(torch.bfloat16)
    _, run = reference.sample("flux", network, NUM_STEPS, make_cache(method, interval=3, preset="flux"))
    given = reference.open_loop("flux", NUM_STEPS)
    before = sampling_flops(network, run.cache, NUM_STEPS, given.latents[0], **given.branches[0])
    assert before["kept_bytes"]["partial"] == run.kept_bytes


def test_attention_received_is_that_of_the_map(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 3, 4, 5, generator=draw), torch.randn(2, 3, 7, 5, generator=draw)
    keys = torch.ones(2, 7, dtype=torch.bool)
    keys[1, 5:] = False
    for mask in (None, keys):
        scores = q @ k.transpose(-2, -1) / 5**0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
        expected = scores.softmax(dim=-1).mean(dim=(1, 2))
        assert torch.allclose(attention_received(q, k, mask), expected, atol=1e-7)
        monkeypatch.setattr(cache_dic.partial_run, "GROUP_BYTES", 1)  # a head at a time
        assert torch.allclose(attention_received(q, k, mask), expected, atol=1e-7)
        monkeypatch.undo()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_record_says_how_often_a_token_was_computed(backbone):
    runs, _ = outputs(backbone, "rows", ratio=0.5)
    record = json.loads(json.dumps(runs[0].record(), allow_nan=False))
    tokens = record["tokens_computed"]
    grid = runs[0].inputs.grid
    assert tokens["grid"] == list(grid)
    shares = torch.tensor(tokens["share"])
    assert shares.numel() == torch.tensor(grid).prod()
    assert 0.5 < shares.min() < shares.max() <= 1, "half of the steps compute all, the others half of them"


@pytest.mark.parametrize("backbone", ["wan", "hunyuan_video"])
@pytest.mark.parametrize("method", ["delta_dit", "pab", "first_block_cache"])
def test_processes_that_share_the_tokens_count_their_part(backbone, method):
    """Their calls are given patches, of which the count makes a video of as many tokens as all have together."""
    run = outputs(backbone, method)[0][0]
    whole = run_flops(run)
    latents, length = run.inputs.latents, run.tokens.length
    for processes in (1, 5):
        patches = latents.new_empty(len(latents), length // processes, latents[0].numel() // length)
        run.inputs.model.shard = Shard(0, processes)
        run.inputs = replace(run.inputs, latents=patches)
        assert run_flops(run) == pytest.approx([count / processes for count in whole], rel=1e-3)


@pytest.mark.parametrize("backbone", ["flux", "hunyuan_video"])
def test_tokens_are_computed_apart_with_weights_in_8_bits(backbone):
    """Of sites of which they take a part of a layer's weights; all tokens apart give what the modules give."""
    network = store_fp8(copy.deepcopy(reference.network(backbone)))
    ours, run = reference.sample(backbone, network, 3, make_cache("rows", ratio=1.0))
    theirs, _ = reference.sample(backbone, network, 3, make_cache("modules"))
    assert run.partial_steps == [1]
    assert far([ours], [theirs]) < TOLERANCE


# -------------------------------------------------------------------------------------------------------------- refusals


def refused(work=None, course=None, backbone="dit", **attributes):
    body = {"selects_tokens": True, **attributes}
    if work is not None:
        body["work"] = lambda self, call: work(call)
    if course is not None:
        body["course"] = lambda self, look, num_blocks: course
    name = f"wrong_{len(METHODS)}"
    register(name)(dataclass(kw_only=True)(type("Wrong", (Asking,), body)))
    with pytest.raises(UserError) as error:
        outputs(backbone, name)
    return str(error.value)


def test_what_a_site_cannot_compute_is_refused_by_name():
    some = torch.zeros(2, 3, dtype=torch.int64)
    assert "some tokens of site attn" in refused(lambda call: some)
    assert "selects_tokens = True" in refused(lambda call: some if call.kind == MLP else NOTHING, selects_tokens=False)
    assert "wants 'all' of site attn" in refused(lambda call: "all")
    assert "wants 'rest' of site attn" in refused(lambda call: REST)
    assert "wants 'rest' of site cross_attn" in refused(
        lambda call: REST if call.kind == CROSS else NOTHING, backbone="wan"
    )
    assert "failed at step 1" in refused(lambda call: call.nothing)


def rows_of(dtype=torch.int64, token=0):
    """Work that wants two tokens of every MLP."""
    return lambda call: torch.full((len(call.x), 2), token, dtype=dtype) if call.kind == MLP else NOTHING


@pytest.mark.parametrize("token", [-1, 10**6])
def test_tokens_that_there_are_not_are_refused(token):
    assert f"wants token {token} of site mlp, whose" in refused(rows_of(token=token))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.complex64])
def test_tokens_are_named_by_integers(dtype):
    assert "(B, rows) indices, are wanted" in refused(rows_of(dtype, 1))


def test_tokens_elsewhere_are_refused():
    assert "by indices on meta" in refused(lambda call: rows_of()(call).to("meta") if call.kind == MLP else NOTHING)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_integers_of_any_size_are_indices(dtype):
    name = f"small_{dtype}"[12:]
    body = {"work": lambda self, call: rows_of(dtype, 1)(call), "keeps_age": True}
    register(name)(dataclass(kw_only=True)(type("Small", (Asking,), body)))
    assert outputs("dit", name)[0][0].partial_steps == [1, 3, 5]


def test_a_course_leads_through_all_blocks():
    for course in (
        [Range(0, 3)], [Range(0, 2), Range(3, 4)], [Range(0, 4, "jump")], [], [1, 4], [(0, 4, "walk", 1)],
        [(0.0, 4.0)], [("a", "b")], [(0, 4, [])],
    ):  # fmt: skip
        assert "must lead through all 4 blocks" in refused(course=course)


def test_sites_are_those_that_the_model_declares(monkeypatch):
    model, loop = reference.network("dit"), reference.open_loop("dit", 2)
    cases = ([("attn",)] * 8, "site mlp where the model declares 1.attn"), ([("attn", "mlp")] * 3, "after all that")
    for declared, message in cases:
        monkeypatch.setattr(model, "block_sites", lambda declared=declared: declared)
        run = make_cache("reusing").start(model, loop.latents[0], loop.timesteps, **loop.branches[0])
        with pytest.raises(RuntimeError, match=message), torch.no_grad():
            model(loop.latents[0], loop.timesteps[0].expand(2), **loop.branches[0], cache=run.at(0))


def test_telemetry_says_that_it_has_no_effect(caplog):
    outputs("dit", "reusing", telemetry=True)
    assert "telemetry has no effect" in caplog.text


def test_a_course_takes_what_is_kept():
    assert "let boundaries name (0, 1)" in refused(course=[Range(0, 1, "residual"), Range(1, 4)])
    assert "let hidden_after say" in refused(course=[Range(0, 4, "hidden")])


@pytest.mark.parametrize("given", [None, [3], [(0, 0.5)], [(0, 9)], [(2, 2)], [(0, 1, 2)]])
def test_boundaries_are_of_blocks(given):
    assert "must be ranges (start, stop) of the 4 blocks" in refused(boundaries=lambda self, num_blocks: given)


@pytest.mark.parametrize("given", [-1, 9, "last", 1.0])
def test_tokens_are_kept_after_a_block(given):
    assert "how many of this model's 4 blocks" in refused(hidden_after=lambda self, num_blocks: given)


FORMS = {
    "fewer tokens": lambda value: value[:, :1], "fewer samples": lambda value: value[:1], "nothing": lambda value: None,
    "numpy": lambda value: value.numpy(), "another type": lambda value: value.double(),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_what_stands_for_a_feature_is_like_it(form):
    """Of another shape it would be spread over tokens and samples without a word."""
    expected = r"where a tensor \(2, \d+, \d+\) in torch.float32 on cpu is wanted"
    said = refused(forecast=lambda self, call, values: form(values[-1]))
    assert re.search("forecast of Wrong gave .* for site attn at step 1, " + expected, said)
    said = refused(
        forecast=lambda self, call, values: form(values[-1]), backbone="flux", work=lambda call: REST_OR[call.kind]
    )
    assert re.search("forecast of Wrong gave .* for site (img_attn|single)", said)
    said = refused(rows_of(), refresh=lambda self, call, rows, fresh: form(call.kept.value))
    assert re.search("refresh of Wrong gave .* for site mlp at step 1, " + expected, said)


REST_OR = {FUSED: REST, ATTENTION: EVERYTHING, MLP: EVERYTHING}


def test_what_is_made_of_the_other_branch_is_like_its_output():
    for form in FORMS.values():
        if form(torch.zeros(2, 2, 2)) is None:
            continue
        said = refused(
            backbone="wan", separate_branches=True,
            from_leader=lambda self, look, form=form: None if look.step < 1 or look.leading is None else form(look.leading),
        )  # fmt: skip
        assert "from_leader of Wrong gave" in said
        assert "at step 1, where an output like that of the leading branch is wanted" in said


def test_a_branch_may_be_left_out_from_the_first_step_on():
    """And is full where it is first computed, whatever the leading one does there."""

    class Late(Front):
        separate_branches = True

        def from_leader(self, look):
            return look.leading if look.step < self.last else None

    for last in (3, NUM_STEPS):
        name = f"late_{last}"
        register(name)(dataclass(kw_only=True)(type("Late", (Late,), {"last": last})))
        runs = outputs("wan", name)[0]
        assert runs[1].full_steps == [step for step in (3, 4) if step >= last], "the leading one's are 0, 2 and 4"
        assert 0 <= run_flops(runs[1])[0] < run_flops(runs[0])[0]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("forecast", "call, values"), ("refresh", "call, rows, fresh"), ("learn_feature", "call, value, attended"),
        ("learn_tokens", "call, tokens"), ("boundaries", "num_blocks"), ("hidden_after", "num_blocks"),
    ],
)  # fmt: skip
def test_errors_name_the_step_the_file_and_the_line(name, arguments, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"""def {name}(self, {arguments}):
    return 1 // 0
""")
    made: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), made)
    said = refused(rows_of() if name == "refresh" else None, **{name: made[name]})
    assert re.match(r"method Wrong failed at step [01]: ", said)
    assert said.endswith("mine.py:2: ZeroDivisionError: integer division or modulo by zero")


def test_what_a_method_keeps_and_sees_is_checked_before_it_runs():
    assert "history of Wrong = 0 must be an integer of at least 1" in refused(history=0)
    assert "what Wrong observes, 'keys' is unknown; choose from attention, values" in refused(observes="keys")
    assert "nothing was seen of the attention in block 0: set observes" in refused(
        lambda call: call.top(call.observed(), 0.5) if call.kind == MLP else NOTHING
    )


def test_a_token_that_is_asked_for_twice_is_computed_once():
    name = f"twice_{len(METHODS)}"
    body = {"work": lambda self, call: rows_of()(call)}
    register(name)(dataclass(kw_only=True)(type("Twice", (Asking,), body)))
    (run, *_), _ = outputs("dit", name)
    shares = torch.tensor(run.record()["tokens_computed"]["share"]).flatten()
    assert shares[0] == 1
    assert (shares[1:] == 0.5).all()


def test_partial_methods_are_methods_and_not_schedules():
    with pytest.raises(UserError, match="take it as the method"):
        make_cache("taylorseer", preset="dit", schedule="rows")
    with pytest.raises(
        UserError, match="'rows' computes part of a step and cannot follow 'modules', which does so, too"
    ):
        make_cache("rows", preset="dit", schedule="modules")
    with pytest.raises(UserError, match="cannot follow schedule 'fora'"):
        make_cache("rows", preset="dit", schedule="fora")
    with pytest.raises(UserError, match="take it as the method"):
        make_cache("rows", engine="folded")


@pytest.mark.parametrize("backbone", ["dit", "hidream", "wan"])
def test_a_step_without_a_guidance_branch_is_not_full(backbone):
    cache = make_cache("fastercache", preset=backbone, attention_interval=1)
    _, branches = reference.sample(backbone, reference.network(backbone), 8, cache)
    record = branches.record()
    assert record["left_out_of"]
    assert not {*record["full_steps"]} & {*record["left_out_of"]}
    assert [entry["step"] for entry in record["steps"] if entry["kind"] == "partial"] == record["partial_steps"]
    assert {*record["left_out_of"]} <= {*record["partial_steps"]}


def test_what_is_counted_beforehand_does_not_warn_for_the_run(caplog):
    loop, model = reference.open_loop("dit", 2), reference.network("dit")
    sampling_flops(model, make_cache("reusing", telemetry=True), 2, loop.latents[0], **loop.branches[0])
    assert "telemetry" not in caplog.text
