"""A plugin of pytest for diffusers' own tests of its caches: `enable_cache` and `disable_cache` put our caches on and off.

    pytest -p diffusers_own_tests tests/pipelines/flux/test_pipeline_flux.py -k Cache

scripts/test_diffusers_front.sh runs all of them. A configuration of diffusers is taken as the method and settings that
test_decisions.py has for it. What a test's parts ask of the hub and do not get is given a stand-in, and said so: tokens of a
text are then made of its letters. Tests that look into diffusers' hooks are left out by name.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers.models.cache_utils import CacheMixin
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_OFFLINE
from torch import Tensor, nn

from cache_dic import UserError
from taylorseers_diffusers import disable, enable
from taylorseers_diffusers.attach import hook_on
from taylorseers_diffusers.front import HOOK

LEFT_OUT = {
    "double_enable_raises_error": "enabling twice replaces the cache here",
    "test_pyramid_attention_broadcast_layers": "looks into diffusers' hooks",
    "test_faster_cache_state": "looks into diffusers' hooks",
}
"""By part of a test's name, why it is not run."""

Settings = dict[str, Any]


def _taylorseer(config: Any, _: int) -> tuple[str, Settings]:
    settings = {"interval": config.cache_interval, "max_order": config.max_order, "schedule": "diffusers"}
    engine = {"engine": "output"} if config.use_lite_mode else {}
    return "taylorseer", {**settings, "warmup_steps": config.disable_cache_before_step, **engine}


def _pab(config: Any, branches: int) -> tuple[str, Settings]:
    above, below = map(float, config.spatial_attention_timestep_skip_range)
    ranges = {
        f"{kind}_range": getattr(config, f"{kind}_attention_block_skip_range")
        for kind in ("spatial", "temporal", "cross")
    }
    return "pab", {**ranges, "above": above, "below": below, "shared_branches": branches > 1}


def _fastercache(config: Any, _: int) -> tuple[str, Settings]:
    above, below = map(float, config.spatial_attention_timestep_skip_range)
    given = {
        "attention_range": config.spatial_attention_block_skip_range,
        "both_range": config.unconditional_batch_skip_range,
    }
    return "fastercache_diffusers", {**given, "attention_above": above, "attention_below": below}


METHODS: dict[str, Callable[[Any, int], tuple[str, Settings]]] = {
    "TaylorSeerCacheConfig": _taylorseer,
    "FirstBlockCacheConfig": lambda config, _: ("first_block_cache", {"threshold": config.threshold}),
    "MagCacheConfig": lambda config, _: (
        "magcache",
        {
            "table": [float(ratio) for ratio in config.mag_ratios],
            "threshold": config.threshold,
            "max_consecutive": config.max_skip_steps,
            "retention_ratio": config.retention_ratio,
        },
    ),
    "PyramidAttentionBroadcastConfig": _pab,
    "FasterCacheConfig": _fastercache,
}
"""By name of diffusers' configuration, for as many guidance branches: our method and its settings."""

# ------------------------------------------------------------------------------------------------------- enable, disable

_pipelines: "weakref.WeakKeyDictionary[nn.Module, Any]" = weakref.WeakKeyDictionary()
"""By transformer, its pipeline."""


class _Calls:
    """A scheduler for a transformer that a test calls without one: two steps, each call of a context the next of them."""

    num_inference_steps = None
    begin_index = None

    def __init__(self, times: tuple[float, float] | None) -> None:
        self.times = times
        self.timesteps: Tensor | None = None
        self.step_index = 0
        self.taken: Counter[str | None] = Counter()

    def call(self, module: nn.Module, _: Any, given: dict[str, Any]) -> None:
        hook = hook_on(module, HOOK)
        if hook is None:
            return
        if hook.sampling is None:
            time = float(given["timestep"].flatten()[0])
            self.timesteps, self.taken = torch.tensor(self.times or (time, time)), Counter()
        context = hook.state_manager._context
        name = None if context is None else context.name
        self.step_index = self.taken[name]
        self.taken[name] += 1


def _pipeline_of(transformer: nn.Module, config: Any) -> Any:
    pipe = _pipelines.get(transformer)
    if pipe is None:
        times = {"PyramidAttentionBroadcastConfig": (500.0, 499.0), "FasterCacheConfig": (1000.0, 500.0)}
        calls = _Calls(times.get(type(config).__name__))
        pipe = _Alone(transformer=transformer, scheduler=calls)
        transformer.register_forward_pre_hook(calls.call, with_kwargs=True)
        transformer.alone = pipe
        _pipelines[transformer] = pipe
    return pipe


