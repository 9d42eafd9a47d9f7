"""Weights of a model: find the file, read it, verify, load, export; `seerkit.weights.layouts` has what concerns names."""

import argparse
import json
import os
import pickle
import re
import shlex
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from cache_dic import UserError
from seerkit.io.files import read_json, written_whole
from seerkit.weights.layouts import Layout, State, apply_scales, find_part, listed

Model = TypeVar("Model", bound=nn.Module)

CHECKPOINTS = Path(__file__).resolve().parents[3] / "checkpoints"  # the repository's own folder for downloads
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
INDEX = ".index.json"  # suffix of the list of shards beside a checkpoint in several files
SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(?P<suffix>\.\w+)")  # names of these, as all hubs have them
AGENT = {"User-Agent": "taylorseer"}
# Keys under which training scripts keep a state dict, best first, one within another, too.
NESTED = (
    *("ema", "ema_model", "model_ema", "ema_state_dict", "params_ema", "model", "module", "state_dict"),
    *("model_state_dict", "params", "net", "network", "transformer", "diffusion_model"),
)
ANSWER_S, STALL_S = 5.0, 60.0  # a server that says nothing for so long is out of reach, a transfer has broken off


# ---------------------------------------------------------------------------------------------------------------- find


class NotFoundError(FileNotFoundError):
    """Weights that are nowhere. The message tells all; for those who put several together:

    named: the place that the user named, or that holds a part, and what is wrong with it; None if there is none such.
    failures: of downloads. command: what completes a copy that is there in part.
    """

    def __init__(
        self, message: str, *, named: str | None = None, failures: Sequence[str] = (), command: str | None = None
    ) -> None:
        super().__init__(message)
        self.named, self.failures, self.command = named, tuple(failures), command


def hub_command(repo: str, patterns: Sequence[str], folder: Path | None) -> str:
    """The shell command that puts files of a repository into a folder, None for the hub's cache; patterns: of their names."""
    include = [word for pattern in patterns for word in ("--include", pattern)]
    place = ["--local-dir", str(folder)] if folder else []
    return shlex.join([hub_program(), "download", repo, *include, *place])


def hub_program() -> str:
    """What `hf` is called from the current folder: on PATH, or beside the Python that runs, where an environment has it."""
    beside = Path(sys.executable).with_name("hf")
    if shutil.which("hf") or not beside.is_file():
        return "hf"
    here = Path.cwd()
    return str(beside.relative_to(here)) if beside.is_relative_to(here) else str(beside)


@dataclass(frozen=True)
class Published:
    """A published file: its name, and its address as a `url` or as a hub `repo`, in which `name` may have folders.

    A checkpoint in several files is named by its index, `….safetensors.index.json`. beside: files of the repository that are
    fetched with it.
    """

    name: str
    url: str | None = None
    repo: str | None = None
    beside: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """`CHECKPOINTS`, or a folder in it for a repository, since names of hub files recur."""
        return CHECKPOINTS / self.repo.split("/")[-1] if self.repo else CHECKPOINTS

    @property
    def place(self) -> Path:
        """Where the file belongs."""
        return self.folder / self.name

    @property
    def address(self) -> str:
        return self.url or self.repo or "nowhere"

    @property
    def patterns(self) -> list[str]:
        """Names of the file, or of all its shards, and of those beside it."""
        return [self.name.split(".")[0] + "*" if self.name.endswith(INDEX) else self.name, *self.beside]

    @property
    def cache(self) -> str:
        return "the hub's cache" if self.repo else "torch.hub's cache"

    @property
    def command(self) -> str | None:
        """The shell command that puts the file in its place."""
        if self.url:
            return shlex.join(["curl", "-L", "--fail", "--create-dirs", "-o", str(self.place), self.url])
        if self.repo and self.patterns != [self.name]:
            return hub_command(self.repo, self.patterns, self.folder)
        if self.repo:
            return shlex.join([hub_program(), "download", self.repo, self.name, "--local-dir", str(self.folder)])
        return None

    def caches(self) -> Iterable[Path]:
        """Where torch.hub or huggingface_hub would have put the file."""
        if not self.repo:
            yield Path(torch.hub.get_dir()) / "checkpoints" / self.name
            return
        try:
            from huggingface_hub import try_to_load_from_cache
            from huggingface_hub.constants import HF_HUB_CACHE
        except ImportError:
            return
        cached = try_to_load_from_cache(self.repo, self.name)
        folder = Path(HF_HUB_CACHE) / f"models--{self.repo.replace('/', '--')}"
        yield Path(cached) if isinstance(cached, str) else folder


