"""Images from prompts with a caching method, or with several beside the uncached run: PNGs, a page, a table, a record.

Image i is that of prompt i and depends on its prompt, --seed and i alone. A killed run goes on with --resume; under torchrun
the processes share the prompts.
"""

from flux.flags import ALSO, add_flags, caches, fill_defaults, prompts_of
from seerkit.command.cli import Parser, run_command
from seerkit.command.flags import add_image_flags

EXAMPLES = """
python TaylorSeer-FLUX/sample.py --compare
python TaylorSeer-FLUX/sample.py --prompt "red apple, noto" "rocket, 3d render" --interval 6 --max-order 2
python TaylorSeer-FLUX/sample.py --model flux-dev --prompt "a photo of a fox in the snow" --offload
torchrun --nproc_per_node=8 TaylorSeer-FLUX/sample.py --model flux-dev --prompt-file DrawBench.txt --compare --resume
"""


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__, EXAMPLES)
    add_flags(parser)
    add_image_flags(parser, ALSO, family="flux")
    args = parser.parse_args(argv)
    fill_defaults(args)
    prompts, chosen = prompts_of(args), caches(args)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.families import flux_job
    from evaluation.images import run

    run(flux_job("TaylorSeer-FLUX/sample.py", args, prompts, chosen))


if __name__ == "__main__":
    run_command(main)
