"""What users of pipelines do with them: it keeps working with a cache on, or is refused by name."""

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from tiny_pipelines import Tiny, quiet, randomised, tiny
from torch import Tensor, nn

from cache_dic import UserError
from taylorseers_diffusers import clock, disable, enable

ALL = ("flux", "hunyuan_video", "wan", "hidream", "dit")
SETTINGS = {"interval": 3, "max_order": 1, "warmup_steps": 2}
IMAGE_PARTS = ("image_encoder", "feature_extractor")


def cached(name: str = "flux", **settings: Any) -> Tiny:
    model = tiny(name)
    enable(model.pipe, **{**SETTINGS, **settings})
    return model


def sibling(model: Tiny, kind: str = "FluxPipeline", **other: Any) -> Tiny:
    """Another pipeline on the same parts."""
    parts = {name: part for name, part in model.pipe.components.items() if name not in IMAGE_PARTS}
    return quiet(getattr(diffusers, kind)(**{**parts, **other}), **model.inputs)


def full_steps(model: Tiny) -> dict[str, list[tuple[int, list[int]]]]:
    """By branch, of its runs: the step of the scheduler that each began at, and its full steps, counted from there."""
    branches = model.pipe.cache_report().branches
    return {name: [(r["first_step"], r["full_steps"]) for r in records] for name, records in branches.items()}


def hooked(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if name and hasattr(part, "_diffusers_hook")]


# ------------------------------------------------------------------------------------------------------------ one after another


def test_sizes_and_numbers_of_steps_one_after_another_are_those_of_fresh_pipelines() -> None:
    model = cached()
    for num_steps, more in ((6, {}), (9, {"height": 24}), (6, {}), (6, {"num_images_per_prompt": 2})):
        found = model(num_steps, **more)
        assert torch.equal(found, cached()(num_steps, **more))
        assert full_steps(model) == {"cond": [(0, [0, 1, 4] if num_steps == 6 else [0, 1, 4, 7])]}


def test_a_batch_of_prompts_is_its_rows() -> None:
    model = cached()
    embeds = {"prompt_embeds": torch.randn(2, 8, 32), "pooled_prompt_embeds": torch.randn(2, 32)}
    latents = torch.randn(2, 64, 4)
    both = model(6, latents=latents, **embeds)
    for row in range(2):
        one = model(6, latents=latents[row : row + 1], **{k: v[row : row + 1] for k, v in embeds.items()})
        torch.testing.assert_close(both[row : row + 1], one, rtol=1e-4, atol=1e-5)


def test_guidance_on_and_off() -> None:
    model = cached("wan")
    guided = model(8)
    assert full_steps(model) == {"cond": [(0, [0, 1, 4, 7])], "uncond": [(0, [0, 1, 4, 7])]}
    model(8, guidance_scale=1.0)
    assert full_steps(model) == {"cond": [(0, [0, 1, 4, 7])]}
    assert torch.equal(model(8), guided)


def test_branches_without_names_are_told_by_their_order() -> None:
    model = tiny("wan")
    enable(model.pipe, **SETTINGS)
    named = model(8)

    @contextmanager
    def unnamed(*_: Any, **__: Any) -> Iterator[None]:
        yield

    model.transformer.cache_context = unnamed
    assert torch.equal(model(8), named)
    assert full_steps(model) == {"call 1": [(0, [0, 1, 4, 7])], "call 2": [(0, [0, 1, 4, 7])]}