def find_weights(
    given: str | Path | None, files: Sequence[Published], *, env: str | None = None, download: bool = True
) -> Path:
    """The checkpoint file (or the index of its shards) to read.

    What the user names is the only place looked at: `given`, a file, or a folder with one of `files` or one checkpoint
    in all; else the environment variable `env`, a file or a folder with one of `files`. If neither is set: `CHECKPOINTS`,
    the hub caches, then a download of the first that can be had.
    Raises FileNotFoundError with all files, all places and the commands that fetch them, or with the shards that a checkpoint
    lacks and the command that fetches these.
    """
    named = given or (os.environ.get(env) if env else None)
    if named:
        path = Path(named).expanduser()
        candidates = [path, *_in_folder(path, files)]
        if given and len(lone := _checkpoints_in(path)) == 1:
            candidates += lone
        for candidate in map(_whole, candidates):
            if missing := missing_shards(candidate):
                raise _incomplete(candidate, missing, files)
            if candidate.is_file():
                return candidate
        raise _not_found(files, named=f"{path} ({_contents(path)}{'' if given else f', named by {env}'})")
    places, parts = [], {}
    for file in files:
        for place in (file.place, *file.caches()):
            if missing := missing_shards(place):
                parts[place] = missing
            elif place.is_file():
                return place
            places.append(str(place))
    failures = []
    for file in files if download else ():
        try:
            return _download(file)
        except (OSError, HTTPException) as error:
            failures.append(f"{file.url or file.repo}: {_reason(error)}")
    failures = list(dict.fromkeys(failures))
    if parts:
        raise _incomplete(*next(iter(parts.items())), files, failures)
    raise _not_found(files, places=list(dict.fromkeys(places)), failures=failures)


def find_checkpoint(
    given: str | Path | None,
    *,
    embedded: Path | None,
    published: Sequence[Published],
    known: str,
    training: str,
    env: str | None = None,
    download: bool = True,
) -> Path:
    """A model's checkpoint: `given` (a file or folder), or the one that comes with the repository, or a published one.

    embedded: the file in the repository, for a model that has one. known: models that have weights, and training: the
    command that makes some, for messages. Raises FileNotFoundError as `find_weights` does.
    """
    if given is None and embedded is not None:
        if not embedded.is_file():
            raise FileNotFoundError(
                f"{embedded} is not there; restore it from the repository, or train one with `{training} --out FOLDER` "
                "and name FOLDER/state.pt"
            )
        return embedded
    if given is None and not published:
        raise FileNotFoundError(
            f"no weights are published for this model, only for {known}; name a checkpoint of your own"
        )
    return find_weights(given, published, env=env, download=download)


def _in_folder(folder: Path, files: Sequence[Published]) -> list[Path]:
    """Where `files` would be in a folder that the user named, with or without folders of their own."""
    names = [(file.name, Path(file.name).name, file.place.relative_to(CHECKPOINTS)) for file in files]
    return [folder / name for three in names for name in three]


