"""Images of classes with a caching method, or with several beside the uncached run: PNGs, a page, a table, a record.

Image i depends on its class, --seed and i alone. A killed run goes on with --resume; under torchrun the processes share the
images.
"""

from dit.flags import (
    SHOWN_GUIDANCE,
    SHOWN_PER_CLASS,
    add_class_flag,
    add_flags,
    caches,
    chosen_classes,
    class_names,
    config_of,
)
from seerkit.command.cli import Parser, file_stem, positive_int, run_command
from seerkit.command.flags import add_image_flags

EXAMPLES = """
python TaylorSeer-DiT/sample.py --compare
python TaylorSeer-DiT/sample.py --method taylorseer --interval 4 --max-order 4 --classes sandal,bag
python TaylorSeer-DiT/sample.py --model DiT-XL/2 --image-size 256 --guidance-scale 4.0 --compare
python TaylorSeer-DiT/sample.py --model DiT-XL/2 --image-size 256 --interval 3 4 5 --dry-run
"""


def parse_args(argv: list[str] | None):
    parser = Parser(__doc__, EXAMPLES)
    add_class_flag(parser)
    parser.section("prompts").add_argument(
        "--samples-per-class",
        "--per-class",
        type=positive_int,
        default=SHOWN_PER_CLASS,
        metavar="N",
        help="images of every class; the grid shows the first",
    )
    add_flags(parser, guidance_scale=SHOWN_GUIDANCE)
    parser.section("sampling").add_argument(
        "--batch-size", type=positive_int, metavar="N", help="images per model call (default: one of each class)"
    )
    add_image_flags(parser, {"--output-dir": "--out"}, family="dit")
    parser.section("output").add_argument(
        "--name", type=file_stem, metavar="STEM", help="of grid and record (default: grid.png and record.json)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    config, chosen = config_of(args), caches(args)
    names, classes = class_names(config), chosen_classes(args.classes, config)
    args.batch_size = args.batch_size or len(classes)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.families import dit_job
    from evaluation.images import run
    from seerkit.text.prompts import cycled

    shown = [names[number] for number in classes]
    run(
        dit_job(
            "TaylorSeer-DiT/sample.py",
            args,
            cycled(shown, args.samples_per_class),
            chosen,
            record_name=args.name or "record",
            grid_name=args.name or "grid",
            columns=shown,
        )
    )


if __name__ == "__main__":
    run_command(main)
