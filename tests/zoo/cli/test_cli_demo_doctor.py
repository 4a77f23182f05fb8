"""`zoo demo`, `doctor`, `parity`, and the program as users start it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cli_pictures import picture

ROOT = Path(__file__).parents[3]


class _Page(HTMLParser):
    """Collects the text of a page, its pictures, and what it would fetch from elsewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.pictures, self.fetched = 0, []  # type: int, list[str]
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("src", "href"):
                inside = str(value).startswith("data:")
                self.pictures += inside
                self.fetched += [] if inside else [str(value)]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_demo_writes_a_page_and_pictures(run: Callable, tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    shown = run("demo", "--model", tiny, "--out", tmp_path / "demo").stdout
    page = _Page(tmp_path / "demo" / "report.html")
    assert page.fetched == []
    assert page.pictures >= 6  # original, reconstruction and tokens of two photos
    text = " ".join(page.words)
    for fact in (
        "640 x 427",
        "Tokens",
        "4,320",
        "Bits per pixel",
        "PSNR",
        "MS-SSIM",
        "PSNR of JPEG at",
        "Encode",
        "Decode",
    ):
        assert fact in text
    assert len(list((tmp_path / "demo").glob("*.png"))) == 2
    assert str(tmp_path / "demo" / "report.html") in shown


def test_doctor_passes_and_keeps_secrets(run: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "a-secret-value")
    (tmp_path / "zoo_cache").mkdir()
    (tmp_path / "zoo_cache" / "file").write_bytes(b"12345")
    result = run("doctor", "--json")
    facts = json.loads(result.stdout)
    assert facts["self-test"]["passed"] is True
    assert facts["versions"]["torch"]
    assert facts["caches"]["of the zoo"] == {"folder": str(tmp_path / "zoo_cache"), "bytes": 5}
    assert facts["hub"]["HF_TOKEN"] == "set"
    assert "not asked" in facts["hub"][constants.ENDPOINT]
    assert facts["machine"]["threads of torch"] >= 1
    assert "a-secret-value" not in result.stdout + run("doctor").stdout


def test_doctor_says_that_the_hub_is_out_of_reach(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    assert "out of reach" in json.loads(run("doctor", "--json").stdout)["hub"]["http://127.0.0.1:9"]


def test_doctor_fails_with_its_self_test(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.cli import doctor

    monkeypatch.setattr(doctor, "DEFAULT_MODEL", "llamagen_vq_f16")  # it has no small variant of the compact family
    monkeypatch.setattr(doctor, "_hub", dict)
    result = run("doctor", "--json", expect=1)
    assert json.loads(result.stdout)["self-test"]["passed"] is False


def test_parity_passes_only_where_every_check_does(run: Callable, tmp_path: Path) -> None:
    import shutil

    fixture = ROOT / "tests" / "parity" / "llamagen_vq__tiny_f8"
    (result,) = json.loads(run("parity", fixture, "--json").stdout)
    assert result["passed"] is True
    broken = tmp_path / "broken"
    shutil.copytree(fixture, broken)
    meta = json.loads((broken / "meta.json").read_text())
    meta["tolerance"] = {"float": 1e-30}
    for check in meta["checks"]:
        check.pop("tolerance", None)
    (broken / "meta.json").write_text(json.dumps(meta))
    shown = run("parity", fixture, broken, expect=1).stdout
    assert "pass" in shown
    assert "FAIL" in shown
    assert "meta.json" in run("parity", tmp_path / "nothing", expect=1).stderr
    run("parity", expect=2)


def test_the_program_works_in_a_folder_with_a_file_of_our_name(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "audio.py").write_text("raise RuntimeError('the wrong audio')\n")
    (tmp_path / "tokenizers_visual.py").write_text("raise RuntimeError('the wrong package')\n")
    picture(32, 40).save(tmp_path / "photo.png")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("ZOO_DEBUG", None)

    def program(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "zoo", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    done = program("encode", "photo.png", "--model", tiny)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "photo.ztok").is_file()
    failed = program("encode", "nothing.png", "--model", tiny)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: no images at nothing.png")
    assert len(failed.stderr.splitlines()) == 1
    assert "\x1b" not in failed.stderr  # no colours where there is no terminal
