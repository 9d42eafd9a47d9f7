import argparse
import csv
import functools
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flux import CONFIGS, Flux
from flux.data import STYLES, load_emoji
from flux.latents import pack
from flux.minilm import WIDTH, TextTable
from flux.schedule import shift_mu, shift_times
from flux.weights import load_flux
from seerkit.distributed import World

NUM_STEPS = 20
CPU = torch.device("cpu")
SIZE = 8  # pixels, four tokens of the model


@pytest.fixture(scope="module")
def command(load_command):
    return load_command("TaylorSeer-FLUX/train.py")


@pytest.fixture(scope="module")
def data(command, tmp_path_factory) -> Path:
    """Images of one colour a label under the file names of the real set; the number of an image is its first pixel.

    20 labels in two styles to train on and in the held-out one; two labels that are held out, being in five styles.
    """
    folder = tmp_path_factory.mktemp("emoji")
    labels = [*command.SHOWN, *(f"thing {i}" for i in range(12)), "unseen", "unseen too"]
    styles = list(STYLES.values())
    common = [styles.index(name) for name in ("twemoji flat", "noto", "emojione")]
    pairs = [(label, style) for label in range(20) for style in common]
    pairs += [(label, style) for label in (20, 21) for style in range(5)]
    draw = np.random.default_rng(0)
    colours = draw.integers(0, 256, (len(labels), 1, 1, 3), dtype=np.uint8)
    images = np.concatenate([colours[label].repeat(SIZE, 0).repeat(SIZE, 1)[None] for label, _ in pairs])
    images[:, 0, 0] = np.arange(len(pairs))[:, None]
    label, style = np.array(pairs, np.int32).T
    names = {"labels": np.array(labels), "styles": np.array(styles)}
    none = np.array([""] * len(labels))
    np.savez(folder / "emoji-32.npz", images=images, label=label, style=style, chars=none, groups=none, **names)
    texts, g = [*labels, *styles], torch.Generator().manual_seed(0)
    lengths = 1 + torch.arange(len(texts)) % 3
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    tokens = torch.randn(int(offsets[-1]), WIDTH, generator=g)
    TextTable(texts, tokens, offsets, torch.randn(len(texts), WIDTH, generator=g)).save(folder / "text.safetensors")
    return folder


def arguments(data: Path, out: Path, *more: object) -> list[str]:
    flags = ["--model", "flux-debug", "--data", data, "--out", out, "--steps", NUM_STEPS, "--batch-size", 8]
    rate = ["--lr", 0.01, "--lr-schedule", "constant", "--lr-warmup-steps", 5]
    every = ["--log-every", 4, "--save-every", 10, "--grid-every", 1000]
    return [str(part) for part in (*flags, *rate, *every, "--precision", "fp32", "--device", "cpu", *more)]


@pytest.fixture(scope="module")
def run(run_script):
    return functools.partial(run_script, "TaylorSeer-FLUX/train.py")


@pytest.fixture(scope="module")
def whole(run, data, tmp_path_factory) -> Path:
    """The folder of a run on one process, not interrupted."""
    out = tmp_path_factory.mktemp("whole")
    done = run(*arguments(data, out))
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def objective(command, data):
    """`objective(batch_size, rank, size)` is the loss of that process."""

    def make(batch_size: int = 8, rank: int = 0, size: int = 1):
        emoji = load_emoji(data)
        captions = command.Captions(TextTable.load(data / "text.safetensors"), emoji)
        args, world = argparse.Namespace(batch_size=batch_size, seed=0), World(rank, size, CPU)
        return command.FlowLoss(emoji, captions, Flux(CONFIGS["flux-debug"]), args, world)

    return make