def test_a_branch_that_was_absent_for_some_steps_begins_anew() -> None:
    """As guidance in an interval does: a new run starts with the warm-up, and the report says so."""
    model = cached("wan")

    def guide(pipe: Any, step: int, _: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 1.0 if 2 <= step < 5 else 3.0
        return given

    model(12, callback_on_step_end=guide)
    assert full_steps(model) == {"cond": [(0, [0, 1, 4, 7, 10])], "uncond": [(0, [0, 1]), (6, [0, 1, 4])]}
    assert "uncond, begun anew at step 6: 3 of 6 steps full (6 7 10)" in str(model.pipe.cache_report())


def test_a_method_may_leave_out_the_unconditional_branch() -> None:
    """FasterCache makes its output of the conditional one, once it is known that there are two."""
    model = tiny("wan")
    before = model(8)
    window = {"both_range": 2, "both_above": -1.0, "both_below": 1001.0}
    enable(model.pipe, "fastercache_diffusers", attention_below=0.0, **window)
    found = model(8)
    cond, uncond = (
        [entry.get("made_of") for entry in r[0]["steps"]] for r in model.pipe.cache_report().branches.values()
    )
    assert cond == [None] * 8
    assert uncond == [None, "the other guidance branch"] * 4
    assert 0 < (found - before).norm() < 0.1 * before.norm()
    model(8, guidance_scale=1.0)
    assert len(model.pipe.cache_report().branches) == 1


@pytest.mark.parametrize("stop", ["exception", "interrupt"])
def test_an_interrupted_run_leaves_nothing_for_the_next(stop: str) -> None:
    model = cached()
    clean = model(8)

    def at_step(pipe: Any, step: int, _: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 4:
            pipe._interrupt = True
            if stop == "exception":
                raise KeyError("stop")
        return given

    try:
        model(8, callback_on_step_end=at_step)
    except KeyError:
        assert stop == "exception"
    assert full_steps(model) == {"cond": [(0, [0, 1, 4])]}
    assert torch.equal(model(8), clean)


def test_a_step_that_failed_is_not_built_on() -> None:
    model = cached()
    clean, block = model(8), model.transformer.transformer_blocks[1]
    calls, forward = [], block.forward

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError("full")
        return forward(*args, **kwargs)

    block.forward = failing
    with pytest.raises(MemoryError):
        model(8)
    del block.forward
    assert isinstance(model.transformer.transformer_blocks, nn.ModuleList)
    assert model.transformer.transformer_blocks[1] is block
    assert torch.equal(model(8), clean)


# ---------------------------------------------------------------------------------------------------------- several pipelines


def test_image_to_image_on_the_same_parts_starts_in_the_middle() -> None:
    """Fewer steps than asked for: the run is counted from where it begins (begin_index)."""
    model = cached()
    model(8)
    other = sibling(model, "FluxImg2ImgPipeline")
    other.inputs["image"] = torch.rand(1, 3, 16, 16)
    found = other(10, strength=0.6)
    assert full_steps(model) == {"call 1": [(4, [0, 1, 4])]}
    disable(model.pipe)
    enable(other.pipe, **SETTINGS)
    assert torch.equal(other(10, strength=0.6), found)
    assert full_steps(other) == {"call 1": [(4, [0, 1, 4])]}


def test_inpainting_starts_in_the_middle() -> None:
    model = cached()
    other = sibling(model, "FluxInpaintPipeline")
    other.inputs |= {"image": torch.rand(1, 3, 16, 16), "mask_image": torch.ones(1, 1, 16, 16)}
    enable(other.pipe, **SETTINGS)
    other(10, strength=0.6)
    assert full_steps(other) == {"call 1": [(4, [0, 1, 4])]}
    assert model.pipe.cache_report().branches == other.pipe.cache_report().branches


def test_a_pipeline_with_its_own_scheduler_needs_enable_too() -> None:
    model = cached()
    other = sibling(model, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    for _ in range(2):  # before the first run of the pipeline with the cache, and after it
        with pytest.raises(UserError, match=r"outside of a run of .* enable\(\) it for the pipeline that you call"):
            other(4)
        model(4)
    enable(other.pipe, **SETTINGS)
    found = other(8)
    model(6)
    assert full_steps(other) == {"cond": [(0, [0, 1, 4])]}, "of the transformer that they share"
    assert torch.equal(other(8), found)


def test_a_pipeline_without_the_cache_is_refused_while_another_was_interrupted() -> None:
    model = cached()
    other = sibling(model, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))

    def stop(_: Any, step: int, __: Any, given: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("stop")

    with pytest.raises(KeyError):
        model(8, callback_on_step_end=stop)
    with pytest.raises(UserError, match="the transformer was called at timestep"):
        other(8)


def test_a_timestep_is_read_once_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device would be waited for: in a run whose scheduler has an index, only where a run begins."""
    model, read = cached("wan"), []
    first = clock._first
    monkeypatch.setattr(clock, "_first", lambda given: read.append(1) or first(given))
    model(8)
    assert len(read) == 3, "to find the run, and to check it for each branch"


def test_both_transformers_of_wan_2_2_have_runs_of_their_own_steps() -> None:
    model = tiny("wan")
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=model.transformer,
        transformer_2=copy.deepcopy(model.transformer), scheduler=model.pipe.scheduler, boundary_ratio=0.8,
    )  # fmt: skip
    both = quiet(pipe, **model.inputs)
    before = both(16)
    enable(pipe, **SETTINGS)
    both(16)
    report = pipe.cache_report()
    assert [(r["first_step"], r["full_steps"]) for r in report.branches["cond"]] == [(0, [0, 1, 4, 7])]
    assert [(r["first_step"], r["full_steps"]) for r in report.second.branches["uncond"]] == [(10, [0, 1, 4])]
    assert "uncond, from step 10: 3 of 6 steps full (10 11 14)" in str(report)
    disable(pipe)
    assert torch.equal(both(16), before)


# ------------------------------------------------------------------------------------------------------------------ schedulers

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.mark.parametrize(
    ("name", "scheduler", "full"),
    [
        ("dit", diffusers.DDIMScheduler, [0, 1, 4, 7]),
        ("dit", diffusers.EulerDiscreteScheduler, [0, 1, 4, 7]),
        ("dit", diffusers.HeunDiscreteScheduler, [0, 1, 4, 7, 10, 13]),
        ("wan", diffusers.FlowMatchHeunDiscreteScheduler, [0, 1, 4, 7, 10, 13]),
        ("wan", lambda: diffusers.UniPCMultistepScheduler(**FLOW), [0, 1, 4, 7]),
        ("wan", lambda: diffusers.DPMSolverMultistepScheduler(**FLOW), [0, 1, 4, 7]),
        ("flux", diffusers.FlowMatchLCMScheduler, [0, 1, 4, 7]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_scheduler_that_is_set_after_enable_tells_the_steps(
    name: str, scheduler: Callable[[], Any], full: list[int]
) -> None:
    """With an index or without (DDIM), of several steps, or with timesteps twice (Heun), each of which is a step."""
    model = cached(name)
    model.pipe.scheduler = scheduler()
    model(8)
    assert list(full_steps(model).values()) == [[(0, full)]] * (2 if name == "wan" else 1)


def test_a_loop_of_ones_own_over_timesteps_from_1000_to_1_in_thousandths() -> None:
    """Its first call is at 1, which is the scheduler's last timestep, too."""
    model = cached()
    scheduler, latents = model.pipe.scheduler, torch.randn(1, 64, 4)
    scheduler.set_timesteps(8)
    assert (float(scheduler.timesteps[0]), float(scheduler.timesteps[-1])) == (1000, 1)
    given = {
        "encoder_hidden_states": model.inputs["prompt_embeds"], "pooled_projections": model.inputs["pooled_prompt_embeds"],
        "img_ids": torch.zeros(64, 3), "txt_ids": torch.zeros(8, 3), "guidance": torch.tensor([3.5]), "return_dict": False,
    }  # fmt: skip
    for t in scheduler.timesteps:
        (velocity,) = model.transformer(hidden_states=latents, timestep=t[None] / 1000, **given)
        latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
    assert full_steps(model) == {"call 1": [(0, [0, 1, 4, 7])]}


def test_timesteps_that_come_twice_without_an_index_are_computed() -> None:
    """PNDM has no index to tell them apart by: what cannot be told is full, and so right."""
    model = tiny("dit")
    model.pipe.scheduler = diffusers.PNDMScheduler(skip_prk_steps=True)
    before = model(6)
    enable(model.pipe, interval=6, warmup_steps=1)
    found = model(6)
    assert [r["first_step"] for r in model.pipe.cache_report().branches["call 2"]] == [1]
    assert (found - before).norm() < 0.2 * before.norm()


# -------------------------------------------------------------------------------------------------------------------- adapters


def test_lora_loaded_scaled_fused_and_unloaded() -> None:
    """Its layers take the place of features and of what gates are made of; the fold stays that of the literal form."""
    peft = pytest.importorskip("peft", reason="LoRA in diffusers is peft's")
    model = tiny("flux")
    plain = model()
    enable(model.pipe, **SETTINGS)
    without = model()
    targets = ["to_q", "proj_out", "ff.net.2", "norm.linear", "norm1.linear"]
    model.transformer.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=targets))
    half = {"joint_attention_kwargs": {"scale": 0.5}}
    folded, scaled = model(), model(**half)
    assert (folded - without).norm() > 1e-2 * folded.norm()
    assert (folded - scaled).norm() > 1e-2 * folded.norm()
    enable(model.pipe, engine="layerwise", **SETTINGS)
    torch.testing.assert_close(model(), folded, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(**half), scaled, rtol=1e-4, atol=1e-5)
    enable(model.pipe, **SETTINGS)
    model.transformer.fuse_lora()
    torch.testing.assert_close(model(), folded, rtol=1e-3, atol=1e-4)
    model.transformer.unfuse_lora()
    model.pipe.unload_lora_weights()
    torch.testing.assert_close(model(), without, rtol=1e-4, atol=1e-5)
    disable(model.pipe)
    torch.testing.assert_close(model(), plain, rtol=1e-4, atol=1e-5)
    assert not hooked(model.transformer)


def test_an_adapter_for_images_is_refused_where_it_would_be_left_out() -> None:
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    model = tiny("flux")
    for block in model.transformer.transformer_blocks:
        processor = FluxIPAdapterAttnProcessor(model.transformer.inner_dim, 32, num_tokens=(4,), scale=[1.0])
        block.attn.set_processor(randomised(processor))
    images = {"joint_attention_kwargs": {"ip_hidden_states": [torch.randn(1, 4, 32)]}}
    before = model(6, **images)
    enable(model.pipe, **SETTINGS)
    with pytest.raises(UserError, match=r"FluxTransformerBlock added something else .* take engine='stack'"):
        model(6, **images)
    enable(model.pipe, "pab", spatial_range=2)
    with pytest.raises(UserError, match="gives 3 values where 2 features are known"):
        model(6, **images)
    enable(model.pipe, engine="stack", **SETTINGS)
    model(6, **images)
    assert full_steps(model) == {"cond": [(0, [0, 1, 4])]}
    enable(model.pipe, "uncached")
    assert torch.equal(model(6, **images), before)


def test_guidance_by_skipped_layers_is_refused_by_name() -> None:
    torch.manual_seed(0)
    transformer = randomised(
        diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=1, in_channels=4, num_layers=4, attention_head_dim=8, num_attention_heads=2,
            caption_projection_dim=16, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
        )
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=1)
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=None,
        tokenizer=None, text_encoder_2=None, tokenizer_2=None, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    embeds = {
        f"{negative}{name}": torch.randn(shape)
        for negative in ("", "negative_")
        for name, shape in (("prompt_embeds", (1, 6, 32)), ("pooled_prompt_embeds", (1, 64)))
    }
    model = quiet(pipe, **embeds, height=16, width=16)
    enable(pipe, **SETTINGS)
    whole = model(8)
    assert full_steps(model) == {"call 1": [(0, [0, 1, 4, 7])]}, "guidance is one batch"
    with pytest.raises(UserError, match="called 3 of its 4 blocks; a call that leaves out blocks"):
        model(8, skip_guidance_layers=[1], skip_layer_guidance_start=0.0, skip_layer_guidance_stop=0.9)
    assert torch.equal(model(8), whole)


