"""What is asked of a model to be counted and timed, and what a backbone's adapter.py answers; needs no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from cache_dic import Cache, Run
    from seerkit.sampling.published import Counter

Callback = Callable[[int, "Tensor"], None]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a model call works on; made by `evaluation.backbones.workload`, which knows the model's own settings.

    height, width: in pixels; None leaves them to the model. num_samples: samples per call. depth: number of blocks, for FLUX,
    HunyuanVideo and HiDream of double blocks, for trials. attention: one of `seerkit.layers.names.ATTENTION_BACKENDS`. Of
    some models alone, else None: frames: of a video. cfg_scale: guidance weight; where that takes a second branch, as 1 does
    not, a sample has two rows, conditional and unconditional. text_tokens: of a prompt.
    """

    height: int | None = None
    width: int | None = None
    frames: int | None = None
    num_samples: int = 1
    depth: int | None = None
    attention: str = "sdpa"
    cfg_scale: float | None = None
    text_tokens: int | None = None


@dataclass(frozen=True)
class Case:
    """A model and the inputs of one call: `model(latents, t, **conditions)`, rows of all guidance branches together."""

    model: "nn.Module"
    latents: "Tensor"
    conditions: "dict[str, Tensor]"
    branches: int = 1

    @property
    def rows(self) -> int:
        return len(self.latents)


class Backbone(Protocol):
    """What counting and timing need of a model that has a name; `Adapter(name)` in a backbone's adapter.py has it.

    Everything is built on torch's default device: under `torch.device("meta")` nothing is allocated.

    num_steps: sampling steps. own: the model's own values of those workload settings that it has, None where they follow from
    the configuration. goals: bounds for keys of eval/benchmark.py's GOALS. deepest: depth of the deepest published model of
    the family, or the most that a configuration allows.
    """

    name: str
    num_steps: int
    own: Mapping[str, Any]
    goals: Mapping[str, float]
    deepest: int

    def build(self, workload: Workload, dtype: "torch.dtype") -> Case:
        """The model with random weights and random inputs; UserError for sizes that do not fit."""

    def timesteps(self, case: Case, num_steps: int) -> "Tensor":
        """Timesteps (S,) in sampling order."""

    def sample(
        self, case: Case, workload: Workload, num_steps: int, cache: "Cache", callback: Callback
    ) -> "tuple[Tensor, Run]":
        """A whole sampling run from the latents of `case`: final latents and the run."""

    def counter(self, case: Case) -> "Counter | None":
        """The counter behind the published figures for a call of `case`; None where no count is published."""

    def reference(self, case: Case) -> "tuple[nn.Module, dict[str, Any]] | None":
        """The public implementation with random weights, and the arguments that make a call of it one of `case`.

        None where there is none to compare with.
        """
