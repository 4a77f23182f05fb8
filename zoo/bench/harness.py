"""Times the contenders of a problem, once their results have been found equal.

Rounds are interleaved: each round runs every contender, and the calibration of the limits, in an order that moves by
one, so that a change of the machine's speed meets all of them.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from zoo.bench.memory import Peak
from zoo.bench.problem import Contender, Goal, Problem, Verdict, Work
from zoo.ops.nearest_code import backend

_BUDGET = {"cpu": 12.0, "cuda": 1.5}  # seconds that the rounds of a problem should take
_PATIENCE = 30.0  # seconds after which a slow contender leaves the rounds, once it has run three times
_SHORT = 0.2  # a contender faster than this gets an untimed call first: the one before it has emptied the caches
_SAMPLE = 0.05  # seconds of calls that make one sample of a fast contender

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Sample:
    """One call."""

    wall: float
    cpu: float  # seconds of all threads of the process


def run(
    case: str,
    problem: Problem[Any],
    *,
    quick: bool = False,
    peaks: Mapping[str, Peak] | None = None,
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """One record: the gate's verdicts, and, if all passed, times, memory, limits and goals; in float32, without TF32.

    On a GPU the peak memory of a contender is that of torch's allocator in a call here.

    Args:
        case: its name.
        problem: of that case.
        quick: two short rounds, and no goals.
        peaks: of `memory.measure`; a contender that could not run there is left out here.
        progress: is told what is going on.

    Returns:
        What a line of the JSON file holds; `passed` tells of the gate.
    """
    precision = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        return _run(case, problem, quick, peaks or {}, progress)
    finally:
        torch.backends.cudnn.conv.fp32_precision = precision


def _run(
    case: str, problem: Problem[Any], quick: bool, peaks: Mapping[str, Peak], progress: Progress
) -> dict[str, Any]:
    failures = {name: peak.error for name, peak in peaks.items() if peak.error is not None}
    contenders = [contender for contender in problem.contenders() if contender.name not in failures]
    data = problem.data()
    actions, outputs = {}, {}
    for contender in contenders:
        progress(f"{problem.name}: is {contender.name} right?")
        try:
            actions[contender.name] = contender.build(data)
            outputs[contender.name] = actions[contender.name]()
        except (RuntimeError, MemoryError) as error:
            if contender is contenders[0] or not _out_of_memory(error):
                raise
            failures[contender.name] = str(error).partition("\n")[0].partition(". ")[0]
            actions.pop(contender.name, None)
    verdicts = problem.gate(data, outputs)
    verdicts |= {name: Verdict(True, f"cannot run: {reason}") for name, reason in failures.items()}
    outputs.clear()
    passed = all(verdict.passed for verdict in verdicts.values())
    record: dict[str, Any] = {
        "case": case,
        "problem": problem.name,
        "sizes": problem.sizes(),
        "quick": quick,
        "passed": passed,
        **environment(problem.device, problem.contenders()),
    }
    if not passed:
        record["results"] = [_plain(name, verdict) for name, verdict in verdicts.items()]
        return record
    if problem.device == "cuda":
        peaks = {name: Peak(_gpu_peak(action)) for name, action in actions.items()}
    samples, rates = _rounds(problem, actions, quick, progress)
    limit = _limit(problem.work(), rates)
    number, unit = problem.items()
    results = []
    for contender in problem.contenders():
        result = _plain(contender.name, verdicts[contender.name])
        taken = samples.get(contender.name)
        if taken:
            walls = [sample.wall for sample in taken]
            result |= {
                "rounds": len(taken),
                "wall_seconds": median(walls),
                "wall_quartiles": _quartiles(walls),
                "wall_best": min(walls),
                "cpu_seconds": median(sample.cpu for sample in taken),
                "rate": number / median(walls),
                "limit_percent": 100 * limit["seconds"] / median(walls) if limit["seconds"] > 0 else None,
            }
        if (peak := peaks.get(contender.name)) is not None and peak.bytes is not None:
            result["peak_extra_bytes"] = peak.bytes
        results.append(result)
    record |= {"unit": unit, "limit": limit, "results": results}
    record["goals"] = [] if quick else [_judge(goal, {r["contender"]: r for r in results}) for goal in problem.goals()]
    return record


def _plain(name: str, verdict: Verdict) -> dict[str, Any]:
    told = {} if verdict.agreement is None else {"agreement": verdict.agreement}
    return {"contender": name, "passed": verdict.passed, "gate": verdict.text, **told}


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


# -- time ----------------------------------------------------------------------------------------------------------


def _rounds(
    problem: Problem[Any], actions: Mapping[str, Callable[[], Any]], quick: bool, progress: Progress
) -> tuple[dict[str, list[Sample]], dict[str, float]]:
    """Samples of each contender, and the best calibrated rates: flops and bytes per second."""
    timed = dict(actions)
    calibrations = _calibrations(problem.device, quick)
    timed |= {name: action for name, (action, _) in calibrations.items()}
    pace = {}
    for name, action in timed.items():
        progress(f"{problem.name}: how long does {name} take?")
        pace[name] = _time(action, problem.device).wall
    count = (
        2
        if quick
        else min(40, max(5, math.ceil(_BUDGET[problem.device] / sum(max(p, 2 * _SAMPLE) for p in pace.values()))))
    )
    samples: dict[str, list[Sample]] = {name: [] for name in timed}
    names = list(timed)
    gc.collect()
    gc.disable()
    try:
        for turn in range(count):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                done = samples[name]
                if len(done) >= 3 and sum(sample.wall for sample in done) > _PATIENCE:
                    continue
                progress(f"{problem.name}: round {turn + 1} of {count}, {name}")
                repeats = 1
                if pace[name] < _SHORT:
                    _time(timed[name], problem.device)
                    repeats = 1 if quick else min(100, math.ceil(_SAMPLE / pace[name]))
                done.append(_time(timed[name], problem.device, repeats))
    finally:
        gc.enable()
    rates = {name: amount / min(s.wall for s in samples[name]) for name, (_, amount) in calibrations.items()}
    return samples, rates


def _time(action: Callable[[], Any], device: str, repeats: int = 1) -> Sample:
    """Mean of some calls in a row, the device's work included."""
    _synchronise(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        action()
    _synchronise(device)
    return Sample((time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats)


def _gpu_peak(action: Callable[[], Any]) -> int:
    """Bytes that torch allocates at most in a call, beyond what is there before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    action()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _calibrations(device: str, quick: bool) -> dict[str, tuple[Callable[[], Any], float]]:
    """Name -> (action, how much it does): a square float32 matrix product, and a copy that no cache can hold."""
    side = 256 if quick else {"cpu": 1024, "cuda": 8192}[device]
    count = 2**20 if quick else {"cpu": 2**24, "cuda": 2**28}[device]
    a, b, product = (torch.rand(side, side, device=device) for _ in range(3))
    source = torch.rand(count, device=device)
    target = torch.empty_like(source)
    return {
        "matrix product": (lambda: torch.mm(a, b, out=product), 2.0 * side**3),
        "copy": (lambda: target.copy_(source), 8.0 * count),
    }


def _limit(work: Work, rates: Mapping[str, float]) -> dict[str, Any]:
    arithmetic, traffic = work.flops / rates["matrix product"], work.bytes / rates["copy"]
    return {
        "seconds": max(arithmetic, traffic),
        "bound": "arithmetic" if arithmetic >= traffic else "traffic",
        "flops": work.flops,
        "bytes": work.bytes,
        "flops_per_second": rates["matrix product"],
        "bytes_per_second": rates["copy"],
    }


def _quartiles(values: Sequence[float]) -> list[float]:
    low, _, high = quantiles(values, n=4, method="inclusive")
    return [low, high]


# -- goals ---------------------------------------------------------------------------------------------------------

_KEYS = {"time": "wall_seconds", "memory": "peak_extra_bytes", "limit": "limit_percent"}


def _judge(goal: Goal, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The goal in words, the value reached (None: not measured), and whether it is met."""
    mine = results.get(goal.contender, {}).get(_KEYS[goal.quantity])
    if goal.peer is not None:
        what = {"time": "faster than", "memory": "less memory than", "limit": "nearer the limit than"}[goal.quantity]
        theirs = results.get(goal.peer, {}).get(_KEYS[goal.quantity])
        if goal.factor < 1:
            text = f"{goal.contender}: at most {1 / goal.factor:.3g}x the {goal.quantity} of {goal.peer}"
            value = None if mine is None or theirs is None else mine / max(theirs, 1e-9)
            return {
                "text": text,
                "unit": "x",
                "value": value,
                "met": None if value is None else value <= 1 / goal.factor,
            }
        text = f"{goal.contender}: at least {goal.factor:g}x {what} {goal.peer}"
        value = None if mine is None or theirs is None else theirs / max(mine, 1e-9)
        return {"text": text, "unit": "x", "value": value, "met": None if value is None else value >= goal.factor}
    if goal.quantity == "limit":
        text = f"{goal.contender}: at least {goal.bound:g} % of the limit"
        return {"text": text, "unit": "%", "value": mine, "met": None if mine is None else mine >= goal.bound}
    text = f"{goal.contender}: less than {goal.bound / 1e6:g} MB"
    value = None if mine is None else mine / 1e6
    return {"text": text, "unit": " MB", "value": value, "met": None if mine is None else mine < goal.bound}


# -- where it was measured -----------------------------------------------------------------------------------------


def environment(device: str, contenders: Sequence[Contender[Any]]) -> dict[str, Any]:
    """Device, threads, versions, load and date."""
    modules = sorted({"torch", *(contender.module.partition(".")[0] for contender in contenders)})
    return {
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "kernel": _kernel(device),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {"python": platform.python_version()} | _versions(modules),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _kernel(device: str) -> str:
    """What `zoo.ops.nearest_code` runs on here."""
    names = {"compiled": "the compiled kernel", "triton": "the Triton kernel", "torch": "torch"}
    return names[backend(torch.device(device))]


def _versions(modules: Sequence[str]) -> dict[str, str]:
    """Distribution -> version, of those that are installed."""
    # ours by name: it may run from a checkout, whose files no distribution lists
    distributions = {**importlib.metadata.packages_distributions(), "zoo": ["tokenizer-zoo"]}
    names = {name for module in modules for name in distributions.get(module, ())}
    versions = {}
    for name in sorted(names):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def cpu_name() -> str:
    """The processor's name, as the system tells it, and the vectors that torch computes with."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