def _checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, those in shards by their index, which may be missing; indices alone if there are some."""
    if not folder.is_dir():
        return []
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    found = dict.fromkeys(_whole(path) for path in paths if path.suffix in SUFFIXES or path.name.endswith(INDEX))
    return [path for path in found if path.name.endswith(INDEX)] or list(found)


def _whole(path: Path) -> Path:
    """The index of the checkpoint that a file is a shard of, by its name; other files and folders as they are."""
    shard = SHARD.fullmatch(path.name)
    if shard is None or int(shard["count"]) < 2 or path.is_dir():
        return path
    return path.with_name(shard["stem"] + shard["suffix"] + INDEX)


def _contents(path: Path) -> str:
    if not path.exists():
        return "does not exist"
    found = _checkpoints_in(path)
    return f"holds {listed([p.name for p in found])}" if found else "holds no checkpoint"


def missing_shards(path: Path) -> list[str]:
    """What is not there of a checkpoint in shards, given by its index: shards that it names, or itself; none for others."""
    if not path.name.endswith(INDEX):
        return []
    if path.is_file():
        names = _shards(path)
    else:
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        shard = next((SHARD.fullmatch(other.name) for other in beside if other != path == _whole(other)), None)
        if shard is None:
            return []
        numbers = range(1, int(shard["count"]) + 1)
        names = [f"{shard['stem']}-{number:05d}-of-{shard['count']}{shard['suffix']}" for number in numbers]
        names = [path.name, *names] if names else []
    return [name for name in names if not (path.parent / name).is_file()]


def _incomplete(
    path: Path, missing: Sequence[str], files: Sequence[Published], failures: Sequence[str] = ()
) -> NotFoundError:
    """The error for a checkpoint of which shards are missing."""
    said = f"checkpoint {path} is incomplete: {listed(missing)} missing beside it"
    if failures:
        said += f"; download failed: {'; '.join(failures)}"
    file = next((file for file in files if file.repo and Path(file.name).name == path.name), None)
    if file is None or file.repo is None:
        return NotFoundError(f"{said}; copy the rest there", named=f"{path}, without {listed(missing)}")
    wanted = [str(PurePosixPath(file.name).with_name(name)) for name in missing]
    command = [hub_program(), "download", file.repo, *wanted]
    if "snapshots" not in path.parts:  # which are of the hub's cache, where the command puts it anyway
        folders = len(PurePosixPath(file.name).parts) - 1
        at_home = path.parts[-folders - 1 :] == PurePosixPath(file.name).parts
        command += ["--local-dir", str(path.parents[folders] if at_home else file.place.parents[folders])]
        if not at_home:
            command[3:-2] = ["--include", file.name.split(".")[0] + "*"]
    remedy, named = shlex.join(command), f"{path}, without {listed(missing)}"
    return NotFoundError(f"{said}; fetch the rest with `{remedy}`", named=named, failures=failures, command=remedy)


def _not_found(
    files: Sequence[Published], *, named: str | None = None, places: Sequence[str] = (), failures: Sequence[str] = ()
) -> NotFoundError:
    names = " or ".join(f"{file.name} ({file.repo})" if file.repo else file.name for file in files) or "a checkpoint"
    parts = [f"{names} was not found; looked at {named or ', '.join(places) or 'nothing'}"]
    if failures:
        parts.append(f"download failed: {'; '.join(failures)}")
    commands = [f"`{file.command}`" for file in files if file.command]
    if commands:
        parts.append(f"fetch it with {' or '.join(commands)}")
    return NotFoundError("; ".join(parts), named=named, failures=failures)


def _download(file: Published) -> Path:
    """Fetch a file, hub files into the hub's cache; OSError if it cannot be had."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise OSError("HF_HUB_OFFLINE is set")
    if file.url:
        _probe(file.url)
        return _download_url(file.url, file.place)
    if not file.repo:
        raise OSError("it is published nowhere")
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise OSError("huggingface_hub is not installed") from error
    _probe(hub.hf_hub_url(file.repo, file.name))
    try:
        path = Path(hub.hf_hub_download(file.repo, file.name))
        for name in file.beside:
            hub.hf_hub_download(file.repo, name)
        for shard in _shards(path) if path.name.endswith(INDEX) else ():
            hub.hf_hub_download(file.repo, str(Path(file.name).with_name(shard)))
    except Exception as error:  # of its HTTP client, its transfer backend or its own, with no common base
        raise OSError(_reason(error)) from error
    return path


def _download_url(url: str, path: Path) -> Path:
    request = urllib.request.Request(url, headers=AGENT)
    with urllib.request.urlopen(request, timeout=STALL_S) as response:
        size = int(response.headers.get("Content-Length") or 0)
        with (
            written_whole(path) as temporary,
            temporary.open("wb") as file,
            tqdm(total=size or None, unit="B", unit_scale=True, desc=path.name) as bar,
        ):
            while chunk := response.read(1 << 20):
                file.write(chunk)
                bar.update(len(chunk))
            if size and file.tell() != size:
                raise OSError(f"{file.tell()} of {size} bytes arrived")
    return path


def _probe(url: str) -> None:
    """OSError unless a server answers soon: a download may wait longer, and huggingface_hub retries for half a minute.

    Refusals pass, as of a gated repository, for which the hub's client has a token; 404 does not.
    """
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD", headers=AGENT), timeout=ANSWER_S).close()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise


