"""ClusCa: its clusters, the tokens that it draws, the factors that it writes into, and what a run of it computes and keeps."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch

from cache_dic import ATTENTION, MLP, NOTHING, SCHEDULES, UserError, make_cache
from cache_dic.methods.clusca import ClusCa, Clusters, k_means, of_clusters, one_of_each
from cache_dic.partial import Kept
from seerkit.sampling.flops import run_flops, sampling_flops

DIT, FLUX = reference.CONFIGS["dit"], reference.CONFIGS["flux"]


# ---------------------------------------------------------------------------------------------------------------- clusters


def plain_k_means(tokens, centroids, iterations):
    """Of one sample: (L, D) and (K, D) arrays."""
    labels = []
    for _ in range(iterations):
        labels = [int(np.argmin([np.abs(token - c).sum() for c in centroids])) for token in tokens]
        means = np.zeros_like(centroids)
        for k in range(len(centroids)):
            inside = [token for token, label in zip(tokens, labels, strict=True) if label == k]
            if inside:
                means[k] = np.mean(inside, axis=0)
        if (np.abs(centroids - means) <= 1e-8 + 1e-4 * np.abs(means)).all():
            break
        centroids = means
    return labels, centroids


@pytest.mark.parametrize("iterations", [1, 2, 3, 100])
@pytest.mark.parametrize(("length", "num_clusters"), [(16, 1), (16, 4), (40, 7), (5, 9)])
def test_k_means_is_the_plain_loop_of_each_sample(length, num_clusters, iterations):
    draw = torch.Generator().manual_seed(length + num_clusters)
    tokens = torch.randn(6, length, 3, generator=draw, dtype=torch.float64)
    first = tokens[:, torch.randint(length, (num_clusters,), generator=draw)]
    labels, centroids = k_means(tokens, first, iterations)
    for row in range(6):
        expected, means = plain_k_means(tokens[row].numpy(), first[row].numpy(), iterations)
        assert labels[row].tolist() == expected
        assert centroids[row].numpy() == pytest.approx(means, abs=1e-12)


def test_distance_is_the_sum_of_absolute_differences():
    """From (0, 0), (2, 2) is 4 away and (3.5, 0) is 3.5; the Euclidean distances, 2.8 and 3.5, are the other way round."""
    labels, _ = k_means(torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[2.0, 2.0], [3.5, 0.0]]]), 1)
    assert labels.tolist() == [[1]]


def test_the_centroid_of_a_cluster_without_tokens_is_zero():
    """From there it may take tokens again, here the one at -1."""
    tokens, first = torch.tensor([[[-1.0], [5.0], [6.0]]]), torch.tensor([[[4.0], [50.0]]])
    labels, centroids = k_means(tokens, first, 1)
    assert labels.tolist() == [[0, 0, 0]]
    assert centroids.squeeze(-1).tolist() == [[pytest.approx(10 / 3), 0.0]]
    labels, centroids = k_means(tokens, first, 10)
    assert labels.tolist() == [[1, 0, 0]]
    assert centroids.squeeze(-1).tolist() == [[5.5, -1.0]]


def test_a_sample_is_done_whatever_the_others_of_its_batch_do():
    """Centroids of the first are near enough to begin with; those of the second move for several iterations."""
    near = torch.tensor([[1000.0], [1000.02], [1000.06], [1000.08]])
    moving = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    first = torch.stack([near[:2], moving[:2]])
    together = k_means(torch.stack([near, moving]), first, 10)
    assert together[1].tolist() == [first[0].tolist(), [[0.5], [10.5]]]
    for row, tokens in enumerate((near, moving)):
        for ours, alone in zip(together, k_means(tokens[None], first[row : row + 1], 10), strict=True):
            assert torch.equal(ours[row], alone[0])


def test_one_token_of_each_cluster_and_token_0_of_none():
    labels = torch.tensor([[0, 2, 0, 2, 0], [1, 1, 1, 1, 1]])
    scores = torch.tensor([[0.1, 0.4, 0.7, 0.3, 0.2], [0.5, 0.9, 0.6, 0.9, 0.2]])
    assert one_of_each(labels, scores, 3).tolist() == [[2, 0, 1], [0, 1, 0]], "the first of equals"


def test_every_token_has_its_clusters_fresh_feature_and_token_0_counts_for_empty_ones():
    labels = torch.tensor([[0, 2, 0, 2], [1, 1, 1, 1]])
    rows = torch.tensor([[2, 0, 1], [0, 3, 0]])  # cluster 1 of the first is empty, clusters 0 and 2 of the second
    fresh = torch.tensor([[[5.0], [3.0], [7.0]], [[2.0], [4.0], [2.0]]])
    spread = of_clusters(labels, rows, fresh)
    assert spread.squeeze(-1).tolist() == [[8.0, 7.0, 8.0, 7.0], [8.0, 8.0, 8.0, 8.0]]


# ----------------------------------------------------------------------------------------------------------------- factors


def call_at(kept: Kept, step: int, since: int, *, reaches_output: bool = True) -> SimpleNamespace:
    look = SimpleNamespace(step=step, since=since)
    return SimpleNamespace(look=look, kept=kept, name="mlp", kind=MLP, reaches_output=reaches_output)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1)


def numbers(values) -> list[list[float]]:
    return [value.flatten().tolist() for value in values]


def test_factors_and_what_is_written_into_them():
    """Two tokens, full at 0, 3 and 6; at step 4 the second is computed afresh, 20 for a feature that was 7."""
    method, kept = ClusCa(interval=3, max_order=2, warmup_steps=1, num_clusters=1, rho=0.0), Kept()
    method.learn_feature(call_at(kept, 0, 1), column(1, 4), None)
    assert numbers(kept.values) == [[1, 4]]
    method.learn_feature(call_at(kept, 3, 3), column(7, 7), None)
    assert numbers(kept.values) == [[7, 7], [2, 1]]
    assert method.forecast(call_at(kept, 5, 2), kept.values).flatten().tolist() == [11, 9]
    shown = method.refresh(call_at(kept, 4, 1), torch.tensor([[1]]), column(20))
    assert shown.flatten().tolist() == [9, 21], "the fresh feature has the old slope on top"
    assert numbers(kept.values) == [[7, 20], [2, 1]], "and stays in the factor of order 0"
    method.learn_feature(call_at(kept, 6, 3), column(13, 14), None)
    assert numbers(kept.values) == [[13, 14], [2, -2], [0, -1]]
    assert method.forecast(call_at(kept, 8, 2), kept.values).flatten().tolist() == [17, 14 - 4 - 2]


def test_differences_begin_at_the_last_step_of_the_warm_up():
    method, kept = ClusCa(interval=3, max_order=3, warmup_steps=3), Kept()
    for step, orders in ((0, 1), (1, 1), (2, 2), (5, 3), (8, 4), (11, 4)):
        method.learn_feature(call_at(kept, step, 3), column(step), None)
        assert len(kept.values) == orders


@pytest.mark.parametrize(("reaches_output", "expected"), [(True, [1.5, 2.25, 3, 9]), (False, [1, 2, 3, 9])])
def test_features_move_towards_the_fresh_one_of_their_cluster(reaches_output, expected):
    """By a quarter: tokens 0 … 2 are a cluster, whose fresh feature is token 2's, 3; token 3 is alone and stays at its own."""
    method, kept = ClusCa(interval=3, num_clusters=2, rho=0.25), Kept(values=[column(1, 2, 7, 4)])
    method.clusters["mlp"] = Clusters(torch.tensor([[0, 0, 0, 1]]), torch.zeros(1, 2, 1))
    call = call_at(kept, 4, 1, reaches_output=reaches_output)
    assert method.refresh(call, torch.tensor([[2, 3]]), column(3, 9)).flatten().tolist() == expected
    assert numbers(kept.values) == [expected]


