"""ToCa and DuCa: kinds of steps as tables, ratios, scores and bonus by hand, what tokens are seen by, ages, and operations."""

from types import SimpleNamespace

import pytest
import reference
import torch

from cache_dic import ATTENTION, CROSS, FUSED, MLP, UserError, make_cache, partial_run
from cache_dic.look import Inputs, Look
from cache_dic.methods.toca import DuCa, ToCa, ramp, with_bonus
from cache_dic.partial import EVERYTHING, NOTHING, Call, Kept
from cache_dic.partial_run import OBSERVERS, attention_received
from seerkit.sampling.flops import part_flops, run_flops, sampling_flops

LETTERS = {
    ("full", "full"): "F", ("full", "partial"): "P", ("full", "hidden"): "H", ("partial", "partial"): "p",
    ("hidden", "hidden"): "h",
}  # fmt: skip
"""A capital where block 0 is computed."""


def kinds(method: ToCa, num_steps: int) -> str:
    """Letters of all steps."""
    full_steps: list[int] = []
    letters = ""
    for step in range(num_steps):
        if method.decide(Look(None, step, num_steps, full_steps)):
            full_steps.append(step)
        letters += LETTERS[method.kinds]
    return letters


def call(
    method: ToCa, *, kind: str = MLP, layer: int = 0, step: int = 20, num_steps: int = 50, name: str = "mlp"
) -> Call:
    """Of a layer of 28 in a partial step, 4 by 4 tokens and 2 samples."""
    method.kinds = "partial", "partial"
    look = Look(
        Inputs(SimpleNamespace(token_grid=lambda _: (4, 4)), torch.zeros(1), torch.zeros(1)), step, num_steps, [0]
    )
    return Call(
        look, layer, layer, 28, name, kind, torch.zeros(2, 16, 3), None, True, Kept(), lambda: torch.zeros(2, 16)
    )


class TestKinds:
    @pytest.mark.parametrize(
        ("method", "expected"),
        [  # of DiT: 49 - step is a multiple of the interval, 5 at first, 2 where 10 to 19 steps are left
            (ToCa(recipe="dit_50", interval=3), "FpppPFpppFpppFpppPpFppFppFppFppFpFpFpFpFpFpFpFpFpF"),
            (DuCa(recipe="duca_dit", interval=3), "FphpPFphpFphpFphpHpFhpFhpFhpFhpFpFpFpFpFpFpFpFpFpF"),
            (DuCa(recipe="duca_dit", interval=6), "FhphphphpFphphphpHphpHphpFphphpFpFpFpFpFpPhpFhphpF"),
        ],
    )
    def test_of_the_rule_that_counts_down(self, method, expected):
        assert kinds(method, 50) == expected
        if method.interval == 3:
            assert [step for step, letter in enumerate(expected) if letter in "PH"] == [4, 17]

    @pytest.mark.parametrize(
        ("method", "expected"),
        [
            (ToCa(recipe="flux", interval=4), "FFFpppFpppFp"),
            (DuCa(recipe="duca_flux", interval=4), "FFFhphFhphFh"),
            (DuCa(recipe="duca_flux", interval=5), "FFFhphpFhphp"),
            (DuCa(recipe="duca_flux", interval=2), "FFFhFhFhFhFh"),
            (ToCa(recipe="flux", interval=1), "FFFFFFFFFFFF"),
        ],
    )
    def test_of_the_periodic_rule(self, method, expected):
        assert kinds(method, 12) == expected

    @pytest.mark.parametrize(
        ("method", "expected"),
        [
            (ToCa(recipe="flux", interval=4, ratio=0), "FpppFpppFppp"),
            (DuCa(recipe="duca_flux", interval=4, ratio=0), "FhphFhphFhph"),
            (ToCa(recipe="dit_50", interval=4, ratio=0), "FppFpppFpppF"),
            (DuCa(recipe="duca_dit", interval=4, ratio=0), "FhpFphpFphpF"),
        ],
    )
    def test_without_tokens_are_those_of_fora(self, method, expected):
        assert kinds(method, 12) == expected

    @pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
    def test_of_few_steps_begin_and_on_dit_end_with_a_full_one(self, num_steps):
        for interval in (1, 2, 3, 9):
            for found in (
                kinds(ToCa(recipe="dit_50", interval=interval), num_steps),
                kinds(DuCa(recipe="duca_dit", interval=interval), num_steps),
            ):
                assert len(found) == num_steps
                assert found[0] == found[-1] == "F"

    def test_interval_of_one_drifts_on_dit(self):
        """It is 2 from the step with 7 steps left on, two fifths of 20, to the first full one with fewer than 4 left."""
        assert kinds(ToCa(recipe="dit_50", interval=1), 20) == "FFFFFFFFFFFFPFpFpFFF"


