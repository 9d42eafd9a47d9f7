"""Train a DiT on Fashion-MNIST: EMA, learning-rate schedule with warm-up, bf16, resume, sample grids, loss curve, torchrun.

Everything random is a function of --seed and the step, so a resumed run sees the batches of an uninterrupted one.
"""

import contextlib
import copy
import csv
import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from dit import CONFIGS, DiT, dit_config
from dit.data import CLASS_NAMES, IMAGE_SIZE, load_fashion_mnist, to_unit_range
from dit.diffusion import Diffusion
from dit.sampler import sample
from seerkit.attention import BACKENDS
from seerkit.cli import Parser, non_negative_int, positive_float, positive_int, run_command
from seerkit.distributed import World, start_world
from seerkit.files import writable_directory, write_json, written_whole
from seerkit.media import labelled_grid, save_png, to_uint8
from seerkit.records import conditions
from seerkit.seeds import SampleGenerators, derive_seed, generator
from seerkit.weights import export_safetensors, read_pickle

EXAMPLES = """
python TaylorSeer-DiT/train.py --out outputs/dit-fashion
python TaylorSeer-DiT/train.py --out outputs/dit-fashion --resume
torchrun --nproc_per_node=8 TaylorSeer-DiT/train.py --out outputs/dit-fashion --precision bf16
"""


def parse_args(argv: list[str] | None):
    parser = Parser(__doc__, EXAMPLES)
    names = [name for name, config in CONFIGS.items() if config.in_channels == 1]
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, grids and the loss curve")
    parser.add_argument("--model", choices=names, default="fashion-mnist", help="shape of the model to train")
    parser.add_argument("--data", type=Path, help="folder with the four IDX files of Fashion-MNIST")
    parser.add_argument("--steps", type=positive_int, default=40000, help="optimiser steps")
    parser.add_argument("--batch-size", type=positive_int, default=128, help="images a step, over all processes")
    parser.add_argument("--lr", type=positive_float, default=1e-3, help="peak learning rate of AdamW")
    parser.add_argument("--lr-schedule", choices=("cosine", "constant"), default="cosine")
    parser.add_argument("--lr-warmup-steps", type=non_negative_int, default=500, help="linear warm-up, in steps")
    parser.add_argument("--ema-decay", type=float, default=0.999, help="of the averaged weights that are sampled from")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="of matrix products (autocast)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--attention", choices=BACKENDS, default="sdpa", help="`reference` is faster on CPUs in bf16")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=non_negative_int, default=0)
    parser.add_argument("--log-every", type=positive_int, default=50, help="steps between rows of loss.csv")
    parser.add_argument("--save-every", type=positive_int, default=1000, help="steps between checkpoints")
    parser.add_argument("--grid-every", type=positive_int, default=2000, help="steps between sample grids")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    return parser.parse_args(argv)


def learning_rate(step: int, args) -> float:
    """Peak rate after a linear warm-up; cosine to zero at the last step, or constant."""
    warm = min(1.0, (step + 1) / max(1, args.lr_warmup_steps))
    if args.lr_schedule == "constant":
        return args.lr * warm
    progress = max(0.0, (step - args.lr_warmup_steps) / max(1, args.steps - args.lr_warmup_steps))
    return args.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def batch_indices(step: int, batch_size: int, count: int, seed: int) -> np.ndarray:
    """Indices of a batch: consecutive parts of one permutation an epoch, a pure function of (step, seed)."""
    position = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = position // count
    permutations = {e: np.random.default_rng((seed, int(e))).permutation(count) for e in np.unique(epochs)}
    return np.array([permutations[e][p] for e, p in zip(epochs, position % count, strict=True)])


