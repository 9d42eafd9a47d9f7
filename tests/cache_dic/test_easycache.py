"""EasyCache's and NaviCache's rule on numbers worked out by hand; the stored runs of the official code are in test_official."""

import pytest
import torch

from cache_dic import UserError, make_cache

# Inputs of an identity-shaped model, and its outputs where it is computed: one number for every element.
INPUTS = [1.0, 2.0, 3.0, 3.5, 4.5, 5.0, 6.0, 6.5]
OUTPUTS = [10.0, 8.0, 4.0, 5.0, 6.0, 5.5, 7.0, 8.0]


@pytest.fixture
def played(make_toy, monkeypatch):
    """`played(method, **settings)` -> the run over INPUTS and its outputs."""

    def play(method, inputs=INPUTS, outputs=OUTPUTS, **settings):
        model, timesteps, y = make_toy(), torch.linspace(1, 0.1, len(inputs), dtype=torch.float64), torch.tensor([0])
        answers = dict(zip(timesteps.tolist(), outputs, strict=True))

        def blocks(x, modulation, site, *_):
            for gate in modulation.gates:
                x = site(x, gate.unsqueeze(1), torch.zeros_like(x), name="mlp")
            return torch.full_like(x, answers[float(now[0])]) / modulation.head

        monkeypatch.setattr(model, "blocks", blocks)
        first = torch.full((1, 2, 6), inputs[0], dtype=torch.float64)
        run, seen = make_cache(method, **settings).start(model, first, timesteps, y=y), []
        for step, (t, value) in enumerate(zip(timesteps, inputs, strict=True)):
            now[0] = t
            seen.append(model(torch.full_like(first, value), t, y, cache=run.at(step)).mean().item())
        return run, seen

    now = [None]
    return play


def test_easycache_by_hand(played):
    """Full at 0, 1: k = |8 - 10| / |2 - 1| = 2. Step 2: acc = 2 · 1 / 8 = 0.25; step 3: 0.25 + 2 · 0.5 / 8 = 0.375;
    step 4: 0.375 + 2 · 1 / 8 = 0.625, full: k = |6 - 8| / |4.5 - 2| = 0.8. Step 5: 0.8 · 0.5 / 6; step 6: 0.8 · 1.5 / 6 = 0.2.
    """
    run, outputs = played("easycache", threshold=0.5, forced_first=1)
    record = run.record()
    assert record["full_steps"] == [0, 1, 4, 7]
    totals = [entry.get("total") for entry in record["steps"]]
    assert totals[:2] == [None, None]
    assert totals[2:] == pytest.approx([0.25, 0.375, 0.625, 0.8 * 0.5 / 6, 0.2, 0.2 + 0.8 * 0.5 / 6])
    # The difference of full step 1 is 8 - 2, that of full step 4 is 6 - 4.5.
    assert outputs == pytest.approx([10, 8, 3 + 6, 3.5 + 6, 6, 5 + 1.5, 6 + 1.5, 8])


def test_navicache_filters_the_rate_by_hand(played):
    """The first rate, 2, is within the two aligned steps. At full step 4 the measured one is 0.8: the variance 1 grows by Q to
    1.05, the gain is 1.05 / 1.1, and the rate 2 + gain (0.8 - 2)."""
    run, _ = played("navicache", threshold=0.5, forced_first=1, align_steps=2)
    assert run.record()["full_steps"] == [0, 1, 4, 7]
    rates = [entry.get("rate") for entry in run.record()["steps"]]
    assert rates[2:5] == pytest.approx([2, 2, 2])
    assert rates[5:] == pytest.approx([2 - 1.2 * 1.05 / 1.1] * 3)


def test_forced_steps_clear_what_has_gathered_and_renew_the_rate(played):
    run, _ = played("easycache", threshold=0.5, forced_first=3, forced_last=2)
    record = run.record()
    assert record["full_steps"] == [0, 1, 2, 3, 5, 6, 7]
    # k after full step 2: |4 - 8| / 1 = 4, so step 3 gathers 4 · 0.5 / 4 = 0.5, which is not below the threshold;
    # then k = |5 - 4| / 0.5 = 2, and steps 4 and 5 gather 2 · 1 / 5 and 2 · 0.5 / 5.
    assert [entry.get("rate") for entry in record["steps"]][3:6] == pytest.approx([4, 2, 2])
    assert [entry.get("total") for entry in record["steps"]][3:6] == pytest.approx([0.5, 0.4, 0.6])


def test_inputs_that_stand_still_are_computed(played):
    """A rate without a change of the input is none: not a division by zero, not a forecast."""
    run, _ = played("easycache", [1.0] * 8, threshold=0.5, forced_first=1)
    assert run.record()["full_steps"] == list(range(8))


@pytest.mark.parametrize("method", ["easycache", "navicache"])
def test_threshold_zero_is_the_uncached_model_to_the_bit(make_toy, trajectory, method):
    model = make_toy()
    states, run = trajectory(model, make_cache(method, threshold=0))
    assert torch.equal(states, trajectory(model, make_cache("uncached"))[0])
    assert run.record()["full_steps"] == list(range(20))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": -1}, "threshold = -1 must be at least 0"),
        ({"threshold": 0.1, "forced_first": -1}, "forced_first = -1 must be an integer of at least 0"),
        ({"preset": "dit"}, "method 'easycache' is not defined for dit: .* twice the channels"),
    ],
)
def test_what_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        make_cache("easycache", **settings)


def test_presets_are_those_of_the_scripts():
    for backbone, threshold, forced in (("hunyuan_video", 0.025, 5), ("wan", 0.05, 10)):
        of = make_cache("easycache", preset=backbone).schedule_settings
        assert (of["threshold"], of["forced_first"], of["forced_last"]) == (threshold, forced, 1)
