"""A process that has imported the commands and runs each command line in a forked child: milliseconds instead of seconds.

Reads one JSON object per line ({"script", "argv", "cwd", "limit_s"}) and answers with one ({"code", "out", "err", "seconds"});
code is None where the child had to be killed. Forked from a process that has used no threads, so that children may.
"""

import seerkit.environment  # isort: skip

import importlib
import importlib.util
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MEMORY_BYTES, FILE_BYTES = 12 * 2**30, 2**28
"""What a child may ask for: a machine is not to be filled by a size that was not checked."""
USED = "PIL.Image", "safetensors.torch", "transformers", "diffusers", "matplotlib.pyplot", "imageio_ffmpeg"
"""Packages that commands import when they use them, imported once."""


def load(script: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"command_{script.replace('/', '_')}", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def become(command: ModuleType, request: dict[str, Any], out: Path, err: Path) -> None:
    """The child: run a command as its own process would, never to return."""
    os.setsid()
    os.chdir(request["cwd"])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = [request["script"], *request["argv"]]
    code = 1
    try:
        seerkit.command.cli.run_command(command.main, request["argv"])
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def answer(command: ModuleType, request: dict[str, Any]) -> dict[str, Any]:
    out, err = (Path(f"{request['cwd']}.{name}") for name in ("out", "err"))
    begun = time.monotonic()
    child = os.fork()
    if not child:
        become(command, request, out, err)
    code = None
    while time.monotonic() - begun < request["limit_s"]:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.005)
    else:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    texts = {name: path.read_text(errors="replace") for name, path in (("out", out), ("err", err))}
    return {"code": code, "seconds": round(time.monotonic() - begun, 2), **texts}


def main() -> None:
    commands = {script: load(script) for script in sys.argv[1:]}
    for name in USED:
        if importlib.util.find_spec(name.partition(".")[0]):
            importlib.import_module(name)
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answer(commands[request["script"]], request)), file=replies, flush=True)


if __name__ == "__main__":
    main()