def test_blocks_of_two_layouts_in_turn_are_cached_in_part_or_refused() -> None:
    """Latte's go from frames to places and back: by turns from one list and the other, and never one stream to add up."""
    torch.manual_seed(0)
    transformer = randomised(
        diffusers.LatteTransformer3DModel(
            sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
            in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True, activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False,
        )
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=1)
    pipe = diffusers.LattePipeline(
        tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=diffusers.DDIMScheduler()
    )
    embeds = {"prompt_embeds": torch.randn(1, 6, 32), "negative_prompt_embeds": torch.randn(1, 6, 32)}
    model = quiet(pipe, negative_prompt=None, clean_caption=False, height=8, width=8, **embeds)
    before = model(8)
    for engine in ("folded", "stack", "hidden"):  # 16 frames of 16 places: both layouts have one shape
        enable(pipe, engine=engine, **SETTINGS)
        with pytest.raises(UserError, match="LatteTransformer3DModel lays out its tokens anew between blocks"):
            model(8)
    enable(pipe, "pab", spatial_range=2)
    found = model(8)
    assert full_steps(model) == {"call 1": [(0, [0, 2, 4, 6, 7])]}
    assert 0 < (found - before).norm() < 0.3 * before.norm()
    spatial, temporal = transformer.transformer_blocks, transformer.temporal_transformer_blocks
    hook = transformer._diffusers_hook.get_hook("taylorseers_cache")
    assert hook.passes.blocks == [spatial[0], temporal[0], spatial[1], temporal[1]]


