import argparse
import functools
import http.server
import importlib
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from seerkit import weights
from seerkit.weights import (
    Layout,
    Published,
    Rule,
    StateMismatchError,
    check_finite,
    check_state,
    export_safetensors,
    find_weights,
    load_weights,
    read_metadata,
    read_state,
    recognise_layout,
    swap_halves,
)


@pytest.fixture
def nowhere(tmp_path, monkeypatch) -> Path:
    """Empty caches and an empty checkpoints folder (returned), no network."""
    monkeypatch.setattr(weights, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if importlib.util.find_spec("huggingface_hub") is None:
        return tmp_path / "checkpoints"
    hub = importlib.import_module("huggingface_hub")
    monkeypatch.setattr(importlib.import_module("huggingface_hub.constants"), "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(
        hub, "try_to_load_from_cache", functools.partial(hub.try_to_load_from_cache, cache_dir=tmp_path / "hub")
    )
    return tmp_path / "checkpoints"


def touch(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tensors() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2), "steps": torch.tensor(3)}


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


OFFICIAL = Published("model.pt", url="http://127.0.0.1:9/model.pt")  # the discard port: nobody answers
HUB = Published("transformer/model.safetensors", repo="someone/Model-1")
SHARDED = Published("transformer/model.safetensors.index.json", repo="someone/Model-1")