class TestRatio:
    def test_ramp(self):
        assert [ramp(0.5, i, 4) for i in (0, 2, 4)] == [1.5, 1.0, 0.5]
        assert ramp(-0.2, 27, 27) == pytest.approx(1.2)

    def test_of_dit_grows_over_steps_and_layers(self):
        """0.07 · (0.8 + 0.4 l / 27) · (3 - 4 s / 50) · 2.5, s steps left."""
        method = ToCa(recipe="dit_50", interval=3, ratio=0.07)
        assert method.ratio_of(call(method, layer=0, step=20)) == pytest.approx(0.07 * 0.8 * 0.68 * 2.5)
        assert method.ratio_of(call(method, layer=27, step=48)) == pytest.approx(0.07 * 1.2 * 2.92 * 2.5)
        assert method.ratio_of(call(method, layer=9, step=10)) < 0, "until a quarter of the steps is done"
        method = ToCa(recipe="dit_250", interval=4, ratio=0.07)
        assert method.ratio_of(call(method, layer=9, step=124, num_steps=250)) == pytest.approx(
            0.07 * (1.8 - 1.6 / 3) * 1.0 * 2.5
        )

    def test_of_flux_falls_over_layers_and_is_less_where_streams_are_apart(self):
        """0.1 · (1.5 - l / 27), l to 18 and to 37, times 0.4 or 1.6."""
        method = ToCa(recipe="flux", interval=4, ratio=0.1)
        for name in ("img_mlp", "txt_mlp"):
            assert method.ratio_of(call(method, layer=18, name=name)) == pytest.approx(0.1 * (1.5 - 18 / 27) * 0.4)
        fused = call(method, layer=37, kind=FUSED, name="single")
        assert method.ratio_of(fused) == pytest.approx(0.1 * (1.5 - 37 / 27) * 1.6)

    def test_of_other_models_ends_with_their_last_layer_and_leaves_out_the_text(self):
        assert ToCa(interval=4).ratio_of(call(ToCa(interval=4), layer=27, kind=FUSED)) == pytest.approx(0.1 * 0.5 * 1.6)
        video = ToCa(recipe="video", interval=5)
        assert video.ratio_of(call(video)) == pytest.approx(0.1495)
        assert video.ratio_of(call(video, kind=CROSS)) == 0
        assert video.work(call(video, kind=CROSS)) == NOTHING

    def test_rounds_down_to_none_and_is_at_most_everything(self):
        method = ToCa(recipe="flux", interval=4, ratio=0.1, age_weight=0)
        assert method.work(call(method, name="img_mlp")) == NOTHING, "0.06 of 16"
        assert method.work(call(method, kind=FUSED)).shape == (2, 3), "0.24 of 16"
        method = ToCa(recipe="flux", interval=4, ratio=1, age_weight=0)
        assert method.work(call(method, kind=FUSED)).shape == (2, 16)
        assert method.work(call(method, kind=ATTENTION)) == NOTHING

    def test_block_0_is_computed_where_the_step_is_full_in_it(self):
        method = ToCa(recipe="dit_50", interval=3)
        attention, mlp, next_attention = (
            call(method, kind=ATTENTION),
            call(method),
            call(method, kind=ATTENTION, layer=1),
        )
        method.kinds = "full", "partial"
        assert method.work(attention) == method.work(mlp) == EVERYTHING
        assert method.work(next_attention) == NOTHING


