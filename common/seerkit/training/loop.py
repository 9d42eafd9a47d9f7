"""What the training commands share: learning rate, batches, averaged weights, loss log, resumable loop.

Everything random is a function of --seed and the step, so a resumed run sees the batches of an uninterrupted one.
"""

import argparse
import contextlib
import copy
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from cache_dic import UserError
from seerkit.devices.distributed import World, start_world
from seerkit.io.files import read_text, writable_directory, write_json, write_text, written_whole
from seerkit.io.records import conditions
from seerkit.training.muon import Muon
from seerkit.weights.checkpoints import check_state, export_safetensors, read_pickle

log = logging.getLogger("seerkit.training")

Losses = Callable[[nn.Module, int], Mapping[str, Tensor]]
"""`losses(forward, step)`: this process's losses of a step by name, scalars, whose sum is minimised."""

LARGEST_WEIGHT = 5.0  # of distilled guidance, in training
# Over a resumed run. Not the rate: a lower one is what helps a run whose gradients are no longer finite.
FIXED = ("model", "batch_size", "seed", "optimizer", "lr_schedule", "lr_warmup_steps", "ema_decay")
STATE = {"step": int, "model": dict, "ema": dict, "optimizer": dict, "settings": dict}  # what `Training.save` writes
MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "muon": ("momentum_buffer",)}  # that the optimisers keep of a parameter


def start_training(config: Any, args: argparse.Namespace) -> World | None:
    """This process among those that train, with --output-dir made; or, with --dry-run, None, what would be done being shown."""
    if args.dry_run:
        print(json.dumps(resolved(config, args), indent=2))
        return None
    world = start_world(args.device)
    writable_directory(args.out)
    return world


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Peak rate after a linear warm-up; cosine to zero at the last step, or constant."""
    warm = min(1.0, (step + 1) / max(1, args.lr_warmup_steps))
    if args.lr_schedule == "constant":
        return args.lr * warm
    progress = max(0.0, (step - args.lr_warmup_steps) / max(1, args.steps - args.lr_warmup_steps))
    return args.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def batch_indices(step: int, batch_size: int, count: int, seed: int) -> np.ndarray:
    """Indices of a batch: consecutive parts of one permutation per epoch, a pure function of (step, seed)."""
    position = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = position // count
    permutations = {e: np.random.default_rng((seed, int(e))).permutation(count) for e in np.unique(epochs)}
    return np.array([permutations[e][p] for e, p in zip(epochs, position % count, strict=True)])


def num_guided(batch_size: int, share: int | None, world: World) -> int:
    """Rows of a batch whose answers are guided: one in `share`, or none. UserError if processes cannot have equal parts."""
    unit = (share or 1) * world.size
    if batch_size % unit:
        raise UserError(f"--batch-size {batch_size} must be a multiple of {unit}")
    return batch_size // share if share else 0


Texts = TypeVar("Texts")


def guided_answers(
    velocity: Callable[[slice, Texts, Tensor], Tensor], texts: Texts, none: Texts, weight: Tensor, guided: slice
) -> Tensor:
    """What is fitted to the flow's velocity where the weight w of guidance is an input of the model.

    It is learnt without a teacher (guidance-free training, arXiv 2501.15420): with v(x | none) the model's own unguided
    answer, held fixed, v(x | text, w) / w + (1 - 1 / w) · v(x | none), so that v(x | text, w) becomes what guidance of
    weight w would have made of two calls. velocity(rows, texts, weight) -> (rows, …). guided: the first rows, for which this
    is done; the others have weight 1. none: no text, for the guided rows. Without such rows it is the model's answer.
    """
    answers = velocity(slice(None), texts, weight)
    if guided.stop == 0:
        return answers
    beta = (1 / weight).reshape(-1, *[1] * (answers.ndim - 1))
    with torch.no_grad():
        unguided = velocity(guided, none, torch.ones_like(weight[guided]))
    answers = beta * answers
    return torch.cat([answers[guided] + (1 - beta[guided]) * unguided, answers[guided.stop :]])


def flow_loss(
    velocity: Callable[[Tensor, Tensor, Texts, Tensor], Tensor],
    data: Tensor,
    noise: Tensor,
    t: Tensor,
    texts: Texts,
    none: Texts,
    weight: Tensor,
    guided: slice,
) -> Tensor:
    """Mean square by which a model misses the flow's velocity, noise - data (B, …), at times t (B,); 1 is noise.

    velocity(x, t, texts, weight) is its answer; texts, none, weight (B,), guided: of `guided_answers`.
    """
    x = torch.lerp(data, noise, t.reshape(-1, *[1] * (data.ndim - 1)))

    def answer(rows: slice, texts: Texts, weight: Tensor) -> Tensor:
        return velocity(x[rows], t[rows], texts, weight).float()

    return (guided_answers(answer, texts, none, weight, guided) - (noise - data)).square().mean()


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema <- decay · ema + (1 - decay) · model."""
    targets, sources = list(ema.parameters()), list(model.parameters())
    torch._foreach_lerp_(targets, sources, 1 - decay)


