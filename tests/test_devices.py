"""What the machine is asked for."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from segskd.devices import use_cpu

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**22, 4)  # 64 MiB, and gone again
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

loose = faults()
use_cpu()
print(loose, min(faults() for _ in range(5)))  # what is left between small things fits at last
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_memory_that_a_tensor_left_is_not_fetched_anew() -> None:
    out = subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, check=True, text=True).stdout
    loose, kept = map(int, out.split())
    assert loose > 1000
    assert kept < 100
