"""The allocator setting: memory that was freed stays with the process."""

import subprocess
import sys

import pytest

MEASURE = """
import sys, torch
from seerkit.devices.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
before = resident()
tensors = [torch.ones(2**20) for _ in range(50)]  # 4 MiB each
del tensors
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_is_kept_only_when_asked_for():
    grown = {
        mode: int(
            subprocess.run([sys.executable, "-c", MEASURE, mode], capture_output=True, text=True, check=True).stdout
        )
        for mode in ("keep", "give")
    }
    assert grown["keep"] > 150 * 2**20
    assert grown["give"] < 100 * 2**20
