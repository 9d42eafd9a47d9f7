"""Delta-DiT: which blocks are left out and when, what stands for them, and what a run of it computes and keeps."""

import pytest
import reference
import torch

from cache_dic import UserError, make_cache
from seerkit.sampling.flops import run_flops, sampling_flops

CONFIGS = reference.CONFIGS


def by_hand(model, start, timesteps, y, *, full, left_out) -> torch.Tensor:
    """Latents of an Euler loop of the toy after every step. left_out: by step, (start, stop) of its blocks."""
    x, count, states = start, len(model.weights), []
    ranges = {left_out(step) for step in range(len(timesteps))}
    added = {}
    for step, t in enumerate(timesteps):
        modulation = model.modulation(t, y)
        first, last = (0, 0) if step in full else left_out(step)
        tokens = {0: x}
        for block in range(count):
            if not first <= block < last:
                tokens[block + 1] = model.blocks(tokens[block], modulation, start=block, stop=block + 1)
            elif block == first:
                tokens[last] = tokens[first] + added[first, last]
        for a, b in ranges:
            if b <= first or last <= a:
                added[a, b] = tokens[b] - tokens[a]
        x = x - tokens[count] * modulation.head / len(timesteps)
        states.append(x)
    return torch.stack(states)


@pytest.mark.parametrize(
    ("settings", "full", "left_out"),
    [
        # 5 blocks, 10 steps: the last 2 of a half (2.5, rounded to even), from step 5 on the first 2.
        ({"interval": 3}, (0, 3, 6, 9), lambda step: (3, 5) if step < 5 else (0, 2)),
        ({"interval": 2, "blocks": 3, "switch": 1.0}, (0, 2, 4, 6, 8), lambda step: (2, 5)),
        ({"interval": 4, "blocks": 1, "switch": 0.0}, (0, 4, 8), lambda step: (0, 1)),
        # 0.8 of 5, and 0.25 of 10 steps, so step 3 is the first late one.
        ({"interval": 5, "warmup_steps": 2, "blocks": 0.8, "switch": 0.25}, (0, 1, 6),
         lambda step: (1, 5) if step < 3 else (0, 4)),
    ],
)  # fmt: skip
def test_what_blocks_added_when_they_were_last_computed_is_added_again(make_toy, trajectory, settings, full, left_out):
    model = make_toy()
    ours, run = trajectory(model, make_cache("delta_dit", **settings), 10)
    assert tuple(run.full_steps) == full
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    timesteps = torch.linspace(1, 0.1, 10, dtype=torch.float64)
    expected = by_hand(model, x, timesteps, torch.tensor([0, 1]), full=full, left_out=left_out)
    assert (ours - expected).abs().max() <= 1e-12 * expected.abs().max()
    for step, entry in enumerate(run.record()["steps"]):
        if step in full:
            assert entry == {"step": step, "kind": "full", "sites": 5}
        else:
            first, last = left_out(step)
            assert entry["kind"] == "partial"
            assert entry["sites"] == 5 - (last - first)
            assert [first, last, "residual"] in entry["blocks"]


@pytest.mark.parametrize("backbone", CONFIGS)
def test_on_every_backbone_the_last_half_is_left_out_early_and_the_first_half_late(backbone):
    cache = make_cache("delta_dit", preset=backbone, interval=2, blocks=0.5, switch=0.5)
    runs, outputs = reference.play(backbone, reference.open_loop(backbone, 8), cache)
    plain, uncached = reference.play(backbone, reference.open_loop(backbone, 8), make_cache("uncached"))
    count = len(reference.network(backbone).block_sites())
    half = round(count / 2)
    for run, ours, theirs in zip(runs, outputs, uncached, strict=True):
        steps = run.record()["steps"]
        assert steps[3]["blocks"] == [[0, count - half, "walk"], [count - half, count, "residual"]]
        assert steps[5]["blocks"] == [[0, half, "residual"], [half, count, "walk"]]
        moved = (ours - theirs).abs().flatten(1).amax(1)
        assert (moved[::2] <= 1e-5 * theirs.abs().max()).all(), "full steps are the model's"
        assert (moved[1::2] > 1e-3).all()
    assert len(plain) == len(runs)


@pytest.mark.parametrize(("switch", "ranges"), [(1.0, 1), (0.0, 1), (0.5, 2)])
def test_kept_bytes_are_the_tokens_of_all_streams_once_a_range(switch, ranges):
    cache = make_cache("delta_dit", preset="flux", interval=2, blocks=4, switch=switch)
    (run,), _ = reference.play("flux", reference.open_loop("flux", 8), cache)
    image, text = 12, 5
    assert run.kept_bytes == ranges * reference.BATCH * (image + text) * CONFIGS["flux"].hidden_size * 4


@pytest.mark.parametrize("switch", [0.0, 1.0])
def test_operations_of_a_step_between_full_ones(switch):
    """Of DiT's 4 blocks 3 are left out; what surrounds the blocks is computed in every step."""
    model, loop = reference.network("dit"), reference.open_loop("dit", 6)
    cache = make_cache("delta_dit", interval=3, blocks=3, switch=switch)
    rows, length, width = reference.BATCH, 16, CONFIGS["dit"].hidden_size
    block = 2 * rows * length * (3 * width**2 + 2 * length * width + width**2 + 2 * 4 * width**2)
    full, _ = model.step_flops(loop.latents[0], **loop.branches[0])
    expected = 2 * full + 4 * (full - 3 * block)
    counted = sampling_flops(model, cache, 6, loop.latents[0], **loop.branches[0])
    assert counted["flops_T"] * 1e12 == pytest.approx(expected, rel=1e-12)
    assert counted["flops_ratio"] == pytest.approx(6 * full / expected, rel=1e-12)
    (run,), _ = reference.play("dit", loop, cache)
    assert run_flops(run) == (expected, 6 * full)


@pytest.mark.parametrize(("blocks", "left_out"), [(5, 5), (9, 9), (1.0, 5), (0.01, 0)])
def test_a_range_that_does_not_fit_the_depth_is_refused(make_toy, trajectory, blocks, left_out):
    message = f"blocks = {blocks} leaves out {left_out} of this model's 5 blocks; .* give 1 … 4, or a share"
    with pytest.raises(UserError, match=message):
        trajectory(make_toy(), make_cache("delta_dit", interval=2, blocks=blocks))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": 0}, "blocks = 0 must be an integer of at least 1"),
        ({"blocks": 0.0}, "blocks = 0.0 must be above 0"),
        ({"blocks": 1.5}, "blocks = 1.5 must be at most 1"),
        ({"blocks": "half"}, "blocks = 'half' must be an integer or a finite number"),
        ({"switch": 2}, "switch = 2 must be at most 1"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        make_cache("delta_dit", interval=2, **settings)


def test_flux_leaves_out_its_single_blocks():
    """19 double and 38 single ones; two thirds of any of its configurations."""
    method = make_cache("delta_dit", preset="flux").decider()
    assert [method.count(blocks) for blocks in (57, 9, 3)] == [38, 6, 2]
    assert method.boundaries(57) == [(19, 57)]
