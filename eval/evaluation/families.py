"""The five families of models as commands sample them: flags, prompts and jobs. Naming them needs no torch.

What is a command's own in a backbone, its flags and its pipeline, is imported by name when a family is asked for.
"""

import argparse
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cache_dic.errors import check_choice
from evaluation.backbones import PACKAGES
from seerkit.command.cli import Parser, positive_int
from seerkit.command.flags import add_prompt_flags

if TYPE_CHECKING:
    from cache_dic import Cache
    from dit.config import DiTConfig
    from evaluation.fid_samples import FidJob
    from evaluation.images import ImageJob, Judge
    from evaluation.jobs import Job
    from evaluation.videos import VideoJob

Caches = Mapping[str, "Cache"]


def flags_of(package: str) -> ModuleType:
    """The module of a backbone's flags."""
    return importlib.import_module(f"{package}.flags")


def pipeline_of(package: str) -> ModuleType:
    """The module of a backbone's pipeline, which loads torch."""
    return importlib.import_module(f"{package}.pipeline")


# ---------------------------------------------------------------------------------------------------------------- jobs
# Each loads torch, and takes flags whose defaults are filled in. command: the script that is run. prompts: one per sample.


def dit_job(command: str, args: argparse.Namespace, prompts: list[str], caches: Caches, **more: Any) -> "ImageJob":
    """Prompts are names of classes."""
    from evaluation.images import ImageJob
    from evaluation.jobs import output_folder

    flags, pipeline = flags_of("dit"), pipeline_of("dit")
    config = flags.config_of(args)
    height, width, channels = config.image_shape
    settings = {
        **pipeline.settings_of(args, config),
        "prompts": list(prompts),
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
        find=lambda _: pipeline.find_everything(args, config),
        channels=channels,
        make_judge=(lambda: classifier_judge(config)) if args.model == flags.EMBEDDED else None,
        make_pipeline=lambda _, device: pipeline.Pipeline(args, device),
        **more,
    )


def fid_job(command: str, args: argparse.Namespace, cache: "Cache") -> "FidJob":
    """The samples of an FID evaluation by one cache.

    Their folder is MODEL[-size-S]-LABEL-SOLVER-steps-S-cfg-W-seed-N[-balanced].
    """
    from evaluation.fid_samples import FidJob

    flags, pipeline = flags_of("dit"), pipeline_of("dit")
    config = flags.config_of(args)
    parts = [args.model, *(["size", args.image_size] if args.image_size else []), cache.label, args.solver]
    parts += ["steps", args.num_steps, "cfg", args.guidance_scale, "seed", args.seed]
    parts += ["balanced"] if args.balanced else []
    return FidJob(
        command=command,
        args=args,
        cache=cache,
        class_names=flags.class_names(config),
        shape=config.image_shape,
        name="-".join(map(str, parts)).replace("/", "-"),
        settings={
            **pipeline.settings_of(args, config),
            "classes": "balanced" if args.balanced else "random",
            "tf32": args.tf32,
            "batch_size": args.batch_size,
        },
        find=lambda: pipeline.find_everything(args, config),
        make_pipeline=lambda device: pipeline.Pipeline(args, device),
    )


def classifier_judge(config: "DiTConfig") -> "Judge":
    """The shipped in-domain classifier: does a sample show its class?"""
    import torch

    from evaluation.classifier import classify, load_classifier
    from evaluation.images import Judge

    classifier, names = load_classifier(), flags_of("dit").class_names(config)

    def score(images: torch.Tensor, classes: list[str]) -> torch.Tensor:
        return classify(classifier, images).argmax(dim=1) == torch.tensor([names.index(name) for name in classes])

    real = classifier.test_accuracy
    return Judge(
        key="class_accuracy",
        heading="class accuracy %",
        score=score,
        scale=100,
        facts={"real_test_accuracy": real},
        explanation=f"class accuracy by the shipped in-domain classifier; on the real test images {real:.1%}",
    )