def training_batch(step: int, images: Tensor, labels: Tensor, diffusion: Diffusion, config, args, world: World):
    """This process's share of step `step`: x0, y with dropped labels, time indices and noise; independent of world size."""
    chosen = torch.from_numpy(batch_indices(step, args.batch_size, len(images), args.seed))
    draw = generator(args.seed, 1, step)
    i = torch.randint(len(diffusion), (args.batch_size,), generator=draw)
    noise = torch.randn(args.batch_size, *images.shape[1:], generator=draw)
    dropped = torch.rand(args.batch_size, generator=draw) < config.class_dropout_prob
    y = torch.where(dropped, torch.tensor(config.num_classes), labels[chosen])
    share = slice(world.rank, None, world.size)
    batch = (to_unit_range(images[chosen[share]]), y[share], i[share], noise[share])
    return [part.to(world.device, non_blocking=True) for part in batch]


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema <- decay · ema + (1 - decay) · model."""
    targets, sources = list(ema.parameters()), list(model.parameters())
    torch._foreach_lerp_(targets, sources, 1 - decay)


def save_state(out: Path, step: int, model: DiT, ema: DiT, optimizer: torch.optim.Optimizer, args) -> None:
    """One resumable file; no generator state is needed."""
    state = {
        "step": step,
        "model": model.state_dict(),
        "ema": ema.state_dict(),
        "optimizer": optimizer.state_dict(),
        "settings": {key: str(value) for key, value in vars(args).items()},
    }
    with written_whole(out / "state.pt") as temporary:
        torch.save(state, temporary)


def load_state(out: Path, model: DiT, ema: DiT, optimizer: torch.optim.Optimizer, args) -> int:
    """Restore what `save_state` wrote and return the next step; ValueError if the settings that matter have changed."""
    path = out / "state.pt"
    if not path.is_file():
        raise FileNotFoundError(f"nothing to resume: {path} does not exist; start without --resume")
    state = read_pickle(path)
    for key in ("model", "batch_size", "seed", "lr", "lr_schedule", "lr_warmup_steps", "ema_decay"):
        if state["settings"][key] != str(getattr(args, key)):
            flag = "--" + key.replace("_", "-")
            raise ValueError(f"{flag} {getattr(args, key)} differs from {state['settings'][key]} of the run in {out}")
    if state["step"] > args.steps:
        raise ValueError(f"--steps {args.steps} is less than the {state['step']} that the run in {out} has done")
    model.load_state_dict(state["model"])
    ema.load_state_dict(state["ema"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def save_grid(path: Path, ema: DiT, config, args, device: torch.device, per_class: int = 4) -> None:
    """Guided 50-step DDIM samples of every class, one column a class."""
    labels = torch.arange(config.num_classes).repeat(per_class)
    noise = SampleGenerators(derive_seed(args.seed, 2), range(len(labels))).randn(1, IMAGE_SIZE, IMAGE_SIZE)
    images = to_uint8(sample(ema, noise.to(device), labels.to(device), 50, guidance_scale=2.0))
    rows = [images[i * config.num_classes : (i + 1) * config.num_classes] for i in range(per_class)]
    save_png(path, labelled_grid(rows, [""] * per_class, CLASS_NAMES, min_cell=96))


class LossLog:
    """loss.csv: mean losses since the row before, learning rate, and seconds of training so far, all resumed sittings."""

    HEADER = ("step", "simple", "vlb", "lr", "seconds")

    def __init__(self, path: Path, first: int, world: World) -> None:
        self.path, self.world = path, world
        self.sums, self.count = torch.zeros(2, device=world.device), 0
        self.before = 0.0
        if world.is_main:
            rows = [row for row in read_losses(path) if row["step"] <= first] if first else []
            self.before = rows[-1]["seconds"] if rows else 0.0
            with written_whole(path) as temporary:
                temporary.write_text(",".join(self.HEADER) + "\n" + "".join(self.line(**row) for row in rows))
        self.began = time.perf_counter()

    def add(self, simple: Tensor, vlb: Tensor) -> None:
        self.sums += torch.stack([simple, vlb])
        self.count += 1

    def write(self, step: int, lr: float) -> float:
        """Append a row of means over all processes and begin anew; returns the mean L_simple."""
        losses = self.sums / self.count
        if self.world.size > 1:
            dist.all_reduce(losses)
            losses /= self.world.size
        simple, vlb = losses.tolist()
        if self.world.is_main:
            seconds = self.before + time.perf_counter() - self.began
            with self.path.open("a") as file:
                file.write(self.line(step, simple, vlb, lr, seconds))
        self.sums.zero_()
        self.count = 0
        return simple

    @staticmethod
    def line(step: float, simple: float, vlb: float, lr: float, seconds: float) -> str:
        return f"{step:.0f},{simple:.6f},{vlb:.6f},{lr:.3e},{seconds:.1f}\n"


def read_losses(path: Path) -> list[dict[str, float]]:
    """The rows of a loss.csv, empty if there is none."""
    if not path.exists():
        return []
    with path.open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def plot_losses(out: Path) -> None:
    """loss.csv as loss.png; without matplotlib the numbers alone stay."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_losses(out / "loss.csv")
    figure, axis = plt.subplots(figsize=(7, 4))
    axis.plot([row["step"] for row in rows], [row["simple"] for row in rows], label="noise (L_simple)")
    axis.plot([row["step"] for row in rows], [row["vlb"] for row in rows], label="variance (L_vlb, bits)")
    axis.set(xlabel="optimiser step", ylabel="training loss", yscale="log")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    with written_whole(out / "loss.png") as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight")
    plt.close(figure)