def make_optimizers(model: nn.Module, args: argparse.Namespace) -> dict[str, torch.optim.Optimizer]:
    """AdamW, or with --optimizer muon also Muon for the matrices of a model's blocks, by name."""
    within = {
        name: args.optimizer == "muon" and parameter.ndim == 2 and "blocks." in name
        for name, parameter in model.named_parameters()
    }
    rest, matrices = ([p for name, p in model.named_parameters() if within[name] == kind] for kind in (False, True))
    optimizers = {"adamw": torch.optim.AdamW(rest, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0)}
    if matrices:
        optimizers["muon"] = Muon(matrices, lr=args.lr)
    return optimizers


@dataclass
class Training:
    """A model in training, its averaged weights and its optimisers by name; resumable from one file."""

    model: nn.Module
    ema: nn.Module
    optimizers: Mapping[str, torch.optim.Optimizer]

    @classmethod
    def begin(cls, model: nn.Module, args: argparse.Namespace) -> "Training":
        return cls(model, copy.deepcopy(model).eval().requires_grad_(False), make_optimizers(model, args))

    def save(self, path: Path, step: int, args: argparse.Namespace) -> None:
        """One file; no generator state is needed."""
        state = {
            "step": step,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "settings": {key: str(value) for key, value in vars(args).items()},
        }
        with written_whole(path) as temporary:
            _save_pickle(state, temporary)

    def is_whole(self) -> bool:
        """Whether weights and averages fit fp16, in which they are exported, and what optimisers keep is finite."""
        weights = (tensor for module in (self.model, self.ema) for tensor in module.state_dict().values())
        states = (state for optimizer in self.optimizers.values() for state in optimizer.state.values())
        moments = (moment for state in states for moment in state.values())
        return all(bool(tensor.isfinite().all()) for tensor in (*(weight.half() for weight in weights), *moments))

    def load(self, path: Path, args: argparse.Namespace) -> int:
        """Restore what `save` wrote and return the next step; UserError if the settings that matter have changed.

        UserError, too, for a file that is not such a state, or another model's.
        """
        out = path.parent
        if not path.is_file():
            raise FileNotFoundError(f"nothing to resume: {path} does not exist; start without --resume")
        state = read_pickle(path)
        wrong = [key for key in STATE if not isinstance(state, dict) or not isinstance(state.get(key), STATE[key])]
        settings = {} if wrong else state["settings"]
        wrong += [f"settings.{key}" for key in (*FIXED, "lr") if not wrong and key not in settings]
        if wrong:
            raise UserError(f"{path} is no training state of this program: it lacks {', '.join(wrong)}; {_START_ANEW}")
        for key in FIXED:
            if settings[key] != str(getattr(args, key)):
                flag = "--" + key.replace("_", "-")
                raise UserError(
                    f"{flag} {getattr(args, key)} differs from {settings[key]} of the run in {out}; give it the same, or "
                    "choose another --output-dir"
                )
        if not 0 <= state["step"] <= args.steps:
            raise UserError(
                f"--steps {args.steps} is less than the {state['step']} that the run in {out} has done; ask for more"
            )
        try:
            check_state(self.model, state["model"], finite=True)
            check_state(self.ema, state["ema"], finite=True)
            for name, optimizer in self.optimizers.items():
                _check_moments(name, optimizer, state["optimizer"][name])
                optimizer.load_state_dict(state["optimizer"][name])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} does not fit the model, --model {args.model}: {error}; {_START_ANEW}") from error
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        if settings["lr"] != str(args.lr):
            log.warning("--lr is %s from step %d on; it was %s", args.lr, state["step"], settings["lr"])
        return state["step"]