def _reason(error: BaseException | str) -> str:
    """The first line of an error, without urllib's wrapping."""
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        error = error.reason
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# ---------------------------------------------------------------------------------------------------------------- read


def checkpoint_files(path: str | Path) -> list[Path]:
    """All files that reading a checkpoint reads: the index and its shards, or the file, and one with scales beside it."""
    path = _single(Path(path))
    if not path.name.endswith(INDEX):
        return [path, *_map_beside(path)]
    return [path, *(path.parent / name for name in _shards(path))]


def _single(path: Path) -> Path:
    """The one checkpoint in a folder, the index for a shard; UserError or FileNotFoundError if there is no such file."""
    if path.is_dir():
        found = _checkpoints_in(path)
        if len(found) != 1:
            raise UserError(f"{path} {_contents(path)}; one checkpoint is needed, name the file")
        path = found[0]
    path = _whole(path)
    if missing := missing_shards(path):
        raise _incomplete(path, missing, ())
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    return path


def read_state(path: str | Path, *, nested: Sequence[str] = NESTED) -> State:
    """The tensors of a checkpoint by name, on the CPU, mapped from the file where the format allows it.

    path: .safetensors, .pt, .pth or .bin, the index of a checkpoint in shards, or a folder with one of these. A pickle
    that holds its state dict under one of the keys `nested` (the first that is there) is unwrapped.
    Raises FileNotFoundError, or UserError for a file that is truncated, of another kind, or pickled with code.
    """
    path = _single(Path(path))
    return _read_shards(path, nested) if path.name.endswith(INDEX) else _read_file(path, nested)


def _read_file(path: Path, nested: Sequence[str]) -> State:
    with path.open("rb") as file:
        begin = file.read(30)
    if begin.startswith(b"version https://git-lfs"):
        raise UserError(f"checkpoint {path} is a Git LFS pointer, not the weights; run `git lfs pull` beside it")
    if begin.startswith(b"GGUF") or path.suffix == ".gguf":
        raise UserError(f"checkpoint {path} is a GGUF file, whose packed weights are not read; take it as safetensors")
    if path.suffix not in SUFFIXES:
        raise UserError(f"checkpoint {path} is of an unknown kind; {', '.join(SUFFIXES)} can be read")
    if path.suffix != ".safetensors":
        return _with_map(_unwrapped(read_pickle(path), path, nested), path)
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise UserError(f"checkpoint {path} is truncated or damaged ({_reason(error)}); fetch it again") from error
    if not state:
        raise UserError(f"checkpoint {path} holds no tensors; fetch it again")
    return state


def _map_beside(path: Path) -> list[Path]:
    """The file of scales beside HunyuanVideo's official fp8 weights, X_map.pt beside X.pt, if there is one."""
    beside = path.with_name(path.stem + "_map.pt")
    return [beside] if path.suffix == ".pt" and beside.is_file() else []


def _with_map(state: State, path: Path) -> State:
    """The state with the scales, by layer, of the file beside it (hyvideo modules/fp8_optimization.py)."""
    if not any(tensor.dtype is torch.float8_e4m3fn for tensor in state.values()):
        return state
    for beside in _map_beside(path):
        scales = _unwrapped(read_pickle(beside), beside, ())
        return state | {f"{layer}.weight_scale": scale for layer, scale in scales.items() if f"{layer}.weight" in state}
    if path.stem.endswith("_fp8"):
        raise UserError(f"checkpoint {path} has no scales beside it; fetch {path.stem}_map.pt, too")
    return state


def read_metadata(path: str | Path) -> dict[str, str]:
    """The text values beside the tensors of a safetensors file; empty for other files."""
    if Path(path).suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"checkpoint {path} is truncated or damaged ({_reason(error)}); fetch it again") from error


def parse_metadata(path: str | Path, key: str) -> dict[str, Any] | None:
    """The object that is kept as JSON under a key of `read_metadata`, None without the key; UserError for anything else."""
    text = read_metadata(path).get(key)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its {key} cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: its {key} is no object with names but of type {type(value).__name__}")
    return value


