"""Weights of a model: find the file, read it, map another layout's names to ours, verify, load, export."""

import argparse
import json
import os
import pickle
import re
import shlex
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from seerkit.files import written_whole

State = dict[str, Tensor]
Model = TypeVar("Model", bound=nn.Module)

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"  # the repository's own folder for downloads
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
INDEX = ".index.json"  # suffix of the list of shards beside a checkpoint in several files
AGENT = {"User-Agent": "taylorseer"}
NESTED = ("ema", "model", "module", "state_dict")  # keys under which training scripts keep a state dict, best first
ANSWER_S, STALL_S = 5.0, 60.0  # a server that says nothing for so long is out of reach, a transfer has broken off


# ---------------------------------------------------------------------------------------------------------------- find


class NotFoundError(FileNotFoundError):
    """Weights that are nowhere. The message tells all; for those who put several together:

    named: the place that the user named and what is wrong with it, None if none was named. failures: of downloads.
    """

    def __init__(self, message: str, *, named: str | None = None, failures: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.named, self.failures = named, tuple(failures)


@dataclass(frozen=True)
class Published:
    """A published file: its name, and its address as a `url` or as a hub `repo`, in which `name` may have folders.

    A checkpoint in several files is named by its index, `….safetensors.index.json`.
    """

    name: str
    url: str | None = None
    repo: str | None = None

    @property
    def place(self) -> Path:
        """Where the file belongs under `CHECKPOINTS`; hub files get a folder a repository, since their names recur."""
        return CHECKPOINTS / self.repo.split("/")[-1] / self.name if self.repo else CHECKPOINTS / self.name

    @property
    def command(self) -> str | None:
        """The shell command that puts the file in its place."""
        if self.url:
            return shlex.join(["curl", "-L", "--fail", "--create-dirs", "-o", str(self.place), self.url])
        if self.repo:
            folder = str(CHECKPOINTS / self.repo.split("/")[-1])
            sharded = self.name.endswith(INDEX)
            what = ["--include", self.name.split(".")[0] + "*"] if sharded else [self.name]
            return shlex.join(["hf", "download", self.repo, *what, "--local-dir", folder])
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
    Raises FileNotFoundError with all files, all places and the commands that fetch them.
    """
    named = given or (os.environ.get(env) if env else None)
    if named:
        path = Path(named).expanduser()
        candidates = [path, *_in_folder(path, files)]
        if given and len(lone := _checkpoints_in(path)) == 1:
            candidates += lone
        for candidate in candidates:
            if candidate.is_file():
                return candidate
        raise _not_found(files, named=f"{path} ({_contents(path)}{'' if given else f', named by {env}'})")
    places = []
    for file in files:
        for place in (file.place, *file.caches()):
            if place.is_file() and not _missing_shards(place):
                return place
            places.append(str(place))
    failures = []
    for file in files if download else ():
        try:
            return _download(file)
        except (OSError, HTTPException) as error:
            failures.append(f"{file.url or file.repo}: {_reason(error)}")
    raise _not_found(files, places=list(dict.fromkeys(places)), failures=list(dict.fromkeys(failures)))


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


def find_all(model: str, searches: Sequence[Callable[[], object]]) -> None:
    """Carry out all searches for files of a model; FileNotFoundError with everything that they miss."""
    missing = []
    for search in searches:
        try:
            search()
        except FileNotFoundError as error:
            missing.append(str(error))
    if missing:
        raise FileNotFoundError(f"{model} cannot run: {' — '.join(missing)}")


def _in_folder(folder: Path, files: Sequence[Published]) -> list[Path]:
    """Where `files` would be in a folder that the user named, with or without folders of their own."""
    names = [(file.name, Path(file.name).name, file.place.relative_to(CHECKPOINTS)) for file in files]
    return [folder / name for three in names for name in three]


def _checkpoints_in(folder: Path) -> list[Path]:
    """The indices in a folder, or the checkpoint files if there is no index."""
    if not folder.is_dir():
        return []
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    indices = [path for path in paths if path.name.endswith(INDEX)]
    return indices or [path for path in paths if path.suffix in SUFFIXES]


def _contents(path: Path) -> str:
    if not path.exists():
        return "does not exist"
    found = _checkpoints_in(path)
    return f"holds {_list([p.name for p in found])}" if found else "holds no checkpoint"


def _missing_shards(path: Path) -> list[str]:
    """Shards that an index names and that are not beside it; none for other files."""
    return [name for name in _shards(path) if not (path.parent / name).is_file()] if path.name.endswith(INDEX) else []


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


def _reason(error: Exception) -> str:
    """The first line of an error, without urllib's wrapping."""
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        error = error.reason
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# ---------------------------------------------------------------------------------------------------------------- read


def read_state(path: str | Path, *, nested: Sequence[str] = NESTED) -> State:
    """The tensors of a checkpoint by name, on the CPU, mapped from the file where the format allows it.

    path: .safetensors, .pt, .pth or .bin, the index of a checkpoint in shards, or a folder with one of these. A pickle
    that holds its state dict under one of the keys `nested` (the first that is there) is unwrapped.
    Raises FileNotFoundError, or ValueError for a file that is truncated, of another kind, or pickled with code.
    """
    path = Path(path)
    if path.is_dir():
        found = _checkpoints_in(path)
        if len(found) != 1:
            raise ValueError(f"{path} {_contents(path)}; one checkpoint is needed, name the file")
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if path.name.endswith(INDEX):
        return _read_shards(path, nested)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"checkpoint {path} is of an unknown kind; {', '.join(SUFFIXES)} can be read")
    with path.open("rb") as file:
        if file.read(30).startswith(b"version https://git-lfs"):
            raise ValueError(f"checkpoint {path} is a Git LFS pointer, not the weights; run `git lfs pull` beside it")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"checkpoint {path} is truncated or damaged ({_reason(error)}); fetch it again") from error
    return _unwrapped(read_pickle(path), path, nested)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The text values beside the tensors of a safetensors file; empty for other files."""
    if Path(path).suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"checkpoint {path} is truncated or damaged ({_reason(error)}); fetch it again") from error


def read_pickle(path: Path) -> Any:
    """What torch.save wrote, read without running code; ValueError if it is damaged or holds code.

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
            raise ValueError(
                f"checkpoint {path} is refused: it contains code ({code[1] or 'a call'}), which loading would run; "
                "where you trust it, convert its state dict to safetensors"
            ) from error
        reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({_reason(error)})"
        raise ValueError(
            f"checkpoint {path} is truncated, damaged or not a PyTorch checkpoint{reason}; fetch it again"
        ) from error


