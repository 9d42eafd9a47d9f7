"""Build the emoji set of the embedded model from npm packages: images at one size, and the table of prompt embeddings."""

import argparse
from pathlib import Path

from seerkit.command.cli import Parser, positive_int, run_command

EXAMPLES = """
bash scripts/get_emoji.sh
python common/emoji/prepare_data.py --packages packages --size 64
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__, EXAMPLES)
    parser.section("data").add_argument(
        "--packages",
        type=Path,
        metavar="DIR",
        required=True,
        help="folder of the .tgz archives that scripts/get_emoji.sh fetches",
    )
    output = parser.section("output")
    output.add_argument(
        "--output-dir",
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("data/emoji"),
        help="gets images and prompt embeddings",
    )
    output.add_argument("--size", type=positive_int, metavar="PIXELS", default=32, help="side of the images in pixels")
    output.add_argument(
        "--no-text", action="store_true", help="leave out text.safetensors, which needs the text encoder"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from tqdm import tqdm

    from seerkit.data.emoji import build_emoji, load_emoji
    from seerkit.io.files import writable_directory

    out = writable_directory(args.output_dir)
    if not args.no_text:
        from seerkit.text.minilm import TextTable, encoder_folder

        encoder_folder()  # a missing package is reported before the minutes of drawing
    with tqdm(desc=f"{args.size} px", unit="icon", mininterval=1) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        path = build_emoji(args.packages, out, args.size, report)
    data = load_emoji(out, args.size)
    counts = {name: int(getattr(data, name).sum()) for name in ("train", "test", "held_out_style", "held_out_label")}
    print(f"{path}: {len(data.images):,} images of {len(data.labels):,} labels in {len(data.styles)} styles")
    print("  " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    if not args.no_text:
        table = TextTable.of([*data.labels, *data.styles])
        table.save(out / "text.safetensors")
        print(f"{out / 'text.safetensors'}: {len(table):,} texts, {table.num_tokens:,} tokens")


if __name__ == "__main__":
    run_command(main)