class _Alone(SimpleNamespace):
    """In place of a pipeline."""

    __hash__ = object.__hash__


def _enable_cache(self: nn.Module, config: Any) -> None:
    pipe = _pipeline_of(self, config)
    branches = 1 if isinstance(pipe, _Alone) else 2
    method, settings = METHODS[type(config).__name__](config, branches)
    enable(pipe, method, **settings)


def _disable_cache(self: nn.Module) -> None:
    disable(_pipelines[self])


def _register_modules(self: Any, **modules: Any) -> None:
    _originals["register_modules"](self, **modules)
    if isinstance(modules.get("transformer"), nn.Module):
        _pipelines[modules["transformer"]] = self


_originals = {"register_modules": diffusers.DiffusionPipeline.register_modules}
CacheMixin.enable_cache = _enable_cache
CacheMixin.disable_cache = _disable_cache
CacheMixin.is_cache_enabled = property(lambda self: hook_on(self, HOOK) is not None)
diffusers.DiffusionPipeline.register_modules = _register_modules

# ------------------------------------------------------------------------------------------------------------- stand-ins

TINY = ("hf-internal-testing/", "finetrainers/dummy")
_stood_in: set[str] = set()


class Letters(transformers.PreTrainedTokenizerBase):
    """A tokenizer that needs no file: a text's letters, as far as its model's vocabulary of 1000 goes."""

    model_max_length = 77
    added_tokens_encoder: Mapping[str, int] = MappingProxyType({})

    def __init__(self, **_: Any) -> None:
        """Nothing to load."""

    def __call__(self, text: Any, max_length: int | None = None, return_length: bool = False, **_: Any) -> Any:
        texts = [text] if isinstance(text, str) else list(text)
        length = max_length or self.model_max_length
        rows = [[*(3 + ord(letter) % 900 for letter in one[: length - 1]), 1] for one in texts]
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        made = {"input_ids": ids, "attention_mask": (ids != 0).long()}
        return transformers.BatchEncoding(made)

    def tokenize(self, text: str, **_: Any) -> list[str]:
        return text.split()

    def batch_decode(self, ids: Tensor, **_: Any) -> list[str]:
        return ["" for _ in ids]

    def __len__(self) -> int:
        return 1000

    def __repr__(self) -> str:
        return "Letters()"


def _t5_config() -> Any:
    return transformers.T5Config(
        vocab_size=1000, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, decoder_start_token_id=0
    )


def _from_hub_or(make: Callable[[], Any], original: Any) -> Any:
    def from_pretrained(name: Any, *args: Any, **kwargs: Any) -> Any:
        is_tiny = str(name).startswith(TINY)
        if not is_tiny or not HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(name, "config.json"), str):
            return original(name, *args, **kwargs)
        _stood_in.add(str(name))
        return make()

    return from_pretrained


for _name in ("AutoConfig", "AutoTokenizer", "CLIPTokenizer", "LlamaTokenizer", "Qwen2Tokenizer"):
    _kind, _make = getattr(transformers, _name), _t5_config if _name == "AutoConfig" else Letters
    _kind.from_pretrained = staticmethod(_from_hub_or(_make, _kind.from_pretrained))

# ----------------------------------------------------------------------------------------------------------------- pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for part, why in LEFT_OUT.items():
            if part in item.name:
                item.add_marker(pytest.mark.skip(reason=why))
        if hasattr(item.cls, "_get_hook_names"):
            item.cls._get_hook_names = lambda self: [HOOK]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    """What we refuse, and what only the hub has, is no failure, and is told apart in the summary."""
    outcome = yield
    report, error = outcome.get_result(), call.excinfo
    if error is None or report.outcome != "failed":
        return
    said = str(error.value)
    if error.errisinstance(UserError):
        why = f"refused: {said}"
    elif "hf-internal-testing" in said or "huggingface.co" in said:
        why = "needs the hub"
    else:
        return
    report.outcome, report.longrepr = "skipped", (str(item.path), 0, f"Skipped: {why}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", [])
    )
    count = {name: len(terminalreporter.stats.get(name, [])) for name in ("passed", "failed", "error")}
    terminalreporter.section("diffusers' cache tests against this front")
    terminalreporter.line(f"{count['passed']} passed, {count['failed']} failed, {count['error']} with errors")
    for why, number in sorted(reasons.items()):
        terminalreporter.line(f"{number} not run: {why}")
    for name in sorted(_stood_in):
        terminalreporter.line(f"stand-in for {name}, which the hub has")