class TestBonus:
    def test_goes_to_the_best_token_of_each_square(self):
        scores = torch.tensor([[1.0, 2, 3, 4], [5, 0, 9, 1], [1, 1, 2, 0], [1, 3, 0, 0]])
        expected = torch.tensor([[1.0, 2, 3, 4], [7.5, 0, 13.5, 1], [1, 1, 3, 0], [1, 4.5, 0, 0]])
        assert torch.equal(with_bonus(scores.reshape(1, 16), (4, 4), 2, 0.5), expected.reshape(1, 16))

    def test_where_the_grid_cuts_squares_off(self):
        scores = torch.tensor([[1.0, 2, 3], [5, 0, 9], [4, 3, 2]])
        expected = torch.tensor([[1.0, 2, 3], [10, 0, 18], [8, 3, 4]])
        assert torch.equal(with_bonus(scores.reshape(1, 9), (3, 3), 2, 1.0), expected.reshape(1, 9))
        scores = -scores  # nothing beyond the edge is best
        expected = torch.tensor([[-1.0, -2, -6], [-5, 0, -9], [-4, -6, -4]])
        assert torch.equal(with_bonus(scores.reshape(1, 9), (3, 3), 2, 1.0), expected.reshape(1, 9))

    def test_on_rows_and_columns_of_each_frame_and_sample(self):
        """Two frames of 2 × 4 tokens, two samples; the second sample is the first with its frames swapped."""
        frames = torch.tensor([[[1.0, 2, 3, 4], [5, 6, 7, 0]], [[9.0, 1, 1, 1], [2, 2, 8, 2]]])
        expected = torch.tensor([[[1.0, 2, 3, 4], [5, 12, 14, 0]], [[18.0, 1, 1, 1], [2, 2, 16, 2]]])
        scores, better = (torch.stack([x, x.flip(0)]).reshape(2, 16) for x in (frames, expected))
        assert torch.equal(with_bonus(scores, (2, 2, 4), 2, 1.0), better)


class TestObserved:
    Q, K, V = (torch.randn(2, 3, length, 4, generator=torch.Generator().manual_seed(length)) for length in (5, 7, 6))
    KEYS = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])

    @pytest.mark.parametrize("group_bytes", [1, 2 * 4 * 2 * 5 * 7, 2**28])
    @pytest.mark.parametrize("masked", [False, True])
    def test_attention_that_tokens_get_is_the_softmax_written_out(self, monkeypatch, masked, group_bytes):
        """Heads one by one, by two, and together."""
        monkeypatch.setattr(partial_run, "GROUP_BYTES", group_bytes)
        expected = torch.zeros(2, 7)
        for b in range(2):
            for h in range(3):
                for query in self.Q[b, h]:
                    weights = torch.exp(self.K[b, h] @ query / 2)
                    weights = weights * self.KEYS[b] if masked else weights
                    expected[b] += weights / weights.sum() / (3 * 5)
        found = attention_received(self.Q, self.K, self.KEYS if masked else None)
        assert (found - expected).abs().max() < 1e-6
        assert found.sum(dim=1) == pytest.approx([1.0, 1.0], abs=1e-6)

    def test_values_are_their_norms_over_heads(self):
        expected = [
            [sum(self.V[b, h, i].square().sum().sqrt() for h in range(3)) / 3 for i in range(6)] for b in range(2)
        ]
        assert (OBSERVERS["values"](self.Q, self.K, self.V) - torch.tensor(expected)).abs().max() < 1e-6

    def test_text_and_image_of_a_double_block_are_seen_apart(self):
        """Each its part of one map, normalised by itself in the scores."""
        _, run = sampled("flux", make_cache("toca", preset="flux"), 4)
        seen = run.state.observed[0]
        assert {name: tuple(part.shape) for name, part in seen.items()} == {"txt": (2, 5), "img": (2, 12)}
        assert (seen["txt"].sum(dim=1) + seen["img"].sum(dim=1)) == pytest.approx([1.0, 1.0], abs=1e-6)
        assert set(run.state.observed[3]) == {""}
        assert run.state.observed[3][""].shape == (2, 17)


