"""The five families of models as commands sample them: flags, prompts and jobs. Naming them needs no torch."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dit.flags
import flux.flags
import hidream.flags
import hunyuan_video.flags
import wan.flags
from evaluation.backbones import PACKAGES
from seerkit.command.cli import Parser, positive_int
from seerkit.command.flags import add_prompt_flags
from seerkit.text.prompts import Listed

if TYPE_CHECKING:
    from cache_dic import Cache
    from dit.config import DiTConfig
    from evaluation.images import ImageJob, Judge
    from evaluation.jobs import Job
    from evaluation.videos import VideoJob

Caches = Mapping[str, "Cache"]


# ---------------------------------------------------------------------------------------------------------------- jobs
# Each loads torch, and takes flags whose defaults are filled in. command: the script that is run. prompts: one per sample.


def dit_job(
    command: str, args: argparse.Namespace, prompts: list[str], caches: Caches, *, classes: Sequence[int], **more: Any
) -> "ImageJob":
    """Prompts are names of classes, each standing --samples-per-class times among them."""
    from dit.pipeline import Pipeline, find_everything, settings_of
    from evaluation.images import ImageJob
    from evaluation.jobs import output_folder

    config = dit.flags.config_of(args)
    height, width, channels = config.image_shape
    settings = {
        **settings_of(args, config),
        "classes": list(classes),
        "per_class": len(prompts) // len(classes),
        "height": height,
        "width": width,
        "batch_size": args.batch_size,
    }
    return ImageJob(
        command=command,
        args=args,
        prompts=prompts,
        caches=dict(caches),
        settings=settings,
        sizes={"height": args.image_size, "width": args.image_size, "cfg_scale": args.guidance_scale},
        out=output_folder(args.output_dir, "dit", settings),
        find=lambda _: find_everything(args, config),
        channels=channels,
        make_judge=(lambda: classifier_judge(config)) if args.model == dit.flags.EMBEDDED else None,
        make_pipeline=lambda _, device: Pipeline(args, device),
        **more,
    )


def classifier_judge(config: "DiTConfig") -> "Judge":
    """The shipped in-domain classifier: does a sample show its class?"""
    import torch

    from evaluation.classifier import classify, load_classifier
    from evaluation.images import Judge
    from seerkit.io.tables import number

    classifier, names = load_classifier(), dit.flags.class_names(config)

    def score(images: torch.Tensor, classes: list[str]) -> torch.Tensor:
        return classify(classifier, images).argmax(dim=1) == torch.tensor([names.index(name) for name in classes])

    real = classifier.test_accuracy
    return Judge(
        key="class_accuracy",
        heading="class accuracy",
        score=score,
        cell=lambda share: number(share * 100, 1, " %"),
        facts={"real_test_accuracy": real},
        explanation=f"class accuracy by the shipped in-domain classifier; on the real test images {real:.1%}",
    )


def flux_job(command: str, args: argparse.Namespace, prompts: list[str], caches: Caches) -> "ImageJob":
    from evaluation.images import ImageJob, emoji_judge
    from evaluation.jobs import output_folder
    from flux.pipeline import Pipeline, find_everything, settings_of

    settings = settings_of(args, prompts)
    return ImageJob(
        command=command,
        args=args,
        prompts=prompts,
        caches=dict(caches),
        settings=settings,
        sizes={"height": args.height, "width": args.width},
        out=output_folder(args.output_dir, "flux", settings),
        find=lambda _: find_everything(args),
        make_judge=emoji_judge if args.model == flux.flags.EMBEDDED else None,
        make_pipeline=lambda batches, device: Pipeline(args, batches, device),
    )


def hidream_job(command: str, args: argparse.Namespace, prompts: list[str], caches: Caches) -> "ImageJob":
    from evaluation.images import ImageJob, emoji_judge
    from evaluation.jobs import output_folder
    from hidream.pipeline import Pipeline, find_everything, settings_of

    settings = settings_of(args, prompts)
    return ImageJob(
        command=command,
        args=args,
        prompts=prompts,
        caches=dict(caches),
        settings=settings,
        sizes=hidream.flags.sizes_of(args),
        out=output_folder(args.output_dir, "hidream", settings),
        find=lambda _: find_everything(args),
        make_judge=emoji_judge if args.model == hidream.flags.EMBEDDED else None,
        make_pipeline=lambda batches, device: Pipeline(args, batches, device),
    )


def hunyuan_job(
    command: str, args: argparse.Namespace, prompts: list[str], caches: Caches, names: Sequence[str]
) -> "VideoJob":
    """names: of the files of the videos, without suffix."""
    from evaluation.jobs import output_folder
    from evaluation.videos import VideoJob
    from hunyuan_video.config import USAGE, hunyuan_video_config, latent_shape
    from hunyuan_video.pipeline import Pipeline, find_everything, settings_of
    from seerkit.command.videos import check_processes, sequence_parallel
    from seerkit.io.media import video_facts

    check_processes(args, hunyuan_video_config(args.model).heads_num, "--dit-fsdp")
    settings = {**settings_of(args, prompts), "video": video_facts(args.quality)}
    return VideoJob(
        command=command,
        args=args,
        prompts=prompts,
        caches=dict(caches),
        settings=settings,
        sizes={
            "height": args.height,
            "width": args.width,
            "frames": args.num_frames,
            "text_tokens": USAGE[args.model].text_tokens,
        },
        out=output_folder(args.output_dir, "hunyuan", settings),
        names=names,
        latent_shape=latent_shape(args.model, args.height, args.width, args.num_frames),
        sequence_parallel=sequence_parallel(args),
        find=lambda _: find_everything(args),
        make_pipeline=lambda world: Pipeline(args, world),
    )


def wan_job(
    command: str, args: argparse.Namespace, prompts: list[str], caches: Caches, names: Sequence[str]
) -> "VideoJob":
    """names: of the files of the videos, without suffix."""
    from evaluation.jobs import output_folder
    from evaluation.videos import VideoJob
    from seerkit.command.videos import check_processes, sequence_parallel
    from seerkit.io.media import video_facts
    from wan.config import latent_shape, wan_config
    from wan.pipeline import Pipeline, find_everything, settings_of

    check_processes(args, wan_config(args.model).num_heads, "--dit-fsdp", "--t5-fsdp")
    settings = {**settings_of(args, prompts), "video": video_facts(args.quality)}
    return VideoJob(
        command=command,
        args=args,
        prompts=prompts,
        caches=dict(caches),
        settings=settings,
        sizes={
            "height": args.height,
            "width": args.width,
            "frames": args.num_frames,
            "cfg_scale": args.guidance_scale,
        },
        out=output_folder(args.output_dir, "wan", settings),
        names=names,
        latent_shape=latent_shape(args.model, args.height, args.width, args.num_frames),
        sequence_parallel=sequence_parallel(args),
        find=lambda _: find_everything(args),
        make_pipeline=lambda world: Pipeline(args, world),
    )


# ------------------------------------------------------------------------------------------------------------ families


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a command that samples any model asks a family for.

    folder: of its records in results/. embedded: its model that ships with the repository; num_samples: of that, in two of its
    batches, where a command makes its own choice. makes: image or video.
    quality: of H.264 files, as the family's own command writes them. solvers: that --solver chooses from instead of the
    model's own. add_flags: of model, prompts, sampling, caching and device. fill: defaults that were not given.
    prompts(args): those that the flags ask for. job(command, args, prompts, caches).
    """

    folder: str
    embedded: str
    num_samples: int
    makes: str
    quality: float = 0.0
    solvers: tuple[str, ...] = ()
    add_flags: Callable[[Parser], None]
    fill: Callable[[argparse.Namespace], None]
    prompts: Callable[[argparse.Namespace], list[str]]
    job: "Callable[[str, argparse.Namespace, list[str], Caches], Job]"