def export(out: Path, ema: DiT, args, device: torch.device) -> None:
    """The averaged weights as model.safetensors in fp16, their configuration inside, and the facts of the card beside it."""
    rows = read_losses(out / "loss.csv")
    precision = torch.bfloat16 if args.precision == "bf16" else torch.float32
    card = {
        "config": asdict(ema.config),
        "num_parameters": sum(parameter.numel() for parameter in ema.parameters()),
        "training": {key: value for key, value in vars(args).items() if not isinstance(value, Path | None)},
        "images_seen": args.steps * args.batch_size,
        "seconds": rows[-1]["seconds"] if rows else None,
        "final_loss": {key: float(np.mean([row[key] for row in rows[-10:]])) for key in ("simple", "vlb")}
        if rows
        else None,
        "data": "Fashion-MNIST training images (Zalando, MIT licence), 28 pixels with a border of 2",
        "conditions": conditions(device, precision),
    }
    export_safetensors(out / "model.safetensors", ema.state_dict(), torch.float16, {"config": card["config"]})
    write_json(out / "model.json", card)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if not 0 <= args.ema_decay < 1:
        raise ValueError(f"--ema-decay {args.ema_decay} must lie in [0, 1)")
    config = replace(dit_config(args.model, image_size=IMAGE_SIZE), num_classes=len(CLASS_NAMES))
    settings = {"config": asdict(config), "training": {key: str(value) for key, value in vars(args).items()}}
    if args.dry_run:
        print(json.dumps(settings, indent=2))
        return
    world = start_world(args.device)
    if args.batch_size % world.size:
        raise ValueError(f"--batch-size {args.batch_size} cannot be shared by {world.size} processes")
    out = writable_directory(args.out)
    images, labels = load_fashion_mnist("train", args.data)

    model = DiT(config, attention=args.attention).initialize(args.seed).to(world.device)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0)
    diffusion = Diffusion.respaced()
    first = load_state(out, model, ema, optimizer, args) if args.resume else 0
    if not args.resume and world.is_main and (out / "state.pt").exists():
        raise ValueError(f"{out} already holds a run; continue it with --resume or choose another --out")
    world.barrier()
    forward = torch.compile(model, dynamic=False) if args.compile else model
    if world.size > 1:
        forward = nn.parallel.DistributedDataParallel(forward)
    bf16 = args.precision == "bf16"
    autocast = torch.autocast(world.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
    if world.is_main:
        write_json(out / "settings.json", settings)
    log = LossLog(out / "loss.csv", first, world)

    bar = tqdm(range(first, args.steps), initial=first, total=args.steps, disable=not world.is_main, mininterval=5)
    for step in bar:
        done, lr = step + 1, learning_rate(step, args)
        x0, y, i, noise = training_batch(step, images, labels, diffusion, config, args, world)
        for group in optimizer.param_groups:
            group["lr"] = lr
        with autocast:
            output = forward(diffusion.add_noise(x0, i, noise), diffusion.timesteps.to(i.device)[i], y)
        simple, vlb = (loss.mean() for loss in diffusion.training_loss(output, x0, noise, i))
        optimizer.zero_grad(set_to_none=True)
        (simple + vlb).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise ValueError(f"the gradient is {norm.item()} at step {step}; lower --lr {args.lr} and use --resume")
        optimizer.step()
        update_ema(ema, model, min(args.ema_decay, (1 + done) / (10 + done)))
        log.add(simple.detach(), vlb.detach())

        last = done == args.steps
        save = last or done % args.save_every == 0
        if save or done % args.log_every == 0:  # nothing that a resumed run would need is left in the sums
            bar.set_postfix(loss=f"{log.write(done, lr):.4f}", refresh=False)
        if world.is_main and save:
            save_state(out, done, model, ema, optimizer, args)
        if world.is_main and (last or done % args.grid_every == 0):
            save_grid(out / f"samples-{done:07d}.png", ema, config, args, world.device)
            plot_losses(out)
    if world.is_main:
        export(out, ema, args, world.device)
    world.barrier()


if __name__ == "__main__":
    run_command(main)