class TestFind:
    def test_given_file_is_taken_whatever_its_name(self, nowhere, tmp_path):
        path = touch(tmp_path / "other.bin")
        assert find_weights(path, [OFFICIAL]) == path
        assert find_weights(str(path), []) == path

    @pytest.mark.parametrize("name", ["model.pt", "transformer/model.safetensors", "model.safetensors"])
    def test_given_folder_is_searched(self, nowhere, tmp_path, name):
        path = touch(tmp_path / "given" / name)
        touch(tmp_path / "given" / "a.pt")
        touch(tmp_path / "given" / "b.pt")
        assert find_weights(tmp_path / "given", [OFFICIAL, HUB]) == path

    def test_given_folder_with_one_checkpoint_needs_no_name(self, nowhere, tmp_path):
        path = touch(tmp_path / "given" / "state.pt")
        touch(tmp_path / "given" / "loss.csv")
        assert find_weights(tmp_path / "given", [HUB]) == path

    def test_given_place_is_the_only_one(self, nowhere, tmp_path):
        touch(nowhere / "model.pt")
        with pytest.raises(FileNotFoundError, match=r"model.pt was not found; looked at .*gone \(does not exist\)"):
            find_weights(tmp_path / "gone", [OFFICIAL])
        touch(tmp_path / "given" / "a.pt")
        touch(tmp_path / "given" / "b.pt")
        with pytest.raises(FileNotFoundError, match=r"given \(holds a.pt, b.pt\); fetch it with `curl"):
            find_weights(tmp_path / "given", [OFFICIAL])

    def test_environment_names_a_place(self, nowhere, tmp_path, monkeypatch):
        path = touch(tmp_path / "mine" / "model.pt")
        monkeypatch.setenv("MODEL_CHECKPOINT", str(path.parent))
        assert find_weights(None, [OFFICIAL], env="MODEL_CHECKPOINT") == path
        with pytest.raises(FileNotFoundError, match=r"mine \(holds model\.pt, named by MODEL_CHECKPOINT\)"):
            find_weights(None, [HUB], env="MODEL_CHECKPOINT")
        given = touch(tmp_path / "given.pt")
        assert find_weights(given, [OFFICIAL], env="MODEL_CHECKPOINT") == given

    def test_checkpoints_folder_then_caches(self, nowhere, tmp_path, need):
        need("huggingface_hub")
        snapshot = tmp_path / "hub" / "models--someone--Model-1"
        touch(snapshot / "refs" / "main", b"abc")
        hub = touch(snapshot / "snapshots" / "abc" / "transformer" / "model.safetensors")
        assert find_weights(None, [OFFICIAL, HUB]) == hub
        torch_hub = touch(tmp_path / "torch" / "checkpoints" / "model.pt")
        assert find_weights(None, [OFFICIAL, HUB]) == torch_hub
        own = touch(nowhere / "model.pt")
        assert find_weights(None, [OFFICIAL, HUB]) == own
        assert find_weights(None, [HUB]) == hub
        assert find_weights(None, [HUB]) != touch(nowhere / "Model-1" / "transformer" / "model.safetensors")
        assert find_weights(None, [HUB]) == nowhere / "Model-1" / "transformer" / "model.safetensors"

    def test_index_without_its_shards_is_passed_over(self, nowhere):
        index = nowhere / SHARDED.place.relative_to(nowhere)
        touch(index, json.dumps({"weight_map": {"a": "model-1.safetensors"}}).encode())
        with pytest.raises(FileNotFoundError):
            find_weights(None, [SHARDED], download=False)
        touch(index.with_name("model-1.safetensors"))
        assert find_weights(None, [SHARDED], download=False) == index

    def test_nothing_works(self, nowhere, tmp_path, capfd, monkeypatch, need):
        """One line with all names, all places, why each download failed and what to run; at once and without noise."""
        hub = need("huggingface_hub")
        monkeypatch.setattr(hub, "hf_hub_url", lambda repo, name: f"http://127.0.0.1:9/{repo}/{name}")
        began = time.perf_counter()
        with pytest.raises(FileNotFoundError) as caught:
            find_weights(None, [OFFICIAL, HUB, SHARDED])
        assert time.perf_counter() - began < 5
        message = str(caught.value)
        assert "\n" not in message
        for part in (
            "model.pt or transformer/model.safetensors (someone/Model-1) or",
            str(nowhere / "model.pt"),
            str(tmp_path / "torch" / "checkpoints" / "model.pt"),
            str(nowhere / "Model-1" / "transformer" / "model.safetensors"),
            str(tmp_path / "hub" / "models--someone--Model-1"),
            "http://127.0.0.1:9/model.pt: [Errno 111] Connection refused",
            "someone/Model-1: [Errno 111] Connection refused",
            f"`curl -L --fail --create-dirs -o {nowhere}/model.pt http://127.0.0.1:9/model.pt`",
            f"`hf download someone/Model-1 transformer/model.safetensors --local-dir {nowhere}/Model-1`",
            f"`hf download someone/Model-1 --include 'transformer/model*' --local-dir {nowhere}/Model-1`",
        ):
            assert part in message
        assert capfd.readouterr() == ("", "")
        assert not nowhere.exists()

    def test_offline_by_environment(self, nowhere, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(FileNotFoundError, match=r"model\.pt: HF_HUB_OFFLINE is set"):
            find_weights(None, [OFFICIAL])

    def test_without_huggingface_hub(self, nowhere, monkeypatch):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(
            FileNotFoundError, match="someone/Model-1: huggingface_hub is not installed; fetch it with `hf"
        ):
            find_weights(None, [HUB])

    def test_hub_download_with_shards(self, nowhere, tmp_path, monkeypatch, need):
        hub = need("huggingface_hub")
        fetched = []

        def fake(repo: str, name: str) -> str:
            fetched.append((repo, name))
            return str(
                touch(tmp_path / "snapshot" / name, b'{"weight_map": {"a": "m-1.bin", "b": "m-2.bin", "c": "m-1.bin"}}')
            )

        monkeypatch.setattr(hub, "hf_hub_url", lambda repo, name: "http://127.0.0.1:9")
        monkeypatch.setattr(weights, "_probe", lambda url: None)
        monkeypatch.setattr(hub, "hf_hub_download", fake)
        assert find_weights(None, [SHARDED]) == tmp_path / "snapshot" / SHARDED.name
        assert fetched == [
            (SHARDED.repo, f"transformer/{name}") for name in ("model.safetensors.index.json", "m-1.bin", "m-2.bin")
        ]

    def test_hub_failure_is_one_line(self, nowhere, monkeypatch, need):
        hub = need("huggingface_hub")

        def gated(repo: str, name: str) -> str:
            raise RuntimeError("Access to model someone/Model-1 is restricted.\n\nAsk for it.")

        monkeypatch.setattr(weights, "_probe", lambda url: None)
        monkeypatch.setattr(hub, "hf_hub_download", gated)
        with pytest.raises(
            FileNotFoundError, match=r"someone/Model-1: Access to model someone/Model-1 is restricted\.; fetch"
        ):
            find_weights(None, [HUB])


class TestDownload:
    @pytest.fixture
    def server(self, nowhere, tmp_path):
        """A local web server with `whole.pt`, and `cut.pt` that ends early; yields its address."""
        touch(tmp_path / "served" / "whole.pt", b"0123456789" * 200_000)
        touch(tmp_path / "served" / "cut.pt")

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self):
                if self.path != "/cut.pt":
                    return super().do_GET()
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"short")

            def log_message(self, *_):
                pass

        handler = functools.partial(Handler, directory=tmp_path / "served")
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()

    def test_whole_with_progress(self, server, nowhere, capfd):
        path = find_weights(None, [Published("whole.pt", url=f"{server}/whole.pt")])
        assert path == nowhere / "whole.pt"
        assert path.read_bytes() == b"0123456789" * 200_000
        assert "whole.pt: 100%" in capfd.readouterr().err
        assert [p.name for p in nowhere.iterdir()] == ["whole.pt"]

    def test_short_one_leaves_nothing(self, server, nowhere):
        with pytest.raises(FileNotFoundError, match=r"cut\.pt: 5 of 1000 bytes arrived"):
            find_weights(None, [Published("cut.pt", url=f"{server}/cut.pt")])
        assert list(nowhere.iterdir()) == []

    def test_next_address_after_a_failure(self, server, nowhere):
        files = [Published("gone.pt", url=f"{server}/gone.pt"), Published("whole.pt", url=f"{server}/whole.pt")]
        assert find_weights(None, files) == nowhere / "whole.pt"
        with pytest.raises(FileNotFoundError, match=r"gone\.pt: HTTP Error 404"):
            find_weights(None, files[:1])

    def test_probe_tells_absent_from_refused(self, server):
        weights._probe(f"{server}/whole.pt")
        with pytest.raises(OSError, match="404"):
            weights._probe(f"{server}/gone.pt")

    def test_printed_command_works(self, server, nowhere):
        file = Published("whole.pt", url=f"{server}/whole.pt")
        try:
            subprocess.run(shlex.split(file.command), check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("curl is not installed")
        assert find_weights(None, [file], download=False) == file.place


class TestRead:
    @pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "m.pth", "m.bin"])
    def test_formats(self, tmp_path, name):
        (save_file if name.endswith("safetensors") else torch.save)(tensors(), tmp_path / name)
        assert same(read_state(tmp_path / name), tensors())
        assert same(read_state(tmp_path), tensors())

    def test_old_pickle_format(self, tmp_path):
        torch.save(tensors(), tmp_path / "m.pt", _use_new_zipfile_serialization=False)
        assert same(read_state(tmp_path / "m.pt"), tensors())

    @pytest.mark.parametrize("suffix", ["safetensors", "bin"])
    def test_shards(self, tmp_path, suffix):
        parts = {"m-1": ["a.weight"], "m-2": ["a.bias", "steps"]}
        for shard, names in parts.items():
            write = save_file if suffix == "safetensors" else torch.save
            write({name: tensors()[name] for name in names}, tmp_path / f"{shard}.{suffix}")
        weight_map = {name: f"{shard}.{suffix}" for shard, names in parts.items() for name in names}
        index = tmp_path / f"m.{suffix}.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        assert same(read_state(tmp_path), tensors())
        assert same(read_state(index), tensors())

        index.write_text(json.dumps({"weight_map": weight_map | {"b": f"m-1.{suffix}"}}))
        with pytest.raises(ValueError, match="its shards lack b;"):
            read_state(index)
        (tmp_path / f"m-2.{suffix}").unlink()
        with pytest.raises(ValueError, match=rf"incomplete: m-2.{suffix} missing beside it"):
            read_state(tmp_path)
        index.write_text("{")
        with pytest.raises(ValueError, match=r"index .* is damaged"):
            read_state(tmp_path)

    @pytest.mark.parametrize(
        ("extra", "key"),
        [
            ({"model": {"x": torch.zeros(1)}, "ema": tensors(), "step": 3, "args": argparse.Namespace(lr=1e-4)}, "ema"),
            ({"module": tensors(), "epoch": 1}, "module"),
            ({"ema": None, "model": tensors()}, "model"),
        ],
    )
    def test_nested(self, tmp_path, extra, key):
        """DiT's train.py keeps `args` as an argparse.Namespace and the averaged weights under `ema`."""
        torch.save(extra, tmp_path / "m.pt")
        assert same(read_state(tmp_path / "m.pt"), extra[key])

    def test_choice_of_the_nested_state(self, tmp_path):
        torch.save({"model": tensors(), "ema": {"x": torch.zeros(1)}}, tmp_path / "m.pt")
        assert same(read_state(tmp_path / "m.pt", nested=["model"]), tensors())
        with pytest.raises(
            ValueError, match=r"no tensors by name, itself or under module \(it has 'model': dict, 'ema'"
        ):
            read_state(tmp_path / "m.pt", nested=["module"])

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"m\.pt does not exist"):
            read_state(tmp_path / "m.pt")
        with pytest.raises(ValueError, match="holds no checkpoint; one checkpoint is needed"):
            read_state(tmp_path)
        touch(tmp_path / "a.pt")
        touch(tmp_path / "b.pt")
        with pytest.raises(ValueError, match=r"holds a\.pt, b\.pt; one checkpoint is needed, name the file"):
            read_state(tmp_path)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_truncated_pickle(self, tmp_path, zipped):
        path = tmp_path / "m.pt"
        torch.save(tensors(), path, _use_new_zipfile_serialization=zipped)
        data = path.read_bytes()
        message = r"m\.pt is truncated, damaged or not a PyTorch checkpoint.*; fetch it again"
        if not zipped:
            message += r"|m\.pt is refused"  # cut within the name of a function, it names an unknown one
        for length in range(0, len(data) - 1, 41):
            path.write_bytes(data[:length])
            with pytest.raises(ValueError, match=message):
                read_state(path)

    def test_truncated_safetensors(self, tmp_path):
        path = tmp_path / "m.safetensors"
        save_file(tensors(), path)
        data = path.read_bytes()
        for length in range(0, len(data), 11):
            path.write_bytes(data[:length])
            for read in (read_state, read_metadata):
                with pytest.raises(ValueError, match=r"m\.safetensors is truncated or damaged \(.+\); fetch it again"):
                    read(path)

    @pytest.mark.parametrize(
        "data", [b"<!DOCTYPE html><html>404</html>", b"PK\3\4 and nothing more", bytes(range(256)) * 9]
    )
    def test_other_files(self, tmp_path, data):
        with pytest.raises(ValueError, match="not a PyTorch checkpoint"):
            read_state(touch(tmp_path / "m.pt", data))
        with pytest.raises(ValueError, match="truncated or damaged"):
            read_state(touch(tmp_path / "m.safetensors", data))

    def test_unknown_kind_and_lfs_pointer(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"m\.ckpt is of an unknown kind; \.safetensors, \.pt, \.pth, \.bin can be read"
        ):
            read_state(touch(tmp_path / "m.ckpt"))
        pointer = touch(
            tmp_path / "m.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        )
        with pytest.raises(ValueError, match="is a Git LFS pointer, not the weights"):
            read_state(pointer)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_is_refused_and_not_run(self, tmp_path, zipped):
        class Harmful:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        torch.save({"a": torch.zeros(1), "b": Harmful()}, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(
            ValueError, match=r"is refused: it contains code \(\w+\.mkdir\).* convert .* to safetensors"
        ):
            read_state(tmp_path / "m.pt")
        assert not (tmp_path / "ran").exists()

    def test_pickled_module_is_refused(self, tmp_path):
        torch.save(nn.Linear(2, 2), tmp_path / "m.pt")
        with pytest.raises(ValueError, match=r"contains code \(torch\.nn\.modules\.linear\.Linear\)"):
            read_state(tmp_path / "m.pt")

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (torch.zeros(3), "holds a Tensor, not tensors by name"),
            ([1, 2], "holds a list, not tensors by name"),
            ({}, "holds no tensors by name"),
            ({"epoch": 3, "ema": {}}, r"\(it has 'epoch': int, 'ema': dict\)"),
            ({0: torch.zeros(3)}, "holds no tensors by name"),
        ],
    )
    def test_not_a_state_dict(self, tmp_path, value, message):
        torch.save(value, tmp_path / "m.pt")
        with pytest.raises(ValueError, match=message):
            read_state(tmp_path / "m.pt")

    def test_errors_are_one_line(self, tmp_path):
        torch.save(nn.Linear(2, 2), tmp_path / "m.pt")
        with pytest.raises(ValueError) as caught:
            read_state(tmp_path / "m.pt")
        assert "\n" not in str(caught.value)