class TestScores:
    def scored(self, seen, age, **settings) -> torch.Tensor:
        method = ToCa(**{"recipe": "flux", "interval": 4} | settings)
        site = Call(None, 0, 0, 3, "img_mlp", MLP, seen, None, True, Kept(age=age), lambda: seen)
        return method.scores(site)

    def test_of_attention_and_age(self):
        """Attention over its norm, 0.25 of the age in intervals."""
        seen, age = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[0, 2], [4, 0]])
        expected = torch.tensor([[0.6, 0.8 + 0.125], [0.25, 1.0]])
        assert torch.allclose(self.scored(seen, age), expected)
        assert torch.allclose(self.scored(seen, age, age_weight=0), torch.tensor([[0.6, 0.8], [0.0, 1.0]]))

    def test_of_values_are_higher_for_small_ones_but_in_the_code_of_flux(self):
        seen, age = torch.tensor([[0.25, 2.0]]), torch.zeros(1, 2)
        expected = torch.tensor([[0.75, -1.0]]) / (0.75**2 + 1) ** 0.5
        for recipe in ("joint", "video"):
            assert torch.allclose(self.scored(seen, age, by="values", recipe=recipe), expected)
        assert torch.allclose(self.scored(seen, age, by="values"), seen / seen.norm())

    def test_bonus_is_for_tokens_on_their_grid_alone(self):
        """DiT's, 0.6 of the best of 2 by 2; not where there are other tokens beside those of the image."""
        seen = torch.eye(16)[:1] + 1
        inputs = Inputs(SimpleNamespace(token_grid=lambda _: (4, 4)), torch.zeros(1), torch.zeros(1))
        method, look = ToCa(recipe="dit_50", interval=3, age_weight=0), Look(inputs, 20, 50, [0])
        site = Call(look, 0, 0, 3, "mlp", MLP, seen.unsqueeze(-1), None, True, Kept(), lambda: seen)
        plain = seen / seen.norm()
        raised = (method.scores(site) / plain).flatten()
        assert raised[[0, 2, 8, 10]].tolist() == pytest.approx([1.6] * 4)
        assert raised.sum().item() == pytest.approx(16 + 4 * 0.6)
        beside = Call(look, 0, 0, 3, "mlp", MLP, seen.unsqueeze(-1), None, False, Kept(), lambda: seen)
        assert torch.equal(method.scores(beside), plain)


def sampled(name: str, cache, num_steps: int):
    """Latents, and the run, of a tiny network in a closed loop."""
    return reference.sample(name, reference.network(name), num_steps, cache)


def played(name: str, cache, num_steps: int, rows=slice(None)):
    """The run and outputs of some rows of the batch over the open loop."""
    model, loop = reference.network(name), reference.open_loop(name, num_steps)
    given = {key: value[rows] for key, value in loop.branches[0].items()}
    sigmas = None if name == "dit" else loop.sigmas
    run = cache.start(model, loop.latents[0][rows], loop.timesteps, sigmas=sigmas, **given)
    outputs = []
    for step, latents in enumerate(loop.latents):
        time = {model.TIME: loop.timesteps[step].expand(len(latents[rows]))}
        outputs.append(model(latents[rows], **time, **given, cache=run.at(step)))
    return run, torch.stack(outputs)


