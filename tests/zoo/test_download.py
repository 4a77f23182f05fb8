"""Downloads of plain urls from a real HTTP server on the loopback: cuts, resumption, changed files, two at once."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hub_server import Client, HubServer

CONTENT = bytes(range(256)) * 1024  # 256 KiB
HASH = hashlib.sha256(CONTENT).hexdigest()
OTHER = b"?" + CONTENT[1:]


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


@pytest.fixture
def client(tmp_path: Path, server: HubServer) -> Client:
    return Client(tmp_path, server)


def test_url_is_downloaded_once_and_goes_on_after_cuts(client: Client, server: HubServer) -> None:
    url = server.add_url("codec 1.pth", CONTENT).replace(" ", "%20")
    source = {"url": url, "sha256": HASH, "size": len(CONTENT)}
    server.cut(after=100_000, times=2)
    first, again = client(source, source)
    assert first == again
    assert Path(first[1]).read_bytes() == CONTENT
    assert [request.headers.get("range") for request in server.downloads()] == [None, "bytes=100000-", "bytes=200000-"]
    assert client(source, HF_HUB_OFFLINE="1") == [first]


def test_url_download_starts_again_where_the_server_cannot_go_on(client: Client, server: HubServer) -> None:
    source = {"url": server.add_url("codec.pth", CONTENT)}
    server.ranges = False
    server.cut(after=100_000)
    assert Path(client(source)[0][1]).read_bytes() == CONTENT
    server.ranges = True
    changed = {"url": server.add_url("changing.pth", OTHER)}
    server.cut(after=100_000)
    server.pause = 0.05
    process = client.start(changed)
    while not any("changing" in request.path for request in server.downloads()) and process.poll() is None:
        time.sleep(0.01)
    server.add_url("changing.pth", CONTENT)  # another etag: bytes of the two must not be mixed
    server.pause = 0
    output, _ = process.communicate(timeout=60)
    assert Path(json.loads(output)[1]).read_bytes() == CONTENT


def test_url_cut_for_good_leaves_nothing(client: Client, server: HubServer) -> None:
    url = server.add_url("codec.pth", CONTENT)
    server.ranges = False
    server.cut(after=100_000, times=9)  # without ranges each attempt brings the same bytes again
    kind, message = client({"url": url})[0]
    assert kind == "HubError"
    assert url in message
    assert len(server.downloads()) < 9
    assert not client.files()


def test_two_processes_at_once_download_a_url_once(client: Client, server: HubServer) -> None:
    source = {"url": server.add_url("codec.pth", CONTENT), "sha256": HASH}
    server.pause = 0.05
    outputs = [process.communicate(timeout=60)[0] for process in [client.start(source), client.start(source)]]
    assert outputs[0] == outputs[1]
    assert Path(json.loads(outputs[0])[1]).read_bytes() == CONTENT
    assert len(server.downloads()) == 1