def losses(out: Path) -> list[dict[str, str]]:
    """loss.csv as it stands there, without the seconds."""
    with (out / "loss.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def numbers(images: torch.Tensor) -> list[int]:
    """Of images (B, 3, S, S) in [-1, 1]."""
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


# ----------------------------------------------------------------------------------------------------------------- run


def test_run_learns_and_leaves_its_files(whole):
    rows = losses(whole)
    assert [int(row["step"]) for row in rows] == [4, 8, 10, 12, 16, 20]
    assert list(rows[0]) == ["step", "flow", "lr"]
    assert float(rows[-1]["flow"]) < 0.9 * float(rows[0]["flow"])
    width, height = Image.open(whole / f"samples-{NUM_STEPS:07d}.png").size
    assert width > 8 * 96 > height > 2 * 96  # a column for each of eight labels, a row for each of two styles
    assert not list(whole.glob(".*"))


def test_exported_weights_are_the_averaged_ones_and_load(whole):
    state = torch.load(whole / "state.pt", weights_only=True)
    averaged, last = state["ema"], state["model"]
    assert any(not torch.equal(averaged[name], last[name]) for name in averaged)
    for name, value in load_flux("flux-debug", whole / "state.pt").state_dict().items():
        torch.testing.assert_close(value, averaged[name], rtol=0, atol=0)
    for name, value in load_flux("flux-debug", whole / "model.safetensors").state_dict().items():
        torch.testing.assert_close(value, averaged[name].half().float(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="of another configuration"):
        load_flux("flux-tiny", whole / "model.safetensors")


def test_card_has_the_facts(whole, data):
    facts = json.loads((whole / "model.json").read_text())
    settings = json.loads((whole / "settings.json").read_text())
    assert facts["config"] == settings["config"]
    assert facts["num_parameters"] == sum(p.numel() for p in Flux(CONFIGS["flux-debug"]).parameters())
    assert facts["images_seen"] == 8 * NUM_STEPS
    assert facts["training_images"] == int(load_emoji(data).train.sum())
    assert facts["styles"] == ["twemoji flat", "noto"]
    assert facts["final_loss"]["flow"] == pytest.approx(np.mean([float(row["flow"]) for row in losses(whole)]))
    assert facts["training"]["lr_schedule"] == "constant"
    assert facts["conditions"]["dtype"] == "float32"
    assert str(data) not in json.dumps(facts)


@pytest.mark.slow
def test_resumed_run_equals_an_uninterrupted_one(run, whole, data, tmp_path):
    for more in (["--steps", 10], ["--resume"]):
        done = run(*arguments(data, tmp_path, *more))
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path) == losses(whole)
    for file in ("model.safetensors", f"samples-{NUM_STEPS:07d}.png"):
        assert (tmp_path / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.slow
def test_two_processes_train_alike(run, whole, data, tmp_path):
    done = run(*arguments(data, tmp_path), processes=2)
    assert done.returncode == 0, done.stderr
    ours, one = ([float(row["flow"]) for row in losses(out)] for out in (tmp_path, whole))
    np.testing.assert_allclose(ours, one, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------------------------------- batch


def test_held_out_images_are_never_seen(objective, data):
    loss, emoji = objective(), load_emoji(data)
    assert all(getattr(emoji, name).any() for name in ("test", "held_out_style", "held_out_label"))
    seen = {number for step in range(12) for number in numbers(loss.batch(step)["images"])}
    assert seen == set(emoji.train.nonzero().flatten().tolist())


def test_images_come_with_their_captions(command, objective, data):
    emoji, table = load_emoji(data), TextTable.load(data / "text.safetensors")
    for step in range(4):
        batch = objective().batch(step)
        txt, y = table.encode([emoji.prompt(number) for number in numbers(batch["images"])])
        kept = batch["y"][:, WIDTH:].any(1)  # style and label
        assert kept.any()
        assert torch.equal(batch["txt"][kept], txt[kept])
        assert torch.equal(batch["y"][kept], y[kept])


def test_half_of_a_batch_is_guided_and_has_text(objective):
    loss, guided = objective(64), slice(32)
    batches = [loss.batch(step) for step in range(30)]
    weight = torch.stack([batch["weight"] for batch in batches])
    assert (weight[:, guided] > 1).all()
    assert (weight <= 5).all()
    assert weight[:, guided].mean() == pytest.approx(3, abs=0.1)
    assert (weight[:, 32:] == 1).all()
    label, style = (
        torch.stack([batch["y"][:, part].any(1) for batch in batches]) for part in (slice(WIDTH), slice(WIDTH, None))
    )
    assert label[:, guided].all()
    assert (~label[:, 32:]).float().mean() == pytest.approx(0.1, abs=0.03)  # no caption
    assert not (style & ~label).any()
    assert (~style[:, guided]).float().mean() == pytest.approx(0.1, abs=0.03)  # no style
    for batch in batches:
        dropped = ~batch["y"].any(1)
        assert not batch["txt"][dropped].any()
        assert batch["txt"][~dropped].flatten(1).any(1).all()


@pytest.mark.parametrize("size", [2, 4])
def test_processes_share_the_batch_of_one(objective, size):
    """Row by row, so that the first half of every share is guided."""
    one = objective(16).batch(5)
    shares = [objective(16, rank, size).batch(5) for rank in range(size)]
    for name, value in one.items():
        assert torch.equal(torch.stack([share[name] for share in shares], dim=1).flatten(0, 1), value)
    for share in shares:
        half = 8 // size
        assert (share["weight"][:half] > 1).all()
        assert (share["weight"][half:] == 1).all()


@pytest.mark.parametrize(("batch_size", "size"), [(7, 1), (6, 2), (12, 8)])
def test_batch_that_cannot_be_halved_in_every_process_is_refused(objective, batch_size, size):
    """6 images on 2 processes: of the 3 on the first, 2 are guided, and half of 3 is 1."""
    with pytest.raises(ValueError, match=f"--batch-size {batch_size} must be a multiple of {2 * size}"):
        objective(batch_size, 0, size)


# ----------------------------------------------------------------------------------------------------------- objective


def unconditional(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.5 * x + t[:, None, None]


def conditional(x: torch.Tensor, txt: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Differs from `unconditional` where there is text."""
    return unconditional(x, t) + (3 * y.mean(1) + txt.mean((1, 2)))[:, None, None]


class Guided:
    """Answers what classifier-free guidance of a weight makes of the two velocities; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked = []

    def __call__(self, x, img_ids, txt, txt_ids, t, y, weight):
        assert img_ids.shape == (*x.shape[:2], 3)
        assert txt_ids.shape == (*txt.shape[:2], 3)
        self.asked.append((torch.is_grad_enabled(), bool(txt.any() or y.any()), weight))
        without = unconditional(x, t)
        return without + weight[:, None, None] * (conditional(x, txt, t, y) - without)


def test_loss_of_a_guided_model_is_that_of_its_conditional_part(objective):
    loss, model = objective(16), Guided()
    b = loss.batch(2)
    x0, noise = pack(b["images"], 4), pack(b["noise"], 4)
    t = shift_times(b["t"], shift_mu(SIZE * SIZE // 16))
    x = (1 - t)[:, None, None] * x0 + t[:, None, None] * noise
    expected = (conditional(x, b["txt"], t, b["y"]) - (noise - x0)).square().mean()
    torch.testing.assert_close(loss(model, 2)["flow"], expected)
    (grad, text, weight), (last_grad, last_text, last_weight) = model.asked
    assert (grad, text, weight.tolist()) == (False, False, [1.0] * 8)  # the guided half without its text
    assert (last_grad, last_text) == (True, True)
    assert torch.equal(last_weight, b["weight"])


def test_loss_of_one_process_is_the_mean_of_many(objective):
    shares = [objective(16, rank, 4)(Guided(), 3)["flow"] for rank in range(4)]
    torch.testing.assert_close(torch.stack(shares).mean(), objective(16)(Guided(), 3)["flow"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_parameter_learns(objective, precision):
    """In autocast, too, which may keep what it has cast for the unguided answer, without a gradient."""
    model = Flux(CONFIGS["flux-debug"])
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1, generator=draw)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = objective()(model, 0)["flow"]
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


# ------------------------------------------------------------------------------------------------------------- command


def test_missing_data_is_told_with_the_script_that_makes_it(command, data, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"scripts/get_emoji\.sh"):
        command.main(arguments(tmp_path, tmp_path / "out"))
    (tmp_path / "emoji-32.npz").write_bytes((data / "emoji-32.npz").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"text\.safetensors.*scripts/get_emoji\.sh"):
        command.main(arguments(tmp_path, tmp_path / "out"))


def test_settings_out_of_range_are_refused(command, data, whole, tmp_path):
    with pytest.raises(ValueError, match=r"--ema-decay 1\.0 must lie in"):
        command.main(arguments(data, tmp_path, "--ema-decay", 1))
    with pytest.raises(ValueError, match="--batch-size 5 must be a multiple of 2"):
        command.main(arguments(data, tmp_path, "--batch-size", 5))
    with pytest.raises(ValueError, match="continue it with --resume"):
        command.main(arguments(data, whole))


def test_dry_run_writes_nothing(command, tmp_path, capsys):
    command.main(["--out", str(tmp_path / "out"), "--dry-run"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["config"] == json.loads(json.dumps(asdict(CONFIGS["flux-tiny"])))
    assert shown["training"]["steps"] == "40000"
    assert list(tmp_path.iterdir()) == []