def read_pickle(path: Path) -> Any:
    """What torch.save wrote, read without running code; UserError if it is damaged or holds code.

    argparse.Namespace, a plain container, may be in it: DiT's train.py keeps its flags so.
    """
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\3\4"  # files older than PyTorch 1.6 are not, and cannot be mapped
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a damaged file raises almost anything, OSError too
        code = re.search(r"GLOBAL (\S+)|(unrecognized function|Can only \w+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code:
            raise UserError(
                f"checkpoint {path} is refused: it contains code ({code[1] or 'a call'}), which loading would run; "
                "where you trust it, convert its state dict to safetensors"
            ) from error
        reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({_reason(error)})"
        raise UserError(
            f"checkpoint {path} is truncated, damaged or not a PyTorch checkpoint{reason}; fetch it again"
        ) from error


def _unwrapped(value: Any, path: Path, nested: Sequence[str]) -> State:
    state = _find_state(value, nested, depth=3)
    if state is not None:
        return state
    if not isinstance(value, Mapping):
        raise UserError(f"checkpoint {path} holds a {type(value).__name__}, not tensors by name")
    kinds = listed([f"{key!r}: {type(item).__name__}" for key, item in value.items()])
    raise UserError(f"checkpoint {path} holds no tensors by name, itself or under {listed(nested)} (it has {kinds})")


def _find_state(value: Any, nested: Sequence[str], depth: int) -> State | None:
    """The state dict that a value is, or holds at most `depth` keys deep."""
    if _is_state(value):
        return dict(value)
    if isinstance(value, Mapping) and depth:
        found = (_find_state(value[key], nested, depth - 1) for key in nested if key in value)
        return next((state for state in found if state is not None), None)
    return None


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())
    )


