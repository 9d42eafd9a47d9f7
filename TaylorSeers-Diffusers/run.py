"""Images from prompts by a pipeline of diffusers with a cache on it, or with several beside the uncached run.

Without --model that is the embedded FLUX inside diffusers' FluxPipeline, without a download. Any pipeline that makes images of
prompts and whose transformer has a list of blocks is taken, by its name on the hub or its folder. What is written is as with
TaylorSeer-FLUX/sample.py: PNGs, a page, a table, a record.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flux.config import REPOS, USAGE, Usage, latent_shape
from seerkit.command.cache_flags import add_cache_flags, caches_from_flags
from seerkit.command.cli import Parser, positive_int, run_command
from seerkit.command.flags import (
    add_device_flag,
    add_image_flags,
    add_prompt_flags,
    add_sampling_flags,
    check_sizes,
    spellings,
)
from seerkit.command.images import fill_image_settings, shipped_or_given_prompts
from seerkit.devices.dtypes import PRECISIONS

if TYPE_CHECKING:
    from cache_dic import Cache
    from evaluation.images import ImageJob

COMMAND = "TaylorSeers-Diffusers/run.py"
EXAMPLES = """
python TaylorSeers-Diffusers/run.py --compare
python TaylorSeers-Diffusers/run.py --prompt "red apple, noto" "rocket, 3d render" --interval 6 --max-order 2
python TaylorSeers-Diffusers/run.py --model black-forest-labs/FLUX.1-dev --prompt "a fox in the snow" --offload model
python TaylorSeers-Diffusers/run.py --model checkpoints/Qwen-Image --prompt "a fox in the snow" --engine stack --num-steps 30
"""
EMBEDDED = "flux-tiny"
ALSO = {"--guidance-scale": "--guidance", "--num-steps": "--num-inference-steps", "--precision": "--dtype"}
OWN = {EMBEDDED: EMBEDDED, **{repo: name for name, repo in REPOS.items()}}
"""By --model, what its transformer is called here; of others operations are not counted."""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.section("model").add_argument(
        "--model",
        default=EMBEDDED,
        metavar="NAME",
        help=f"a pipeline's name on the hub, such as {REPOS['flux-dev']}, or its folder; {EMBEDDED} is the embedded model",
    )
    add_prompt_flags(parser, embedded=EMBEDDED)
    add_sampling_flags(
        parser,
        ALSO,
        sample="image",
        num_steps="50; FLUX.1-schnell: 4",
        guidance="as the pipeline takes it (default: 3.5 for FLUX.1, 3 for flux-tiny, the pipeline's own for others)",
        batch_size="1; flux-tiny: 8",
    )
    for side in ("--width", "--height"):
        parser.section("sampling").add_argument(
            side, type=positive_int, metavar="PIXELS", help="in pixels (default: 1024; flux-tiny: 32)"
        )
    add_cache_flags(parser, "flux")
    add_image_flags(parser, {}, family="diffusers")
    add_device_flag(parser)
    device = parser.section("device")
    device.add_argument(
        *spellings("--precision", ALSO),
        choices=tuple(PRECISIONS),
        help="of weights and features (default: bf16; flux-tiny: fp32)",
    )
    device.add_argument(
        "--offload",
        choices=("model", "group"),
        help="keep what is idle in host memory: whole models, or layer by layer",
    )
    device.add_argument(
        "--compile", action="store_true", dest="compile_blocks", help="compile the blocks, which repeat, once"
    )
    args = parser.parse_args(argv)
    own = OWN.get(args.model)
    guidance = args.guidance_scale
    fill_image_settings(args, USAGE[own] if own else Usage())
    if own is None:
        args.guidance_scale = guidance  # what is usual for another pipeline, it knows itself
    if own:
        check_sizes(
            args, lambda: latent_shape(own, args.height, args.width), embedded=EMBEDDED, published=REPOS["flux-dev"]
        )
    return args


def caches_of(args: argparse.Namespace) -> "dict[str, Cache]":
    """The caches that the flags ask for, of known models with what is published for them; UserError for methods that diffusers'
    blocks do not allow.
    """
    from taylorseers_diffusers.methods import check_method
    from taylorseers_diffusers.transformers import published_in

    name = OWN.get(args.model) or published_in(Path(args.model)) or args.model
    caches = caches_from_flags(argparse.Namespace(**{**vars(args), "model": name}), "flux", num_steps=args.num_steps)
    for cache in caches.values():
        check_method(cache)
    return caches


def make_job(args: argparse.Namespace, prompts: list[str], caches: "dict[str, Cache]") -> "ImageJob":
    from cache_dic.plan import OpenPlan
    from evaluation.backbones import count_caches
    from evaluation.images import ImageJob, emoji_judge
    from evaluation.jobs import output_folder
    from taylorseers_diffusers.pipeline import Pipeline, find_files, settings_of

    class PipelineJob(ImageJob):
        def counts(self) -> dict[str, dict[str, Any]]:
            """Of the backbone here that is the pipeline's transformer; of others what is planned."""
            if name := OWN.get(args.model):
                samples = len(self.batches()[0].indices)
                return count_caches(name, caches, self.num_steps, self.dtype, num_samples=samples, **self.sizes)
            plans = {label: cache.plan(self.num_steps) for label, cache in caches.items()}
            return {
                label: {
                    **dict.fromkeys(("flops_T", "flops_T_uncached", "flops_ratio")),
                    "kept_bytes": {caches[label].engine: None},
                    "full_steps": None if isinstance(plan, OpenPlan) else list(plan.full_steps),
                }
                for label, plan in plans.items()
            }

    settings = settings_of(args, prompts)
    return PipelineJob(
        command=COMMAND,
        args=args,
        prompts=prompts,
        caches=caches,
        settings=settings,
        sizes={"height": args.height, "width": args.width},
        out=output_folder(args.output_dir, "diffusers", settings),
        find=lambda world: find_files(args, world.device),
        make_judge=emoji_judge if args.model == EMBEDDED else None,
        make_pipeline=lambda _, device: Pipeline(args, device),
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    prompts = shipped_or_given_prompts(args, published=args.model != EMBEDDED)
    caches = caches_of(args)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.images import run

    run(make_job(args, prompts, caches))


if __name__ == "__main__":
    run_command(main)