class Net(nn.Module):
    def __init__(self, depth: int = 12) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))
        self.head = nn.Linear(4, 2)
        self.register_buffer("position", torch.arange(4.0))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


def on_meta(build=Net) -> nn.Module:
    with torch.device("meta"):
        return build()


class TestCheck:
    def test_fits(self):
        check_state(on_meta(), Net().state_dict(), finite=True)

    def test_every_difference(self):
        state = Net().state_dict()
        for i in range(12):
            del state[f"blocks.{i}.bias"]
        del state["position"]
        state |= {"extra": torch.zeros(1), "head.weight": torch.zeros(3, 4), "blocks.7.weight": torch.zeros(4, 8)}
        with pytest.raises(StateMismatchError) as caught:
            check_state(on_meta(), state)
        error = caught.value
        assert set(error.missing) == {"position", *(f"blocks.{i}.bias" for i in range(12))}
        assert error.unexpected == ["extra"]
        assert error.shapes == {"blocks.7.weight": ((4, 4), (4, 8)), "head.weight": ((2, 4), (3, 4))}
        assert str(error).startswith("the weights do not fit Net: 13 missing (")
        for part in (
            "blocks.0.bias and 11 like it",
            "position",
            "1 unexpected (extra)",
            "2 of another shape (blocks.7.weight: model (4, 4), weights (4, 8), head.weight: model (2, 4), weights",
        ):
            assert part in str(error)

    def test_long_lists_are_cut(self):
        state = Net().state_dict() | {f"extra_{letter}": torch.zeros(1) for letter in "abcdefgh"}
        with pytest.raises(
            StateMismatchError, match=r"8 unexpected \(extra_a, extra_b, extra_c, extra_d, … 4 more\)"
        ) as caught:
            check_state(Net(), state)
        assert len(caught.value.unexpected) == 8

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
    def test_values(self, value, dtype):
        state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors().items()}
        check_finite(state | {"empty": torch.zeros(0)})
        state["a.weight"][1, 2] = value
        with pytest.raises(ValueError, match=r"damaged: NaN or infinity in 1 tensors \(a\.weight\)"):
            check_finite(state)
        check_state(_holder(state), state)