def _prompts_job(
    package: str,
    command: str,
    args: argparse.Namespace,
    prompts: list[str],
    caches: Caches,
    sizes: Mapping[str, Any],
) -> "ImageJob":
    """Images of prompts by a text-to-image backbone, whose folder has the name of its package."""
    from evaluation.images import ImageJob, emoji_judge
    from evaluation.jobs import output_folder
    from seerkit.command.flags import check_guidance_parallel, guidance_parallel

    check_guidance_parallel(args, caches)
    pipeline = pipeline_of(package)
    settings = pipeline.settings_of(args, prompts)
    return ImageJob(
        command=command,
        args=args,
        prompts=prompts,
        caches=dict(caches),
        settings=settings,
        sizes=dict(sizes),
        out=output_folder(args.output_dir, package, settings),
        find=lambda _: pipeline.find_everything(args),
        make_judge=emoji_judge if args.model == flags_of(package).EMBEDDED else None,
        make_pipeline=lambda batches, device: pipeline.Pipeline(args, batches, device),
        together=guidance_parallel(args),
    )


def flux_job(command: str, args: argparse.Namespace, prompts: list[str], caches: Caches) -> "ImageJob":
    return _prompts_job("flux", command, args, prompts, caches, {"height": args.height, "width": args.width})


def hidream_job(command: str, args: argparse.Namespace, prompts: list[str], caches: Caches) -> "ImageJob":
    return _prompts_job("hidream", command, args, prompts, caches, flags_of("hidream").sizes_of(args))


def _video_job(
    package: str,
    command: str,
    args: argparse.Namespace,
    prompts: list[str],
    caches: Caches,
    names: Sequence[str],
    *,
    heads: int,
    sharded: Sequence[str],
    folder: str,
    **sizes: Any,
) -> "VideoJob":
    """Videos of prompts. names: of their files, without suffix. heads: of attention, which processes divide.

    sharded: flags that share weights among processes. folder: in outputs/. sizes: beside those of the video.
    """
    from evaluation.jobs import output_folder
    from evaluation.videos import VideoJob
    from seerkit.command.flags import check_guidance_parallel, guidance_parallel
    from seerkit.command.videos import check_processes, sequence_parallel
    from seerkit.io.media import video_facts

    check_processes(args, heads, *sharded)
    check_guidance_parallel(args, caches)
    pipeline = pipeline_of(package)
    latent_shape = importlib.import_module(f"{package}.config").latent_shape
    settings = {**pipeline.settings_of(args, prompts), "video": video_facts(args.quality)}
    return VideoJob(
        command=command,
        args=args,
        prompts=prompts,
        caches=dict(caches),
        settings=settings,
        sizes={"height": args.height, "width": args.width, "frames": args.num_frames, **sizes},
        out=output_folder(args.output_dir, folder, settings),
        names=names,
        latent_shape=latent_shape(args.model, args.height, args.width, args.num_frames),
        together=sequence_parallel(args) or guidance_parallel(args),
        find=lambda _: pipeline.find_everything(args),
        make_pipeline=lambda world: pipeline.Pipeline(args, world),
    )


def hunyuan_job(
    command: str, args: argparse.Namespace, prompts: list[str], caches: Caches, names: Sequence[str]
) -> "VideoJob":
    """names: of the files of the videos, without suffix."""
    from hunyuan_video.config import USAGE, hunyuan_video_config

    return _video_job(
        "hunyuan_video", command, args, prompts, caches, names,
        heads=hunyuan_video_config(args.model).heads_num, sharded=["--dit-fsdp"], folder="hunyuan",
        text_tokens=USAGE[args.model].text_tokens,
    )  # fmt: skip