def _shards(index: Path) -> list[str]:
    return sorted(set(_weight_map(index).values()))


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> shard, from an index file; the shards are weights in its own folder or below."""
    content = read_json(index, "index")
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        raise UserError(f"index {index} is damaged: no map of tensors to files in it; fetch it again")
    for shard in weight_map.values():
        path = PurePosixPath(shard) if isinstance(shard, str) and "\\" not in shard and "\0" not in shard else None
        if path is None or path.is_absolute() or ".." in path.parts or path.suffix not in SUFFIXES:
            raise UserError(f"index {index} is damaged: {shard!r:.100} is no file of weights beside it; fetch it again")
    return weight_map


def _read_shards(index: Path, nested: Sequence[str]) -> State:
    state: State = {}
    for shard in _shards(index):
        state.update(_read_file(index.parent / shard, nested))
    lost = [name for name in _weight_map(index) if name not in state]
    if not state:
        raise UserError(f"index {index} names no tensors; fetch it again")
    if lost:
        raise UserError(f"checkpoint {index} is damaged: its shards lack {listed(lost)}; fetch it again")
    return state


# -------------------------------------------------------------------------------------------------------------- verify


def check_config(config: Mapping[str, Any], path: str | Path) -> None:
    """UserError if the file says that it is of another configuration; shapes do not show heads, axes or frequencies.

    config: fields of the model's; those that the file does not know are not compared.
    """
    theirs = parse_metadata(path, "config")
    if theirs is None:
        return
    ours = json.loads(json.dumps(config))  # tuples as the lists that they are in the file
    differ = [f"{key} {theirs[key]} (model: {ours[key]})" for key in ours if theirs.get(key, ours[key]) != ours[key]]
    if differ:
        raise UserError(f"{path} is of another configuration: {', '.join(differ)}")


class StateMismatchError(UserError):
    """A state dict that does not fit a model. The message abbreviates; the attributes are complete.

    missing, unexpected: names. shapes: name -> (shape in the model, shape in the state dict).
    """

    def __init__(
        self, model: str, missing: list[str], unexpected: list[str], shapes: dict[str, tuple[tuple, tuple]]
    ) -> None:
        self.missing, self.unexpected, self.shapes = missing, unexpected, shapes
        wrong = [f"{name}: model {ours}, weights {theirs}" for name, (ours, theirs) in shapes.items()]
        kinds = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
        parts = [f"{len(names)} {kind} ({listed(names)})" for kind, names in kinds.items() if names]
        super().__init__(f"the weights do not fit {model}: {', '.join(parts)}")


def check_state(model: nn.Module, state: Mapping[str, Tensor], *, finite: bool = False) -> None:
    """Compare names and shapes with `model.state_dict()`; the model may be on the meta device.

    Raises StateMismatchError (a UserError) with every difference; with `finite`, UserError for NaN or infinity.
    """
    targets = model.state_dict()
    shapes = {
        name: (tuple(target.shape), tuple(state[name].shape))
        for name, target in targets.items()
        if name in state and state[name].shape != target.shape
    }
    missing = [name for name in targets if name not in state]
    unexpected = [name for name in state if name not in targets]
    if missing or unexpected or shapes:
        raise StateMismatchError(type(model).__name__, missing, unexpected, shapes)
    if finite:
        check_finite(state)


def check_finite(state: Mapping[str, Tensor]) -> None:
    """UserError naming the tensors with NaN or infinity; tensors on the meta device have no values and pass."""
    broken = [name for name, tensor in state.items() if not _is_finite(tensor)]
    if broken:
        raise UserError(f"the checkpoint is damaged: NaN or infinity in {len(broken)} tensors ({listed(broken)})")


def _is_finite(tensor: Tensor) -> bool:
    if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.element_size() == 1:  # float8, whose extremes torch cannot find
        return all(part.float().isfinite().all() for part in tensor.flatten().split(2**20))
    return bool(torch.stack(tensor.aminmax()).isfinite().all())  # keeps NaN, and allocates nothing of the tensor's size


# ---------------------------------------------------------------------------------------------------------------- load


def load_weights(
    model: Model,
    state: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    finite: bool = True,
) -> Model:
    """Verify `state` and make it the model's parameters and buffers; returns the model.

    dtype: of floating-point tensors, None keeps each one's in the model. device: None keeps the model's, or that of
    `state` for a model on the meta device. Such a model takes over the tensors of `state` that need no conversion, so
    that nothing is allocated twice; others get copies. Parameters become new objects: make the optimiser afterwards.
    Raises UserError as `check_state`, with `finite` also for values that are not, or do not fit the dtype.
    """
    check_state(model, state, finite=finite)
    targets = model.state_dict()
    packed = [name for name in targets if targets[name].is_floating_point() and not state[name].is_floating_point()]
    if packed:
        raise UserError(f"weights are of {state[packed[0]].dtype} ({listed(packed)}); floating-point ones can be read")
    ready = {}
    for name, target in targets.items():
        source = state[name]
        place = device or (source if target.is_meta else target).device
        kind = dtype if dtype and target.is_floating_point() else target.dtype
        ready[name] = source.to(place, kind, copy=not target.is_meta)
    if finite and any(ready[name].dtype != state[name].dtype for name in ready):
        overflow = [name for name, tensor in ready.items() if not _is_finite(tensor)]
        if overflow:
            raise UserError(f"values of {listed(overflow)} do not fit {ready[overflow[0]].dtype}; choose another dtype")
    model.load_state_dict(ready, assign=True)
    empty = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    assert not empty, f"buffers outside the state dict have no values on the meta device: {empty}"
    return model if device is None else model.to(device)


def export_safetensors(
    path: str | Path,
    state: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors as safetensors, whole, floating-point ones in `dtype`; metadata other than text is kept as JSON.

    Raises UserError if a value is NaN or infinite, or does not fit `dtype`.
    """
    check_finite(state)
    tensors = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in state.items()
    }
    overflow = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if overflow:
        raise UserError(f"values of {listed(overflow)} do not fit {dtype}; choose another dtype")
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    save_tensors(path, tensors, text)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, written whole; OSError where it cannot be, as on a full disk."""
    with written_whole(path) as temporary:
        try:
            save_file(dict(tensors), temporary, None if metadata is None else dict(metadata))
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def load_checkpoint(
    model: Model,
    path: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    layouts: Mapping[Layout, Callable[[State], State]],
    dtype: torch.dtype | None,
    device: str | torch.device,
) -> Model:
    """`model`, built on the meta device, with the weights of a file in its own or another layout, in eval mode.

    config: fields that must be those of the file, where it tells. layouts: other layouts, with what converts each.
    dtype: None keeps that of every parameter of the model. `seerkit.weights.layouts` tells which names and scales are
    understood.
    Raises UserError, which begins with the path, if the file is damaged or does not fit.
    """
    state = read_state(path)
    if config is not None:
        check_config(config, path)
    try:
        state, layout = find_part(state, model.state_dict(), list(layouts), source=path)
        state = apply_scales(state, dtype or max(model.parameters(), key=Tensor.numel).dtype)
        if layout is not None:
            state = layouts[layout](state)
        return load_weights(model, state, dtype=dtype, device=device).eval()
    except ValueError as error:
        error.args = (f"{path}: {error}",)
        raise
