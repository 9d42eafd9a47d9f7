"""The objective of the embedded video models: batches, dropped captions, distilled guidance, shares of processes."""

from argparse import Namespace

import pytest
import torch
from torch import Tensor

from hunyuan_video import HunyuanVideo, hunyuan_video_config
from hunyuan_video.sampler import GUIDANCE_FACTOR
from seerkit.data.captions import HELD_OUT, PROMPTS
from seerkit.data.moving_objects import MovingObjects, pooled
from seerkit.devices.distributed import World
from seerkit.sampling.flow_solvers import shift_sigmas
from seerkit.sampling.seeds import generator
from seerkit.training.loop import LARGEST_WEIGHT
from seerkit.training.videos import CLIP_SHAPE, ClipLoss, SampleStrips, Texts, encode_texts
from wan import Wan, wan_config

CPU = torch.device("cpu")
SHIFT = 3.0


@pytest.fixture(scope="module")
def clips() -> MovingObjects:
    return MovingObjects()


class Asked:
    """A velocity of what it is given, and a record of that."""

    def __init__(self) -> None:
        self.calls: list[dict] = []

    def __call__(self, forward, x: Tensor, sigma: Tensor, texts: Texts, weight: Tensor) -> Tensor:
        self.calls.append({"x": x, "sigma": sigma, "texts": texts, "weight": weight, "grad": torch.is_grad_enabled()})
        return self.velocity(x, sigma, texts, weight)

    @staticmethod
    def unconditional(x: Tensor, sigma: Tensor) -> Tensor:
        return 0.5 * x + sigma[:, None, None, None, None]

    @classmethod
    def conditional(cls, x: Tensor, sigma: Tensor, texts: Texts) -> Tensor:
        """Differs from `unconditional` where there is text."""
        return cls.unconditional(x, sigma) + (texts.words * torch.arange(48.0)).mean((1, 2))[:, None, None, None, None]

    @classmethod
    def velocity(cls, x: Tensor, sigma: Tensor, texts: Texts, weight: Tensor) -> Tensor:
        """What classifier-free guidance of a weight makes of the two."""
        without = cls.unconditional(x, sigma)
        return without + weight[:, None, None, None, None] * (cls.conditional(x, sigma, texts) - without)


@pytest.fixture
def objective(clips):
    """`objective(batch_size, rank, size, distilled)`: the loss of that process, and what its model was asked."""

    def make(batch_size: int = 8, rank: int = 0, size: int = 1, distilled: bool = True) -> tuple[ClipLoss, Asked]:
        asked, args = Asked(), Namespace(batch_size=batch_size, seed=0)
        return ClipLoss(clips, asked, args, World(rank, size, CPU), shift=SHIFT, distilled=distilled), asked

    return make


class TestTexts:
    def test_rows_and_the_empty_caption(self):
        texts = encode_texts([PROMPTS[0], "", PROMPTS[1]])
        assert texts.words.shape == (3, 8, 48)
        assert texts.mask.sum(1).tolist() == [6, 1, 6]
        part = texts[slice(1, 3)]
        assert torch.equal(part.words, texts.words[1:])
        assert torch.equal(part.mask, texts.mask[1:])
        none = texts.without(torch.tensor([True, False, False]))
        assert not none.words[:2].any()
        assert torch.equal(none.words[2], texts.words[2])
        assert torch.equal(none.mask[0], none.mask[1])
        assert texts.words[0].any(), "the texts themselves stay"


