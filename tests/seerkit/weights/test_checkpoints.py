import argparse
import contextlib
import errno
import functools
import http.server
import importlib
import importlib.util
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from cache_dic import UserError
from seerkit.weights import checkpoints as weights
from seerkit.weights.checkpoints import (
    Published,
    StateMismatchError,
    check_config,
    check_finite,
    check_state,
    checkpoint_files,
    export_safetensors,
    find_weights,
    hub_command,
    load_weights,
    parse_metadata,
    read_metadata,
    read_state,
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

    def index(self, place: Path, count: int = 2) -> list[Path]:
        """An index at a place, and the paths of its shards, which are not there."""
        shards = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        touch(place, json.dumps({"weight_map": {str(i): name for i, name in enumerate(shards)}}).encode())
        return [place.with_name(name) for name in shards]

    def test_missing_shard_of_a_hub_cache_is_named(self, nowhere, tmp_path, need, monkeypatch):
        """Not an index that is not found, and a command that fetches the rest to where it is missing."""
        need("huggingface_hub")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        cache = tmp_path / "hub" / "models--someone--Model-1"
        touch(cache / "refs" / "main", b"abc")
        index = cache / "snapshots" / "abc" / SHARDED.name
        first, second = self.index(index)
        touch(first)
        with pytest.raises(FileNotFoundError) as caught:
            find_weights(None, [SHARDED])
        assert str(caught.value) == (
            f"checkpoint {index} is incomplete: {second.name} missing beside it; download failed: someone/Model-1: "
            "HF_HUB_OFFLINE is set; fetch the rest with `hf download someone/Model-1 "
            f"transformer/{second.name}`"
        )
        assert caught.value.named == f"{index}, without {second.name}"
        touch(second)
        assert find_weights(None, [SHARDED]) == index

    @pytest.mark.parametrize(("inside", "shown"), [(True, "env/bin/hf"), (False, "{}/env/bin/hf")])
    def test_a_program_that_is_not_on_the_path_is_named_beside_python(self, tmp_path, monkeypatch, inside, shown):
        program = tmp_path / "env" / "bin" / "hf"
        monkeypatch.setattr(sys, "executable", str(program.with_name("python")))
        monkeypatch.setenv("PATH", str(tmp_path))
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path if inside else tmp_path / "elsewhere")
        assert hub_command("a/b", ["c"], None) == "hf download a/b --include c", "to be installed"
        touch(program)
        assert hub_command("a/b", ["c"], None) == f"{shown.format(tmp_path)} download a/b --include c"
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent))
        assert hub_command("a/b", ["c"], None) == "hf download a/b --include c"

    @pytest.mark.parametrize("given", ["the index", "its folder", "the repository", "a shard", "the variable"])
    def test_missing_shard_of_a_folder_is_named(self, nowhere, tmp_path, given, monkeypatch):
        index = tmp_path / "mine" / SHARDED.name
        shards = self.index(index, 3)
        touch(shards[1])
        monkeypatch.setenv("MODEL", str(index))
        places = {
            "the index": index, "its folder": index.parent, "the repository": tmp_path / "mine", "a shard": shards[1],
            "the variable": None,
        }  # fmt: skip
        with pytest.raises(FileNotFoundError) as caught:
            find_weights(places[given], [SHARDED], env="MODEL")
        command = (
            f"`hf download someone/Model-1 transformer/{shards[0].name} transformer/{shards[2].name} "
            f"--local-dir {tmp_path / 'mine'}`"
        )
        assert f"{shards[0].name}, {shards[2].name} missing beside it; fetch the rest with {command}" in str(
            caught.value
        )
        for shard in shards:
            touch(shard)
        assert find_weights(places[given], [SHARDED], env="MODEL") == index

    def test_shards_without_their_index(self, nowhere, tmp_path):
        for number in (1, 3):
            touch(tmp_path / "mine" / f"model-{number:05d}-of-00003.safetensors")
        for given in (tmp_path / "mine", tmp_path / "mine" / "model-00003-of-00003.safetensors"):
            with pytest.raises(
                FileNotFoundError,
                match=r"model\.safetensors\.index\.json, model-00002-of-00003\.safetensors missing beside it; copy the rest",
            ):
                find_weights(given, [])
        with pytest.raises(
            FileNotFoundError, match=r"--include 'transformer/model\*' --local-dir .*checkpoints/Model-1`"
        ):
            find_weights(tmp_path / "mine", [SHARDED])

    def test_one_shard_of_one_is_whole(self, nowhere, tmp_path):
        path = touch(tmp_path / "mine" / "model-00001-of-00001.safetensors")
        assert find_weights(tmp_path / "mine", []) == path

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
        with pytest.raises(FileNotFoundError, match=rf"incomplete: m-2.{suffix} missing beside it"):
            read_state(tmp_path)
        index.write_text("{")
        with pytest.raises(ValueError, match=r"index .* is not JSON"):
            read_state(tmp_path)

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "[]",
            "3",
            '"text"',
            "null",
            "{}",
            '{"weight_map": []}',
            '{"weight_map": {"a": 3}}',
            '{"weight_map": {"a": null}}',
            '{"weight_map": {"a": ["m.safetensors"]}}',
            '{"weight_map": {"a": "m.safetensors.index.json"}}',
            '{"weight_map": {"a": "../m.safetensors"}}',
            '{"weight_map": {"a": "x/../../m.safetensors"}}',
            '{"weight_map": {"a": "..\\\\m.safetensors"}}',
            '{"weight_map": {"a": "/etc/passwd"}}',
            '{"weight_map": {"a": "/tmp/m.safetensors"}}',
            '{"weight_map": {"a": ""}}',
            '{"weight_map": {"a": "."}}',
            '{"weight_map": {"a": "m\\u0000.safetensors"}}',
            '{"weight_map": {"a": "config.json"}}',
            "[" * 100_000,
            '{"weight_map":' * 100_000,
            "9" * 5000,
        ],
    )
    def test_an_index_of_another_kind(self, tmp_path, content):
        """Or one that names itself or a file outside its folder: one line, whoever reads it."""
        index = tmp_path / "folder" / "m.safetensors.index.json"
        touch(index, content.encode())
        save_file(tensors(), tmp_path / "m.safetensors")
        for read in (read_state, checkpoint_files, lambda path: find_weights(path, [])):
            for given in (index, index.parent):
                with pytest.raises(ValueError, match=rf"index {index} (is damaged|is not JSON|is nested)") as caught:
                    read(given)
                assert type(caught.value) is UserError
                assert "\n" not in str(caught.value)

    def test_an_index_without_tensors(self, tmp_path):
        touch(tmp_path / "m.safetensors.index.json", b'{"weight_map": {}}')
        with pytest.raises(ValueError, match="names no tensors"):
            read_state(tmp_path)

    @pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""])
    def test_an_index_of_any_editor(self, tmp_path, mark):
        save_file(tensors(), tmp_path / "part.safetensors")
        text = json.dumps({"weight_map": dict.fromkeys(tensors(), "part.safetensors")}, indent=1).replace("\n", "\r\n")
        touch(tmp_path / "m.safetensors.index.json", mark + text.encode())
        assert same(read_state(tmp_path / "m.safetensors.index.json"), tensors())

    def test_files_that_are_read(self, tmp_path):
        save_file({"a.weight": tensors()["a.weight"]}, tmp_path / "m-1.safetensors")
        save_file({"a.bias": torch.ones(2)}, tmp_path / "m-2.safetensors")
        index = tmp_path / "m.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a.weight": "m-1.safetensors", "a.bias": "m-2.safetensors"}}))
        shards = [tmp_path / "m-1.safetensors", tmp_path / "m-2.safetensors"]
        assert checkpoint_files(index) == checkpoint_files(tmp_path) == [index, *shards]
        assert checkpoint_files(shards[0]) == [shards[0]]
        torch.save(tensors(), tmp_path / "m.pt")
        touch(tmp_path / "m_map.pt")
        assert checkpoint_files(tmp_path / "m.pt") == [tmp_path / "m.pt", tmp_path / "m_map.pt"]
        with pytest.raises(FileNotFoundError, match="does not exist"):
            checkpoint_files(tmp_path / "gone.pt")

    @pytest.mark.parametrize(
        "header",
        [
            None,
            b"",
            b"{}",
            b"[" * 90_000,
            b'{"a":' * 9000 + b"1" + b"}" * 9000,
            b'{"a":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,4]}}',
            b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}',
            b'{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}',
            b'{"__metadata__":{"config":3}}',
            b"\xff\xfe",
        ],
    )
    @pytest.mark.parametrize("length", [None, 0, 2**60, 2**64 - 1])
    def test_safetensors_with_another_header(self, tmp_path, header, length):
        path = tmp_path / "m.safetensors"
        size = len(header or b"") if length is None else length
        path.write_bytes(
            b"" if header is None else size.to_bytes(8, "little") + header + b"\0\0\0\0"[: 3 + (b"F32" in header)]
        )
        with pytest.raises(ValueError, match=r"m\.safetensors (is truncated or damaged|holds no tensors)"):
            read_state(path)

    @pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "m.bin"])
    def test_empty_files_and_folders_of_that_name(self, tmp_path, name):
        with pytest.raises(ValueError, match="truncated"):
            read_state(touch(tmp_path / name, b""))
        (tmp_path / "folder" / name).mkdir(parents=True)
        with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
            find_weights(tmp_path / "folder" / name, [])
        with pytest.raises(ValueError, match="holds no checkpoint"):
            read_state(tmp_path / "folder" / name)

    @pytest.mark.parametrize("name", ["m.gguf", "m.safetensors", "m.pt", "m.other"])
    def test_gguf_is_named_whatever_it_is_called(self, tmp_path, name):
        with pytest.raises(ValueError, match="is a GGUF file, whose packed weights are not read"):
            read_state(touch(tmp_path / name, b"GGUF\3\0\0\0" + bytes(99)))

    @pytest.mark.parametrize("text", ["", "[]", "3", '["ab"]', "[" * 100_000, '{"a":' * 100_000, "9" * 5000])
    def test_a_configuration_of_another_kind(self, tmp_path, text):
        path = tmp_path / "m.safetensors"
        save_file(tensors(), path, {"config": text})
        for read in (lambda: check_config({"depth": 2}, path), lambda: parse_metadata(path, "config")):
            with pytest.raises(ValueError, match=r"m\.safetensors: its config (cannot be read|is no object)") as caught:
                read()
            assert type(caught.value) is UserError
            assert "\n" not in str(caught.value)

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


@contextlib.contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """No file grows beyond a size, as on a disk with that much space."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


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

    def test_a_full_disk_keeps_what_was_there(self, tmp_path):
        """One error of the system, which commands show in a line."""
        path = tmp_path / "m.safetensors"
        export_safetensors(path, tensors())
        with full_disk(10_000), pytest.raises(OSError, match="File too large") as caught:
            export_safetensors(path, {"a": torch.zeros(100_000)})
        assert caught.value.errno == errno.EFBIG
        assert same(read_state(path), tensors())
        assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]

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
