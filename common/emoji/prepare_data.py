"""Build the emoji set of the embedded model from npm packages: images at one size, and the table of prompt embeddings."""

from seerkit.command.cli import Parser, positive_int, run_command  # isort: skip

from pathlib import Path

from tqdm import tqdm

from seerkit.data.emoji import build_emoji, load_emoji
from seerkit.io.files import writable_directory

EXAMPLES = """
bash scripts/get_emoji.sh
python common/emoji/prepare_data.py --packages packages --size 64
"""


def parse_args(argv: list[str] | None):
    parser = Parser(__doc__, EXAMPLES)
    parser.add_argument(
        "--packages", type=Path, required=True, help="folder of the .tgz archives that scripts/get_emoji.sh fetches"
    )
    parser.add_argument("--out", type=Path, default=Path("data/emoji"), help="output folder")
    parser.add_argument("--size", type=positive_int, default=32, help="edge of the images in pixels")
    parser.add_argument(
        "--no-text", action="store_true", help="leave out text.safetensors, which needs the text encoder"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    out = writable_directory(args.out)
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