def _dit_flags(parser: Parser) -> None:
    dit.flags.add_class_flag(parser)
    dit.flags.add_flags(parser, guidance_scale=dit.flags.SHOWN_GUIDANCE)
    parser.section("sampling").add_argument(
        "--batch-size", type=positive_int, metavar="N", help="images per model call (default: one of each class)"
    )


def _classes(args: argparse.Namespace) -> list[int]:
    return dit.flags.chosen_classes(args.classes, dit.flags.config_of(args))


def _fill_dit(args: argparse.Namespace) -> None:
    args.batch_size = args.batch_size or len(_classes(args))


def _dit_prompts(args: argparse.Namespace) -> list[str]:
    names = dit.flags.class_names(dit.flags.config_of(args))
    return [names[number] for number in _classes(args)]


def _hidream_flags(parser: Parser) -> None:
    add_prompt_flags(parser, embedded=hidream.flags.EMBEDDED)
    hidream.flags.add_single_image_flags(parser, batch_size="1; hidream-tiny: 8")


def _texts(listed: Sequence[Listed]) -> list[str]:
    return [one.prompt for one in listed]


def _numbered(make: "Callable[..., VideoJob]") -> "Callable[[str, argparse.Namespace, list[str], Caches], VideoJob]":
    """A job whose videos are called by their numbers."""
    return lambda command, args, prompts, caches: make(
        command, args, prompts, caches, [f"{index:06d}" for index in range(len(prompts))]
    )


FAMILIES: dict[str, Family] = {
    "dit": Family(
        folder="dit",
        embedded=dit.flags.EMBEDDED,
        num_samples=20,
        makes="image",
        add_flags=_dit_flags,
        fill=_fill_dit,
        prompts=_dit_prompts,
        job=lambda command, args, prompts, caches: dit_job(command, args, prompts, caches, classes=_classes(args)),
    ),
    "flux": Family(
        folder="flux",
        embedded=flux.flags.EMBEDDED,
        num_samples=16,
        makes="image",
        add_flags=flux.flags.add_flags,
        fill=flux.flags.fill_defaults,
        prompts=flux.flags.prompts_of,
        job=flux_job,
    ),
    "hidream": Family(
        folder="hidream",
        embedded=hidream.flags.EMBEDDED,
        num_samples=16,
        makes="image",
        add_flags=_hidream_flags,
        fill=hidream.flags.fill_defaults,
        prompts=hidream.flags.prompts_of,
        job=hidream_job,
    ),
    "hunyuan_video": Family(
        folder="hunyuan",
        embedded=hunyuan_video.flags.EMBEDDED,
        num_samples=8,
        makes="video",
        quality=hunyuan_video.flags.QUALITY,
        add_flags=hunyuan_video.flags.add_flags,
        fill=hunyuan_video.flags.fill_defaults,
        prompts=lambda args: _texts(hunyuan_video.flags.prompts_of(args)),
        job=_numbered(hunyuan_job),
    ),
    "wan": Family(
        folder="wan",
        embedded=wan.flags.EMBEDDED,
        num_samples=8,
        makes="video",
        quality=wan.flags.QUALITY,
        solvers=wan.flags.SOLVERS,
        add_flags=wan.flags.add_flags,
        fill=wan.flags.fill_defaults,
        prompts=lambda args: _texts(wan.flags.prompts_of(args)),
        job=_numbered(wan_job),
    ),
}
"""By the package of the backbone, as in `evaluation.backbones.PACKAGES`."""

MODELS = {**PACKAGES, **dict.fromkeys(wan.flags.VARIANTS, "wan")}
"""By every name of a model, the package of its backbone."""
