"""How published tables were measured, one protocol per backbone: model, sizes, prompts, counts, seeds, measures, sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """A public list of prompts that has to be brought. count: of different prompts.

    digests: SHA-256, or its first characters, of the files that are known, and what each is.
    """

    name: str
    count: int
    origin: str
    digests: Mapping[str, str] = field(default_factory=dict)


DRAWBENCH = Prompts(
    name="DrawBench",
    count=200,
    origin="DrawBench200.txt of GitHub Shenyi-Z/ToCa, after the sheet of the Imagen authors; no licence is stated, so it is "
    "not part of this repository",
    digests={
        "3bf3fce1c56d5fedf1af832cfb855bd4e16bacd2e4a36c123d50d04d4fd0afb7": "as in ToCa's repository, with quotation marks "
        "around 42 prompts, which published figures probably had",
        "266321db": "without the quotation marks",
    },
)
VBENCH = Prompts(
    name="VBench",
    count=944,
    origin="VBench_full_info.json of the package vbench 0.1.5, which `bash scripts/setup_legacy_eval.sh` installs",
)


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """A table of a publication: the rows of results/paper/NAME.json whose source begins with `source`.

    key: of --rows. columns: keys of `COLUMNS` that it prints, in order; clip: the measure whose scale its CLIP scores have.
    """

    key: str
    title: str
    source: str
    columns: Sequence[str]
    clip: str | None = None


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """name: of results/NAME and of the script. package: of the backbone. model, embedded: of a run, and of a smoke run.

    flags: of the sampling command, by their names in its namespace, for the published model. num_samples: images or videos of
    a row; smoke_samples: of the embedded model. sampling_tflops: 10^12 operations per second that an H100 keeps up, and where
    that is from: for estimates alone. facts: what else a reader must know, with its sources. embedded_measures: of a smoke run.
    """

    name: str
    package: str
    title: str
    model: str
    embedded: str
    num_steps: int
    sizes: Mapping[str, Any]
    flags: Mapping[str, Any]
    prompts: Prompts | None
    samples_per_prompt: int = 1
    num_samples: int
    smoke_samples: int
    tables: Sequence[PublishedTable]
    embedded_measures: Sequence[str]
    sampling_tflops: tuple[float, str]
    facts: Sequence[str]

    @property
    def measures(self) -> list[str]:
        """Names of the measures that its tables have columns of."""
        found = [measure_of(key, table) for table in self.tables for key in table.columns]
        return list(dict.fromkeys(name for name in found if name is not None))


@dataclass(frozen=True, kw_only=True)
class Column:
    """A published figure. heading, digits: of the table. measure: whose value stands beside it; None of a cost."""

    heading: str
    digits: int
    measure: str | None = None


COLUMNS: Mapping[str, Column] = MappingProxyType(
    {
        "flops_T": Column(heading="TFLOPs", digits=2),
        "speedup": Column(heading="FLOPs ratio", digits=2),
        "latency_s": Column(heading="latency s", digits=2),
        "latency_speedup": Column(heading="latency ratio", digits=2),
        "image_reward": Column(heading="ImageReward", digits=4, measure="image-reward"),
        "clip_score": Column(heading="CLIP score", digits=3),
        "fid": Column(heading="FID", digits=2, measure="fid"),
        "sfid": Column(heading="sFID", digits=2, measure="sfid"),
        "inception_score": Column(heading="IS", digits=2, measure="is"),
        "precision": Column(heading="precision", digits=2, measure="precision"),
        "psnr": Column(heading="PSNR dB", digits=2, measure="psnr"),
        "ssim": Column(heading="SSIM", digits=4, measure="ssim"),
        "lpips": Column(heading="LPIPS", digits=4, measure="lpips"),
        "vbench": Column(heading="VBench %", digits=2, measure="vbench"),
    }
)
"""By the key of a row in results/paper/."""


def measure_of(column: str, table: PublishedTable) -> str | None:
    """The measure whose value stands beside a column of a table."""
    return table.clip if column == "clip_score" else COLUMNS[column].measure


COSTS = ("flops_T", "speedup", "latency_s", "latency_speedup")
PAIRED = "PSNR, SSIM, LPIPS: to the images of the same noise after 50 full steps"
PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        one.name: one
        for one in (
            Protocol(
                name="flux",
                package="flux",
                title="FLUX.1-dev, 1024x1024, 50 steps",
                model="flux-dev",
                embedded="flux-tiny",
                num_steps=50,
                sizes={"height": 1024, "width": 1024},
                flags={"guidance_scale": 3.5, "precision": "bf16", "batch_size": 1, "seed": 0},
                prompts=DRAWBENCH,
                num_samples=200,
                smoke_samples=8,
                tables=(
                    PublishedTable(
                        key="hyca",
                        title="HyCa, Table 2",
                        source="arXiv 2510.04188 (HyCa), Table 2",
                        columns=("flops_T", "latency_s", "latency_speedup", "image_reward", "clip_score"),
                        clip="clip-b32",
                    ),
                    PublishedTable(
                        key="paper",
                        title="TaylorSeer (the paper)",
                        source="arXiv 2503.06923",
                        columns=("flops_T", "speedup", "image_reward", "clip_score", "psnr", "ssim", "lpips"),
                        clip="clip-l14",
                    ),
                    PublishedTable(
                        key="chebbooster",
                        title="ChebBooster, Table 2",
                        source="arXiv 2608.23429 (ChebBooster), Table 2",
                        columns=("flops_T", "latency_s", "latency_speedup", "image_reward", "clip_score"),
                        clip="clip-b32",
                    ),
                    PublishedTable(
                        key="toca",
                        title="ToCa, README",
                        source="GitHub Shenyi-Z/ToCa, README",
                        columns=("flops_T", "latency_s", "latency_speedup", "image_reward"),
                    ),
                    PublishedTable(
                        key="foca",
                        title="FoCa, through cache-dit",
                        source="arXiv 2508.16211 (FoCa)",
                        columns=("flops_T", "speedup", "image_reward", "clip_score"),
                        clip="clip-b32",
                    ),
                ),
                embedded_measures=("psnr", "ssim", "lite0", "emoji-score"),
                sampling_tflops=(400, "9.30 s for 3719.5 TFLOPs on an H100, vipshop/cache-dit issue 704"),
                facts=(
                    "DrawBench, 200 prompts, one image each, 1024x1024, 50 steps, guidance 3.5, bf16, 512 text tokens, batch "
                    "1, seed 0 and the number of the image (settings of Shenyi-Z/TaylorSeer, TaylorSeer-FLUX)",
                    "CLIP scores near 32 are on the scale of ViT-B/32, those near 19 of ViT-L/14 according to the authors' "
                    "group (Shenyi-Z/ToCa issue 19); neither table names its model",
                    "the released script writes JPEGs of quality 95 with a watermark, and was probably scored on those",
                    PAIRED + "; published PSNR is not on one scale from work to work",
                    "whose GPU the latencies are of is not stated, so that ratios alone compare",
                ),
            ),
            Protocol(
                name="dit",
                package="dit",
                title="DiT-XL/2, ImageNet 256x256, DDIM, 50 steps",
                model="DiT-XL/2",
                embedded="fashion-mnist",
                num_steps=50,
                sizes={"height": 256, "width": 256},
                flags={"image_size": 256, "guidance_scale": 1.5, "precision": "fp32", "seed": 0, "batch_size": 32},
                prompts=None,
                num_samples=50_000,
                smoke_samples=40,
                tables=(
                    PublishedTable(
                        key="paper",
                        title="TaylorSeer (the paper)",
                        source="arXiv 2503.06923",
                        columns=("flops_T", "speedup", "fid", "sfid", "inception_score"),
                    ),
                    PublishedTable(
                        key="chebbooster",
                        title="ChebBooster, Table 1",
                        source="arXiv 2608.23429 (ChebBooster), Table 1",
                        columns=("flops_T", "latency_s", "latency_speedup", "fid", "sfid", "inception_score"),
                    ),
                    PublishedTable(
                        key="procache",
                        title="ProCache",
                        source="arXiv 2512.17298 (ProCache)",
                        columns=("flops_T", "latency_s", "fid", "sfid", "precision", "inception_score"),
                    ),
                    PublishedTable(
                        key="rfc",
                        title="RFC",
                        source="arXiv 2602.19506 (RFC)",
                        columns=("flops_T", "fid", "sfid"),
                    ),
                ),
                embedded_measures=("psnr", "ssim", "lite0", "fd-squeezenet", "class-accuracy"),
                sampling_tflops=(200, "arithmetic, 150 to 250 TFLOPs a second in batches"),
                facts=(
                    "50 000 samples of random classes in one .npz, guidance 1.5 on the first three channels, EMA autoencoder, "
                    "TF32, seed 0 (facebookresearch/DiT sample_ddp.py with --ddim-sample, and TaylorSeer-DiT)",
                    "FID, sFID and IS by ADM's evaluator against VIRTUAL_imagenet256_labeled.npz (openai/guided-diffusion)",
                    "latency: one image at a time; ChebBooster names an RTX 4090 and an A800 and not which for which table",
                ),
            ),
            Protocol(
                name="hunyuan",
                package="hunyuan_video",
                title="HunyuanVideo, 480x640, 65 frames, 50 steps",
                model="hunyuan-video",
                embedded="hunyuan-tiny",
                num_steps=50,
                sizes={"height": 480, "width": 640, "frames": 65},
                flags={"guidance_scale": 6.0, "precision": "bf16", "batch_size": 1, "seed": 42, "shift": 7.0},
                prompts=VBENCH,
                samples_per_prompt=5,
                num_samples=4720,
                smoke_samples=6,
                tables=(
                    PublishedTable(
                        key="hyca",
                        title="HyCa, Table 3",
                        source="arXiv 2510.04188 (HyCa), Table 3",
                        columns=("flops_T", "latency_s", "latency_speedup", "vbench"),
                    ),
                    PublishedTable(
                        key="paper",
                        title="TaylorSeer (the paper)",
                        source="arXiv 2503.06923",
                        columns=("flops_T", "speedup", "vbench", "psnr", "ssim", "lpips"),
                    ),
                    PublishedTable(
                        key="linca",
                        title="LinCa, Table 3",
                        source="LinCa, Table 3",
                        columns=("flops_T", "latency_s", "latency_speedup", "vbench"),
                    ),
                    PublishedTable(
                        key="lesa",
                        title="LESA",
                        source="arXiv 2602.20497 (LESA)",
                        columns=("speedup", "psnr", "ssim", "lpips"),
                    ),
                ),
                embedded_measures=("psnr", "ssim", "lite0", "flicker", "warping-error"),
                sampling_tflops=(400, "arithmetic, as of FLUX.1; an independent run on an A100 had 153"),
                facts=(
                    "VBench's 944 different prompts, five videos each, 480x640, 65 frames at 24 a second, 50 steps, embedded "
                    "guidance 6, flow shift 7, bf16 (the example command of TaylorSeer-HunyuanVideo)",
                    "the released command draws sample i of every prompt with seed 42 + i; here the noise comes from seed 42 "
                    "and the running number, so that scores compare and videos are no pairs of theirs",
                    "VBench by its package, local weights, all 16 dimensions with one process each, no static filter for "
                    "temporal_flickering, H.264 at CRF 25 as the released sampler writes it",
                ),
            ),
            Protocol(
                name="wan",
                package="wan",
                title="Wan2.1-T2V-1.3B, 832x480, 81 frames, 50 steps",
                model="wan-t2v-1.3B",
                embedded="wan-tiny",
                num_steps=50,
                sizes={"height": 480, "width": 832, "frames": 81},
                flags={"precision": "bf16", "batch_size": 1, "seed": 0},
                prompts=VBENCH,
                num_samples=944,
                smoke_samples=6,
                tables=(
                    PublishedTable(
                        key="magcache",
                        title="MagCache, Table 1",
                        source="arXiv 2506.09045 (MagCache), Table 1",
                        columns=("flops_T", "latency_s", "latency_speedup", "psnr", "ssim", "lpips"),
                    ),
                    PublishedTable(
                        key="easycache",
                        title="EasyCache, README",
                        source="GitHub EasyCache, README",
                        columns=("latency_s", "latency_speedup", "psnr", "ssim", "lpips"),
                    ),
                    PublishedTable(
                        key="teacache",
                        title="TeaCache, README",
                        source="GitHub ali-vilab/TeaCache, TeaCache4Wan2.1",
                        columns=("latency_s", "latency_speedup"),
                    ),
                ),
                embedded_measures=("psnr", "ssim", "lite0", "flicker", "warping-error"),
                sampling_tflops=(400, "arithmetic, as of FLUX.1"),
                facts=(
                    "the TaylorSeer paper has no table of Wan2.1; these are figures of others",
                    "832x480, 81 frames, 50 steps, the official guidance 5 and flow shift 5; the prompts of those works are "
                    "not in the text that was read: here VBench's 944, one video each",
                    "published TFLOPs leave attention's products out (fused kernels are not counted); ours have them",
                    PAIRED.replace("images", "videos"),
                ),
            ),
            Protocol(
                name="hidream",
                package="hidream",
                title="HiDream-I1-Full, 1024x1024, 50 steps",
                model="hidream-full",
                embedded="hidream-tiny",
                num_steps=50,
                sizes={"height": 1024, "width": 1024},
                flags={"precision": "bf16", "batch_size": 1, "seed": 0},
                prompts=DRAWBENCH,
                num_samples=200,
                smoke_samples=8,
                tables=(
                    PublishedTable(
                        key="paper",
                        title="TaylorSeer (the authors' repository)",
                        source="GitHub Shenyi-Z/TaylorSeer, TaylorSeer-HiDream.md",
                        columns=("latency_s", "latency_speedup"),
                    ),
                    PublishedTable(
                        key="teacache",
                        title="TeaCache, README",
                        source="GitHub ali-vilab/TeaCache, TeaCache4HiDream-I1",
                        columns=("latency_s", "latency_speedup"),
                    ),
                ),
                embedded_measures=("psnr", "ssim", "lite0", "emoji-score"),
                sampling_tflops=(400, "arithmetic, as of FLUX.1"),
                facts=(
                    "DrawBench, 200 prompts, one image each, 1024x1024, 50 steps (TaylorSeer-HiDream.md names the prompts and "
                    "the times, neither the GPU nor the variant)",
                    "operations and quality are published nowhere; ours stand alone",
                ),
            ),
        )
    }
)
"""By the name of the script."""