class TestBatches:
    def test_a_step_is_a_function_of_seed_and_step(self, objective, clips):
        """Its noise levels are shifted draws of a logit-normal; its clips those that the step has, under their captions."""
        loss, asked = objective(distilled=False)
        found = loss(None, 3)["flow"]
        draw = generator(0, 1, 3)
        noise = torch.randn(8, *CLIP_SHAPE, generator=draw)
        sigma = shift_sigmas(torch.sigmoid(torch.randn(8, generator=draw)), SHIFT)
        shown, captions = clips.clips(range(24, 32))
        (call,) = asked.calls
        assert torch.equal(call["sigma"], sigma)
        s = sigma[:, None, None, None, None]
        torch.testing.assert_close(call["x"], (1 - s) * shown + s * noise)
        texts = encode_texts(captions)
        kept = call["texts"].words.flatten(1).any(1)
        assert kept.any()
        assert torch.equal(call["texts"].words[kept], texts.words[kept])
        assert not set(captions) & HELD_OUT
        expected = (Asked.conditional(call["x"], sigma, call["texts"]) - (noise - shown)).square().mean()
        torch.testing.assert_close(found, expected)
        assert torch.equal(loss(None, 3)["flow"], found)
        assert not torch.equal(loss(None, 4)["flow"], found)

    @pytest.mark.parametrize("distilled", [False, True])
    def test_a_tenth_of_the_captions_that_are_not_guided_is_dropped(self, clips, distilled, monkeypatch):
        monkeypatch.setattr(MovingObjects, "clips", lambda self, indices: (torch.zeros(1), [PROMPTS[0]] * len(indices)))
        monkeypatch.setattr("seerkit.training.videos.CLIP_SHAPE", (1, 1, 1, 1))
        asked, args = Asked(), Namespace(batch_size=4000, seed=0)
        ClipLoss(clips, asked, args, World(0, 1, CPU), shift=SHIFT, distilled=distilled)(None, 0)
        call = asked.calls[0]
        dropped = ~call["texts"].words.flatten(1).any(1)
        guided = call["weight"] > 1
        assert int(guided.sum()) == (1000 if distilled else 0)
        assert not dropped[guided].any()
        assert dropped[~guided].float().mean() == pytest.approx(0.1, abs=0.02)
        assert (call["weight"][~guided] == 1).all()
        if distilled:
            assert call["weight"][guided].mean() == pytest.approx((1 + LARGEST_WEIGHT) / 2, abs=0.1)
            assert call["weight"].max() <= LARGEST_WEIGHT

    @pytest.mark.parametrize("distilled", [False, True])
    @pytest.mark.parametrize("size", [2, 4])
    def test_processes_share_the_batch_of_one(self, objective, size, distilled):
        """Row by row, so that the first quarter of every share is guided; and their mean loss is that of one."""
        loss, asked = objective(16, distilled=distilled)
        expected, found = loss(None, 2)["flow"], []
        shares = []
        for rank in range(size):
            loss, part = objective(16, rank, size, distilled)
            found.append(loss(None, 2)["flow"])
            shares.append(part.calls[0])
        torch.testing.assert_close(torch.stack(found).mean(), expected)
        whole = asked.calls[0]
        for name in ("x", "sigma", "weight"):
            assert torch.equal(torch.stack([s[name] for s in shares], dim=1).flatten(0, 1), whole[name])
        words = torch.stack([s["texts"].words for s in shares], dim=1).flatten(0, 1)
        assert torch.equal(words, whole["texts"].words)
        if distilled:
            assert all((s["weight"] > 1).tolist() == [True] * (4 // size) + [False] * (12 // size) for s in shares)

    @pytest.mark.parametrize(
        ("batch_size", "size", "distilled", "unit"), [(6, 1, True, 4), (12, 2, True, 8), (7, 2, False, 2)]
    )
    def test_batches_that_cannot_be_shared_are_refused(self, objective, batch_size, size, distilled, unit):
        with pytest.raises(ValueError, match=f"--batch-size {batch_size} must be a multiple of {unit}"):
            objective(batch_size, 0, size, distilled)


class TestDistilledGuidance:
    def test_loss_of_a_guided_model_is_that_of_its_conditional_part(self, objective, clips):
        loss, asked = objective(16)
        found = loss(None, 2)["flow"]
        answer, unguided = asked.calls
        draw = generator(0, 1, 2)
        noise = torch.randn(16, *CLIP_SHAPE, generator=draw)
        shown, _ = clips.clips(range(32, 48))
        expected = Asked.conditional(answer["x"], answer["sigma"], answer["texts"]) - (noise - shown)
        torch.testing.assert_close(found, expected.square().mean())
        assert answer["grad"]
        assert not unguided["grad"]
        assert unguided["weight"].tolist() == [1.0] * 4
        assert not unguided["texts"].words.any()
        assert torch.equal(unguided["x"], answer["x"][:4])
        assert answer["texts"].words[:4].flatten(1).any(1).all()


def wan_velocity(forward, x, sigma, texts, weight):
    return forward(x, 1000 * sigma, texts.words)


def hunyuan_velocity(forward, x, sigma, texts, weight):
    return forward(x, 1000 * sigma, texts.words, None, pooled(texts.words), GUIDANCE_FACTOR * weight)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["wan", "hunyuan"])
def test_every_parameter_learns(clips, name, precision):
    """In autocast, too, which may keep what it has cast for the unguided answer, without a gradient."""
    model = Wan(wan_config("wan-debug")) if name == "wan" else HunyuanVideo(hunyuan_video_config("hunyuan-debug"))
    velocity, draw = {"wan": wan_velocity, "hunyuan": hunyuan_velocity}[name], torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1, generator=draw)
    args = Namespace(batch_size=4, seed=0)
    loss = ClipLoss(clips, velocity, args, World(0, 1, CPU), shift=SHIFT, distilled=name == "hunyuan")
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss(model, 0)["flow"].backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_strips_show_the_default_prompts_from_noise_of_the_seed(tmp_path):
    seen = []

    def sample(ema, noise: Tensor, texts: Texts) -> Tensor:
        seen.append((noise, texts))
        return noise.clamp(-1, 1)

    for seed in (0, 0, 1):
        SampleStrips(sample, seed, CPU)(tmp_path / "strip.png", None)
    noise, texts = seen[0]
    assert noise.shape == (len(PROMPTS), *CLIP_SHAPE)
    assert torch.equal(texts.words, encode_texts(PROMPTS).words)
    assert torch.equal(noise, seen[1][0])
    assert not torch.equal(noise, seen[2][0])
    assert (tmp_path / "strip.png").stat().st_size > 0
