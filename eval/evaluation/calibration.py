"""Calibration samples of any model: what they are drawn from, disjoint from what results are shown on, and how they are made.

A family of models is sampled with the flags, the weights and the pipeline of its own sampling command. Naming the samples
needs no torch but for the embedded text-to-image models.
"""

import argparse
import functools
import importlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cache_dic import UserError
from evaluation.backbones import PACKAGES
from evaluation.families import flags_of, pipeline_of
from evaluation.flags import EMBEDDED
from seerkit.command.cli import Parser, non_negative_int, positive_int
from seerkit.io.files import writable_file
from seerkit.text.prompts import ANY_PROMPT, cycled, read_prompts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cache_dic import Cache
    from seerkit.text.prompts import Batch

SEED_KEY = 0x5EA7C4
"""Of `derive_seed`, from the seed of a search to that of its starting noise, 63 bits that no command is given by default."""
SHOWN_SEED = 0
"""The default --seed of every sampling command."""
NUM_SAMPLES = {"dit": 10, "flux": 16, "hidream": 8, "hunyuan_video": 4, "wan": 2}
"""Calibration samples where nothing else is asked for; of a file of prompts at most as many as it has."""


class Sampler(Protocol):
    """A loaded pipeline, as `evaluation.images.ImagePipeline` and `evaluation.videos.VideoPipeline` have it in common."""

    model: Any

    def sample(
        self, cache: "Cache", batch: "Batch", callback: "Callable[[int, Tensor], None] | None" = None
    ) -> "tuple[Tensor, Any]":
        """Final latents (B, …) in float32 and the run."""