def wan_job(
    command: str, args: argparse.Namespace, prompts: list[str], caches: Caches, names: Sequence[str]
) -> "VideoJob":
    """names: of the files of the videos, without suffix."""
    from wan.config import wan_config

    return _video_job(
        "wan", command, args, prompts, caches, names,
        heads=wan_config(args.model).num_heads, sharded=["--dit-fsdp", "--t5-fsdp"], folder="wan",
        cfg_scale=args.guidance_scale,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ families


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a command that samples any model asks a family for.

    folder: of its records in results/. makes: image or video. num_samples: of the embedded model, where a command makes its own
    choice. make_job(command, args, prompts, caches), of videos with their names besides.
    """

    package: str
    folder: str
    makes: str
    num_samples: int
    make_job: "Callable[..., Job]"

    @property
    def flags(self) -> Any:
        return flags_of(self.package)

    @property
    def solvers(self) -> Sequence[str]:
        """Higher-order ones that --solver chooses from."""
        return getattr(self.flags, "SOLVERS", ())

    def add_flags(self, parser: Parser) -> None:
        """Flags of model, prompts, sampling, caching and device; of videos, defaults of those of their files."""
        self.flags.add_flags(parser)
        if self.makes == "video":
            parser.set_defaults(quality=self.flags.QUALITY, gif=True, keep_latents=True)
        else:
            parser.set_defaults(add_sampling_metadata=False)

    def fill(self, args: argparse.Namespace) -> None:
        """Set what was not given to the model's own settings; UserError for what does not fit it."""
        self.flags.fill_defaults(args)

    def prompts(self, args: argparse.Namespace) -> list[str]:
        """The prompts that the flags ask for."""
        return [one if isinstance(one, str) else one.prompt for one in self.flags.prompts_of(args)]

    def job(
        self,
        command: str,
        args: argparse.Namespace,
        prompts: list[str],
        caches: Caches,
        names: Sequence[str] | None = None,
    ) -> "Job":
        """names: of the files of videos, without suffix (default: their numbers)."""
        more = {} if self.makes == "image" else {"names": names or [f"{i:06d}" for i in range(len(prompts))]}
        return self.make_job(command, args, prompts, caches, **more)


class _DiT(Family):
    def add_flags(self, parser: Parser) -> None:
        self.flags.add_class_flag(parser)
        self.flags.add_flags(parser, guidance_scale=self.flags.SHOWN_GUIDANCE)
        parser.section("sampling").add_argument(
            "--batch-size", type=positive_int, metavar="N", help="images per model call (default: one of each class)"
        )
        parser.set_defaults(add_sampling_metadata=False)

    def _classes(self, args: argparse.Namespace) -> list[int]:
        return self.flags.chosen_classes(args.classes, self.flags.config_of(args))

    def fill(self, args: argparse.Namespace) -> None:
        args.batch_size = args.batch_size or len(self._classes(args))

    def prompts(self, args: argparse.Namespace) -> list[str]:
        names = self.flags.class_names(self.flags.config_of(args))
        return [names[number] for number in self._classes(args)]


class _HiDream(Family):
    def add_flags(self, parser: Parser) -> None:
        add_prompt_flags(parser, embedded=self.flags.EMBEDDED)
        self.flags.add_single_image_flags(parser, batch_size="1; hidream-tiny: 8")
        parser.set_defaults(add_sampling_metadata=False)


FAMILIES = {
    family.package: family
    for family in (
        _DiT(package="dit", folder="dit", makes="image", num_samples=20, make_job=dit_job),
        Family(package="flux", folder="flux", makes="image", num_samples=16, make_job=flux_job),
        Family(package="hunyuan_video", folder="hunyuan", makes="video", num_samples=6, make_job=hunyuan_job),
        Family(package="wan", folder="wan", makes="video", num_samples=6, make_job=wan_job),
        _HiDream(package="hidream", folder="hidream", makes="image", num_samples=12, make_job=hidream_job),
    )
}
"""By the package of the backbone, as in `evaluation.backbones.PACKAGES`."""


def all_models() -> dict[str, str]:
    """By every name of a model that a command takes, the package of its backbone."""
    return {**PACKAGES, **dict.fromkeys(flags_of("wan").VARIANTS, "wan")}


def asked_model(argv: Sequence[str] | None, default: str) -> str:
    """--model of a command line, before its other flags can be understood; UserError for one that no family has."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--model", default=default)
    try:
        model = first.parse_known_args(argv)[0].model
    except argparse.ArgumentError:  # the full parser will say so
        return default
    check_choice("model", model, all_models())
    return model
