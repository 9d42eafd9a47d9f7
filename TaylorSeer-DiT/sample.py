"""Images of classes with a caching method, or with several beside the uncached run: PNGs, a page, a table, a record.

Image i depends on its class, --seed and i alone. A killed run goes on with --resume; under torchrun the processes share the
images.
"""

from typing import TYPE_CHECKING

from dit.config import DiTConfig
from dit.flags import EMBEDDED, add_flags, caches, chosen_classes, class_names, config_of
from seerkit.command.cli import Parser, file_stem, positive_int, run_command
from seerkit.command.flags import add_image_flags

if TYPE_CHECKING:
    from evaluation.images import Judge

EXAMPLES = """
python TaylorSeer-DiT/sample.py --compare
python TaylorSeer-DiT/sample.py --method taylorseer --interval 4 --max-order 4 --classes sandal,bag
python TaylorSeer-DiT/sample.py --model DiT-XL/2 --image-size 256 --guidance-scale 4.0 --compare
python TaylorSeer-DiT/sample.py --model DiT-XL/2 --image-size 256 --interval 3 4 5 --dry-run
"""


def parse_args(argv: list[str] | None):
    parser = Parser(__doc__, EXAMPLES)
    classes = parser.section("prompts")
    classes.add_argument(
        "--classes", metavar="LIST", help="comma-separated numbers or names (default: all, or the official eight)"
    )
    classes.add_argument(
        "--samples-per-class",
        "--per-class",
        type=positive_int,
        default=4,
        metavar="N",
        help="images of every class; the grid shows the first",
    )
    add_flags(parser, guidance_scale=2.0)
    parser.section("sampling").add_argument(
        "--batch-size", type=positive_int, metavar="N", help="images per model call (default: one of each class)"
    )
    add_image_flags(parser, {"--output-dir": "--out"}, family="dit")
    parser.section("output").add_argument(
        "--name", type=file_stem, metavar="STEM", help="of grid and record (default: grid.png and record.json)"
    )
    return parser.parse_args(argv)


def classifier_judge(config: DiTConfig) -> "Judge":
    """The shipped in-domain classifier: does a sample show its class?"""
    import torch

    from evaluation.classifier import classify, load_classifier
    from evaluation.images import Judge
    from seerkit.io.tables import number

    classifier, names = load_classifier(), class_names(config)

    def score(images: torch.Tensor, classes: list[str]) -> torch.Tensor:
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

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from dit.pipeline import Pipeline, find_everything, settings_of
    from evaluation.images import ImageJob, run
    from evaluation.jobs import output_folder
    from seerkit.text.prompts import cycled

    settings = {
        **settings_of(args, config),
        "classes": classes,
        "per_class": args.samples_per_class,
        "height": height,
        "width": width,
        "batch_size": args.batch_size,
    }
    shown = [names[number] for number in classes]
    run(
        ImageJob(
            command="TaylorSeer-DiT/sample.py",
            args=args,
            prompts=cycled(shown, args.samples_per_class),
            caches=chosen,
            settings=settings,
            sizes={"height": args.image_size, "width": args.image_size, "cfg_scale": args.guidance_scale},
            out=output_folder(args.output_dir, "dit", settings),
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