def _unwrapped(value: Any, path: Path, nested: Sequence[str]) -> State:
    if _is_state(value):
        return dict(value)
    if not isinstance(value, Mapping):
        raise ValueError(f"checkpoint {path} holds a {type(value).__name__}, not tensors by name")
    for key in nested:
        if _is_state(value.get(key)):
            return dict(value[key])
    kinds = _list([f"{key!r}: {type(item).__name__}" for key, item in value.items()])
    raise ValueError(f"checkpoint {path} holds no tensors by name, itself or under {_list(nested)} (it has {kinds})")


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())
    )


def _shards(index: Path) -> list[str]:
    return sorted(set(_weight_map(index).values()))


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> shard, from an index file."""
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        if not all(isinstance(shard, str) for shard in weight_map.values()):
            raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"index {index} is damaged: no map of tensors to files in it; fetch it again") from error
    return weight_map


def _read_shards(index: Path, nested: Sequence[str]) -> State:
    missing = _missing_shards(index)
    if missing:
        raise ValueError(f"checkpoint {index} is incomplete: {_list(missing)} missing beside it; fetch the rest")
    state: State = {}
    for shard in _shards(index):
        state.update(read_state(index.parent / shard, nested=nested))
    lost = [name for name in _weight_map(index) if name not in state]
    if lost:
        raise ValueError(f"checkpoint {index} is damaged: its shards lack {_list(lost)}; fetch it again")
    return state


# -------------------------------------------------------------------------------------------------------------- verify


def check_config(config: Mapping[str, Any], path: str | Path) -> None:
    """ValueError if the file says that it is of another configuration; shapes do not show heads, axes or frequencies.

    config: fields of the model's; those that the file does not know are not compared.
    """
    text = read_metadata(path).get("config")
    if text is None:
        return
    try:
        theirs = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: its configuration cannot be read ({error})") from error
    ours = json.loads(json.dumps(config))  # tuples as the lists that they are in the file
    differ = [f"{key} {theirs[key]} (model: {ours[key]})" for key in ours if theirs.get(key, ours[key]) != ours[key]]
    if differ:
        raise ValueError(f"{path} is of another configuration: {', '.join(differ)}")


class StateMismatchError(ValueError):
    """A state dict that does not fit a model. The message abbreviates; the attributes are complete.

    missing, unexpected: names. shapes: name -> (shape in the model, shape in the state dict).
    """

    def __init__(
        self, model: str, missing: list[str], unexpected: list[str], shapes: dict[str, tuple[tuple, tuple]]
    ) -> None:
        self.missing, self.unexpected, self.shapes = missing, unexpected, shapes
        wrong = [f"{name}: model {ours}, weights {theirs}" for name, (ours, theirs) in shapes.items()]
        kinds = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
        parts = [f"{len(names)} {kind} ({_list(names)})" for kind, names in kinds.items() if names]
        super().__init__(f"the weights do not fit {model}: {', '.join(parts)}")


def check_state(model: nn.Module, state: Mapping[str, Tensor], *, finite: bool = False) -> None:
    """Compare names and shapes with `model.state_dict()`; the model may be on the meta device.

    Raises StateMismatchError (a ValueError) with every difference; with `finite`, ValueError for NaN or infinity.
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
    """ValueError naming the tensors with NaN or infinity; tensors on the meta device have no values and pass."""
    broken = [name for name, tensor in state.items() if not _is_finite(tensor)]
    if broken:
        raise ValueError(f"the checkpoint is damaged: NaN or infinity in {len(broken)} tensors ({_list(broken)})")


