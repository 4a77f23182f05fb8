"""The whole way of a user: a name, the hub (here on the loopback), the cache, weights, tokens, a picture."""

import json
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import torch
from hub_server import Client, HubServer

import zoo

PARITY = Path(__file__).parents[1] / "parity"
REPO, FILE = "markweber/maskbit_tokenizer_14bit", "maskbit_tokenizer_14bit.bin"

PROGRAM = """
import sys, torch, zoo
torch.manual_seed(0)
images = torch.rand(1, 3, 32, 48)
try:
    model = zoo.create_model(sys.argv[1], pretrained=True, accept_licence="accept" in sys.argv)
    tokens = model.encode(images * (model.spec.value_range[1] - model.spec.value_range[0]) + model.spec.value_range[0])
    print(model.name, tokens.source.fingerprint, tokens.indices.flatten().tolist(), tuple(model.decode(tokens).shape))
except (zoo.HubError, ValueError) as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def published() -> bytes:
    """A file of the published layout and size, with random values."""
    torch.manual_seed(0)
    shapes = json.loads((PARITY / "maskbit_lfq" / "keys_maskbit_tokenizer_14bit.json").read_text())
    buffer = BytesIO()
    torch.save({key: torch.randn(shape) * 0.02 for key, shape in shapes.items()}, buffer)
    return buffer.getvalue()


@pytest.fixture
def server(published: bytes) -> Iterator[HubServer]:
    with HubServer() as served:
        served.add(REPO, FILE, published)
        yield served


def run(client: Client, *arguments: str, **environment: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=client.environment | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_a_published_model_from_its_name(server: HubServer, tmp_path: Path) -> None:
    client = Client(tmp_path, server)
    refused, shown = run(client, "maskbit_lfq_14bit")
    assert refused.startswith("LicenceError")
    assert "accept" in refused
    assert "research only" in shown
    assert not server.downloads()

    first, shown = run(client, "maskbit_lfq_14bit", "accept")
    assert first.startswith("maskbit_lfq_14bit.imagenet")
    assert "(1, 3, 32, 48)" in first
    assert "research only" not in shown  # the licence is shown once
    downloads = len(server.downloads())

    again, shown = run(client, "maskbit_lfq_14bit", HF_HUB_OFFLINE="1")
    assert again == first
    assert "research only" not in shown
    assert len(server.downloads()) == downloads


def test_offline_without_the_file(server: HubServer, tmp_path: Path) -> None:
    told, _ = run(Client(tmp_path, server), "maskbit_lfq_14bit", "accept", HF_HUB_OFFLINE="1")
    assert told.startswith("OfflineError")
    for part in (REPO, FILE, str(tmp_path)):
        assert part in told


def test_a_truncated_file_on_the_hub_is_refused(server: HubServer, published: bytes, tmp_path: Path) -> None:
    server.add(REPO, FILE, published[:1_000_000])
    told, _ = run(Client(tmp_path, server), "maskbit_lfq_14bit", "accept")
    assert told.startswith("CheckpointError")


def test_a_model_of_the_zoo_in_a_hub_repository(server: HubServer, tmp_path: Path) -> None:
    model = zoo.create_model("compact_f8", fine_channels=8, channels=8)
    path = zoo.save_model(model, tmp_path / "saved")
    server.add("someone/tiny", "model.safetensors", path.read_bytes())
    output, _ = run(Client(tmp_path, server), "hf-hub:someone/tiny")
    assert model.source.fingerprint in output
    missing, _ = run(Client(tmp_path, server), "hf-hub:someone/nothing")
    assert missing.startswith("NotFoundError")
