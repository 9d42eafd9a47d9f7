"""Fit TeaCache's polynomial, or measure MagCache's table, on uncached samples: the file for `calibration` or `table`.

Prompts and noise of the calibration samples are others than those that results are shown on. Every further flag is one of the
model's own sampling command, such as --ckpt, --precision or --height.
"""

import argparse
import json
from pathlib import Path

from evaluation.backbones import PACKAGES
from evaluation.calibration import calibration_prompts, family_of, noise_seed
from evaluation.flags import EMBEDDED
from seerkit.command.cli import Parser, json_file, non_negative_int, positive_int, run_command
from seerkit.command.flags import add_dry_run_flag, in_order
from seerkit.io.files import writable_file
from seerkit.text.prompts import ANY_PROMPT

EXAMPLES = """
python eval/calibrate.py --model flux-tiny --method teacache --out flux-tiny.json
python TaylorSeer-FLUX/sample.py --method teacache --set calibration=flux-tiny.json --set threshold=0.2 --compare
python eval/calibrate.py --model wan-tiny --method magcache --out wan-tiny-ratios.json
python TaylorSeer-Wan2.1/generate.py --method magcache --set table=wan-tiny-ratios.json --compare
python eval/calibrate.py --model flux-schnell --method teacache --calibration-prompts prompts.txt --dry-run
"""
CALIBRATED = ("teacache", "magcache")
OF_CACHES = (
    "interval", "max_order", "warmup_steps", "engine", "schedule", "full_steps", "set", "plugin", "accumulator_dtype",
    "memory_limit_gib", "telemetry", "compare",
)  # fmt: skip
IDLE = (*OF_CACHES, "prompt", "prompt_file", "output_dir", "batch_size", "samples_per_prompt", "vbench", "compile")
"""Flags of sampling commands that calibration samples have no use for."""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The flags of the model's sampling command, with those here on top."""
    parser = Parser(__doc__, EXAMPLES)
    parser.section("model").add_argument(
        "--model",
        choices=tuple(PACKAGES),
        required=True,
        metavar="NAME",
        help=f"one of {', '.join(in_order(PACKAGES, EMBEDDED))}",
    )
    caching, sampling, output = (parser.section(title) for title in ("caching", "sampling", "output"))
    caching.add_argument("--method", choices=CALIBRATED, required=True, help="what to calibrate")
    caching.add_argument(
        "--signal",
        metavar="NAME",
        help="that the polynomial is of: modulated, embedded_latent, time_embedding or time_projection (default: "
        "time_embedding of Wan2.1 and HiDream, as published, otherwise modulated)",
    )
    sampling.add_argument("--samples", type=positive_int, metavar="N", help="calibration samples (default: 4 to 10)")
    sampling.add_argument(
        "--calibration-prompts",
        type=Path,
        metavar="FILE",
        help="one prompt (of DiT: class) per line (default: drawn from those of an embedded model)",
    )
    sampling.add_argument("--seed", type=non_negative_int, default=0, metavar="N", help="of prompts and noise")
    output.add_argument("--out", type=json_file, metavar="FILE", help="JSON file of the calibration")
    output.add_argument("--resume", action="store_true", help="keep the samples that --out has measured already")
    output.add_argument("--json", action="store_true", help="print the calibration itself")
    add_dry_run_flag(parser, "model, prompts, steps and FLOPs")
    asked, others = parser.parse_known_args(argv)
    own = Parser(__doc__, EXAMPLES)
    family = family_of(asked.model)
    family.add_flags(own)
    args = own.parse_args(["--model", asked.model, *(["--dry-run"] if asked.dry_run else []), *others])
    usual = own.parse_args(["--model", asked.model])
    for name in IDLE:
        if vars(args).get(name) != vars(usual).get(name):
            parser.error(f"--{name.replace('_', '-')} has no effect here: samples are made one by one, without a cache")
    family.fill(args)
    for name in ("method", "signal", "samples", "calibration_prompts", "out", "resume", "json"):
        setattr(args, name, getattr(asked, name))
    if args.method == "magcache" and args.signal:
        parser.error("--signal has no effect with --method magcache, which looks at no signal")
    if not (args.out or args.dry_run or args.json):
        parser.error("give --out FILE for the calibration, or --json to have it printed")
    if args.resume and not args.out:
        parser.error("--resume goes on with --out FILE; name it")
    args.calibration_seed, args.seed = asked.seed, noise_seed(asked.seed)
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.dry_run and args.calibration_prompts is None and family_of(args.model).published(args.model):
        prompts = [ANY_PROMPT] * (args.samples or 1)
    else:
        prompts = calibration_prompts(args, args.calibration_prompts, args.samples, args.calibration_seed)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.fitting import calibrate, plan, text

    if args.dry_run:
        print(json.dumps(plan(args, prompts), indent=2))
        return
    if args.out:
        writable_file(args.out)
    made = calibrate(args, prompts)
    print(json.dumps(made) if args.json else text(made, args.out))


if __name__ == "__main__":
    run_command(main)