# ------------------------------------------------------------------------------------------------------------ families


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the sampling command of a family asks for, finds and opens a model.

    add_flags, fill: flags, and defaults of those not given. published(model): whether prompts have to be given for it. The
    others load torch: find(args): every file of the model by its part, MissingError naming those that are not there.
    settings(args): what samples depend on. open(args, batches, device): the pipeline for some batches.
    """

    add_flags: Callable[[Parser], None]
    fill: Callable[[argparse.Namespace], None]
    published: Callable[[str], bool]
    find: Callable[[argparse.Namespace], Mapping[str, Sequence[Path]]]
    settings: Callable[[argparse.Namespace], dict[str, Any]]
    open: "Callable[[argparse.Namespace, Sequence[Batch], torch.device], Sampler]"


def _dit() -> Family:
    flags, pipeline = flags_of("dit"), functools.partial(pipeline_of, "dit")

    def fill(args: argparse.Namespace) -> None:
        args.batch_size = NUM_SAMPLES["dit"]
        flags.config_of(args)

    return Family(
        add_flags=lambda parser: flags.add_flags(parser, guidance_scale=flags.SHOWN_GUIDANCE),
        fill=fill,
        published=lambda _: False,
        find=lambda args: pipeline().find_everything(args, flags.config_of(args)),
        settings=lambda args: pipeline().settings_of(args, flags.config_of(args)),
        open=lambda args, _, device: pipeline().Pipeline(args, device),
    )


def _of_prompts(package: str) -> Family:
    """A family whose commands take prompts."""
    flags, pipeline = flags_of(package), functools.partial(pipeline_of, package)
    repos = importlib.import_module(f"{package}.config").REPOS

    def open_images(args: argparse.Namespace, batches: "Sequence[Batch]", device: "torch.device") -> Sampler:
        return pipeline().Pipeline(args, batches, device)

    def open_videos(args: argparse.Namespace, batches: "Sequence[Batch]", device: "torch.device") -> Sampler:
        from seerkit.devices.distributed import World

        alone = World(0, 1, device)
        made = pipeline().Pipeline(args, alone)
        made.encode(batches)
        made.load(alone)
        return made

    return Family(
        add_flags=flags.add_flags,
        fill=flags.fill_defaults,
        published=lambda model: model in repos,
        find=lambda args: pipeline().find_everything(args),
        settings=lambda args: pipeline().settings_of(args, ()),
        open=open_videos if package in ("hunyuan_video", "wan") else open_images,
    )


def family_of(model: str) -> Family:
    package = PACKAGES[model]
    return _dit() if package == "dit" else _of_prompts(package)


NOT_TAKEN = ("--prompt", "--prompt-file", "--samples-per-prompt", "--num-images-per-prompt", "--compile")
"""Flags of sampling commands that say nothing to a command that chooses its samples itself."""


def sampling_args(
    parser: Parser, model: str, rest: Sequence[str], *, seed: int, dry_run: bool = False
) -> argparse.Namespace:
    """What the sampling command of a model makes of the flags that `parser` left, defaults filled in; `seed` for --seed.

    Those of model, prompts, sampling and device are taken; the parser refuses others, and those of NOT_TAKEN.
    """
    own, family = Parser("", "", prog=parser.prog), family_of(model)
    family.add_flags(own)
    shared = {
        name
        for title in ("model", "prompts", "sampling", "device")
        for action in own.section(title)._group_actions
        for name in action.option_strings
    }
    for text in rest:
        name = text.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in shared.difference(NOT_TAKEN):
            parser.error(f"unrecognized arguments: {text}, which neither this command nor {model} takes here")
    args = own.parse_args([f"--model={model}", *rest])
    args.dry_run = dry_run
    family.fill(args)
    args.seed = seed
    return args


def carry_out(search: Any, job: Any, asked: argparse.Namespace, what: str) -> None:
    """Print what a search takes and, without --dry-run, run it and print what it found.

    search: the module with its `describe_plan`, `run` and `describe`. job: what is asked for, with a `plan` and the file of the
    outcome. asked: --dry-run, --resume and --json. what: the outcome in a word.
    """
    plan = job.plan()
    if asked.dry_run:
        print(json.dumps(plan) if asked.json else search.describe_plan(plan))
        return
    writable_file(job.out)
    if not asked.json:
        print(search.describe_plan(plan))
    made = search.run(job, resume=asked.resume)
    print(json.dumps(made) if asked.json else f"{search.describe(made)}\n{what}: {job.out}")


# ------------------------------------------------------------------------------------------------------------- samples


def add_calibration_flags(parser: Parser) -> None:
    """--calibration-prompts, --samples and --seed of a command that draws calibration samples."""
    data = parser.section("data")
    data.add_argument(
        "--calibration-prompts",
        type=Path,
        metavar="FILE",
        help="one per line, of DiT classes (default: drawn by --seed, of embedded models and DiT)",
    )
    data.add_argument(
        "--samples",
        type=positive_int,
        metavar="N",
        help="calibration samples (default: "
        f"{', '.join(f'{count} of {package}' for package, count in NUM_SAMPLES.items())}; of a file at most as many as it has)",
    )
    parser.section("sampling").add_argument(
        "--seed",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="of prompts and noise, none of which is a command's",
    )


def shown_prompts(model: str, args: argparse.Namespace) -> list[str]:
    """What results of a model are shown on: the defaults of its sampling commands, and lists that records are made of."""
    package = PACKAGES[model]
    if package == "dit":
        return _classes(args, None)
    if package in ("flux", "hidream"):
        from seerkit.data.emoji import FOLDER, PROMPTS

        return [*read_prompts(PROMPTS), *read_prompts(FOLDER / "prompts-held-out.txt")]
    from seerkit.data.captions import PROMPTS as CAPTIONS_SHOWN

    return list(CAPTIONS_SHOWN)


def calibration_prompts(args: argparse.Namespace, file: Path | None, count: int | None, seed: int) -> list[str]:
    """Prompts (of DiT names of classes) of the calibration samples: of a file in its order, else drawn by `seed`.

    count: of samples; where a file has fewer prompts they come again, with other noise. UserError for a prompt that results
    are shown on, and where a model has no prompts of its own and no file is given. Of a model whose every class is shown the
    classes are those, and only their noise is another.
    """
    shown = shown_prompts(args.model, args)
    if file is not None:
        given, known = listed_prompts(args, file), {same_prompt(prompt) for prompt in shown}
        seen = [prompt for prompt in given if same_prompt(prompt) in known]
        if seen and not _shows_all(args, shown):
            raise UserError(
                f"--calibration-prompts {file} names {seen[0]!r}, which results are shown on; calibrate on other prompts"
            )
        wanted = count or min(len(given), NUM_SAMPLES[PACKAGES[args.model]])
        return [given[i % len(given)] for i in range(wanted)]
    if family_of(args.model).published(args.model):
        raise UserError(f"{args.model} needs --calibration-prompts FILE with one prompt per line")
    draw = random.Random(seed)
    wanted = count or NUM_SAMPLES[PACKAGES[args.model]]
    drawn = _drawn(args, shown, draw)
    return [next(drawn) for _ in range(wanted)]


def asked_prompts(asked: argparse.Namespace, args: argparse.Namespace) -> list[str]:
    """`calibration_prompts` by the flags of `add_calibration_flags`; a plan needs none of a model that has none of its own.

    args: of the model's sampling command.
    """
    if asked.dry_run and asked.calibration_prompts is None and family_of(asked.model).published(asked.model):
        return [ANY_PROMPT] * (asked.samples or NUM_SAMPLES[PACKAGES[asked.model]])
    return calibration_prompts(args, asked.calibration_prompts, asked.samples, asked.seed)


def _shows_all(args: argparse.Namespace, shown: Sequence[str]) -> bool:
    """Whether a model has no conditions but those that results are shown on, as one of ten classes."""
    return PACKAGES[args.model] == "dit" and len(shown) == flags_of("dit").config_of(args).num_classes


def _classes(args: argparse.Namespace, asked: str | None) -> list[str]:
    """Names of the classes that DiT's sampling command makes of what is asked for, its own where that is None."""
    dit = flags_of("dit")
    config = dit.config_of(args)
    return [dit.class_names(config)[number] for number in dit.chosen_classes(asked, config)]


