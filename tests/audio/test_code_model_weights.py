"""EnCodec's published language models: where they lie, that the layout loads, and that their hash is checked."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from hub_server import Client, HubServer

from audio.encodec_entropy import (
    CODE_MODEL_WEIGHTS,
    KEY_MAP,
    CodeModel,
    CodeModelConfig,
    config_from_original,
    published_code_model,
)
from zoo.checkpoint import CheckpointError
from zoo.hub import OfflineError

PARITY = Path(__file__).parents[1] / "parity" / "encodec"
LISTED = [listed for listed in json.loads((PARITY / "published.json").read_text()) if "_lm_" in listed["name"]]
SHAPES: dict[str, list[int]] = json.loads((PARITY / "keys_encodec_lm_24khz.json").read_text())

# stands the served files in for the published ones, then asks for each
_SCRIPT = """
import json, sys
from audio import encodec_entropy
from zoo.hub import HubError, WeightSource
for model, source in json.loads(sys.argv[1]).items():
    encodec_entropy.CODE_MODEL_WEIGHTS[model] = WeightSource(**source)
    try:
        found = encodec_entropy.published_code_model(model)
        print(json.dumps([float(found.heads[3].bias[0]), found.training]))
    except HubError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.mark.parametrize("listed", LISTED, ids=lambda listed: listed["name"])
def test_every_listed_file_is_declared(listed: dict) -> None:
    source = CODE_MODEL_WEIGHTS[listed["name"].replace("_lm", "")]
    assert (source.url, source.sha256) == (listed["file"], listed["sha256_prefix"])
    assert len(LISTED) == len(CODE_MODEL_WEIGHTS)


def test_the_published_names_and_shapes_are_those_of_the_network() -> None:
    with torch.device("meta"):
        network = CodeModel(CodeModelConfig())
        mapped = KEY_MAP({key: torch.empty(shape) for key, shape in SHAPES.items()})
    assert {key: value.shape for key, value in mapped.items()} == {
        key: value.shape for key, value in network.state_dict().items()
    }
    assert CodeModelConfig() == config_from_original(LISTED[0]["kwargs"])


def test_a_file_is_downloaded_verified_and_read(tmp_path: Path) -> None:
    state = {key: torch.zeros(shape) for key, shape in SHAPES.items()}
    state["linears.3.bias"] += 0.5
    torch.save(state, tmp_path / "model.th")
    content = (tmp_path / "model.th").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    with HubServer() as server:
        client = Client(tmp_path, server)
        sources = {
            "encodec_24khz": {"url": server.add_url("lm.th", content), "sha256": digest[:8]},
            "encodec_48khz": {"url": server.add_url("other.th", content[:-1] + b"?"), "sha256": digest[:8]},
        }
        command = [sys.executable, "-c", _SCRIPT, json.dumps(sources)]
        run = subprocess.run(command, env=client.environment, capture_output=True, text=True, timeout=120, check=True)
    read, refused = map(json.loads, run.stdout.splitlines())
    assert read == [0.5, False]
    assert refused[0] == "IntegrityError"
    assert (
        f"language model of encodec_48khz: {sources['encodec_48khz']['url']}: expected sha256 {digest[:8]}"
        in refused[1]
    )
    assert [path.name for path in client.files() if path.suffix == ".th"] == ["lm.th"]


def test_what_cannot_be_had_is_told(tmp_path: Path) -> None:
    with pytest.raises(OfflineError, match=r"encodec_lm_48khz-7add9fc3\.th"):
        published_code_model("encodec_48khz")
    with pytest.raises(ValueError, match="expected encodec_24khz or encodec_48khz, got 'encodec_32khz'"):
        published_code_model("encodec_32khz")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.th")
    with pytest.raises(CheckpointError):
        published_code_model("encodec_24khz", weights=tmp_path / "other.th")
