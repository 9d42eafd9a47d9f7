"""Videos from prompts with a caching method, or with several beside the uncached run: MP4s, frame strips, a table, a record.

Flags may be spelt as in HunyuanVideo's official command. Video i is that of prompt i and depends on its prompt, --seed and i
alone. A killed run goes on with --resume; under torchrun the processes share the prompts, or with --ulysses-degree and
--ring-degree every video.
"""

from evaluation.video_flags import add_video_flags, list_samples
from hunyuan_video.flags import ALSO, QUALITY, add_flags, caches, fill_defaults, prompts_of
from seerkit.command.cli import Parser, run_command

EXAMPLES = """
python TaylorSeer-HunyuanVideo/sample_video.py --compare
python TaylorSeer-HunyuanVideo/sample_video.py --model hunyuan-video --height 480 --width 640 --num-frames 65 --prompt "a cat walks on the grass" --offload
python TaylorSeer-HunyuanVideo/sample_video.py --model hunyuan-video --prompt-file VBench_full_info.json --samples-per-prompt 5 --seed 42 --vbench --resume
torchrun --nproc_per_node=8 TaylorSeer-HunyuanVideo/sample_video.py --model hunyuan-video --height 720 --width 1280 --num-frames 129 --ulysses-degree 8 --prompt "a cat walks on the grass"
"""  # noqa: E501


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__, EXAMPLES)
    add_flags(parser)
    add_video_flags(parser, ALSO, family="hunyuan", quality=QUALITY)
    args = parser.parse_args(argv)
    fill_defaults(args)
    (prompts, names), chosen = list_samples(args, prompts_of(args)), caches(args)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.families import hunyuan_job
    from evaluation.videos import run

    run(hunyuan_job("TaylorSeer-HunyuanVideo/sample_video.py", args, prompts, chosen, names))


if __name__ == "__main__":
    run_command(main)
