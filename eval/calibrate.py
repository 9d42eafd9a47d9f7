"""Fit TeaCache's polynomial, or measure MagCache's table, on uncached samples: the file for `calibration` or `table`.

The model is opened with the flags of its own sampling command, such as --num-steps, --ckpt, --height and --offload, which
go here too. Calibration samples are other than those that results are shown on.
"""

import argparse
import json

from evaluation.calibration import add_calibration_flags, asked_prompts, noise_seed, sampling_args
from evaluation.flags import add_any_model_flag
from seerkit.command.cli import Parser, run_command
from seerkit.command.flags import add_dry_run_flag, add_record_flags
from seerkit.io.files import writable_file

EXAMPLES = """
python eval/calibrate.py --model flux-tiny --method teacache --out flux-tiny.json
python TaylorSeer-FLUX/sample.py --method teacache --set calibration=flux-tiny.json --set threshold=0.2 --compare
python eval/calibrate.py --model wan-tiny --method magcache --out wan-tiny-ratios.json
python TaylorSeer-Wan2.1/generate.py --method magcache --set table=wan-tiny-ratios.json --compare
python eval/calibrate.py --model flux-schnell --method teacache --calibration-prompts prompts.txt --dry-run
"""
CALIBRATED = ("teacache", "magcache")


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, argparse.Namespace]:
    """What is asked for, and the arguments of the model's sampling command."""
    parser = Parser(__doc__, EXAMPLES)
    caching, output = parser.section("caching"), parser.section("output")
    add_any_model_flag(parser, "flux-tiny")
    caching.add_argument("--method", choices=CALIBRATED, default="teacache", help="what to calibrate")
    caching.add_argument(
        "--signal",
        metavar="NAME",
        help="of the polynomial: modulated, embedded_latent, time_embedding or time_projection (default: time_embedding of "
        "Wan2.1 and HiDream, as published, otherwise modulated)",
    )
    add_calibration_flags(parser)
    add_record_flags(parser, out="JSON file of the calibration")
    output.add_argument("--resume", action="store_true", help="keep the samples that --out has measured already")
    add_dry_run_flag(parser, "model, prompts, steps and FLOPs")
    asked, rest = parser.parse_known_args(argv)
    if asked.method == "magcache" and asked.signal:
        parser.error("--signal has no effect with --method magcache, which looks at no signal")
    if not (asked.out or asked.dry_run or asked.json):
        parser.error("give --out FILE for the calibration, or --json to have it printed")
    if asked.resume and not asked.out:
        parser.error("--resume goes on with --out FILE; name it")
    if any(text.partition("=")[0].replace("_", "-") == "--batch-size" for text in rest):
        parser.error("--batch-size has no effect here: samples are measured one by one; leave it out")
    return asked, sampling_args(parser, asked.model, rest, seed=noise_seed(asked.seed), dry_run=asked.dry_run)


def main(argv: list[str] | None = None) -> None:
    asked, args = parse_args(argv)
    prompts = asked_prompts(asked, args)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.fitting import Calibration, text

    calibration = Calibration(asked, args, prompts)
    if asked.dry_run:
        print(json.dumps(calibration.plan(), indent=2))
        return
    if asked.out:
        writable_file(asked.out)
    made = calibration.make()
    print(json.dumps(made) if asked.json else text(made, asked.out))


if __name__ == "__main__":
    run_command(main)
