"""Train the Fashion-MNIST classifier that judges samples: SGD with a cosine rate on shifted and mirrored images."""

from seerkit.command.cli import (  # isort: skip
    Parser,
    device_name,
    integer,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    run_command,
    share,
)

import contextlib
import json
import math
import platform
import shlex
import sys
from argparse import BooleanOptionalAction
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from cache_dic import UserError
from evaluation.classifier import (
    Classifier,
    ClassifierConfig,
    class_accuracy,
    classify,
    load_classifier,
    num_parameters,
    save_classifier,
)
from seerkit.data.fashion_mnist import IMAGE_SIZE, load_fashion_mnist, to_unit_range
from seerkit.devices.distributed import resolve_device
from seerkit.io.files import writable_file
from seerkit.sampling.seeds import derive_seed, generator

EXAMPLES = """
python eval/train_classifier.py --out outputs/classifier.safetensors
python eval/train_classifier.py --out outputs/classifier.safetensors --epochs 20 --seed 1 --overwrite
python eval/train_classifier.py --validate 10000 --epochs 4 --no-flip
"""


def parse_args(argv: list[str] | None):
    parser = Parser(__doc__, EXAMPLES)
    parser.add_argument(
        "--out", type=Path, help="the .safetensors file to write; its card is written as .json beside it"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    parser.add_argument("--data", type=Path, help="folder with the four IDX files of Fashion-MNIST")
    parser.add_argument("--epochs", type=positive_int, default=12, help="passes over the training images")
    parser.add_argument("--batch-size", type=positive_int, default=128, help="images a step")
    parser.add_argument("--lr", type=positive_float, default=0.1, help="peak learning rate, after one epoch of warm-up")
    parser.add_argument("--momentum", type=share, default=0.9, help="of SGD, in Nesterov's form")
    parser.add_argument(
        "--weight-decay", type=non_negative_float, default=5e-4, help="of convolution and linear weights"
    )
    parser.add_argument(
        "--max-shift", type=integer(0, IMAGE_SIZE - 1), default=1, help="random shift of an image, in pixels"
    )
    parser.add_argument("--flip", action=BooleanOptionalAction, default=True, help="mirror half of the images")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="of convolutions (autocast)")
    parser.add_argument("--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=non_negative_int, default=0)
    parser.add_argument(
        "--validate",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="to choose settings: hold out the last N training images, measure on them, write nothing",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    return parser.parse_args(argv)


def check_args(args) -> None:
    if args.out is None and not args.validate:
        raise UserError("name the file to write with --out, or measure only with --validate N")
    if args.out is not None and args.out.suffix != ".safetensors":
        raise UserError(f"--out {args.out} must end in .safetensors")


def learning_rate(progress: float, epochs: int, peak: float) -> float:
    """Linear warm-up over the first epoch (half the run at most), then a cosine to zero; progress in epochs."""
    warm = min(1.0, epochs / 2)
    if progress < warm:
        return peak * progress / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warm) / (epochs - warm)))