class TestRuns:
    def test_tokens_grow_older_at_every_call_of_their_site(self):
        """Full at 0, 1, 2 and 6: of 17 tokens of a single block some are computed at each step, those left out age by one."""
        run, _ = played("flux", make_cache("toca", preset="flux", interval=4, ratio=0.2), 6)
        ages = run.state.kept[3, "single"].age
        chosen = next(work for _, name, work in run.work_by_step[5] if name == "single")
        assert ages.shape == (2, 17)
        assert ((ages == 0).sum(dim=1) == chosen).all()
        assert ages.max() == 3
        assert run.state.kept[0, "img_attn"].age is None, "all of them are computed or none"

    def test_tokens_grow_older_where_their_share_rounds_down_to_none(self):
        """DiT's ramp over the steps is below 0 at first: until the second full step no token is chosen, and all are as old."""
        model, loop = reference.network("dit"), reference.open_loop("dit", 20)
        run = make_cache("toca", preset="dit", interval=5).start(
            model, loop.latents[0], loop.timesteps, **loop.branches[0]
        )
        for step in range(3):
            model(loop.latents[step], t=loop.timesteps[step].expand(2), **loop.branches[0], cache=run.at(step))
        assert [entry["kind"] for entry in run.steps] == ["full", "forecast", "forecast"]
        assert all((run.state.kept[block, "mlp"].age == 2).all() for block in range(4))

    @pytest.mark.parametrize("by", ["random", "values", "attention"])
    @pytest.mark.parametrize(("name", "method"), [("dit", "duca"), ("flux", "toca")])
    def test_a_sample_is_as_alone_in_any_batch(self, name, method, by):
        cache = make_cache(method, preset=name, interval=4, ratio=0.4, by=by)
        _, both = played(name, cache, 9)
        alone = [played(name, cache, 9, slice(row, row + 1))[1] for row in range(2)]
        assert (torch.cat(alone, dim=1) - both).abs().max() <= 1e-5
        _, swapped = played(name, cache, 9, [1, 0])
        assert (swapped.flip(1) - both).abs().max() <= 1e-5

    def test_random_tokens_are_others_at_each_site_step_and_guidance_branch(self):
        """Rows of the same latents, as of two branches, are told apart."""
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1, -1)
        inputs = Inputs(None, latents, torch.zeros(1))
        first, second = Look(inputs, 3, 9, [0]), Look(inputs, 4, 9, [0])
        draws = torch.stack([first.random(64), first.random(64), second.random(64)]).flatten(0, 1)
        assert 0 <= draws.min() < 0.05
        assert 0.95 < draws.max() < 1
        assert (torch.corrcoef(draws).fill_diagonal_(0).abs() < 0.5).all()

    def test_interval_of_one_is_the_uncached_model_but_by_the_rule_that_drifts(self):
        for method in ("toca", "duca"):
            for name in ("flux", "hunyuan_video", "wan"):
                latents, _ = sampled(name, make_cache(method, preset=name, interval=1), 5)
                assert torch.equal(latents, sampled(name, None, 5)[0])

    def test_steps_without_blocks_have_the_tokens_of_the_step_before(self):
        """DiT's those after the last block; of FLUX those before it, as its code keeps them."""
        for name, kept_before in (("dit", 0), ("flux", 1)):
            cache = make_cache("duca", preset=name, interval=4, ratio=0.5)
            run, _ = played(name, cache, 8)
            assert run.method.hidden_after(7) == 7 - kept_before
            hidden = [entry for entry in run.steps if entry["kind"] == "forecast"]
            assert hidden
            assert all(entry["blocks"][-1][2] == "hidden" for entry in hidden)

    def test_processes_that_share_tokens_are_refused(self):
        model, loop = reference.network("flux"), reference.open_loop("flux", 5)
        model.shard = SimpleNamespace(size=2)
        with pytest.raises(
            UserError, match=r"^method 'toca' selects tokens among all of them, and 2 processes .* sample in"
        ) as e:
            make_cache("toca", preset="flux").start(model, loop.latents[0], loop.timesteps, **loop.branches[0])
        assert "\n" not in str(e.value)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"recipe": "pixart"}, "'pixart'.*dit_50"),
            ({"by": "norm"}, "'norm'"),
            ({"interval": 0}, "interval"),
            ({"ratio": 1.2}, "ratio"),
            ({"ratio": -0.1}, "ratio"),
            ({"age_weight": -1}, "age_weight"),
        ],
    )
    def test_settings_out_of_range_are_one_line(self, settings, message):
        with pytest.raises(UserError, match=message) as error:
            make_cache("duca", preset="flux", **settings)
        assert "\n" not in str(error.value)