def _holder(state: dict) -> nn.Module:
    module = nn.Module()
    module.a = nn.Linear(3, 2)
    module.register_buffer("steps", state["steps"])
    return module


class TestLoad:
    @pytest.mark.parametrize("meta", [True, False])
    @pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64])
    def test_values_and_dtypes(self, meta, dtype):
        source = Net()
        state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
        model = on_meta() if meta else Net()
        assert load_weights(model, state, dtype=dtype) is model
        for name, tensor in model.state_dict().items():
            wanted = dtype if dtype and tensor.is_floating_point() else state[name].dtype
            assert tensor.dtype == wanted
            assert torch.equal(tensor, state[name].to(wanted))
        assert model.head.weight.requires_grad
        assert torch.isfinite(model.head(torch.ones(4, dtype=dtype))).all()

    def test_without_dtype_the_model_decides(self):
        state = {name: t.half() if t.is_floating_point() else t for name, t in Net().state_dict().items()}
        model = on_meta(lambda: Net().to(torch.bfloat16))
        model.position.data = model.position.float()
        load_weights(model, state)
        assert model.head.weight.dtype == torch.bfloat16
        assert model.position.dtype == torch.float32

    def test_meta_model_takes_the_tensors_others_copy(self):
        state = Net().state_dict()
        assert load_weights(on_meta(), state).head.weight.data_ptr() == state["head.weight"].data_ptr()
        assert load_weights(Net(), state).head.weight.data_ptr() != state["head.weight"].data_ptr()

    def test_device(self):
        model = load_weights(on_meta(), Net().state_dict(), device="cpu")
        assert {t.device.type for t in model.state_dict().values()} == {"cpu"}

    @pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to see what is mapped")
    @pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
    def test_a_file_is_mapped_not_copied(self, tmp_path, name):
        (save_file if name.endswith("safetensors") else torch.save)(Net().state_dict(), tmp_path / name)
        model = load_weights(on_meta(), read_state(tmp_path / name))
        assert str(tmp_path / name) in Path("/proc/self/maps").read_text()
        address = model.head.weight.data_ptr()
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        holding = [f for f in lines if int(f[0].split("-")[0], 16) <= address < int(f[0].split("-")[1], 16)]
        assert holding[0][-1] == str(tmp_path / name)

    def test_damage_is_found(self):
        state = Net().state_dict()
        state["blocks.3.weight"][0, 0] = float("nan")
        with pytest.raises(ValueError, match=r"damaged: NaN or infinity in 1 tensors \(blocks\.3\.weight\)"):
            load_weights(on_meta(), state)
        load_weights(on_meta(), state, finite=False)

    def test_overflow_is_found(self):
        state = Net().state_dict()
        state["head.bias"][0] = 1e5
        with pytest.raises(ValueError, match=r"values of head\.bias do not fit torch\.float16; choose another dtype"):
            load_weights(on_meta(), state, dtype=torch.float16)
        load_weights(on_meta(), state, dtype=torch.bfloat16)

    def test_mismatch_changes_nothing(self):
        model, state = Net(), Net().state_dict()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        del state["head.bias"]
        with pytest.raises(StateMismatchError):
            load_weights(model, state)
        assert same(dict(model.state_dict()), before)

    def test_buffer_outside_the_state_dict(self):
        class Hidden(Net):
            def __init__(self):
                super().__init__()
                self.register_buffer("table", torch.ones(3), persistent=False)

        with pytest.raises(AssertionError, match="table"):
            load_weights(on_meta(Hidden), Net().state_dict())


