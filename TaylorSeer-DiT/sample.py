"""Sample a DiT with a caching method, or with several beside the uncached run: PNGs, a labelled grid, a table, a record.

Sample i depends on its class, --seed and i alone. A killed run goes on with --resume; under torchrun the processes share the
samples.
"""

from seerkit.command.cli import Parser, positive_int, run_command  # isort: skip

from collections.abc import Sequence

import torch
from torch import Tensor

from dit import DiTConfig
from dit.command import (
    EMBEDDED,
    Pipeline,
    add_model_flags,
    caches,
    chosen_classes,
    class_names,
    config_of,
    find_everything,
    resolved,
)
from evaluation.classifier import classify, load_classifier
from evaluation.images import ImageJob, Judge, add_image_flags, run
from evaluation.jobs import output_folder
from seerkit.io.images import file_stem
from seerkit.io.tables import number
from seerkit.text.prompts import cycled

EXAMPLES = """
python TaylorSeer-DiT/sample.py --compare
python TaylorSeer-DiT/sample.py --method taylorseer --interval 4 --max-order 4 --classes sandal,bag
python TaylorSeer-DiT/sample.py --model DiT-XL/2 --image-size 256 --cfg-scale 4.0 --compare
python TaylorSeer-DiT/sample.py --model DiT-XL/2 --image-size 256 --interval 3 4 5 --dry-run
"""


def parse_args(argv: list[str] | None):
    parser = Parser(__doc__, EXAMPLES)
    add_model_flags(parser, guidance_scale=2.0)
    parser.add_argument("--classes", help="comma-separated numbers or names (default: all, or the official eight)")
    parser.add_argument("--per-class", type=positive_int, default=4, help="samples a class; the grid shows the first")
    parser.add_argument("--batch-size", type=positive_int, help="samples a model call (default: one of each class)")
    parser.add_argument("--name", type=file_stem, help="name of grid and record (default: grid.png and record.json)")
    add_image_flags(parser, "--out", folder="dit")
    return parser.parse_args(argv)


def classifier_judge(config: DiTConfig) -> Judge:
    """The shipped in-domain classifier: does a sample show its class?"""
    classifier, names = load_classifier(), class_names(config)

    def score(images: Tensor, classes: Sequence[str]) -> Tensor:
        return classify(classifier, images).argmax(dim=1) == torch.tensor([names.index(name) for name in classes])

    real = classifier.test_accuracy
    return Judge(
        key="class_accuracy",
        heading="class accuracy",
        score=score,
        cell=lambda share: number(share * 100, 1, " %"),
        facts={"real_test_accuracy": real},
        explanation=f"class accuracy by the shipped in-domain classifier; on the real test images {real:.1%}",
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    config, chosen = config_of(args), caches(args)
    names, classes = class_names(config), chosen_classes(args.classes, config)
    args.batch_size = args.batch_size or len(classes)
    height, width, channels = config.image_shape
    settings = {
        **resolved(args, config),
        "classes": classes,
        "per_class": args.per_class,
        "height": height,
        "width": width,
        "batch_size": args.batch_size,
    }
    shown = [names[number] for number in classes]
    run(
        ImageJob(
            command="TaylorSeer-DiT/sample.py",
            args=args,
            prompts=cycled(shown, args.per_class),
            caches=chosen,
            settings=settings,
            sizes={"height": args.image_size, "width": args.image_size, "cfg_scale": args.cfg_scale},
            out=output_folder(args.output_dir, "dit", settings),
            flag="--out",
            find=lambda _: find_everything(args, config),
            record_name=args.name or "record",
            grid_name=args.name or "grid",
            channels=channels,
            columns=shown,
            make_judge=(lambda: classifier_judge(config)) if args.model == EMBEDDED else None,
            make_pipeline=lambda _, device: Pipeline(args, device),
        )
    )


if __name__ == "__main__":
    run_command(main)