def same_prompt(prompt: str) -> str:
    """Prompts that no encoder tells apart have one key."""
    return " ".join(prompt.split()).lower()


def listed_prompts(args: argparse.Namespace, file: Path) -> list[str]:
    """The prompts of a file, of DiT names of the classes that its lines name."""
    prompts = read_prompts(file)
    if PACKAGES[args.model] == "dit":
        return [name for prompt in prompts for name in _classes(args, prompt)]
    return prompts


def _drawn(args: argparse.Namespace, shown: Sequence[str], draw: random.Random) -> Iterator[str]:
    """Endless prompts of a model that has some of its own, those drawn last coming again when all were drawn."""
    package = PACKAGES[args.model]
    if package == "dit":
        dit = flags_of("dit")
        names = dit.class_names(dit.config_of(args))
        pool = [name for name in names if name not in shown] or list(names)
    elif package in ("flux", "hidream"):
        pool = _emoji(shown)
    else:
        from seerkit.data.captions import CAPTIONS, HELD_OUT

        pool = [caption for caption in CAPTIONS if caption not in HELD_OUT and caption not in shown]
    while True:
        yield from draw.sample(pool, len(pool))


def _emoji(shown: Sequence[str]) -> list[str]:
    """All pairs of a label that is not shown in any style and a style that models were trained on."""
    from seerkit.data.emoji import HELD_OUT_STYLE, STYLES
    from seerkit.text.minilm import TEXT_TABLE, TextTable, split_prompt

    seen = {same_prompt(split_prompt(prompt)[0]) for prompt in shown}
    labels = [text for text in TextTable.load(TEXT_TABLE).texts if text not in STYLES.values()]
    styles = [phrase for name, phrase in STYLES.items() if name != HELD_OUT_STYLE]
    return [f"{label}, {style}" for label in labels if same_prompt(label) not in seen for style in styles]


def even_steps(num_steps: int, count: int) -> tuple[int, ...]:
    """So many full steps, evenly spaced from 0 on."""
    return tuple(i * num_steps // count for i in range(count))


def noise_seed(seed: int) -> int:
    """The --seed that the pipeline draws the starting noise of calibration samples by, of a search by `seed`."""
    from seerkit.sampling.seeds import derive_seed

    derived = derive_seed(seed, SEED_KEY)
    assert derived != SHOWN_SEED, "one in 2^63"
    return derived


# --------------------------------------------------------------------------------------------------------------- shown


def default_samples(args: argparse.Namespace) -> list[str]:
    """Prompts of the samples that a model's command makes where none are asked for, in order; UserError where it makes none."""
    package = PACKAGES[args.model]
    if package == "dit":
        return cycled(shown_prompts(args.model, args), flags_of("dit").SHOWN_PER_CLASS)
    if family_of(args.model).published(args.model):
        raise UserError(f"{args.model} has no prompts of its own; take one of {', '.join(EMBEDDED)}")
    shown = shown_prompts(args.model, args)
    if package in ("flux", "hidream"):
        from seerkit.data.emoji import PROMPTS

        return shown[: len(read_prompts(PROMPTS))]
    return shown
