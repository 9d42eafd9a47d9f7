"""Videos from prompts with a caching method, or with several beside the uncached run: MP4s, frame strips, a table, a record.

Flags may be spelt as in Wan2.1's official command. Video i is that of prompt i and depends on its prompt, --seed and i alone.
A killed run goes on with --resume; under torchrun the processes share the prompts, or with --ulysses-degree and --ring-degree
every video.
"""

import shutil
from pathlib import Path

from cache_dic import UserError
from evaluation.video_flags import add_video_flags, list_samples
from seerkit.command.cli import Parser, run_command
from seerkit.io.files import writable_directory, written_whole
from wan.flags import ALSO, QUALITY, add_flags, caches, fill_defaults, prompts_of

EXAMPLES = """
python TaylorSeer-Wan2.1/generate.py --compare
python TaylorSeer-Wan2.1/generate.py --prompt "red star moving left on black" --interval 5 --max-order 1
python TaylorSeer-Wan2.1/generate.py --model wan-t2v-1.3B --ckpt ./Wan2.1-T2V-1.3B --prompt "two cats boxing"
torchrun --nproc_per_node=8 TaylorSeer-Wan2.1/generate.py --model wan-t2v-14B --ckpt ./Wan2.1-T2V-14B --dit-fsdp --ulysses-degree 8 --prompt "two cats boxing"
"""  # noqa: E501


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__, EXAMPLES)
    add_flags(parser)
    add_video_flags(parser, ALSO, family="wan", quality=QUALITY)
    parser.section("output").add_argument(
        "--save-file", type=Path, metavar="FILE", help="also write the one video that is made to this MP4"
    )
    args = parser.parse_args(argv)
    fill_defaults(args)
    (prompts, names), chosen = list_samples(args, prompts_of(args)), caches(args)
    if args.save_file and len(prompts) * len(chosen) > 1:
        raise UserError(
            f"--save-file {args.save_file} is one video, and {len(prompts) * len(chosen)} are made; use --output-dir"
        )
    if args.save_file:
        check_save_file(args.save_file)
        if not args.dry_run:
            writable_directory(args.save_file.parent)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.families import wan_job
    from evaluation.videos import VideoFolder, run

    job = wan_job("TaylorSeer-Wan2.1/generate.py", args, prompts, chosen, names)
    record = run(job)
    if record and args.save_file:
        (label,) = chosen
        with written_whole(args.save_file) as temporary:
            shutil.copyfile(VideoFolder(job, label).video(0), temporary)


def check_save_file(path: Path) -> None:
    """UserError for a file that cannot be a video."""
    if path.is_dir():
        raise UserError(f"--save-file {path} is a folder; name a file in it, such as {path / 'video.mp4'}")
    if path.suffix.lower() != ".mp4":
        raise UserError(f"--save-file {path} is an MP4; name a file that ends in .mp4")


if __name__ == "__main__":
    run_command(main)