# ------------------------------------------------------------------------------------------------------------------- placement


def offloaded(model: Tiny, how: str) -> None:
    """Offloading as a pipeline does it, computing on the CPU, where it moves nothing but hooks everything."""
    if how == "model":
        model.pipe.enable_model_cpu_offload(device="cpu")
    elif how == "sequential":  # what enable_sequential_cpu_offload calls, with no accelerator to name
        for part in model.pipe.components.values():
            if isinstance(part, nn.Module):
                accelerate.cpu_offload(part, execution_device=torch.device("cpu"), offload_buffers=True)
    else:
        cpu, blocks = torch.device("cpu"), {} if how == "leaf_level" else {"num_blocks_per_group": 2}
        model.transformer.enable_group_offload(cpu, cpu, offload_type=how, **blocks)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("how", ["model", "sequential", "leaf_level", "block_level"])
def test_offloading_before_and_after_enable(how: str, order: str) -> None:
    """Accelerate's hooks are taken off and on by every run of a pipeline; weights are on no device while a block waits."""
    name = "wan" if how == "sequential" else "flux"
    model = tiny(name)
    plain = model(6)
    enable(model.pipe, **SETTINGS)
    expected = model(6)
    disable(model.pipe)
    if order == "after":
        enable(model.pipe, **SETTINGS)
    offloaded(model, how)
    if order == "before":
        enable(model.pipe, **SETTINGS)
    for _ in range(2):
        assert torch.equal(model(6), expected)
        assert all(records == [(0, [0, 1, 4])] for records in full_steps(model).values())
    disable(model.pipe)
    assert torch.equal(model(6), plain)
    if how == "model":
        assert hasattr(model.transformer, "_hf_hook"), "offloading is still on"
        model.pipe.remove_all_hooks()
    if how == "sequential":
        weight = next(model.transformer.blocks[0].parameters())
        assert weight.device.type == "meta", "weights are brought when they are wanted"


