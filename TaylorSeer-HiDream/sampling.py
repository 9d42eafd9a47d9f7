"""Images from prompts with a caching method, or with several beside the uncached run: PNGs, a grid, a table, a record.

Takes the command line of the authors' sampling.py and the flags of the caches. Image i is that of prompt i, each standing
there --num_images_per_prompt times, and depends on its prompt, --seed and i alone. A killed run goes on with --resume; under
torchrun the processes share the prompts.
"""

from seerkit.command.cli import Parser, run_command  # isort: skip

from evaluation.images import ImageJob, add_image_flags, emoji_judge, run
from evaluation.jobs import output_folder, repeated
from hidream.command import (
    EMBEDDED,
    Pipeline,
    add_flags,
    add_prompt_flags,
    caches,
    fill_defaults,
    find_everything,
    prompts_of,
    settings_of,
    sizes_of,
)

EXAMPLES = """
python TaylorSeer-HiDream/sampling.py --compare
python TaylorSeer-HiDream/sampling.py --prompt "red apple, noto" "rocket, 3d render" --interval 4 --max-order 2
python TaylorSeer-HiDream/sampling.py --model_type full --prompt "a photo of a fox in the snow" --nf4 --offload
torchrun --nproc_per_node=8 TaylorSeer-HiDream/sampling.py --model_type full --prompt_file DrawBench.txt --compare --resume
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__, EXAMPLES)
    add_prompt_flags(parser)
    add_flags(parser)
    add_image_flags(parser, folder="hidream")
    args = parser.parse_args(argv)
    fill_defaults(args)
    prompts, chosen = repeated(prompts_of(args), args.num_images_per_prompt), caches(args)
    settings = settings_of(args, prompts)
    run(
        ImageJob(
            command="TaylorSeer-HiDream/sampling.py",
            args=args,
            prompts=prompts,
            caches=chosen,
            settings=settings,
            sizes=sizes_of(args),
            out=output_folder(args.output_dir, "hidream", settings),
            flag="--output_dir",
            find=lambda _: find_everything(args),
            make_judge=emoji_judge if args.model_name == EMBEDDED else None,
            make_pipeline=lambda batches, device: Pipeline(args, batches, device),
        )
    )


if __name__ == "__main__":
    run_command(main)