def augment(images: Tensor, max_shift: int, flip: bool, draw: torch.Generator) -> Tensor:
    """Shift each image (B, 1, H, W) by up to `max_shift` pixels both ways, black coming in, and mirror half of them."""
    count, _, height, width = images.shape
    shift = torch.randint(2 * max_shift + 1, (2, count, 1), generator=draw)
    mirrored = torch.rand(count, 1, generator=draw) < 0.5
    rows = torch.arange(height) + shift[0]  # (B, H)
    columns = torch.arange(width).expand(count, width)
    if flip:
        columns = torch.where(mirrored, columns.flip(1), columns)
    columns = columns + shift[1]  # (B, W)
    padded = F.pad(images, [max_shift] * 4)[:, 0]
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weights decay; biases and normalisation do not."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def train(model: Classifier, images: Tensor, labels: Tensor, args, device: torch.device) -> None:
    """Everything random is a function of the seed and the step. A last, incomplete batch of an epoch is left out."""
    steps = len(images) // args.batch_size
    if not steps:
        raise UserError(f"--batch-size {args.batch_size} is more than the {len(images)} training images")
    optimizer = torch.optim.SGD(
        parameter_groups(model, args.weight_decay), lr=args.lr, momentum=args.momentum, nesterov=args.momentum > 0
    )
    autocast = torch.autocast(device.type, torch.bfloat16) if args.precision == "bf16" else contextlib.nullcontext()
    model.train()
    bar = tqdm(total=args.epochs * steps, mininterval=5)
    for epoch in range(args.epochs):
        order = torch.randperm(len(images), generator=generator(args.seed, 1, epoch))
        total = torch.zeros((), device=device)
        for step, chosen in enumerate(order[: steps * args.batch_size].split(args.batch_size)):
            batch = augment(images[chosen], args.max_shift, args.flip, generator(args.seed, 2, epoch, step))
            x = to_unit_range(batch).to(device, memory_format=torch.channels_last)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch + (step + 0.5) / steps, args.epochs, args.lr)
            with autocast:
                logits = model(x)
            loss = F.cross_entropy(logits.float(), labels[chosen].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach()
            bar.update()
        mean = total.item() / steps
        if not math.isfinite(mean):
            raise UserError(f"the loss is {mean} in epoch {epoch}; lower --lr {args.lr}")
        bar.set_postfix(epoch=epoch + 1, loss=f"{mean:.4f}")
    bar.close()


def measure(model: Classifier, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, and the mean probability of the chosen class: the two are equal for a calibrated classifier."""
    logits = classify(model, images).double()
    return {
        "accuracy": class_accuracy(model, images, labels),
        "mean_confidence": round(logits.softmax(dim=1).amax(dim=1).mean().item(), 4),
        "cross_entropy": round(F.cross_entropy(logits, labels).item(), 4),
    }


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_args(args)
    config = ClassifierConfig()
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "data", "overwrite", "dry_run")}
    if args.dry_run:
        places = {"out": args.out and str(args.out), "data": args.data and str(args.data)}
        print(json.dumps({"config": asdict(config), "training": settings, **places}, indent=2))
        return
    device = resolve_device(args.device)
    if args.out is not None and not args.validate:
        if args.out.exists() and not args.overwrite:
            raise UserError(f"--out {args.out} exists; replace it with --overwrite or choose another file")
        writable_file(args.out)
    images, labels = load_fashion_mnist("train", args.data)
    if args.validate >= len(images):
        raise UserError(f"--validate {args.validate} leaves none of the {len(images)} training images")
    kept = len(images) - args.validate
    torch.manual_seed(derive_seed(args.seed, 0))
    model = Classifier(config).to(device, memory_format=torch.channels_last)
    train(model, images[:kept], labels[:kept], args, device)

    if args.validate:
        print(json.dumps({"held out": measure(model, images[kept:], labels[kept:]), "training": settings}))
        return
    test_images, test_labels = load_fashion_mnist("test", args.data)
    rounded = Classifier(config)
    rounded.load_state_dict(
        {n: v.half().float() if v.is_floating_point() else v for n, v in model.state_dict().items()}
    )
    measured = measure(rounded.to(device), test_images, test_labels)
    card = {
        "test_accuracy": round(measured["accuracy"], 6),
        "test_mean_confidence": measured["mean_confidence"],
        "test_cross_entropy": measured["cross_entropy"],
        "num_test_images": len(test_images),
        "seed": args.seed,
        "epochs": args.epochs,
        "training": settings,
        "command": f"python eval/train_classifier.py {shlex.join(sys.argv[1:] if argv is None else argv)}",
        "data": f"Fashion-MNIST (Zalando, MIT licence): {kept} training images, padded to {config.input_size} pixels",
        "precision": "weights in fp16; measured in fp32 with the weights as stored",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "device": device.type,
        "num_threads": torch.get_num_threads(),
    }
    save_classifier(args.out, model, card)
    print(
        f"{args.out}: {num_parameters(model)} parameters, test accuracy {load_classifier(args.out).test_accuracy:.4f} "
        f"on {len(test_images)} images (mean confidence {measured['mean_confidence']:.4f})"
    )


if __name__ == "__main__":
    run_command(main)