def test_disable_leaves_accelerates_hook_in_its_place() -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    seen: list[int] = []

    class Counting(ModelHook):
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            seen.append(1)
            return args, kwargs

    model = tiny("flux")
    plain = model(6)
    enable(model.pipe, **SETTINGS)
    cached_output = model(6)
    add_hook_to_module(model.transformer, Counting())
    assert torch.equal(model(6), cached_output)
    assert len(seen) == 6
    disable(model.pipe)
    assert torch.equal(model(6), plain)
    assert len(seen) == 12
    remove_hook_from_module(model.transformer)
    assert torch.equal(model(6), plain)
    assert len(seen) == 12


@pytest.mark.parametrize("order", ["before", "after"])
def test_weights_in_eight_bits_that_are_cast_for_each_call(order: str) -> None:
    model = tiny("flux")
    if order == "after":
        enable(model.pipe, **SETTINGS)
    model.transformer.enable_layerwise_casting(torch.float8_e4m3fn, compute_dtype=torch.float32)
    if order == "before":
        enable(model.pipe, **SETTINGS)
    folded = model(6)
    enable(model.pipe, engine="layerwise", **SETTINGS)
    torch.testing.assert_close(model(6), folded, rtol=1e-5, atol=2e-6)
    weight = model.transformer.single_transformer_blocks[0].proj_out.weight
    assert weight.dtype == torch.float8_e4m3fn
    disable(model.pipe)
    plain = model(6)
    assert 0 < (folded - plain).norm() < 0.5 * plain.norm()


def test_another_dtype_in_between() -> None:
    model = cached()
    before = model(6)
    model.pipe.to(torch.bfloat16)
    floats = dict(model.inputs)
    model.inputs = {k: v.bfloat16() if isinstance(v, Tensor) else v for k, v in floats.items()}
    halves = model(6)
    assert halves.dtype == torch.bfloat16
    assert (halves.float() - before).norm() < 0.3 * before.norm()
    assert full_steps(model) == {"cond": [(0, [0, 1, 4])]}


