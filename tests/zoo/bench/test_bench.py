"""Benchmarks: every case runs, wrong results are found before anything is timed, and records can be read back."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from typer.testing import CliRunner

from zoo.bench import CASES, exact, harness, memory, report, vqmodel
from zoo.bench.memory import Peak
from zoo.bench.problem import Contender, Goal, Problem, Verdict, Work
from zoo.bench.problem import problems as problems_of
from zoo.cli import app

ROOT = Path(__file__).parents[3]


def bench(*arguments: object, expect: int = 0) -> Any:
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    assert result.exit_code == expect, result.stdout + result.stderr
    return result


# -- every case ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_every_case_runs_and_its_records_can_be_read_back(case: str, tmp_path: Path) -> None:
    file = tmp_path / "results" / "case.jsonl"
    shown = bench(case, "--quick", "--device", "cpu", "--json", file).stdout
    records = report.read(file)
    problems = problems_of(case, "cpu", quick=True)
    assert [record["problem"] for record in records] == [problem.name for problem in problems]
    for record, problem in zip(records, problems):
        assert record["case"] == case
        assert record["device"] == "cpu"
        assert record["passed"]
        assert record["sizes"].items() >= {"device": "cpu"}.items()
        assert record["threads"] == torch.get_num_threads()
        assert record["versions"]["torch"] == torch.__version__.partition("+")[0] or record["versions"]["torch"]
        assert record["date"].endswith("+00:00")
        assert [result["contender"] for result in record["results"]] == [c.name for c in problem.contenders()]
        assert record["results"][0]["contender"] == "zoo"
        for result in record["results"]:
            low, high = result["wall_quartiles"]
            assert 0 < result["wall_best"] <= low <= result["wall_seconds"] <= high
            assert result["rate"] == pytest.approx(problem.items()[0] / result["wall_seconds"])
            assert result["contender"] in shown
        assert record["limit"]["seconds"] > 0
        assert record["goals"] == []  # the sizes are not those of the goals


@pytest.mark.parametrize("case", CASES)
def test_every_number_of_a_result_is_judged(case: str) -> None:
    (problem, *_) = problems_of(case, "cpu", quick=True)
    data = problem.data()
    outputs = {contender.name: contender.build(data)() for contender in problem.contenders()}
    assert all(verdict.passed for verdict in problem.gate(data, outputs).values())
    broken = list(corrupted(outputs["zoo"]))
    assert broken
    for output in broken:
        verdicts = problem.gate(data, {**outputs, "zoo": output})
        assert not verdicts["zoo"].passed
        assert verdicts["zoo"].text.startswith(("wrong", "indices wrong", "indices all"))
        assert all(verdict.passed for name, verdict in verdicts.items() if name != "zoo")


def corrupted(output: Any) -> Iterator[Any]:
    """The output with one of its tensors changed, for each in turn."""
    if isinstance(output, Tensor):
        yield output.roll(1, 0) + 1 if not output.is_floating_point() else output * 1.5 + 0.5
    elif isinstance(output, dict):
        for key, value in list(output.items())[:3]:
            yield from ({**output, key: other} for other in corrupted(value))
    elif isinstance(output, tuple):
        for i, value in enumerate(output):
            for other in corrupted(value):
                items = [*output[:i], other, *output[i + 1 :]]
                yield type(output)(*items) if hasattr(output, "_fields") else tuple(items)


def test_full_sizes_are_those_of_the_goals() -> None:
    names = {case: [problem.name for problem in problems_of(case, "cpu", quick=False)] for case in CASES}
    assert names["quantize"] == [f"K=16384 D={dim} N=4096" for dim in (8, 32, 256)]
    assert names["entropy"] == ["14 bits, N=4096", "18 bits, N=4096", "18 bits, N=65536"]
    assert names["rvq"] == [f"8 x 1024 x 128, {frames} frames" for frames in (750, 6000)]
    assert names["ema-step"] == ["K=8192 D=32 N=16384"]
    with_goals = {case for case in CASES for p in problems_of(case, "cpu", quick=False) if p.goals()}
    assert with_goals == {
        "quantize",
        "entropy",
        "rvq",
        "ema-step",
        "encode-audio",
        "decode-audio",
        "recompute",
        "tokenize",
    }
    for case in with_goals:
        for device in ("cpu", "cuda"):
            for problem in problems_of(case, device, quick=False):
                contenders = {contender.name for contender in problem.contenders()} | {"faiss"}
                assert all({goal.contender, goal.peer or goal.contender} <= contenders for goal in problem.goals())


def test_small_problems_have_the_contenders_of_the_full_ones() -> None:
    for case in CASES:
        small = {contender.name for contender in problems_of(case, "cpu", quick=True)[0].contenders()}
        for problem in problems_of(case, "cpu", quick=False):
            assert {contender.name for contender in problem.contenders()} <= small


# -- the verb ------------------------------------------------------------------------------------------------------


def test_a_wrong_result_is_told_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from zoo.bench import quantize

    right = quantize.nearest_code

    def wrong(x: Tensor, codes: Tensor) -> Tensor:
        return right(x, codes).index_fill(0, torch.tensor([3]), 0)

    monkeypatch.setattr(quantize, "nearest_code", wrong)
    file = tmp_path / "quantize.jsonl"
    result = bench("quantize", "--quick", "--device", "cpu", "--json", file, expect=1)
    assert "no times where results differ" in result.stderr
    assert "K=512 D=8 N=256 (cpu): zoo wrong: 1 of 256 are not the nearest" in result.stderr
    assert "torch.cdist" not in result.stderr
    for record in report.read(file):
        assert not record["passed"]
        assert not any("wall_seconds" in entry for entry in record["results"])


def test_an_unknown_case_is_answered_with_the_nearest_names() -> None:
    stderr = bench("quantise", expect=1).stderr
    assert "unknown case 'quantise'" in stderr
    assert "quantize" in stderr


def test_without_a_case_the_list_is_shown() -> None:
    shown = bench().stdout
    assert all(name in shown and entry.about in shown for name, entry in CASES.items())


def test_a_device_that_is_not_there_is_refused() -> None:
    assert "--device: expected cpu" in bench("quantize", "--device", "tpu", expect=1).stderr


def test_cases_are_listed_without_torch() -> None:
    program = (
        "import sys; from zoo.cli import app; app(['bench'], standalone_mode=False); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_makefile_and_document_hold_every_case() -> None:
    (listed,) = re.findall(r"^BENCHMARKS := (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert listed.split() == list(CASES)
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    for case, entry in CASES.items():
        assert f"### {case}: {entry.about}\n\n<!-- benchmark {case}: made by" in text
        assert f"<!-- end of benchmark {case} -->" in text


# -- the harness ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Toy(Problem[list[str]]):
    """Contenders that note their calls."""

    actions: tuple[tuple[str, Callable[[], Any]], ...]
    device: str = "cpu"

    @property
    def name(self) -> str:
        return "toy"

    def data(self) -> list[str]:
        return []

    def contenders(self) -> list[Contender[list[str]]]:
        return [Contender(name, lambda calls, action=action: action) for name, action in self.actions]  # type: ignore[misc]

    def gate(self, data: list[str], outputs: Any) -> dict[str, Verdict]:
        return {name: Verdict(output == 1, "right" if output == 1 else "wrong") for name, output in outputs.items()}

    def work(self) -> Work:
        return Work(1e6, 0.0)

    def goals(self) -> list[Goal]:
        return [Goal("zoo", "time", "slow", 3.0), Goal("zoo", "memory", bound=1e6), Goal("zoo", "memory", "slow", 50.0)]

    def sizes(self) -> dict[str, Any]:
        return {}


def work(calls: list[str], name: str, size: int) -> Callable[[], int]:
    values = torch.zeros(size)

    def run() -> int:
        calls.append(name)
        values.add_(1)
        return 1

    return run


def test_rounds_are_interleaved_and_goals_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(harness._BUDGET, "cpu", 0.0)  # five rounds
    monkeypatch.setattr(harness, "_SHORT", 0.0)  # one call each
    calls: list[str] = []
    toy = Toy((("zoo", work(calls, "zoo", 100)), ("slow", work(calls, "slow", 4_000_000))))
    record = harness.run("toy", toy, peaks={"zoo": Peak(5000), "slow": Peak(400_000)})
    assert sorted(calls[:2]) == sorted(calls[2:4]) == ["slow", "zoo"]  # the gate, the first timing
    assert len(calls) == 2 * (2 + 5)
    assert all(set(calls[i : i + 2]) == {"zoo", "slow"} for i in range(4, 14, 2))
    assert calls[4:].count("zoo") == 5
    assert calls[4:6] != calls[-2:] or calls[4] != calls[6]  # the order moves
    first, second, third = record["goals"]
    ours, slow = record["results"]
    assert first["value"] == pytest.approx(slow["wall_seconds"] / ours["wall_seconds"])
    assert first["met"]
    assert second == {"text": "zoo: less than 1 MB", "unit": " MB", "value": 0.005, "met": True}
    assert third["value"] == pytest.approx(80)
    expected = 100 * 1e6 / record["limit"]["flops_per_second"] / ours["wall_seconds"]
    assert ours["limit_percent"] == pytest.approx(expected)


def test_a_goal_without_a_measurement_is_not_called_met() -> None:
    judged = harness._judge(Goal("zoo", "memory", bound=1e6), {"zoo": {"wall_seconds": 1.0}})
    assert judged["value"] is None
    assert judged["met"] is None
    missed = harness._judge(Goal("zoo", "time", "peer", 2.0), {n: {"wall_seconds": 1.0} for n in ("zoo", "peer")})
    assert missed["met"] is False
    record = {"goals": [judged, missed]}
    assert report.goals(record)[0].endswith("not measured")
    assert report.goals(record)[1].endswith("1.00x, NOT met")


def test_a_peer_that_runs_out_of_memory_is_left_out_and_named() -> None:
    calls: list[str] = []
    toy = Toy((("zoo", work(calls, "zoo", 10)), ("slow", lambda: torch.empty(2**50))))
    record = harness.run("toy", toy, quick=True)
    assert record["passed"]
    assert "wall_seconds" not in record["results"][1]
    assert record["results"][1]["gate"].startswith("cannot run: ")
    known = harness.run("toy", toy, quick=True, peaks={"slow": Peak(error="needs more than 4.0 GB")})
    assert known["results"][1]["gate"] == "cannot run: needs more than 4.0 GB"
    assert report.rows(known)[1][1:5] == ["", "", "", ""]


def test_ours_must_run() -> None:
    with pytest.raises(RuntimeError, match="allocate"):
        harness.run("toy", Toy((("zoo", lambda: torch.empty(2**50)), ("slow", lambda: 1))), quick=True)


# -- memory --------------------------------------------------------------------------------------------------------

on_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel tells no peak")


def peak_of(action: Callable[[], Any]) -> dict[str, Any]:
    toy = Toy((("zoo", action),))
    (contender,) = toy.contenders()
    (warm,) = Toy((("zoo", lambda: 1),)).contenders()
    return memory._in_a_fork(lambda: memory._peak(toy, contender, toy, warm))


@on_linux
def test_peak_memory_counts_what_is_freed_within_the_call() -> None:
    size = 60 << 20
    peak = peak_of(lambda: len(bytearray(size)))["bytes"]
    assert size - (1 << 20) < peak < size + (4 << 20)  # the kernel's counters lag a little
    assert peak_of(lambda: 1)["bytes"] < 1 << 20


@on_linux
def test_a_contender_that_needs_too_much_memory_says_so() -> None:
    assert re.fullmatch(r"needs more than \d+\.\d GB", peak_of(lambda: bytearray(1 << 50))["error"])
    assert peak_of(lambda: torch.empty(2**48))["error"].startswith("needs more than")


@on_linux
def test_a_crash_of_the_measured_process_is_told() -> None:
    import os

    assert peak_of(lambda: os._exit(7)) == {"exit": "ended with status 7"}


@on_linux
def test_every_contender_is_measured_in_a_process_of_its_own() -> None:
    told: list[str] = []
    peaks = memory.measure("quantize", 1, quick=True, progress=told.append)
    problems = problems_of("quantize", "cpu", quick=True)
    assert list(peaks) == [problem.name for problem in problems]
    for problem in problems:
        assert list(peaks[problem.name]) == [contender.name for contender in problem.contenders()]
        table = 4 * problem.codes * problem.vectors
        assert peaks[problem.name]["torch.cdist"].bytes >= table
        assert peaks[problem.name]["vector-quantize-pytorch"].bytes >= 3 * table
    assert len(told) == sum(len(found) for found in peaks.values())


def test_an_error_of_the_process_that_measures_is_passed_on() -> None:
    if hasattr(memory.os, "fork"):
        with pytest.raises(RuntimeError, match="ValueError: expected a case of"):
            memory.measure("no_such_case", 1, quick=True)


# -- what the gates compare with -----------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32), count=st.integers(1, 40), codes=st.integers(2, 50), dim=st.integers(1, 20))
def test_only_nearest_codes_and_near_ties_pass(seed: int, count: int, codes: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, table = (torch.randn(size, dim, generator=generator) for size in (count, codes))
    table[1] = table[0]  # as near as the first, but not the lowest index
    distances = (x[:, None].double() - table.double()).square().sum(-1)
    order = distances.argsort(dim=1, stable=True)
    assert exact.judge_indices(x, table, order[:, 0]) == Verdict(True, f"all {count:,} equal")
    assert exact.judge_indices(x, table, order[:, 0].where(order[:, 0] != 0, 1)).passed
    excess = distances.gather(1, order[:, -1:]) - distances.gather(1, order[:, :1])
    if excess.max() > 1e-3:
        assert not exact.judge_indices(x, table, order[:, -1]).passed
    assert not exact.judge_indices(x, table, order[:, 0] + codes).passed
    assert not exact.judge_indices(x, table, order[:, 0].float()).passed


@given(seed=st.integers(0, 2**32), temperature=st.sampled_from([0.3, 1.0, 4.0]), floor=st.sampled_from([0.0, 1e-3]))
def test_exact_entropies_are_the_definition_and_its_gradient(seed: int, temperature: float, floor: float) -> None:
    z = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    codes = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 5)
    p = (-(z[:, None] - codes).square().sum(-1) / temperature).softmax(-1)
    clamp = max(floor, 1e-300)
    sample = -(p * p.clamp_min(clamp).log()).sum(-1).mean()
    codebook = -(p.mean(0) * p.mean(0).clamp_min(clamp).log()).sum()
    (gradient,) = torch.autograd.grad(sample - codebook, z)
    expected = (sample.detach(), codebook.detach(), gradient)
    torch.testing.assert_close(exact.binary_entropies(z.detach(), temperature, floor), expected)
    if floor == 0:
        torch.testing.assert_close(exact.factorised_entropies(z.detach(), temperature), expected)


def test_closeness_is_relative_to_what_is_expected() -> None:
    assert exact.judge_close({"a": (torch.tensor([100.0, 0.0]), torch.tensor([100.005, 0.0]))}, 1e-4).passed
    assert not exact.judge_close({"a": (torch.tensor([100.0]), torch.tensor([100.02]))}, 1e-4).passed
    assert not exact.judge_close({"a": (math.nan, 1.0)}, 1e-4).passed
    assert not exact.judge_close({"a": (torch.zeros(2), torch.zeros(3))}, 1e-4).passed


def test_operations_of_a_network_are_counted() -> None:
    shape = replace(vqmodel.SMALL, multipliers=(1,))
    encode, decode, train = (vqmodel.flops(shape, 16, part) for part in ("encode", "decode", "train"))
    first = 2 * 16 * 16 * 32 * 27  # the convolution from 3 to 32 channels
    assert encode > first
    assert decode > first
    assert 2.5 * (encode + decode) < train < 3.1 * (encode + decode)
    assert vqmodel.flops(shape, 32, "encode") > 4 * encode


# -- tables --------------------------------------------------------------------------------------------------------


def test_tables_in_markdown(tmp_path: Path) -> None:
    file = tmp_path / "case.jsonl"
    bench("kmeans", "--quick", "--device", "cpu", "--json", file)
    records = report.read(file)
    records[0]["goals"] = [{"text": "zoo: at least 2x faster than faiss", "unit": "x", "value": 2.5, "met": True}]
    text = report.markdown(records)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(records[0]["results"])
    assert len({line.count("|") for line in lines}) == 1
    assert "1.00" in lines[2].split("|")[4]
    assert text.count("Measured on ") == 1
    assert "goal: zoo: at least 2x faster than faiss: 2.50x, met" in text
    assert "| kmeans | K=32 D=8 N=2048, 3 iterations (cpu) | zoo: at least 2x" in report.goal_table(records)
    times = {result["contender"]: result["wall_seconds"] for result in records[0]["results"]}
    ratio = report.figures(times["vector-quantize-pytorch"] / times["zoo"])
    (line,) = report.peer_table(records).splitlines()[2:]
    assert f"| {report.duration(times['zoo'])} | vector-quantize-pytorch: {ratio}x" in line
    assert "pure torch" not in line


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (report.duration(1.234), "1.23 s"),
        (report.duration(0.0123), "12.3 ms"),
        (report.duration(4.56e-5), "45.6 µs"),
        (report.size(999), "999 B"),
        (report.size(12_300_000), "12.3 MB"),
        (report.size(4.3e9), "4.30 GB"),
        (report.count(123456), "123 k"),
        (report.count(3), "3.00"),
    ],
)
def test_numbers_are_shown_with_their_units(shown: str, expected: str) -> None:
    assert shown == expected


def test_records_are_strict_json(tmp_path: Path) -> None:
    file = tmp_path / "rvq.jsonl"
    bench("rvq", "--quick", "--device", "cpu", "--json", file)
    for line in file.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