class TestExport:
    def test_round_trip(self, tmp_path):
        path = tmp_path / "new" / "m.safetensors"
        export_safetensors(path, tensors(), torch.float16, {"config": {"depth": 2}, "note": "tested"})
        state = read_state(path)
        assert state["a.weight"].dtype == torch.float16
        assert state["steps"].dtype == torch.int64
        assert torch.equal(state["a.weight"].float(), tensors()["a.weight"])
        assert read_metadata(path) == {"config": '{"depth": 2}', "note": "tested"}
        assert [p.name for p in path.parent.iterdir()] == ["m.safetensors"]

    def test_views_and_parameters(self, tmp_path):
        net = Net(2)
        export_safetensors(tmp_path / "m.safetensors", dict(net.named_parameters()) | {"t": net.head.weight.T})
        assert torch.equal(read_state(tmp_path / "m.safetensors")["t"], net.head.weight.T)

    def test_bad_values_write_nothing(self, tmp_path):
        with pytest.raises(ValueError, match=r"NaN or infinity in 1 tensors \(a\)"):
            export_safetensors(tmp_path / "m.safetensors", {"a": torch.tensor([float("nan")])})
        with pytest.raises(ValueError, match=r"values of a do not fit torch\.float16"):
            export_safetensors(tmp_path / "m.safetensors", {"a": torch.tensor([1e6])}, torch.float16)
        assert list(tmp_path.iterdir()) == []

    def test_metadata_of_other_files(self, tmp_path):
        assert read_metadata(touch(tmp_path / "m.pt")) == {}
        save_file(tensors(), tmp_path / "m.safetensors")
        assert read_metadata(tmp_path / "m.safetensors") == {}
        with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
            assert set(file.keys()) == set(tensors())