@pytest.mark.parametrize(("name", "bits"), [*((name, 4) for name in ALL), ("flux", 8)])
def test_quantised_blocks_keep_the_fold_exact(name: str, bits: int) -> None:
    """Linear layers of bitsandbytes in every block: features and gates are what they give."""
    bnb = pytest.importorskip("bitsandbytes", reason="layers in 8 and 4 bits are bitsandbytes'")

    def quantised(layer: nn.Linear) -> nn.Module:
        weight, bias = layer.weight.data, layer.bias
        shape = (layer.in_features, layer.out_features, bias is not None)
        if bits == 8:
            made = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False)
            made.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        else:
            made = bnb.nn.Linear4bit(*shape, compute_dtype=torch.float32)
            made.weight = bnb.nn.Params4bit(weight, requires_grad=False)
        made.bias = bias
        return made.to("cpu")

    model = tiny(name)
    for blocks in [child for child in model.transformer.children() if isinstance(child, nn.ModuleList)]:
        for parent in list(blocks.modules()):
            for child, layer in list(parent.named_children()):
                if type(layer) is nn.Linear:
                    setattr(parent, child, quantised(layer))
    plain = model(6)
    enable(model.pipe, **SETTINGS)
    folded = model(6)
    enable(model.pipe, engine="layerwise", **SETTINGS)
    torch.testing.assert_close(model(6), folded, rtol=1e-5, atol=2e-6)
    assert 0 < (folded - plain).norm() < 0.3 * plain.norm()
    assert full_steps(model)[next(iter(full_steps(model)))] == [(0, [0, 1, 4])]


# ---------------------------------------------------------------------------------------------------------------------- compile


def test_a_transformer_compiled_as_a_whole_is_refused() -> None:
    model = cached()
    model(6)
    transformer = model.transformer
    model.pipe.transformer = torch.compile(transformer)
    for use in (lambda: model(6), lambda: enable(model.pipe), lambda: disable(model.pipe)):
        with pytest.raises(UserError, match=r"compiled as a whole.*transformer\.compile_repeated_blocks\(\)"):
            use()
    model.pipe.transformer = transformer
    transformer.compile()
    for use in (lambda: model(6), lambda: enable(model.pipe)):
        with pytest.raises(UserError, match=r"FluxTransformer2DModel is compiled as a whole"):
            use()
    disable(model.pipe)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["before", "after"])
def test_blocks_compiled_before_and_after_enable(order: str) -> None:
    """One graph for a class of blocks that hands over its features, whichever was first; forecast steps call none."""
    from torch._dynamo.utils import counters

    model = tiny("flux")
    plain = model(8)
    enable(model.pipe, **SETTINGS)
    folded = model(8)
    enable(model.pipe, "pab", spatial_range=2)
    broadcast = model(8)
    disable(model.pipe)
    torch._dynamo.reset()
    counters.clear()

    def graphs() -> int:
        assert not counters["graph_break"]
        return counters["stats"].get("unique_graphs", 0)

    if order == "after":
        enable(model.pipe, **SETTINGS)
    model.transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    if order == "before":
        torch.testing.assert_close(model(8), plain, rtol=1e-5, atol=1e-6)
        enable(model.pipe, **SETTINGS)
    of_blocks = graphs()
    torch.testing.assert_close(model(8), folded, rtol=1e-5, atol=1e-6)
    assert full_steps(model) == {"cond": [(0, [0, 1, 4, 7])]}
    added = graphs() - of_blocks
    assert 0 < added <= 3, "two classes, of which one is given other shapes by its first block"
    torch.testing.assert_close(model(8), folded, rtol=1e-5, atol=1e-6)
    assert graphs() == of_blocks + added
    enable(model.pipe, "pab", spatial_range=2)
    torch.testing.assert_close(model(8), broadcast, rtol=1e-5, atol=1e-6)
    assert graphs() == of_blocks + added, "a method that computes a part of a block runs it as it is"
    disable(model.pipe)
    torch.testing.assert_close(model(8), plain, rtol=1e-5, atol=1e-6)
    torch._dynamo.reset()


# --------------------------------------------------------------------------------------------------------- copies, and the end


