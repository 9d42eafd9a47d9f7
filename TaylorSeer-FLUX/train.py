"""Train the embedded text-to-image model on emoji of several vendors: rectified flow with distilled guidance in one run.

The weight of classifier-free guidance is an input of the model, as in FLUX.1-dev. It is learnt without a teacher
(guidance-free training, arXiv 2501.15420): with w the weight and v(x | none) the model's own unguided answer, held fixed,

    v(x | text, w) / w + (1 - 1 / w) · v(x | none)   is fitted to the flow's velocity,

so that v(x | text, w) becomes what guidance of weight w would have made of two calls. Everything random is a function of
--seed and the step, so a resumed run sees the batches of an uninterrupted one.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from flux import CONFIGS, Flux, flux_config, sample
from flux.config import USAGE
from flux.data import EmojiData, find_emoji, load_emoji
from flux.latents import image_ids, pack, patch_side, text_ids
from flux.minilm import TextTable
from flux.schedule import shift_mu, shift_times
from seerkit.cli import Parser, run_command
from seerkit.distributed import World, start_world
from seerkit.files import writable_directory
from seerkit.media import labelled_grid, save_png, to_uint8
from seerkit.seeds import SampleGenerators, derive_seed, generator
from seerkit.training import Training, add_training_flags, batch_indices, check_training_flags, export, fit, resolved

EXAMPLES = """
python TaylorSeer-FLUX/train.py --out outputs/flux-emoji
python TaylorSeer-FLUX/train.py --out outputs/flux-emoji --resume
torchrun --nproc_per_node=8 TaylorSeer-FLUX/train.py --out outputs/flux-emoji --batch-size 512
"""
CHANNELS = 3
LARGEST_WEIGHT = 5.0  # of guidance, in training
NO_TEXT, NO_STYLE = 0.1, 0.1  # shares of captions that are dropped in whole, and of styles that are dropped
SHOWN = ("red apple", "dog face", "rocket", "sunflower", "hamburger", "grinning face", "house", "red heart")
LABELS = {"flow": "velocity"}


def parse_args(argv: list[str] | None):
    parser = Parser(__doc__, EXAMPLES)
    names = [name for name, config in CONFIGS.items() if config.in_channels % CHANNELS == 0]
    parser.add_argument("--model", choices=names, default="flux-tiny", help="shape of the model to train")
    parser.add_argument("--data", type=Path, help="folder that scripts/get_emoji.sh has made (default: data/emoji)")
    add_training_flags(parser, steps=40000)
    return parser.parse_args(argv)


class Captions:
    """Embeddings of every label and style, so that a caption's is two look-ups."""

    def __init__(self, table: TextTable, data: EmojiData) -> None:
        self.labels, self.label_vectors = table.encode(data.labels)
        self.styles, self.style_vectors = table.encode([f", {style}" for style in data.styles])

    def __call__(self, label: Tensor, style: Tensor, keep_label: Tensor, keep_style: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, D) and pooled vectors (B, V) for labels and styles (B,), each kept or dropped."""
        label_on, style_on = keep_label.float(), keep_style.float()
        txt = self.labels[label] * label_on[:, None, None] + self.styles[style] * style_on[:, None, None]
        y = self.label_vectors[label] * label_on[:, None] + self.style_vectors[style] * style_on[:, None]
        return txt, y


class FlowLoss:
    """The training objective, for one step at a time."""

    def __init__(self, data: EmojiData, captions: Captions, model: Flux, args, world: World) -> None:
        if args.batch_size % (2 * world.size):
            raise ValueError(
                f"--batch-size {args.batch_size} must be a multiple of {2 * world.size}, twice the number of processes: "
                "half of every process's images learn guided answers"
            )
        chosen = data.train
        self.images, self.label, self.style = data.images[chosen], data.label[chosen], data.style[chosen]
        self.captions, self.args, self.world = captions, args, world
        self.patch = patch_side(model.config.in_channels, CHANNELS)

    def batch(self, step: int) -> dict[str, Tensor]:
        """This process's share of step `step`, independent of the number of processes."""
        args, draw = self.args, generator(self.args.seed, 1, step)
        count = args.batch_size
        chosen = torch.from_numpy(batch_indices(step, count, len(self.images), args.seed))
        noise = torch.randn(count, *self.images.shape[1:], generator=draw)
        t = torch.sigmoid(torch.randn(count, generator=draw))
        text_kept, style_kept = torch.rand(2, count, generator=draw)
        # The first half of a batch learns guided answers; the others are the plain model.
        weight = torch.where(
            torch.arange(count) < count // 2, 1 + (LARGEST_WEIGHT - 1) * torch.rand(count, generator=draw), 1.0
        )
        keep_text = text_kept >= NO_TEXT
        keep_text[: count // 2] = True
        txt, y = self.captions(self.label[chosen], self.style[chosen], keep_text, keep_text & (style_kept >= NO_STYLE))
        images = self.images[chosen].float() / 127.5 - 1
        whole = {"images": images, "noise": noise, "t": t, "weight": weight, "txt": txt, "y": y}
        share = slice(self.world.rank, None, self.world.size)
        return {name: value[share].to(self.world.device, non_blocking=True) for name, value in whole.items()}

    def __call__(self, forward: nn.Module, step: int) -> dict[str, Tensor]:
        b = self.batch(step)
        x0, noise = pack(b["images"], self.patch), pack(b["noise"], self.patch)
        t = shift_times(b["t"], shift_mu(x0.shape[1]))
        x = torch.lerp(x0, noise, t[:, None, None])
        side = b["images"].shape[-1] // self.patch
        ids = image_ids(len(x), side, side, x.device), text_ids(len(x), b["txt"].shape[1], x.device)

        def velocity(rows: slice, txt: Tensor, y: Tensor, weight: Tensor) -> Tensor:
            return forward(x[rows], ids[0][rows], txt, ids[1][rows], t[rows], y, weight).float()

        guided = slice(len(x) // 2)
        beta = (1 / b["weight"])[:, None, None]
        with torch.no_grad():
            none = torch.zeros_like(b["txt"][guided]), torch.zeros_like(b["y"][guided])
            unguided = velocity(guided, *none, torch.ones_like(t[guided]))
        answer = beta * velocity(slice(None), b["txt"], b["y"], b["weight"])
        answer = torch.cat([answer[guided] + (1 - beta[guided]) * unguided, answer[len(x) // 2 :]])
        return {"flow": (answer - (noise - x0)).square().mean()}


class SampleGrid:
    """Samples of shown labels: a row for every style, a column for every label."""

    def __init__(self, table: TextTable, styles: list[str], size: int, args, device: torch.device) -> None:
        self.styles, self.device = styles, device
        prompts = [f"{label}, {style}" for style in styles for label in SHOWN]
        self.txt, self.y = (part.to(device) for part in table.encode(prompts))
        generators = SampleGenerators(derive_seed(args.seed, 2), range(len(prompts)))
        self.noise = generators.randn(CHANNELS, size, size, device=device)

    def __call__(self, path: Path, ema: Flux) -> None:
        images = to_uint8(sample(ema, self.noise, self.txt, self.y, 50, guidance=USAGE["flux-tiny"].guidance))
        rows = [images[i : i + len(SHOWN)] for i in range(0, len(images), len(SHOWN))]
        save_png(path, labelled_grid(rows, self.styles, SHOWN, min_cell=96))


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_training_flags(args)
    config = flux_config(args.model)
    settings = resolved(config, args)
    if args.dry_run:
        print(json.dumps(settings, indent=2))
        return
    world = start_world(args.device)
    writable_directory(args.out)
    data = load_emoji(args.data)
    table = TextTable.load(find_emoji(args.data).with_name("text.safetensors"))
    training = Training.begin(Flux(config, attention=args.attention).initialize(args.seed).to(world.device), args)
    losses = FlowLoss(data, Captions(table, data), training.model, args, world)
    styles = [style for i, style in enumerate(data.styles) if (losses.style == i).any()]

    draw = SampleGrid(table, styles, data.images.shape[-1], args, world.device)
    fit(training, losses, args, world, labels=LABELS, settings=settings, save_grid=draw)
    export(
        training.ema, args, world, tuple(LABELS),
        training_images=len(losses.images),
        styles=styles,
        data="emoji of several vendors on white, by scripts/get_emoji.sh; licences in TaylorSeer-FLUX/NOTICE",
    )  # fmt: skip


if __name__ == "__main__":
    run_command(main)