# --------------------------------------------------------------------------------------------------------------------- runs


def test_what_a_run_computes():
    """TaylorSeer's full steps; between them an MLP computes 3 tokens, that of the text too, and fused blocks nothing."""
    cache = make_cache("clusca", preset="flux", num_clusters=3)
    (run,), _ = reference.play("flux", reference.open_loop("flux", 14), cache)
    record = run.record()
    assert record["full_steps"] == [0, 1, 2, 7, 12] == list(make_cache(interval=5).plan(14).full_steps)
    partial = {"img_attn": NOTHING, "img_mlp": 3, "txt_attn": NOTHING, "txt_mlp": 3, "single": NOTHING}
    for step in (3, 6, 8, 13):
        assert record["steps"][step]["computed"] == partial
    shares = torch.tensor(record["tokens_computed"]["share"])
    assert shares.shape == (3, 4)
    singles, mlps, full = FLUX.depth_single_blocks, FLUX.depth, 5
    computed = full * 12 * (singles + mlps) + 9 * 3 * mlps  # tokens of the image; of 9 steps 3 in each MLP, or fewer
    assert shares.sum() * 14 * (singles + mlps) == pytest.approx(computed, abs=0.01 * computed)


@pytest.mark.parametrize(("network", "rho"), [("dit", 0.0), ("dit", 0.3), ("flux", 0.3), ("hunyuan_video", 0.3)])
def test_a_sample_does_not_depend_on_its_batch(network, rho):
    loop = reference.open_loop(network, 8)
    cache = make_cache("clusca", preset=network, interval=3, num_clusters=4, rho=rho, iterations=100)
    _, (together,) = reference.play(network, loop, cache)
    for row in range(reference.BATCH):
        branches = tuple({name: value[row : row + 1] for name, value in given.items()} for given in loop.branches)
        alone = reference.OpenLoop(loop.timesteps, loop.sigmas, loop.latents[:, row : row + 1], branches)
        _, (output,) = reference.play(network, alone, cache)
        assert (output[:, 0] - together[:, row]).abs().max() <= 1e-5 * together.abs().max()


