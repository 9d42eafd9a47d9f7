"""Training the embedded text-to-image models: batches, dropped captions, distilled guidance, further losses."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import flux
from seerkit.data.emoji import load_emoji
from seerkit.devices.distributed import World
from seerkit.sampling.flow_solvers import shift_mu, shift_sigmas
from seerkit.sampling.seeds import generator
from seerkit.text.minilm import WIDTH, TextTable
from seerkit.training.emoji import Captions, EmojiLoss, Texts, train
from seerkit.training.loop import LARGEST_WEIGHT

CPU = torch.device("cpu")
TOKENS = 4  # of an image
COMMANDS = {"flux-debug": "TaylorSeer-FLUX/train.py", "hidream-debug": "TaylorSeer-HiDream/train.py"}  # by their models


# ----------------------------------------------------------------------------------------------------------- objective


class Asked:
    """A velocity of what it is given, and a record of that."""

    def __init__(self) -> None:
        self.calls: list[dict] = []

    def __call__(self, forward, x: Tensor, t: Tensor, texts: Texts, weight: Tensor) -> Tensor:
        txt, y = texts
        grad = torch.is_grad_enabled()
        self.calls.append({"x": x, "t": t, "txt": txt, "y": y, "weight": weight, "grad": grad})
        return self.velocity(x, t, texts, weight)

    @staticmethod
    def unconditional(x: Tensor, t: Tensor) -> Tensor:
        return 0.5 * x + t[:, None, None, None]

    @classmethod
    def conditional(cls, x: Tensor, t: Tensor, texts: Texts) -> Tensor:
        """Differs from `unconditional` where there is text."""
        txt, y = texts
        return cls.unconditional(x, t) + (3 * y.mean(1) + txt.mean((1, 2)))[:, None, None, None]

    @classmethod
    def velocity(cls, x: Tensor, t: Tensor, texts: Texts, weight: Tensor) -> Tensor:
        """What classifier-free guidance of a weight makes of the two."""
        without = cls.unconditional(x, t)
        return without + weight[:, None, None, None] * (cls.conditional(x, t, texts) - without)


@pytest.fixture
def objective(emoji_folder):
    """`objective(batch_size, rank, size, distilled)`: the loss of that process, and what its model was asked."""

    def make(batch_size: int = 8, rank: int = 0, size: int = 1, distilled: bool = True) -> tuple[EmojiLoss, Asked]:
        emoji, asked, args = load_emoji(emoji_folder), Asked(), Namespace(batch_size=batch_size, seed=0)
        captions = Captions(TextTable.load(emoji_folder / "text.safetensors"), emoji)
        world = World(rank, size, CPU)
        return EmojiLoss(emoji, captions, asked, args, world, tokens=TOKENS, distilled=distilled), asked

    return make


def numbers(images: Tensor) -> list[int]:
    """Of images (B, 3, S, S) in [-1, 1]."""
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


class TestBatches:
    def test_held_out_images_are_never_seen(self, objective, emoji_folder):
        (loss, _), emoji = objective(), load_emoji(emoji_folder)
        assert all(getattr(emoji, name).any() for name in ("test", "held_out_style", "held_out_label"))
        seen = {number for step in range(12) for number in numbers(loss.batch(step)["images"])}
        assert seen == set(emoji.train.nonzero().flatten().tolist())

    def test_images_come_with_their_captions(self, objective, emoji_folder):
        emoji, table = load_emoji(emoji_folder), TextTable.load(emoji_folder / "text.safetensors")
        for step in range(4):
            batch = objective()[0].batch(step)
            txt, y = table.encode([emoji.prompt(number) for number in numbers(batch["images"])])
            kept = batch["y"][:, WIDTH:].any(1)  # style and label
            assert kept.any()
            assert torch.equal(batch["txt"][kept], txt[kept])
            assert torch.equal(batch["y"][kept], y[kept])

    @pytest.mark.parametrize("distilled", [False, True])
    def test_guided_half_has_text_and_a_tenth_of_the_others_has_none(self, objective, distilled):
        """Guided: the first half of a batch where the weight is learnt, none of it elsewhere."""
        loss, num_guided = objective(64, distilled=distilled)[0], 32 if distilled else 0
        guided, plain = slice(num_guided), slice(num_guided, None)
        batches = [loss.batch(step) for step in range(30)]
        weight = torch.stack([batch["weight"] for batch in batches])
        assert (weight[:, plain] == 1).all()
        label, style = (
            torch.stack([batch["y"][:, part].any(1) for batch in batches])
            for part in (slice(WIDTH), slice(WIDTH, None))
        )
        assert (~label[:, plain]).float().mean() == pytest.approx(0.1, abs=0.03)
        assert not (style & ~label).any()
        assert (~style[label]).float().mean() == pytest.approx(0.1, abs=0.03)
        if distilled:
            assert (weight[:, guided] > 1).all()
            assert weight.max() <= LARGEST_WEIGHT
            assert weight[:, guided].mean() == pytest.approx((1 + LARGEST_WEIGHT) / 2, abs=0.1)
            assert label[:, guided].all()
        for batch in batches:
            dropped = ~batch["y"].any(1)
            assert not batch["txt"][dropped].any()
            assert batch["txt"][~dropped].flatten(1).any(1).all()

    @pytest.mark.parametrize("distilled", [False, True])
    @pytest.mark.parametrize("size", [2, 4])
    def test_processes_share_the_batch_of_one(self, objective, size, distilled):
        """Row by row, so that the first half of every share is guided; and their mean loss is that of one."""
        loss, _ = objective(16, distilled=distilled)
        one, processes = loss.batch(5), [objective(16, rank, size, distilled)[0] for rank in range(size)]
        shares = [process.batch(5) for process in processes]
        for name, value in one.items():
            assert torch.equal(torch.stack([share[name] for share in shares], dim=1).flatten(0, 1), value)
        if distilled:
            assert all((s["weight"] > 1).tolist() == [True] * (8 // size) + [False] * (8 // size) for s in shares)
        found = torch.stack([process(None, 5)["flow"] for process in processes])
        torch.testing.assert_close(found.mean(), loss(None, 5)["flow"])

    @pytest.mark.parametrize(
        ("batch_size", "size", "distilled", "unit"),
        [(7, 1, True, 2), (6, 2, True, 4), (12, 8, True, 16), (7, 2, False, 2)],
    )
    def test_batches_that_cannot_be_shared_are_refused(self, objective, batch_size, size, distilled, unit):
        """6 images on 2 processes: of the 3 on the first, 2 would be guided, and half of 3 is 1."""
        with pytest.raises(ValueError, match=f"--batch-size {batch_size} must be a multiple of {unit}"):
            objective(batch_size, 0, size, distilled)


class TestLoss:
    @pytest.mark.parametrize("distilled", [False, True])
    def test_it_is_that_of_the_conditional_part(self, objective, distilled):
        """At noise levels that are draws of a logit-normal, shifted with the number of tokens."""
        loss, asked = objective(16, distilled=distilled)
        found, b = loss(None, 2)["flow"], loss.batch(2)
        draw = generator(0, 1, 2)
        assert torch.equal(b["noise"], torch.randn(b["images"].shape, generator=draw))
        shift = float(np.exp(shift_mu(TOKENS)))
        torch.testing.assert_close(b["t"], shift_sigmas(torch.sigmoid(torch.randn(16, generator=draw)), shift))
        t = b["t"][:, None, None, None]
        x = (1 - t) * b["images"] + t * b["noise"]
        expected = Asked.conditional(x, b["t"], (b["txt"], b["y"])) - (b["noise"] - b["images"])
        torch.testing.assert_close(found, expected.square().mean())
        answer, *unguided = asked.calls
        assert answer["grad"]
        assert all(torch.equal(answer[name], b[name]) for name in ("t", "txt", "y", "weight"))
        torch.testing.assert_close(answer["x"], x)
        assert len(unguided) == distilled
        for call in unguided:  # of the guided half, without its text
            assert not call["grad"]
            assert call["weight"].tolist() == [1.0] * 8
            assert not call["txt"].any()
            assert not call["y"].any()
            assert torch.equal(call["x"], answer["x"][:8])

    def test_it_is_a_function_of_seed_and_step(self, objective):
        found = [objective()[0](None, step)["flow"] for step in (3, 3, 4)]
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])


# ------------------------------------------------------------------------------------------------------------ commands


def flags(model: str, data: Path, out: Path) -> list[str]:
    given = {"--model": model, "--data": data, "--output-dir": out, "--batch-size": 8, "--device": "cpu"}
    return [str(part) for pair in given.items() for part in pair]


@pytest.fixture
def begin(monkeypatch) -> Callable[..., tuple[nn.Module, nn.Module, Callable]]:
    """`begin(main, *arguments, **more)`: the model, its average and the losses of a run, which ends before its first step."""

    def make(main: Callable, *arguments: object, **more: object) -> tuple[nn.Module, nn.Module, Callable]:
        seen = []
        monkeypatch.setattr(
            "seerkit.training.emoji.fit", lambda training, losses, *_, **__: seen.append((training, losses))
        )
        monkeypatch.setattr("seerkit.training.emoji.export", lambda *_, **__: None)
        main(*arguments, **more)
        ((training, losses),) = seen
        return training.model, training.ema, losses

    return make


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("model", "script"), COMMANDS.items(), ids=COMMANDS)
def test_every_parameter_learns(load_command, emoji_folder, begin, model, script, precision, tmp_path):
    """In autocast, too, which may keep what it has cast for the unguided answer, without a gradient."""
    model, _, losses = begin(load_command(script).main, flags(model, emoji_folder, tmp_path))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1, generator=draw)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        found = losses(model, 0)
    sum(found.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_further_losses_watch_the_model_and_not_its_average(load_command, emoji_folder, begin, tmp_path):
    command, calls = load_command("TaylorSeer-FLUX/train.py"), []

    def watch(model: nn.Module) -> Callable[[], dict[str, Tensor]]:
        model.register_forward_hook(lambda *_: calls.append(model))
        return lambda: {"more": torch.tensor(7.0)}

    def velocity(forward, x, t, texts, weight):
        return x * forward(t[:, None])[..., None, None]

    args = command.parse_args(flags("flux-debug", emoji_folder, tmp_path))
    settings = {"patch": 4, "distilled": False, "watch": watch}
    model, ema, losses = begin(
        train, args, flux.CONFIGS["flux-debug"], lambda: nn.Linear(1, 1), velocity, None, **settings
    )
    found = losses(ema, 0)
    assert calls == []
    assert found.keys() == {"flow", "more"}
    assert torch.equal(losses(model, 0)["flow"], found["flow"])
    assert calls == [model]


@pytest.mark.parametrize(("model", "script"), COMMANDS.items(), ids=COMMANDS)
def test_missing_embeddings_are_told_with_their_script(load_command, emoji_folder, model, script, tmp_path):
    (tmp_path / "emoji-32.npz").write_bytes((emoji_folder / "emoji-32.npz").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"text\.safetensors.*scripts/get_emoji\.sh"):
        load_command(script).main(flags(model, tmp_path, tmp_path / "out"))
