"""Answers of VBench and ImageReward for the main environment, whose packages they exclude (requirements.txt).

This environment's python runs it. Standard input has one request a line, {"call": NAME, "arguments": {…}}; standard output gets
one line for each, {"result": …} or {"error": {"kind": …, "message": …}}. Whatever the libraries print goes to standard error.
The process ends with its input, in the midst of an answer too, so that it does not outlive who asked.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import queue
import shutil
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

PACKAGES = (
    "vbench",
    "image-reward",
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "numpy",
    "opencv-python",
    "decord",
)
READ_BPE_AT_IMPORT = ("temporal_style", "overall_consistency")
HALF = 0.5  # of a model's tensors; a checkpoint of another model lacks nearly all


class WeightsError(Exception):
    """Weights that are not those of the model, which the libraries would take (`strict=False`)."""


# ------------------------------------------------------------------------------------------------------------- answers


def facts() -> dict[str, Any]:
    """Versions, the folder of VBench's own prompt list, and whether detectron2 is there; imports none of them."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    found = importlib.util.find_spec("vbench")
    return {
        "python": platform.python_version(),
        "versions": versions,
        "vbench_folder": os.path.dirname(found.origin) if found and found.origin else None,
        "has_detectron2": importlib.util.find_spec("detectron2") is not None,
    }


def vbench(dimension: str, full_info: str, videos: str, out: str, device: str) -> dict[str, Any]:
    """One dimension of the videos in a folder, in VBench's standard mode.

    score: as VBench states it. values: of the videos that it has a result for, by the names of their files; one that the list
    has twice stands twice. VBENCH_CACHE_DIR must be set.
    """
    if dimension in READ_BPE_AT_IMPORT:
        _place_vocabulary()
    from vbench import VBench

    used = _device(device)
    with _checked_weights(most_missing=HALF, most_unexpected=1.0):
        VBench(used, full_info, out).evaluate(
            videos_path=videos,
            name=dimension,
            dimension_list=[dimension],
            local=True,
            read_frame=False,
            mode="vbench_standard",
            imaging_quality_preprocessing_mode="longer",
        )
    with open(os.path.join(out, f"{dimension}_eval_results.json"), encoding="utf-8") as file:
        score, results = json.load(file)[dimension]
    values = [[os.path.basename(one["video_path"]), float(one["video_results"])] for one in results]
    return {"score": float(score), "values": values, "device": _device_name(used)}


_reward: list[Any] = []  # the model of ImageReward, once it is loaded


def load_image_reward(weights: str, med_config: str, device: str) -> dict[str, Any]:
    """Load the model once; its weights must have the names of the model's tensors."""
    import ImageReward

    used = _device(device)
    with _checked_weights(most_missing=0.0, most_unexpected=0.0):
        model = ImageReward.load(weights, device=used, med_config=med_config)
    _reward[:] = [model]
    return {"device": _device_name(used)}


def image_reward(prompts: Sequence[str], images: Sequence[str]) -> list[float]:
    """The reward of each image file for its prompt."""
    import torch

    (model,) = _reward
    rewards = []
    for prompt, path in zip(prompts, images, strict=True):
        try:
            with torch.no_grad():
                rewards.append(float(model.score(prompt, path)))
        except Exception as error:
            raise RuntimeError(f"{path}: {type(error).__name__}: {error}") from error
    return rewards


def _place_vocabulary() -> None:
    """Put ViCLIP's vocabulary, which VBench would download at import, where it looks: the package `clip` has the same file."""
    name = "bpe_simple_vocab_16e6.txt.gz"
    place = os.path.join(os.environ["VBENCH_CACHE_DIR"], "ViCLIP", name)
    found = importlib.util.find_spec("clip")
    if not os.path.exists(place) and found and found.origin:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        shutil.copyfile(os.path.join(os.path.dirname(found.origin), name), f"{place}.{os.getpid()}")
        os.replace(f"{place}.{os.getpid()}", place)


def _device(name: str) -> Any:
    import torch

    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _device_name(device: Any) -> str:
    import torch

    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


@contextlib.contextmanager
def _checked_weights(most_missing: float, most_unexpected: float) -> Iterator[None]:
    """WeightsError where a state dict lacks, or has beside them, more than these shares of a model's tensors.

    Positions are left out, a buffer that some versions of transformers write and others do not.
    """
    import torch

    load = torch.nn.Module.load_state_dict

    def checked(self: Any, state_dict: Any, strict: bool = True, *rest: Any, **more: Any) -> Any:
        loaded = load(self, state_dict, strict, *rest, **more)
        count = len(self.state_dict())
        for what, keys, most in (
            ("lack", loaded.missing_keys, most_missing),
            ("have beside them", loaded.unexpected_keys, most_unexpected),
        ):
            counted = [key for key in keys if not key.endswith("position_ids")]
            if len(counted) > most * count:
                shown = ", ".join(counted[:3])
                raise WeightsError(f"the weights {what} {len(counted)} of the {count} tensors of the model: {shown}, …")
        return loaded

    torch.nn.Module.load_state_dict = checked
    try:
        yield
    finally:
        torch.nn.Module.load_state_dict = load


# ---------------------------------------------------------------------------------------------------------------- pipe

CALLS = {call.__name__: call for call in (facts, vbench, load_image_reward, image_reward)}


def take_streams() -> tuple[TextIO, TextIO]:
    """Standard input and output for requests and answers alone: what else is printed goes to standard error."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, answers


def read(requests: TextIO, waiting: "queue.Queue[str]") -> None:
    """Hand on requests; at their end, end the process whatever it does."""
    for line in requests:
        waiting.put(line)
    os._exit(0)


def answer(line: str) -> dict[str, Any]:
    try:
        request = json.loads(line)
        return {"result": CALLS[request["call"]](**request["arguments"])}
    except BaseException as error:  # sys.exit of a library, too
        traceback.print_exc()
        return {"error": {"kind": type(error).__name__, "message": str(error)}}


def main() -> None:
    requests, answers = take_streams()
    waiting: queue.Queue[str] = queue.Queue()
    threading.Thread(target=read, args=(requests, waiting), daemon=True).start()
    while True:
        print(json.dumps(answer(waiting.get())), file=answers, flush=True)
        sys.stderr.flush()


if __name__ == "__main__":
    main()