def test_samples_of_a_batch_draw_tokens_of_their_own():
    """The same class and noise but for one number: without a draw of its own each would compute the same tokens."""
    picked: list[torch.Tensor] = []

    class Watched(ClusCa):
        def work(self, call):
            rows = super().work(call)
            if call.kind != ATTENTION:
                picked.append(rows)
            return rows

    cache = make_cache("clusca", preset="dit", num_clusters=4)
    SCHEDULES["clusca"] = Watched
    loop = reference.open_loop("dit", 12)
    latents = loop.latents[:, :1].repeat(1, 2, 1, 1, 1)
    latents[:, 1, 0, 0, 0] += 1e-6
    reference.play(
        "dit", reference.OpenLoop(loop.timesteps, loop.sigmas, latents, ({"y": torch.tensor([3, 3])},)), cache
    )
    assert len(picked) == 8 * DIT.depth
    differ = sum((rows[0] != rows[1]).sum().item() for rows in picked)
    assert differ > len(picked) * 4 / 3
    assert len({tuple(rows[0].tolist()) for rows in picked}) > len(picked) / 2, "anew in every MLP of every step"


@pytest.mark.parametrize("max_order", [0, 1, 2])
def test_kept_bytes_are_a_feature_an_order_and_site_and_the_clusters(max_order):
    cache = make_cache("clusca", preset="dit", interval=2, max_order=max_order, num_clusters=3)
    (run,), _ = reference.play("dit", reference.open_loop("dit", 10), cache)
    rows, length, width = reference.BATCH, 16, DIT.hidden_size
    features = 2 * DIT.depth * (max_order + 1) * rows * length * width * 4
    clusters = rows * (3 * width * 4 + length * 8)
    assert run.kept_bytes == features + clusters


def test_operations_of_a_step_between_full_ones():
    """In the blocks 3 tokens of each MLP, of D · 4 D and 4 D · D multiply-adds each, and what surrounds the blocks."""
    model, loop = reference.network("dit"), reference.open_loop("dit", 6)
    cache = make_cache("clusca", preset="dit", interval=5, warmup_steps=1, num_clusters=3)
    counted = sampling_flops(model, cache, 6, loop.latents[0], **loop.branches[0])
    rows, length, width = reference.BATCH, 16, DIT.hidden_size
    mlp = 2 * 2 * width * 4 * width
    block = rows * length * (2 * 3 * width**2 + 2 * 2 * length * width + 2 * width**2 + mlp)
    full, _ = model.step_flops(loop.latents[0], **loop.branches[0])
    between = full - DIT.depth * (block - rows * 3 * mlp)
    assert counted["flops_T"] * 1e12 == pytest.approx(2 * full + 4 * between, rel=1e-12)
    (run,), _ = reference.play("dit", loop, cache)
    assert run_flops(run) == (2 * full + 4 * between, 6 * full)


def test_more_clusters_than_tokens_are_warned_of(caplog):
    for num_clusters, warns in ((13, True), (12, False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "cache_dic"):
            reference.sample(
                "flux", reference.network("flux"), 2, make_cache("clusca", interval=2, num_clusters=num_clusters)
            )
        assert ("num_clusters = 13 is more than the 12 tokens of img_mlp" in caplog.text) == warns


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_clusters": 0}, "num_clusters = 0 must be an integer of at least 1"),
        ({"rho": 1.5}, "rho = 1.5 must be at most 1"),
        ({"rho": -0.1}, "rho = -0.1 must be at least 0"),
        ({"iterations": 0}, "iterations = 0 must be an integer of at least 1"),
        ({"max_order": -1}, "max_order = -1 must be an integer of at least 0"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        make_cache("clusca", preset="flux", **settings)
