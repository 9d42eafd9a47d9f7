"""Videos of Wan2.1 from diffusers' pipeline, on several GPUs that share its tokens, with a caching method or several.

Flags are those of xfuser's examples and of the caches; what caches do not go with is refused by name.
"""

from seerkit.command.cli import run_command
from taylorseers_xdit import flags
from taylorseers_xdit.families import WAN

EXAMPLES = """
torchrun --nproc_per_node=8 TaylorSeers-xDiT/run_wan.py --ulysses-degree 8 --prompt "a fox" --interval 6 --max-order 1
torchrun --nproc_per_node=2 TaylorSeers-xDiT/run_wan.py --ring-degree 2 --prompt "a fox" --method first_block_cache
"""


def main(argv: list[str] | None = None) -> None:
    flags.main(WAN, __doc__, EXAMPLES, argv)


if __name__ == "__main__":
    run_command(main)