class TestOperations:
    """Of DiT with 16 tokens of 48, an MLP of 192, 4 blocks and 2 rows."""

    ROWS, TOKENS, DIM, WIDTH, BLOCKS = 2, 16, 48, 192, 4
    MLP = 4 * DIM * WIDTH  # of a token
    ATTENTION = ROWS * (8 * TOKENS * DIM**2 + 4 * TOKENS**2 * DIM)
    LOOK = ROWS * 2 * TOKENS**2 * DIM  # scores once more, to see how much attention tokens get

    def test_of_a_partial_step_by_hand(self):
        run, _ = played("dit", make_cache("toca", preset="dit", interval=3, ratio=0.3), 12)
        full, _ = run.inputs.model.step_flops(run.inputs.latents, **run.inputs.conditions)
        around = full - self.BLOCKS * (self.ATTENTION + self.ROWS * self.TOKENS * self.MLP)
        expected = 0
        for work in run.work_by_step:
            expected += around
            for _, name, done in work:
                if name == "attn":
                    expected += (self.ATTENTION + self.LOOK) * (done == EVERYTHING)
                else:
                    tokens = {EVERYTHING: self.TOKENS, NOTHING: 0}.get(done, done)
                    expected += self.ROWS * tokens * self.MLP
        assert any(isinstance(done, int) and done for work in run.work_by_step for *_, done in work)
        assert run_flops(run) == (expected, 12 * full)

    def test_of_a_step_without_blocks_are_those_of_the_head(self):
        run, _ = played("dit", make_cache("duca", preset="dit", interval=4, ratio=0), 4)
        assert [entry["kind"] for entry in run.steps] == ["full", "forecast", "forecast", "full"]
        assert ["blocks" in entry for entry in run.steps] == [False, True, False, False]
        full, _ = run.inputs.model.step_flops(run.inputs.latents, **run.inputs.conditions)
        head = part_flops(run.inputs.model, run.inputs.latents, dict(run.inputs.conditions), 0, 0).head
        mlp = self.BLOCKS * self.ROWS * self.TOKENS * self.MLP
        partial = full - self.BLOCKS * self.ATTENTION - mlp
        assert run_flops(run)[0] == 2 * (full + self.BLOCKS * self.LOOK) + partial + head
        config = run.inputs.model.config
        output = 2 * self.ROWS * self.TOKENS * self.DIM * config.patch_size**2 * config.out_channels
        assert output < head < output + 2 * (256 * self.DIM + self.DIM**2 + 2 * self.ROWS * self.DIM**2) + 1

    @pytest.mark.slow
    @pytest.mark.parametrize("method", ["toca", "duca"])
    @pytest.mark.parametrize("name", ["dit", "flux", "hunyuan_video", "wan"])
    def test_counted_beforehand_are_those_of_a_run(self, name, method):
        cache = make_cache(method, preset=name, interval=4, ratio=0.4)
        loop = reference.open_loop(name, 9)
        run, _ = played(name, cache, 9)
        counts = sampling_flops(reference.network(name), cache, 9, loop.latents[0], **loop.branches[0])
        assert counts["full_steps"] == run.full_steps
        assert counts["flops_T"] * 1e12 == pytest.approx(run_flops(run)[0], rel=1e-12)
