"""A saved model goes to a hub and comes back from it, in processes that talk to a loopback server."""

import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Client, HubServer

PUSH = [sys.executable, "-m", "zoo", "export", "compact_f8.photos", "--format", "safetensors", "--push-to", "me/small"]


@pytest.fixture
def server():
    with HubServer() as hub:
        hub.writers = {"hf_good"}
        yield hub


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_what_was_pushed_loads(server, tmp_path):
    environment = Client(tmp_path, server).environment | {"HF_TOKEN": "hf_good", "HF_HUB_DISABLE_XET": "1"}
    done = run([*PUSH, "--out", str(tmp_path / "saved")], environment)
    assert done.returncode == 0, done.stderr
    assert "/me/small/commit/" in done.stdout
    sent = {file: server.bodies[f"/blobs/{digest}"] for (at, file), digest in server.repos["me/small"].files.items()}
    assert sent == {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    assert set(sent) == {"model.safetensors", "config.json", "README.md", "example.png"}
    card = sent["README.md"].decode()
    assert 'zoo.create_model("hf-hub:me/small")' in card
    assert "](example.png)" in card
    code = (
        "import zoo\n"
        "names = 'hf-hub:me/small', 'compact_f8.photos'\n"
        "print(len({zoo.create_model(name, pretrained=True).source.fingerprint for name in names}))"
    )
    loaded = run([sys.executable, "-c", code], environment)
    assert loaded.stdout.split() == ["1"], loaded.stderr


@pytest.mark.parametrize(("token", "message"), [({}, "token"), ({"HF_TOKEN": "hf_bad"}, "may write")])
def test_who_may_not_write_is_told(server, tmp_path, token, message):
    done = run([*PUSH, "--out", str(tmp_path / "saved")], Client(tmp_path, server).environment | token)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "me/small" not in server.repos


def test_bad_names(tmp_path):
    from zoo import hub

    with pytest.raises(ValueError, match="expected a folder of save_model"):
        hub.push(tmp_path, "me/small")
    Path(tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="owner/name, got 'small'"):
        hub.push(tmp_path, "small")
