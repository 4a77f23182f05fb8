"""`zoo serve`: a real server under good requests, garbage, crowds and a browser."""

import asyncio
import importlib.util
import io
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import zlib
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from serving import Server, serving
from typer.testing import CliRunner

import zoo
from zoo import hub, packing
from zoo.cli import app
from zoo.registry import create_model, save_model
from zoo.serve.shelf import Busy, Gone, Late, Shelf, installed
from zoo.serve.trial import Limits, picture_of, spread
from zoo.tokens import Tokens

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

CLIENT = httpx.Client(timeout=100)
IMAGE, ADAPTIVE = "compact_f8.photos", "spectral_f16.photos"


def picture(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    image.save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


def clip(seconds: float = 0.5, rate: int = 16_000, kind: str = "WAV", level: float = 0.5) -> bytes:
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(buffer := io.BytesIO(), level * np.sin(2 * np.pi * 440 * time), rate, format=kind)
    return buffer.getvalue()


def shown(url: str) -> Image.Image:
    return Image.open(io.BytesIO(b64decode(url.removeprefix("data:image/png;base64,"))))


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small residual codec, saved."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"encoder_widths": (8, 8), "decoder_widths": (8, 8)}
    blocks: dict[str, Any] = {"encoder_blocks": (1, 1), "decoder_blocks": (1, 1)}
    folder = tmp_path_factory.mktemp("codec")
    save_model(create_model("spectral_codec_16khz", **sizes, **blocks), folder)
    return str(folder)


@pytest.fixture(scope="module")
def server(codec: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), "--model", codec, "--max-seconds", "5") as started:
        yield started
        assert started.written() == []  # after all of these tests


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of narrow limits."""
    limits = ("--queue", "2", "--timeout", "4", "--max-megabytes", "0.05")
    with serving(tmp_path_factory.mktemp("strict"), *limits) as started:
        yield started


def post(server: Server, data: bytes, model: str = IMAGE, kind: str = "application/octet-stream", **query: Any) -> Any:
    return CLIENT.post(
        f"{server.url}/api/roundtrip", params={"model": model, **query}, content=data,
        headers={"Content-Type": kind},
    )  # fmt: skip


def refused(answer: httpx.Response, status: int) -> str:
    """The message of a refusal, which is JSON with nothing but that."""
    assert answer.status_code == status, answer.text
    (item,) = answer.json().items()
    assert item[0] == "error"
    return item[1]


# -- what it does --------------------------------------------------------------------------------------------------


def test_the_list_holds_the_models_that_are_here_and_the_named_one_first(server: Server, codec: str) -> None:
    answer = CLIENT.get(f"{server.url}/api/models").json()
    names = [model["name"] for model in answer["models"]]
    assert names[0] == codec
    assert {IMAGE, ADAPTIVE} <= set(names) == {codec, *(offer.name for offer in installed())}
    assert answer["limits"]["clip_seconds"] == 5


def test_a_photo_comes_back_as_the_model_gives_it(server: Server) -> None:
    photo = picture(61, 45)
    result = post(server, file_of(photo), kind="image/png").json()
    model = zoo.create_model(IMAGE, pretrained=True)
    batch = zoo.media.load(photo, model.spec)
    tokens = model.encode(batch)
    assert Tokens.unpack(b64decode(result["packed"])) == tokens
    assert result["size"] == [45, 61]
    assert (result["tokens"], result["bits"]) == (6 * 8, tokens.bits[0])
    assert result["bits_per_pixel"] == tokens.bits[0] / (45 * 61)
    assert np.array_equal(np.asarray(shown(result["original"])), np.asarray(photo))
    expected = zoo.media.image.to_uint8(model.decode(tokens), model.spec)[0].astype(int)
    got = np.asarray(shown(result["reconstruction"])).astype(int)
    assert np.abs(got - expected).max() <= 1  # of 255: threads may sum in another order
    error = np.square((got - np.asarray(photo).astype(int)) / 255).mean()
    assert result["psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-3)
    assert shown(result["token_map"]).size == (8, 6)
    assert result["num_tokens"] is result["num_codebooks"] is None


def test_an_adaptive_model_takes_a_number_of_tokens(server: Server) -> None:
    data = file_of(picture(128, 96))
    whole = post(server, data, ADAPTIVE).json()
    assert whole["num_tokens"]["chosen"] == whole["num_tokens"]["allowed"][-1] == whole["tokens"] == 48
    few = post(server, data, ADAPTIVE, num_tokens=3).json()
    assert (few["tokens"], few["num_tokens"]["chosen"]) == (3, 3)
    assert few["psnr"] < whole["psnr"]
    assert "expected an integer from 1 to 48" in refused(post(server, data, ADAPTIVE, num_tokens=49), 422)
    assert "does not take num_tokens" in refused(post(server, data, IMAGE, num_tokens=3), 422)


def test_a_residual_model_takes_a_number_of_codebooks(server: Server, codec: str) -> None:
    whole = post(server, clip(), codec, kind="audio/wav").json()
    assert whole["num_codebooks"] == {"chosen": 12, "allowed": list(range(1, 13))}
    few = post(server, clip(), codec, num_codebooks=2).json()
    assert few["tokens"] * 6 == whole["tokens"]
    assert few["bits_per_second"] == 2 * 500
    assert shown(few["token_map"]).size == (25, 2)
    assert shown(few["original"]).height == 256
    sound, rate = soundfile.read(io.BytesIO(b64decode(few["original_sound"].partition(",")[2])))
    assert (len(sound), rate) == (8000, 16_000)
    assert few["reconstruction_sound"] != whole["reconstruction_sound"]
    assert whole["mel_distance"] > 0
    assert post(server, clip(level=0), codec).json()["sample_rate"] == 16_000  # silence
    assert post(server, clip(0.01), codec).json()["mel_distance"] is None


def test_other_formats_and_rates_are_read(server: Server, codec: str) -> None:
    for kind in ("JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        assert post(server, file_of(picture(), kind)).json()["size"] == [48, 64]
    for kind, rate in (("FLAC", 44_100), ("OGG", 48_000), ("MP3", 22_050)):
        assert post(server, clip(0.5, rate, kind), codec).json()["sample_rate"] == 16_000


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8192, 1), (1, 300)], ids=str)
@pytest.mark.parametrize("model", [IMAGE, ADAPTIVE])
def test_the_smallest_and_longest_pictures_are_taken(server: Server, model: str, size: tuple[int, int]) -> None:
    result = post(server, file_of(Image.new("RGB", size, "red")), model).json()
    assert shown(result["reconstruction"]).size == size


def test_the_shortest_clip_is_taken(server: Server, codec: str) -> None:
    assert post(server, clip(1 / 16_000), codec).json()["size"] == [1]


def test_32_requests_at_once_all_get_what_one_alone_gets(server: Server, codec: str) -> None:
    jobs = [(file_of(picture(seed=i)), IMAGE) for i in range(4)] + [(file_of(picture(seed=9)), ADAPTIVE)]
    jobs += [(clip(0.2), codec), (b"garbage", IMAGE), (clip(), IMAGE)]
    alone = [post(server, *job) for job in jobs]
    assert [answer.status_code for answer in alone] == [200] * 6 + [422] * 2
    with ThreadPoolExecutor(32) as crowd:
        answers = list(crowd.map(lambda i: post(server, *jobs[i % len(jobs)]), range(32)))
    for i, answer in enumerate(answers):
        expected = alone[i % len(jobs)]
        assert answer.status_code == expected.status_code
        assert answer.json().get("packed") == expected.json().get("packed")


# -- what it refuses -----------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    data=st.binary(min_size=1, max_size=300), head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"RIFF", b"\xff\xd8"])
)
def test_garbage_is_refused(server: Server, codec: str, data: bytes, head: bytes) -> None:
    assert "expected a picture" in refused(post(server, head + data), 422)
    assert "expected a recording" in refused(post(server, head + data, codec), 422)


@settings(max_examples=40)
@given(kind=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]), data=st.data())
def test_cut_and_changed_pictures_are_refused_or_read(server: Server, kind: str, data: st.DataObject) -> None:
    whole = bytearray(file_of(picture(32, 32), kind))
    cut = data.draw(st.integers(1, len(whole) // 2))
    refused(post(server, bytes(whole[:cut])), 422)
    for _ in range(4):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    answer = post(server, bytes(whole))
    if answer.status_code != 200:
        refused(answer, 422)


@settings(max_examples=30)
@given(kind=st.sampled_from(["WAV", "FLAC", "OGG", "MP3", "AIFF", "AU"]), data=st.data())
def test_changed_recordings_are_refused_or_read(server: Server, codec: str, kind: str, data: st.DataObject) -> None:
    whole = bytearray(clip(0.1, 16_000, kind))
    for _ in range(4):
        whole[data.draw(st.integers(0, min(200, len(whole) - 1)))] = data.draw(st.integers(0, 255))
    answer = post(server, bytes(whole), codec)
    if answer.status_code != 200:
        refused(answer, 422)


def png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def test_bombs_are_refused(server: Server, codec: str) -> None:
    for data in (png_that_claims(60_000, 60_000), png_that_claims(2**31 - 1, 2**31 - 1)):
        assert "4,000,000 pixels" in refused(post(server, data), 422)
    assert "sides of at most 8,192" in refused(post(server, file_of(Image.new("RGB", (9_000, 1)))), 422)
    long = clip(600, 8000, "FLAC", level=0)
    assert len(long) < 100_000
    assert "at most 5 s, got 600.00 s" in refused(post(server, long, codec), 422)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux, which tells a process's peak")
def test_a_bomb_is_refused_before_it_unfolds(server: Server) -> None:
    def peak() -> int:
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.pid}/status").read_text())[1])  # type: ignore[index]

    bomb = file_of(Image.new("1", (12_000, 12_000)))
    assert len(bomb) < 30_000
    refused(post(server, b"garbage"), 422)
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")  # the peak starts anew
    before = peak()
    assert "got 12000 x 12000" in refused(post(server, bomb), 422)
    assert peak() - before < 50_000  # its pixels would be 140,625


def test_wrong_kinds_are_refused(server: Server, codec: str) -> None:
    refused(post(server, clip()), 422)
    refused(post(server, file_of(picture()), codec), 422)
    assert "empty" in refused(post(server, b""), 422)
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", ""):
        refused(post(server, file_of(picture()), kind=kind), 415)  # what a page of another site may send unasked
    assert "model" in refused(post(server, file_of(picture()), "llamagen_vq_f16"), 422)
    assert "num_tokens" in refused(post(server, file_of(picture()), num_tokens=0), 422)
    refused(CLIENT.get(f"{server.url}/api/roundtrip"), 405)
    refused(CLIENT.get(f"{server.url}/../zoo/serve/app.py"), 404)


def sent(server: Server, data: bytes, origin: str | None = None) -> httpx.Response:
    """A body without a type, as programs send it, or as pages of a browser do, which tell where they are from."""
    query = {"model": IMAGE}
    request = CLIENT.build_request("POST", f"{server.url}/api/roundtrip", params=query, content=data)
    assert "content-type" not in request.headers
    if origin is not None:
        request.headers["Origin"] = origin
    return CLIENT.send(request)


def test_a_body_without_a_type_is_taken_for_bytes_but_not_from_a_page(server: Server) -> None:
    data = file_of(picture())
    assert sent(server, data).json()["packed"] == post(server, data).json()["packed"]
    assert "expected a picture" in refused(sent(server, b"garbage"), 422)
    for origin in ("https://elsewhere.example", "null", server.url):
        assert "Content-Type" in refused(sent(server, data, origin), 415)


def test_a_form_is_told_how_to_send_a_file(server: Server) -> None:
    query = {"model": IMAGE}
    url = f"{server.url}/api/roundtrip"
    for form in ({"files": {"file": file_of(picture())}}, {"data": {"file": "photo.jpg"}}):
        text = refused(CLIENT.post(url, params=query, **form), 415)
        assert re.search(
            "expected a file as the body, with a Content-Type of .*, got '(multipart|application/x-www-form)", text
        )


def test_head_is_get_without_a_body(server: Server) -> None:
    for path in ("/", "/api/models", "/openapi.json"):
        whole, head = CLIENT.get(server.url + path), CLIENT.head(server.url + path)
        assert (head.status_code, head.content) == (200, b"")
        for header in ("content-type", "content-length", "content-security-policy"):
            assert head.headers.get(header) == whole.headers.get(header)
    assert CLIENT.head(f"{server.url}/no/such").status_code == 404
    assert CLIENT.head(f"{server.url}/api/roundtrip").status_code == 405


def test_a_wrong_method_is_told_the_right_ones(server: Server) -> None:
    for path, methods in (("/", {"GET", "HEAD"}), ("/api/models", {"GET", "HEAD"}), ("/api/roundtrip", {"POST"})):
        answer = CLIENT.put(server.url + path)
        refused(answer, 405)
        assert set(answer.headers["allow"].split(", ")) == methods


def test_large_files_are_refused_by_their_length_or_as_they_come(strict: Server) -> None:
    large = bytes(200_000)
    assert "50,000 bytes" in refused(post(strict, large), 413)
    pieces = iter([large[:30_000]] * 6)
    answer = CLIENT.post(
        f"{strict.url}/api/roundtrip", params={"model": IMAGE}, content=pieces, headers={"Content-Type": "image/png"}
    )
    assert "50,000 bytes" in refused(answer, 413)


def test_a_full_queue_refuses_and_slow_uploads_lose_their_place(strict: Server) -> None:
    host, port = strict.url.removeprefix("http://").split(":")
    request = f"POST /api/roundtrip?model={IMAGE} HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/png\r\n"
    slow = [socket.create_connection((host, int(port)), timeout=30) for _ in range(2)]
    try:
        for connection in slow:
            connection.sendall(f"{request}Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n".encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")  # it is inside, and the body is waited for
            connection.sendall(b"begin")
        answer = post(strict, b"x")
        assert "queue of 2" in refused(answer, 503)
        assert int(answer.headers["retry-after"]) > 0
        for connection in slow:
            assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
    finally:
        for connection in slow:
            connection.close()
    assert "queue" not in post(strict, b"x").text  # the places are free again


def test_only_this_machine_reaches_it_and_only_by_its_name(server: Server) -> None:
    listening = [c for c in psutil.Process(server.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert [connection.laddr.ip for connection in listening] == ["127.0.0.1"]
    assert CLIENT.get(f"{server.url}/api/models", headers={"Host": "elsewhere.example"}).status_code == 400


@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed")
def test_the_api_does_what_its_schema_says(server: Server, tmp_path: Path) -> None:
    # a schema cannot say what bytes are a picture, so that not all it allows can be accepted
    command = ["run", f"{server.url}/openapi.json", "--max-examples", "10", "--seed", "1", "--no-color"]
    command += ["--exclude-checks", "positive_data_acceptance", "--generation-database", "none"]
    done = subprocess.run(
        [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", *command],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    made = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert made is not None, done.stdout
    assert int(made[1]) == int(made[2]) > 50


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--max-megabytes", "0"], "upload_bytes: expected a positive number, got 0"),
        (["--timeout", "inf"], "request_seconds: expected a positive number, got inf"),
        (["--port", "0", "--model", "no_such_model"], "no_such_model"),
        (["--port", "0", "--model", "lincir_vit_l14"], "lincir_vit_l14"),
    ],
)
def test_what_cannot_be_served_ends_with_a_reason(options: list[str], reason: str) -> None:
    done = CliRunner().invoke(app, ["serve", *options])
    assert done.exit_code == 1
    assert reason in done.stderr


def test_a_taken_port_ends_with_a_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = CliRunner().invoke(app, ["serve", "--port", str(taken.getsockname()[1])])
    assert done.exit_code == 1
    assert "in use" in done.stderr


# -- the browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1200,1400"):
        options.add_argument(f"--{argument}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")  # no network
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


class Page:
    """What a person sees and does."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser = browser
        browser.get_log("browser")
        browser.get(address)

    def __getitem__(self, name: str) -> Any:
        return self.browser.find_element("id", name)

    def wait(self, met: Any) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 60).until(lambda _: met())

    def wait_for(self, text: str) -> None:
        self.wait(lambda: text in self["status"].text)

    def choose(self, model: str) -> None:
        from selenium.webdriver.support.ui import Select

        self.wait(lambda: self.browser.find_elements("css selector", "#model option"))
        Select(self["model"]).select_by_value(model)

    def facts(self) -> dict[str, str]:
        rows = self.browser.find_elements("css selector", "#facts div")
        return dict(row.text.split("\n") for row in rows)

    def width(self, name: str) -> int:
        """Of a picture that has been shown, in its own pixels."""
        self.wait(lambda: self[name].get_property("complete") and self[name].get_property("naturalWidth") > 0)
        return self[name].get_property("naturalWidth")

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]

    def foreign(self) -> list[str]:
        """Addresses outside the server that the page has asked for."""
        script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
        here = (self.browser.current_url.partition("?")[0], "data:", "blob:")
        return [name for name in self.browser.execute_script(script) if not name.startswith(here)]


