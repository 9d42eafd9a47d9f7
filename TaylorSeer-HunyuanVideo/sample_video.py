"""Videos from prompts with a caching method, or with several beside the uncached run: MP4s, frame strips, a table, a record.

Takes the official command line of HunyuanVideo and the flags of the caches. Video i is that of prompt i and depends on its
prompt, --seed and i alone. A killed run goes on with --resume; under torchrun the processes share the prompts, or with
--ulysses-degree and --ring-degree every video.
"""

from seerkit.command.cli import Parser, run_command  # isort: skip

from evaluation.jobs import output_folder
from evaluation.videos import VideoJob, add_video_flags, list_samples, run
from hunyuan_video.command import (
    Pipeline,
    add_flags,
    caches,
    fill_defaults,
    find_everything,
    prompts_of,
    sequence_parallel,
    settings_of,
)
from hunyuan_video.config import USAGE, latent_shape
from seerkit.io.media import video_facts

EXAMPLES = """
python TaylorSeer-HunyuanVideo/sample_video.py --compare
python TaylorSeer-HunyuanVideo/sample_video.py --model hunyuan-video --video-size 480 640 --video-length 65 --infer-steps 50 --flow-reverse --prompt "a cat walks on the grass" --use-cpu-offload
python TaylorSeer-HunyuanVideo/sample_video.py --model hunyuan-video --prompt-file VBench_full_info.json --samples-per-prompt 5 --seed 42 --vbench --resume
torchrun --nproc_per_node=8 TaylorSeer-HunyuanVideo/sample_video.py --model hunyuan-video --video-size 720 1280 --video-length 129 --ulysses-degree 8 --ring-degree 1 --prompt "a cat walks on the grass"
"""  # noqa: E501


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__, EXAMPLES)
    add_flags(parser)
    add_video_flags(parser)
    args = parser.parse_args(argv)
    fill_defaults(args)
    prompts, names = list_samples(args, prompts_of(args))
    settings = {**settings_of(args, prompts), "video": video_facts(args.quality)}
    height, width = args.video_size
    run(
        VideoJob(
            command="TaylorSeer-HunyuanVideo/sample_video.py",
            args=args,
            prompts=prompts,
            caches=caches(args),
            settings=settings,
            sizes={
                "height": height,
                "width": width,
                "frames": args.video_length,
                "text_tokens": USAGE[args.model].text_tokens,
            },
            out=output_folder(args.save_path, "hunyuan", settings),
            flag="--save-path",
            names=names,
            latent_shape=latent_shape(args.model, height, width, args.video_length),
            sequence_parallel=sequence_parallel(args),
            find=lambda world: find_everything(args, world),
            make_pipeline=lambda world: Pipeline(args, world),
        )
    )


if __name__ == "__main__":
    run_command(main)
