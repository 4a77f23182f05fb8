"""The search holds neither a table of vectors x codes nor anything else that grows with both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from nearest_definition import choose

LIMIT = 16 << 20


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks are measured through Linux's /proc")
@pytest.mark.parametrize("path", ["compiled", "torch"])
def test_peak_memory_is_flat_in_vectors_and_codes(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(path, monkeypatch)
    script = Path(__file__).with_name("measure_memory.py")
    # what is freed goes back at once, so that no search lives on what another left behind
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "PYTHONPATH": "."}
    root = Path(__file__).parents[3]
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    added = json.loads(done.stdout)["added"]
    calibration = added.pop("a tensor of 64 MiB")
    assert 60 << 20 < calibration < 70 << 20
    assert {size: peak for size, peak in added.items() if peak > LIMIT} == {}