def test_a_photo_in_the_browser(server: Server, browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    picture(640, 480).save(tmp_path / "photo.jpg")
    page = Page(browser, server.url)
    page.choose(ADAPTIVE)
    page["file"].send_keys(str(tmp_path / "photo.jpg"))
    page.wait_for(f"{ADAPTIVE}: 768 tokens")
    assert (page.width("original"), page.width("reconstruction")) == (512, 512)  # made smaller in the page
    assert page.width("map") == 32
    facts = page.facts()
    assert facts["Size"] == "512 \u00d7 384"
    whole = float(facts["PSNR"].removesuffix(" dB"))
    first = page["reconstruction"].get_attribute("src")

    page["num_tokens"].send_keys(Keys.HOME)
    page.wait_for(f"{ADAPTIVE}: 1 tokens")
    assert "1 of 768" in page["sliders"].text
    assert page["reconstruction"].get_attribute("src") != first
    assert float(page.facts()["PSNR"].removesuffix(" dB")) < whole

    page.choose(IMAGE)  # the same photo, another model
    page.wait_for(f"{IMAGE}: 3,072 tokens")
    assert page["sliders"].text == ""
    page.choose(IMAGE)
    assert b64decode(page["save-tokens"].get_attribute("href").partition(",")[2]).startswith(packing.MAGIC)
    assert page.errors() == []
    assert page.foreign() == []


def test_a_clip_in_the_browser(server: Server, browser: Any, codec: str, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    (tmp_path / "clip.wav").write_bytes(clip(1.0))
    page = Page(browser, server.url)
    page.choose(IMAGE)
    page["file"].send_keys(str(tmp_path / "clip.wav"))  # the page changes to a model that takes it
    page.wait_for("600 tokens")
    assert page["model"].get_property("value") == codec
    assert page.width("original") == page.width("reconstruction") > 90  # spectrograms
    page.wait(lambda: page["reconstruction-sound"].get_property("duration") == pytest.approx(1.0, abs=0.01))
    page["num_codebooks"].send_keys(Keys.ARROW_LEFT)
    page.wait_for("550 tokens")
    assert page.facts()["Bit rate"] == "5.5 kbit/s"
    assert page.errors() == []


def test_an_unreadable_file_in_the_browser(server: Server, browser: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page = Page(browser, server.url)
    page.choose(IMAGE)
    page["file"].send_keys(str(tmp_path / "broken.png"))
    page.wait(lambda: "expected a picture" in page["problem"].text)
    assert not page["result"].is_displayed()
    page["sample"].click()
    page.wait_for(f"{IMAGE}: 3,072 tokens")
    assert not page["problem"].is_displayed()


def test_every_control_of_the_page_has_a_name(server: Server, browser: Any) -> None:
    page = Page(browser, f"{server.url}/?sample&model={ADAPTIVE}")
    page.wait_for("768 tokens")
    controls = browser.find_elements("css selector", "select, button, input, audio, img, a")
    assert len(controls) > 8
    assert not [
        control.get_attribute("id") for control in controls if control.is_displayed() and not control.accessible_name
    ]


# -- its parts -----------------------------------------------------------------------------------------------------


async def _never() -> bool:
    return False


def _shelf(loaded: list[str], kept: int = 2, names: str = "abc") -> Shelf:
    def load(name: str) -> Any:
        loaded.append(name)
        return name

    return Shelf(names, load, kept=kept, places=4)


def test_models_are_loaded_once_and_the_longest_unused_goes_first() -> None:
    loaded: list[str] = []

    async def use(names: str) -> list[str]:
        shelf = _shelf(loaded)
        until = asyncio.get_running_loop().time() + 30
        return [await shelf.lend(name, lambda model: model * 2, until=until, gone=_never) for name in names]

    assert asyncio.run(use("aababc")) == ["aa", "aa", "bb", "aa", "bb", "cc"]
    assert loaded == ["a", "b", "c"]
    loaded.clear()
    asyncio.run(use("abacab"))
    assert loaded == ["a", "b", "c", "b"]


def test_one_call_at_a_time_for_a_model_while_others_run() -> None:
    inside, most = {"a": 0, "b": 0}, {"a": 0, "b": 0}
    both = threading.Barrier(2, timeout=30)

    def work(model: Any) -> None:
        inside[model] += 1
        most[model] = max(most[model], inside[model])
        both.wait()  # passes only if the other model is at work too
        inside[model] -= 1

    async def crowd() -> None:
        shelf, until = _shelf([]), asyncio.get_running_loop().time() + 30
        await asyncio.gather(*(shelf.lend(name, work, until=until, gone=_never) for name in "aaabbb"))

    asyncio.run(crowd())
    assert most == {"a": 1, "b": 1}


def test_a_call_that_does_not_end_keeps_its_turn_until_it_does() -> None:
    release, calls = threading.Event(), []

    def hang(model: Any) -> None:
        calls.append("hang")
        release.wait(30)

    async def scene() -> None:
        shelf, clock = _shelf([]), asyncio.get_running_loop().time
        with pytest.raises(Late, match="did not end in time"):
            await shelf.lend("a", hang, until=clock() + 0.2, gone=_never)
        with pytest.raises(Busy, match="busy"):
            await shelf.lend("a", calls.append, until=clock() + 0.2, gone=_never)
        release.set()
        await shelf.lend("a", calls.append, until=clock() + 30, gone=_never)

    asyncio.run(scene())
    assert calls == ["hang", "a"]


def test_errors_and_clients_that_left_give_the_turn_on() -> None:
    def fail(model: Any) -> None:
        raise TimeoutError("of the model itself")

    async def left() -> bool:
        return True

    async def scene() -> str:
        shelf, until = _shelf([]), asyncio.get_running_loop().time() + 30
        with pytest.raises(TimeoutError, match="of the model itself"):
            await shelf.lend("a", fail, until=until, gone=_never)
        with pytest.raises(Gone):
            await shelf.lend("a", fail, until=until, gone=left)
        return await shelf.lend("a", str.upper, until=until, gone=_never)  # type: ignore[arg-type]

    assert asyncio.run(scene()) == "A"


def test_slow_and_refused_models_have_their_status(codec: str) -> None:
    from zoo.registry import registry
    from zoo.serve.app import create_app
    from zoo.serve.shelf import offer_of

    release = threading.Event()

    def load(name: str) -> Any:
        if name == "licensed":
            raise hub.LicenceError("not accepted")
        if name == "missing":
            raise hub.OfflineError("not here")
        if name == "broken":
            raise RuntimeError("a secret of the machine")
        release.wait(30)
        return create_model(f"local-dir:{codec}")

    names = ("slow", "licensed", "missing", "broken")
    card = registry.card("spectral_codec_16khz")
    served = create_app([offer_of(name, card) for name in names], load, Limits(request_seconds=0.3))

    async def scene() -> None:
        transport = httpx.ASGITransport(served, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:

            async def send(name: str) -> httpx.Response:
                kind = {"Content-Type": "audio/wav"}
                return await client.post("/api/roundtrip", params={"model": name}, content=clip(0.1), headers=kind)

            assert "did not end in time" in refused(await send("slow"), 504)
            assert "busy" in refused(await send("slow"), 503)
            assert refused(await send("licensed"), 403) == "not accepted"
            assert refused(await send("missing"), 503) == "not here"
            assert "secret" not in refused(await send("broken"), 500)
            release.set()
            for _ in range(100):
                answer = await send("slow")
                if answer.status_code == 200:
                    break
            assert answer.json()["num_codebooks"]["chosen"] == 12

    asyncio.run(scene())


def test_places_are_given_back() -> None:
    shelf = _shelf([])
    with (
        shelf.place(),
        shelf.place(),
        shelf.place(),
        shelf.place(),
        pytest.raises(Busy, match="queue of 4"),
        shelf.place(),
    ):
        pass
    with shelf.place():
        pass


@given(st.integers(1, 5000))
def test_choices_run_from_the_least_to_the_most(count: int) -> None:
    choices = spread(range(1, count + 1))
    assert choices[0] == 1
    assert choices[-1] == count
    assert choices == sorted(set(choices))
    assert len(choices) <= 40
    assert count > 12 or choices == list(range(1, count + 1))


def test_tokens_of_every_layout_become_a_picture() -> None:
    row = torch.arange(70)[None] % 8
    folded = picture_of(Tokens((row,), (8,), "sequence"))
    assert folded.size == (32, 3)
    alpha = np.asarray(folded)[..., 3]
    assert np.count_nonzero(alpha) == 70
    frames = picture_of(Tokens((row, row), (8, 16), "frames"))
    assert frames.size == (70, 2)
    scales = tuple(torch.zeros(1, side, side, dtype=torch.int64) for side in (1, 2, 4))
    assert picture_of(Tokens(scales, (8, 8, 8), "scales")).size == (1 + 1 + 2 + 1 + 4, 4)


@pytest.mark.parametrize("name", ["upload_bytes", "pixels", "clip_seconds", "request_seconds", "places"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a positive number, got 0"):
        Limits(**{name: 0})
