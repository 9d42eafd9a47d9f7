"""Videos from prompts with a caching method, or with several beside the uncached run: MP4s, frame strips, a table, a record.

Takes the official command line of Wan2.1 and the flags of the caches. Video i is that of prompt i and depends on its prompt,
--base_seed and i alone. A killed run goes on with --resume; under torchrun the processes share the prompts, or with
--ulysses_size and --ring_size every video.
"""

import shutil
from pathlib import Path

from evaluation.jobs import output_folder, repeated
from evaluation.videos import VideoFolder, VideoJob, add_video_flags, run, video_names
from seerkit.cli import Parser, run_command
from seerkit.files import writable_directory, written_whole
from wan.command import (
    Pipeline,
    add_flags,
    caches,
    fill_defaults,
    find_everything,
    prompts_of,
    sequence_parallel,
    settings_of,
)

EXAMPLES = """
python TaylorSeer-Wan2.1/generate.py --compare
python TaylorSeer-Wan2.1/generate.py --prompt "red sneaker moving left on black" --interval 5 --max-order 1
python TaylorSeer-Wan2.1/generate.py --task t2v-1.3B --size 832*480 --ckpt_dir ./Wan2.1-T2V-1.3B --prompt "two cats boxing"
torchrun --nproc_per_node=8 TaylorSeer-Wan2.1/generate.py --task t2v-14B --size 1280*720 --ckpt_dir ./Wan2.1-T2V-14B --dit_fsdp --ulysses_size 8 --prompt "two cats boxing"
"""  # noqa: E501


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__, EXAMPLES)
    add_flags(parser)
    add_video_flags(parser)
    args = parser.parse_args(argv)
    fill_defaults(args)
    prompts, chosen = repeated(prompts_of(args), args.samples_per_prompt), caches(args)
    if args.save_file and len(prompts) * len(chosen) > 1:
        raise ValueError(
            f"--save_file {args.save_file} is one video, and {len(prompts) * len(chosen)} are made; use --output-dir"
        )
    if args.save_file and not args.dry_run:
        check_save_file(args.save_file)
    settings = settings_of(args, prompts)
    out = output_folder(args.output_dir, "wan", settings)
    record = run(
        VideoJob(
            command="TaylorSeer-Wan2.1/generate.py",
            args=args,
            prompts=prompts,
            caches=chosen,
            settings=settings,
            sizes={
                "height": args.height,
                "width": args.width,
                "frames": args.frame_num,
                "cfg_scale": args.sample_guide_scale,
            },
            out=out,
            sequence_parallel=sequence_parallel(args),
            find=lambda world: find_everything(args, world),
            make_pipeline=lambda world: Pipeline(args, world),
        )
    )
    if record and args.save_file:
        (label,) = chosen
        with written_whole(args.save_file) as temporary:
            shutil.copyfile(VideoFolder(out, label, video_names(args, prompts)).video(0), temporary)


def check_save_file(path: Path) -> None:
    """ValueError, before anything is made, for a file that could not be written."""
    if path.is_dir():
        raise ValueError(f"--save_file {path} is a folder; name a file in it, such as {path / 'video.mp4'}")
    writable_directory(path.parent)


if __name__ == "__main__":
    run_command(main)