class TestLayout:
    layout = Layout(
        "theirs",
        (
            Rule("embed.{p}", "patch.{p}"),
            Rule("time.{p}", "layers.{i}.time.{p}"),
            Rule("blocks.{i}.qkv.{p}", "layers.{i}.to_q.{p}", "layers.{i}.to_k.{p}", "layers.{i}.to_v.{p}"),
            Rule("head.{p}", "norm_out.{p}", transform=swap_halves),
        ),
    )

    @staticmethod
    def state() -> dict[str, torch.Tensor]:
        state = {"patch.weight": torch.ones(2, 2), "norm_out.weight": torch.tensor([1.0, 2.0])}
        for i in range(2):
            state[f"layers.{i}.time.weight"] = torch.tensor([5.0])
            for j, part in enumerate("vkq"):  # order in the file does not matter
                state[f"layers.{i}.to_{part}.weight"] = torch.full((1, 2), 10.0 * i + 2 - j)
        return state

    def test_rename_fuse_copies_transform_computed(self):
        result = self.layout.convert(self.state(), {"table": torch.zeros(3)})
        assert set(result) == {
            "embed.weight",
            "time.weight",
            "blocks.0.qkv.weight",
            "blocks.1.qkv.weight",
            "head.weight",
            "table",
        }
        assert result["blocks.1.qkv.weight"].tolist() == [[10, 10], [11, 11], [12, 12]]
        assert result["time.weight"].tolist() == [5]
        assert result["head.weight"].tolist() == [2, 1]

    def test_on_meta(self):
        result = self.layout.convert({name: tensor.to("meta") for name, tensor in self.state().items()})
        assert result["blocks.0.qkv.weight"].shape == (3, 2)

    def test_a_dot_is_a_dot(self):
        assert not self.layout.covers("layersx0xtimexweight")
        assert not self.layout.covers("layers.0.1.time.weight")

    def test_copies_that_differ(self):
        state = self.state()
        state["layers.1.time.weight"] = torch.tensor([6.0])
        with pytest.raises(
            ValueError, match=r"layers\.0\.time\.weight and layers\.1\.time\.weight, copies for time\.weight, differ"
        ):
            self.layout.convert(state)

    def test_missing_part(self):
        state = self.state()
        del state["layers.1.to_k.weight"]
        with pytest.raises(
            ValueError, match=r"parts of blocks\.1\.qkv\.weight are missing; it is made of layers\.\{i\}\.to_q"
        ):
            self.layout.convert(state)

    def test_unknown_name(self):
        with pytest.raises(ValueError, match=r"2 names are not of the theirs layout \(foo, layers\.0\.bar\)"):
            self.layout.convert(self.state() | {"foo": torch.zeros(1), "layers.0.bar": torch.zeros(1)})

    def test_recognise(self):
        ours = ["embed.weight", "time.weight", "patch.weight"]
        assert recognise_layout(self.state(), ours, [self.layout]) is self.layout
        assert recognise_layout(ours, ours, [self.layout]) is None
        with pytest.raises(ValueError, match=r"unknown layout \(a, b\); known are: official, theirs"):
            recognise_layout(["a", "b", "patch.weight"][:2], ours, [self.layout])
        with pytest.raises(ValueError, match="unknown layout"):
            recognise_layout([], ours, [self.layout])