def test_copies_are_refused_and_saving_saves_the_model_alone(tmp_path: Path) -> None:
    model = cached()
    model(6)
    for part in (model.pipe, model.transformer):
        with pytest.raises(UserError, match="cannot be copied or pickled with a cache on it; disable"):
            copy.deepcopy(part)
    model.pipe.save_pretrained(tmp_path)
    none = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    loaded = quiet(diffusers.FluxPipeline.from_pretrained(tmp_path, **none), **model.inputs)
    disable(model.pipe)
    assert torch.equal(loaded(6), model(6))
    copy.deepcopy(model.transformer)


def test_gradients_keep_nothing_alive() -> None:
    model = cached()
    without = model(6)
    model.transformer.requires_grad_(True)
    hook = model.transformer._diffusers_hook.get_hook("taylorseers_cache")
    call = type(model.pipe).__call__.__wrapped__
    seen: list[bool] = []

    def look(_: Any, __: int, ___: Any, given: dict[str, Any]) -> dict[str, Any]:
        seen.append(any(kept.requires_grad for kept in tensors_of(hook.sampling)))
        return {"latents": given["latents"].detach()}

    generator = torch.Generator().manual_seed(0)
    given = {"num_inference_steps": 6, "generator": generator, "output_type": "latent", "callback_on_step_end": look}
    with torch.enable_grad():
        found = call(model.pipe, **given, **model.inputs)[0]
    assert torch.equal(found, without)
    assert seen == [False] * 6


def tensors_of(sampling: Any) -> list[Tensor]:
    """What the engines of a sampling keep."""
    found = []
    for branch in sampling.branches.values():
        kept = vars(branch.run.engine)
        found += [value for value in kept.values() if isinstance(value, Tensor)]
    return found


@pytest.mark.parametrize("name", ["flux", "dit"])
def test_nothing_is_kept_once_a_run_has_ended(name: str) -> None:
    """Also of transformers that diffusers resets nothing of (DiT); and of a run that was stopped, once another begins."""
    model = cached(name, engine="layerwise")
    hook = model.transformer._diffusers_hook.get_hook("taylorseers_cache")
    kept: list[weakref.ref] = []

    def look(step: int) -> None:
        if step == 4:
            (branch,) = hook.sampling.branches.values()
            kept.extend(weakref.ref(f) for features in branch.run.engine.snapshots.by_step.values() for f in features)

    run = hook.passes.run

    def watched(*args: Any) -> Any:
        look(hook.sampling.step if hook.sampling else 0)
        return run(*args)

    hook.passes.run = watched
    gc.collect()
    gc.disable()
    try:
        model(6)
        assert kept
        assert all(ref() is None for ref in kept), "without waiting for the garbage collector"
    finally:
        gc.enable()
    assert hook.sampling is None


def test_a_pipeline_is_freed_at_once() -> None:
    model = cached()
    model(3)
    pipe, transformer, report = weakref.ref(model.pipe), weakref.ref(model.transformer), model.pipe.cache_report
    gc.collect()
    gc.disable()
    try:
        del model
        assert pipe() is None
    finally:
        gc.enable()
    gc.collect()  # diffusers' own registry of hooks is a cycle with its module
    assert transformer() is None
    with pytest.raises(UserError, match="the pipeline of this report is gone"):
        report()


def test_enabling_twice_replaces_and_wrong_settings_change_nothing() -> None:
    model = cached()
    expected = model(8)
    for wrong, said in (
        ({"method": "nope"}, "method 'nope' is unknown"),
        ({"interval": 0}, "interval = 0 must be an integer"),
        ({"engine": "nope"}, "engine 'nope' is unknown"),
        ({"method": "toca"}, "method 'toca' computes some tokens"),
    ):
        with pytest.raises(UserError, match=said):
            enable(model.pipe, **wrong)
    assert torch.equal(model(8), expected)
    enable(model.pipe, "fora", interval=2, warmup_steps=1)
    model(8)
    assert full_steps(model) == {"cond": [(0, [0, 2, 4, 6])]}
    enable(model.pipe, **SETTINGS)
    assert torch.equal(model(8), expected)
    names = list(model.transformer._diffusers_hook.hooks)
    assert names == ["taylorseers_cache"]
    disable(model.pipe)
    disable(model.pipe)
    assert not hooked(model.transformer)
