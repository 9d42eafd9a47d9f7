"""Images from prompts with a caching method, or with several beside the uncached run: PNGs, a page, a table, a record.

Takes the command line of the authors' sampling.py and the flags of the caches. Image i is that of prompt i, each standing
there --samples-per-prompt times, and depends on its prompt, --seed and i alone. A killed run goes on with --resume; under
torchrun the processes share the prompts.
"""

from hidream.flags import add_flags, caches, fill_defaults, prompts_of
from seerkit.command.cli import Parser, run_command
from seerkit.text.prompts import repeated

EXAMPLES = """
python TaylorSeer-HiDream/sampling.py --compare
python TaylorSeer-HiDream/sampling.py --prompt "red apple, noto" "rocket, 3d render" --interval 4 --max-order 2
python TaylorSeer-HiDream/sampling.py --model hidream-full --prompt "a photo of a fox in the snow" --nf4 --offload
torchrun --nproc_per_node=8 TaylorSeer-HiDream/sampling.py --model hidream-full --prompt-file DrawBench.txt --compare --resume
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__, EXAMPLES)
    add_flags(parser)
    args = parser.parse_args(argv)
    fill_defaults(args)
    prompts, chosen = prompts_of(args), caches(args)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.families import hidream_job
    from evaluation.images import run

    run(hidream_job("TaylorSeer-HiDream/sampling.py", args, repeated(prompts, args.samples_per_prompt), chosen))


if __name__ == "__main__":
    run_command(main)