def _is_finite(tensor: Tensor) -> bool:
    if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
        return True
    return bool(torch.stack(tensor.aminmax()).isfinite().all())  # keeps NaN, and allocates nothing of the tensor's size


def _list(items: Sequence[str], limit: int = 4) -> str:
    """Items for a message: those that differ by numbers alone (blocks) as one with its count, and at most `limit`."""
    groups: dict[str, list[str]] = {}
    for item in items:
        groups.setdefault(re.sub(r"\.\d+\.", ".*.", item), []).append(item)
    shown = [
        f"{group[0]} and {len(group) - 1} like it" if len(group) > 1 else group[0]
        for group in list(groups.values())[:limit]
    ]
    rest = sum(len(group) for group in list(groups.values())[limit:])
    return ", ".join(shown) + (f", … {rest} more" if rest else "")


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
    Raises ValueError as `check_state`, with `finite` also for values that are not, or do not fit the dtype.
    """
    check_state(model, state, finite=finite)
    ready = {}
    for name, target in model.state_dict().items():
        source = state[name]
        place = device or (source if target.is_meta else target).device
        kind = dtype if dtype and target.is_floating_point() else target.dtype
        ready[name] = source.to(place, kind, copy=not target.is_meta)
    if finite and any(ready[name].dtype != state[name].dtype for name in ready):
        overflow = [name for name, tensor in ready.items() if not _is_finite(tensor)]
        if overflow:
            raise ValueError(f"values of {_list(overflow)} do not fit {ready[overflow[0]].dtype}; choose another dtype")
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

    Raises ValueError if a value is NaN or infinite, or does not fit `dtype`.
    """
    check_finite(state)
    tensors = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in state.items()
    }
    overflow = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if overflow:
        raise ValueError(f"values of {_list(overflow)} do not fit {dtype}; choose another dtype")
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    with written_whole(path) as temporary:
        save_file(tensors, temporary, metadata=text)


# -------------------------------------------------------------------------------------------------------------- layout


