"""Compiling at first use: what is kept, what is refused, and what happens where there is no compiler that works."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import shutil
import stat
import tempfile
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import torch

from zoo.ops import build, nearest_code, nearest_code_compiled
from zoo.ops.build import BuildError, load

needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "cache" / "compiled"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.cpp"
    path.write_text('#ifndef ANSWER\n#define ANSWER 42\n#endif\nextern "C" int answer() { return ANSWER; }\n')
    return path


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    path = tmp_path / "trial.py"
    path.write_text("import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).answer() == 0)\n")
    return path


def fake_compiler(folder: Path, script: str) -> str:
    """A program that answers --version and runs the script (a shell's) otherwise; $out is the file it has to write."""
    path = folder / "fake-c++"
    take = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && out="$2"; shift; done\n'
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo fake 1.0 && exit 0\n{take}{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def trust(library: ctypes.CDLL) -> None:
    pass


def distrust(library: ctypes.CDLL) -> None:
    raise BuildError("two and two are five")


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*")) if folder.exists() else []


@needs_compiler
def test_a_library_is_compiled_once_and_then_taken_from_the_cache(
    source: Path, trial: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(source, trial, trust).answer() == 42
    (kept,) = files(cache)

    def compiled_again(*arguments: object) -> str:
        raise AssertionError("the compiler was called")

    written = kept.stat().st_mtime_ns
    version = build._run([shutil.which("c++") or "", "--version"], 20, "")
    monkeypatch.setattr(build, "_run", lambda command, *_: version if "--version" in command else compiled_again())
    assert load(source, trial, trust).answer() == 42
    assert files(cache) == [kept]
    assert kept.stat().st_mtime_ns == written


@needs_compiler
def test_another_source_header_compiler_flag_processor_or_version_is_another_library(
    source: Path, trial: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zoo

    load(source, trial, trust)
    monkeypatch.setenv("CXX", "c++ -DANSWER=43")
    assert load(source, trial, trust).answer() == 43
    monkeypatch.setattr(build, "_processor", lambda: "an old processor")
    assert load(source, trial, trust).answer() == 43
    monkeypatch.setattr(zoo, "__version__", "0.0.1")
    assert load(source, trial, trust).answer() == 43
    source.write_text('#include "more.h"\n' + source.read_text().replace("ANSWER; }", "ANSWER + MORE; }"))
    for more in (1, 2):
        source.with_name("more.h").write_text(f"#define MORE {more}\n")
        assert load(source, trial, trust).answer() == 43 + more
    assert len({path.name.split("-")[1] for path in files(cache)}) == len(files(cache)) == 6


@needs_compiler
@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "other file"])
def test_a_library_that_is_not_whole_is_replaced_and_not_loaded(
    damage: str, source: Path, trial: Path, cache: Path
) -> None:
    load(source, trial, trust)
    (kept,) = files(cache)
    whole = kept.read_bytes()
    kept.unlink()  # the file that is loaded here must stay as it is
    middle = len(whole) // 2
    kept.write_bytes(
        {
            "cut": whole[:middle],
            "empty": b"",
            "changed": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "other file": b"not a library",
        }[damage]
    )
    assert load(source, trial, trust).answer() == 42
    assert kept.read_bytes() == whole


@needs_compiler
def test_a_library_that_answers_wrongly_is_deleted(source: Path, trial: Path, cache: Path) -> None:
    with pytest.raises(BuildError, match="two and two are five"):
        load(source, trial, distrust)
    assert files(cache) == []
    load(source, trial, trust)
    with pytest.raises(BuildError, match="two and two are five"):
        load(source, trial, distrust)
    assert files(cache) == []


@needs_compiler
def test_a_library_that_crashes_does_so_in_a_process_of_its_own(source: Path, trial: Path, cache: Path) -> None:
    source.write_text('extern "C" int answer() { __builtin_trap(); }')
    with pytest.raises(BuildError, match="the trial of the compiled library failed with status -"):
        load(source, trial, trust)
    assert files(cache) == []


@needs_compiler
def test_a_cache_that_cannot_be_written_is_done_without(
    source: Path, trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "occupied").write_text("a file where the folder should be")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "occupied" / "zoo"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert load(source, trial, trust).answer() == 42
    assert files(tmp_path / "temporary") == []


def load_and_answer(source: Path, trial: Path, gate: Barrier) -> None:
    gate.wait()
    raise SystemExit(load(source, trial, trust).answer())


@needs_compiler
def test_processes_that_compile_at_once_all_get_a_whole_library(source: Path, trial: Path, cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(4)
    processes = [context.Process(target=load_and_answer, args=(source, trial, gate)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [42] * 4
    assert all(build._digest(path) == path.name.split("-")[2] for path in files(cache))


FAILURES = {
    "echo 'no such thing' >&2; exit 1": "the C.. compiler failed with status 1: no such thing",
    "kill -9 $$": "the C.. compiler failed with status -9: it printed nothing",
    "exit 0": "the C.. compiler has written nothing",
    "echo garbage > $out": "the trial of the compiled library failed",
    "head -c 3000 /bin/sh > $out": "the trial of the compiled library failed",
    "sleep 60": r"the C.. compiler did not end within 0\.5 s",
}


@pytest.mark.parametrize("script", FAILURES)
def test_a_broken_compiler_is_named(
    script: str, source: Path, trial: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, script))
    monkeypatch.setattr(build, "_COMPILE_SECONDS", 0.5)
    with pytest.raises(BuildError, match=FAILURES[script]):
        load(source, trial, trust)
    assert files(cache) == []


def test_a_compiler_that_is_not_there_is_named(
    source: Path, trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    with pytest.raises(BuildError, match=r"CXX: expected a C.. compiler, got '.*missing', which is not there"):
        load(source, trial, trust)
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, ""))
    (tmp_path / "fake-c++").write_text("\0 no program")
    with pytest.raises(BuildError, match=r"the C.. compiler (does not start|failed)"):
        load(source, trial, trust)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"expected a C.. compiler \(c.., g.., clang.., .*\), got none"):
        load(source, trial, trust)


# -- the search without its kernel -------------------------------------------------------------------------------------


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    kernel = nearest_code_compiled._KERNEL
    monkeypatch.setattr(kernel, "_tried", False)
    monkeypatch.setattr(kernel, "_library", None)
    monkeypatch.delenv("ZOO_COMPILED", raising=False)


@pytest.mark.parametrize("script", ["exit 1", "echo garbage > $out"])
def test_without_a_compiler_torch_searches_and_the_log_says_so_once(
    script: str, untried: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, script))
    codebook = torch.randn(30, 4)
    with caplog.at_level(logging.DEBUG):
        for _ in range(2):
            assert nearest_code(codebook, codebook).tolist() == list(range(30))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("nearest codes are searched by torch, which is slower: the ")
    assert "\n" not in record.getMessage()


def test_the_kernel_can_be_switched_off(
    untried: None, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ZOO_COMPILED", "0")
    codebook = torch.randn(30, 4)
    with caplog.at_level(logging.DEBUG):
        assert nearest_code(codebook, codebook).tolist() == list(range(30))
    assert not nearest_code_compiled.available()
    assert not caplog.records
    assert files(cache) == []
    with pytest.raises(RuntimeError, match="the compiled kernel is not available"):
        nearest_code_compiled.search(codebook, [codebook], "dot")


@needs_compiler
def test_a_kernel_that_answers_wrongly_is_not_used(
    untried: None, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = nearest_code_compiled._KERNEL
    folder = shutil.copytree(kernel.source.parent, tmp_path / "csrc")
    text = (folder / "codebook.h").read_text()
    wrong = text.replace("metric != COSINE ? 1 :", "true ? 1 :")  # which the trial, Euclidean, does not see
    assert wrong != text
    (folder / "codebook.h").write_text(wrong)
    monkeypatch.setattr(kernel, "source", folder / "nearest_code.cpp")
    codebook = torch.randn(30, 4)
    assert nearest_code(codebook, codebook).tolist() == list(range(30))
    (record,) = caplog.records
    assert record.getMessage().endswith("the compiled library does not work: its answers are wrong")
    assert files(cache) == []
