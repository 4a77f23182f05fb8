"""Peak memory of each contender on the CPU, each in a process of its own.

Native libraries allocate past Python, keep what they have freed, and share their scratch space. So each contender runs
once, in a process forked from one that has imported the libraries and computed nothing, after it has solved the small
problem of its case; what counts is how far the resident set rises above what it was before that run, as the kernel
tells it, to some 100 kB.

    python -m zoo.bench.memory CASE THREADS [--quick]      # prints a JSON line per problem and contender
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.bench import CASES
from zoo.memory import free_memory, return_free_memory

_SHARE = 0.5  # of the memory that is free, which a contender may take


@dataclass(frozen=True)
class Peak:
    """What a contender took at most beyond what was there before; or why it could not run.

    `bytes` is None where the system does not tell (it is Linux that does).
    """

    bytes: int | None = None
    error: str | None = None


def measure(
    case: str, threads: int, *, quick: bool, progress: Callable[[str], None] = lambda text: None
) -> dict[str, dict[str, Peak]]:
    """Problem -> contender -> peak.

    Raises:
        RuntimeError: the process that measures ended with an error.
    """
    if not hasattr(os, "fork") or not Path("/proc/self/clear_refs").exists():
        return {}
    command = [sys.executable, "-m", "zoo.bench.memory", case, str(threads), *(["--quick"] if quick else [])]
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    # the last lets libraries ask for a GPU as they are imported, without starting what a fork could not use
    safe = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    environment = {**os.environ, **safe}
    peaks: dict[str, dict[str, Peak]] = {}
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as child:
            for line in child.stdout or ():
                found = json.loads(line)
                progress(f"{found['problem']}: memory of {found['contender']}")
                peak = Peak(found["bytes"], found["error"])
                peaks.setdefault(found["problem"], {})[found["contender"]] = peak
        errors.seek(0)
        if child.returncode != 0:
            raise RuntimeError(f"memory of {case}:\n{errors.read().strip() or 'no message'}")
    return peaks


def main(arguments: list[str]) -> None:
    """Fork a process per problem and contender, and print what each says."""
    case, threads = arguments[:2]
    if case not in CASES:
        raise ValueError(f"expected a case of {', '.join(CASES)}, got {case!r}")
    import torch

    from zoo.bench.problem import problems

    torch.set_num_threads(int(threads))
    small = problems(case, "cpu", quick=True)[0]
    # once for all forks; torch's operators import the first at their first call
    for module in ["torch._dynamo", *(contender.module for contender in small.contenders())]:
        importlib.import_module(module)
    for problem in problems(case, "cpu", quick="--quick" in arguments):
        for i, contender in enumerate(problem.contenders()):
            warm = next(other for other in small.contenders() if other.name == contender.name)
            answer = _in_a_fork(lambda p=problem, c=contender, w=warm: _peak(p, c, small, w))  # type: ignore[misc]
            if "exit" in answer and i == 0:
                raise RuntimeError(f"{problem.name}, {contender.name}: {answer['exit']}")
            line = {"problem": problem.name, "contender": contender.name, "bytes": answer.get("bytes")}
            print(json.dumps({**line, "error": answer.get("error") or answer.get("exit")}), flush=True)


def _in_a_fork(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returns in a forked process; {"exit": reason} if that ends otherwise."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            os.dup2(2, 1)  # what a library prints is no result
            with open(writing, "w") as pipe:
                json.dump(work(), pipe)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != 0 or not text:
        return {"exit": "killed: out of memory" if status == -9 else f"ended with status {status}"}
    return dict(json.loads(text))


def _peak(problem: Any, contender: Any, small: Any, warm: Any) -> dict[str, Any]:
    warm.build(small.data())()
    data = problem.data()
    action = contender.build(data)
    gc.collect()
    allowed = _limit_memory()
    try:
        return_free_memory()  # so that it is counted when it is used again
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        kept = action()
        peak = _status("VmHWM")
        del kept
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
            raise
        return {"error": f"needs more than {allowed / 1e9:.1f} GB"}
    return {"bytes": max(0, peak - before)}


def _limit_memory() -> float:
    """Lets this process take no more than a share of the free memory, so that an attempt fails and nothing else."""
    import resource

    free = free_memory()
    if free is None:
        return float("inf")
    allowed = int(_SHARE * free)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + allowed,) * 2)
    return allowed


def _status(key: str) -> int:
    """A size of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main(sys.argv[1:])