class Rule:
    """`Rule(target, *sources)`: the tensor `target` is its `sources` concatenated along dimension 0; one is a rename.

    `{x}` in a name stands for one part between dots. Where the sources have a placeholder that the target lacks, they
    are copies: they must be equal, and the first is kept. `transform` is applied last.
    """

    def __init__(self, target: str, *sources: str, transform: Callable[[Tensor], Tensor] | None = None) -> None:
        self.target, self.sources, self.transform = target, sources, transform
        self._patterns = [re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^.]+)", re.escape(source))) for source in sources]

    def match(self, name: str) -> tuple[str, int] | None:
        """The target that `name` is a part of, and which part; None if it is none of the sources."""
        for position, pattern in enumerate(self._patterns):
            if found := pattern.fullmatch(name):
                return self.target.format(**found.groupdict()), position
        return None


@dataclass(frozen=True)
class Layout:
    """Another layout of a model's weights: its name, and the rules that make our tensors of its own."""

    name: str
    rules: tuple[Rule, ...]

    def covers(self, name: str) -> bool:
        return any(rule.match(name) for rule in self.rules)

    def convert(self, state: Mapping[str, Tensor], computed: Mapping[str, Tensor] | None = None) -> State:
        """The state dict in our layout, with tensors that the other does not store added from `computed`.

        Works on the meta device. Raises ValueError for names without a rule, missing parts, and copies that differ.
        """
        unknown = [name for name in state if not self.covers(name)]
        if unknown:
            raise ValueError(f"{len(unknown)} names are not of the {self.name} layout ({_list(unknown)})")
        result: State = {}
        for rule in self.rules:
            for target, parts in _parts(rule, state).items():
                whole = torch.cat(parts) if len(parts) > 1 else parts[0]
                result[target] = rule.transform(whole) if rule.transform else whole
        return result | dict(computed or {})


def _parts(rule: Rule, state: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
    """Target name -> the tensors that a rule makes it of, in order."""
    found: dict[str, list[str | None]] = {}
    for name in state:
        if not (match := rule.match(name)):
            continue
        target, position = match
        names = found.setdefault(target, [None] * len(rule.sources))
        if names[position] is None:
            names[position] = name
        elif not _same(state[names[position]], state[name]):
            raise ValueError(
                f"{names[position]} and {name}, copies for {target}, differ: a damaged checkpoint or another model"
            )
    lacking = [target for target, names in found.items() if None in names]
    if lacking:
        raise ValueError(f"parts of {_list(lacking)} are missing; it is made of {', '.join(rule.sources)}")
    return {target: [state[name] for name in names] for target, names in found.items()}


def swap_halves(rows: Tensor) -> Tensor:
    """Rows (scale, shift), as diffusers has those of a head, -> (shift, scale)."""
    return torch.cat(rows.chunk(2)[::-1])


def recognise_layout(names: Collection[str], ours: Collection[str], layouts: Sequence[Layout]) -> Layout | None:
    """The layout that most of `names` belong to, None for `ours`; ValueError if fewer than half fit any."""
    ours = set(ours)
    shares = {None: sum(name in ours for name in names)}
    shares |= {layout: sum(layout.covers(name) for name in names) for layout in layouts}
    best = max(shares, key=shares.__getitem__)
    if 2 * shares[best] < max(1, len(names)):
        known = ", ".join(["official", *(layout.name for layout in layouts)])
        raise ValueError(f"the weights are of an unknown layout ({_list(list(names))}); known are: {known}")
    return best


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
    dtype: None keeps that of every parameter of the model.
    Raises ValueError, which begins with the path, if the file is damaged or does not fit.
    """
    state = read_state(path)
    if config is not None:
        check_config(config, path)
    try:
        layout = recognise_layout(state, model.state_dict(), list(layouts))
        if layout is not None:
            state = layouts[layout](state)
        return load_weights(model, state, dtype=dtype, device=device).eval()
    except ValueError as error:
        error.args = (f"{path}: {error}",)
        raise


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal shapes, dtypes and values, NaN equal to NaN; on the meta device shapes alone."""
    return (a.shape, a.dtype) == (b.shape, b.dtype) and (
        a.is_meta or b.is_meta or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    )