def _check_moments(name: str, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """ValueError, or what a wrong type raises, unless the moments of an optimiser's state are those of its parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, moments in state["state"].items():
        for moment in MOMENTS[name]:
            if moments[moment].shape != parameters[int(number)].shape:
                raise ValueError(f"{moment} {number} of {name} is {tuple(moments[moment].shape)}")
            if not moments[moment].isfinite().all():
                raise ValueError(f"{moment} {number} of {name} has NaN or infinity")
        if name == "adamw":
            float(moments["step"])


_START_ANEW = "start anew in another --output-dir"


def _again(out: Path) -> str:
    """What continues a run that has ended early, as far as it is there."""
    return "use --resume" if (out / "state.pt").exists() else "start again"


def _diverged(what: str, out: Path) -> UserError:
    """Of a run in `out`, whose last state is whole but may be of a rate that was too high already."""
    otherwise = f"; where it diverges again, {_START_ANEW}" if (out / "state.pt").exists() else ""
    return UserError(f"{what}: the run has diverged; lower --lr and {_again(out)}{otherwise}")


def _save_pickle(value: Any, path: Path) -> None:
    """torch.save; OSError where the disk is full, which torch hides behind an error of its archive."""
    try:
        with path.open("wb") as file:
            torch.save(value, file)
    except RuntimeError as error:
        full = error.__context__
        if isinstance(full, OSError):
            raise OSError(full.errno, full.strerror, str(path)) from error
        raise


class LossLog:
    """loss.csv: mean losses since the row before, learning rate, and seconds of training so far, all resumed sittings."""

    def __init__(self, path: Path, names: Sequence[str], first: int, world: World) -> None:
        self.path, self.names, self.world = path, tuple(names), world
        self.sums, self.count = torch.zeros(len(names), device=world.device), 0
        self.before = 0.0
        if world.is_main:
            columns = ("step", *self.names, "lr", "seconds")
            rows = [row for row in read_losses(path, columns) if row["step"] <= first] if first else []
            self.before = rows[-1]["seconds"] if rows else 0.0
            write_text(path, ",".join(columns) + "\n" + "".join(self.line(row) for row in rows))
        self.began = time.perf_counter()

    def add(self, losses: Mapping[str, Tensor]) -> None:
        self.sums += torch.stack([losses[name].detach() for name in self.names])
        self.count += 1

    def write(self, step: int, lr: float) -> float:
        """Append a row of means over all processes and begin anew; returns the first loss."""
        means = self.sums / self.count
        if self.world.size > 1:
            dist.all_reduce(means)
            means /= self.world.size
        values = means.tolist()
        if self.world.is_main:
            seconds = self.before + time.perf_counter() - self.began
            row = {"step": step, **dict(zip(self.names, values, strict=True)), "lr": lr, "seconds": seconds}
            try:
                with self.path.open(
                    "r+", encoding="utf-8"
                ) as file:  # not "a", which would begin a file without a header
                    file.seek(0, 2)
                    file.write(self.line(row))
            except FileNotFoundError:
                raise UserError(f"{self.path} was removed during the run; {_again(self.path.parent)}") from None
        self.sums.zero_()
        self.count = 0
        return values[0]

    def line(self, row: Mapping[str, float]) -> str:
        losses = ",".join(f"{row[name]:.6f}" for name in self.names)
        return f"{row['step']:.0f},{losses},{row['lr']:.3e},{row['seconds']:.1f}\n"


def read_losses(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, float]]:
    """The rows of a loss.csv, empty if there is none; a last line that was cut while it was written is left out.

    UserError for a file with other columns, where those are given, or with anything but numbers.
    """
    if not path.exists():
        return []
    *lines, _ = read_text(path, "loss log").split("\n")  # what follows the last end of a line
    if not lines:
        return []
    header = lines[0].split(",")
    remedy = "move it away, and --resume begins a new one"
    if columns is not None and header != list(columns):
        raise UserError(f"loss log {path} has the columns {lines[0]!r:.100}, not {','.join(columns)!r}; {remedy}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            rows.append(dict(zip(header, map(float, line.split(",")), strict=True)))
        except ValueError:
            raise UserError(f"loss log {path} has {line!r:.100} in line {number}; {remedy}") from None
    return rows


def plot_losses(out: Path, labels: Mapping[str, str]) -> None:
    """loss.csv as loss.png, a line for each named loss; without matplotlib the numbers alone stay."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_losses(out / "loss.csv")
    figure, axis = plt.subplots(figsize=(7, 4))
    for name, label in labels.items():
        axis.plot([row["step"] for row in rows], [row[name] for row in rows], label=label)
    axis.set(xlabel="optimiser step", ylabel="training loss", yscale="log")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    with written_whole(out / "loss.png") as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight")
    plt.close(figure)


def fit(
    training: Training,
    losses: Losses,
    args: argparse.Namespace,
    world: World,
    *,
    labels: Mapping[str, str],
    settings: Mapping[str, Any],
    save_grid: Callable[[Path, nn.Module], None],
) -> None:
    """Train up to --steps, from the beginning or from the checkpoint in --output-dir, which gets everything that is made.

    labels: what to call each loss in the plot. settings: written to settings.json. save_grid(path, ema) draws samples.
    """
    out, model, ema, optimizers = args.out, training.model, training.ema, training.optimizers.values()
    if args.batch_size % world.size:
        raise UserError(f"--batch-size {args.batch_size} cannot be shared by {world.size} processes")
    first = training.load(out / "state.pt", args) if args.resume else 0
    if not args.resume and (out / "state.pt").exists():
        raise UserError(f"{out} already holds a run; continue it with --resume or choose another --output-dir")
    world.barrier()
    forward = torch.compile(model, dynamic=False) if args.compile else model
    if world.size > 1:
        forward = nn.parallel.DistributedDataParallel(forward)
    bf16 = args.precision == "bf16"
    autocast = torch.autocast(world.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
    if world.is_main:
        write_json(out / "settings.json", dict(settings))
    log = LossLog(out / "loss.csv", tuple(labels), first, world)

    bar = tqdm(range(first, args.steps), initial=first, total=args.steps, disable=not world.is_main, mininterval=5)
    for step in bar:
        done, lr = step + 1, learning_rate(step, args)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = lr
        with autocast:
            found = losses(forward, step)
        model.zero_grad(set_to_none=True)
        sum(found.values()).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise _diverged(f"the gradient is {norm.item()} at step {step} with --lr {args.lr}", out)
        for optimizer in optimizers:
            optimizer.step()
        update_ema(ema, model, min(args.ema_decay, (1 + done) / (10 + done)))
        log.add(found)

        last = done == args.steps
        save = last or done % args.save_every == 0
        if save or done % args.log_every == 0:  # nothing that a resumed run would need is left in the sums
            bar.set_postfix(loss=f"{log.write(done, lr):.4f}", refresh=False)
        if save and not training.is_whole():
            raise _diverged(f"weights are too large or not finite at step {done} with --lr {args.lr}", out)
        if world.is_main and (last or done % args.grid_every == 0):  # before the state, which may have diverged
            save_grid(out / f"samples-{done:07d}.png", ema)
            plot_losses(out, labels)
        if world.is_main and save:
            training.save(out / "state.pt", done, args)


def check_samples(samples: Tensor, out: Path) -> Tensor:
    """Samples (B, …) of weights in training, as they are; UserError if any has a value that is not finite.

    out: the folder of the run.
    """
    if not samples.isfinite().all():
        raise _diverged("samples of the averaged weights have NaN or infinity", out)
    return samples


def card(ema: nn.Module, args: argparse.Namespace, losses: Sequence[str]) -> dict[str, Any]:
    """The facts of a training run for the model's card."""
    rows = read_losses(args.out / "loss.csv")
    return {
        "num_parameters": sum(parameter.numel() for parameter in ema.parameters()),
        "training": {key: value for key, value in vars(args).items() if not isinstance(value, Path | None)},
        "images_seen": args.steps * args.batch_size,
        "seconds": rows[-1]["seconds"] if rows else None,
        "final_loss": {name: float(np.mean([row[name] for row in rows[-10:]])) for name in losses} if rows else None,
    }


def resolved(config: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Configuration of the model and flags, for --dry-run and settings.json."""
    return {"config": asdict(config), "training": {key: str(value) for key, value in vars(args).items()}}


def export(ema: nn.Module, args: argparse.Namespace, world: World, losses: Sequence[str], **facts: Any) -> None:
    """The averaged weights as model.safetensors in fp16, their configuration inside, and model.json, its card with `facts`."""
    if world.is_main:
        config = asdict(ema.config)
        made = conditions(world.device, torch.bfloat16 if args.precision == "bf16" else torch.float32)
        export_safetensors(args.out / "model.safetensors", ema.state_dict(), torch.float16, {"config": config})
        write_json(args.out / "model.json", {"config": config, **card(ema, args, losses), **facts, "conditions": made})
    world.barrier()
