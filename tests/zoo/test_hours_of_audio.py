"""Ten hours of sound from a file to tokens and back, in a small part of the memory that the samples would take."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RATE = 24_000
HOURS = 10
SCRIPT = """
import json, resource, sys
import numpy as np, soundfile, torch
import zoo
from audio.encodec import EncodecConfig, Encodec, residual_codebooks
from zoo.layers.seanet import SEANetConfig
from zoo.long_audio import decode_pieces, encode_pieces

torch.set_num_threads(1)
path, rate, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
minute = 60 * rate
noise = np.random.default_rng(0).integers(-9000, 9000, minute + 1, dtype=np.int16)
with soundfile.SoundFile(path, "w", samplerate=rate, channels=1, subtype="PCM_16") as file:
    for start in range(0, seconds * rate, minute):
        # no two minutes are alike
        file.write(np.roll(noise, start // minute)[: min(minute, seconds * rate - start)])

torch.manual_seed(0)
network = SEANetConfig(filters=2, strides=(8, 8, 10), lstm_layers=1)
model = Encodec(EncodecConfig(rate, network, quantizer=residual_codebooks(16, 8, 2))).eval()

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def pieces():
    return zoo.media.audio.blocks(path, model.spec, samples=10 * rate)

first = torch.cat([piece for _, piece in zip(range(6), pieces())], dim=-1)
start = encode_pieces(model, [first])
for _ in decode_pieces(model, start):
    pass
before = peak()
tokens = encode_pieces(model, pieces())
encoded = peak()
samples = sum(piece.shape[-1] for piece in decode_pieces(model, tokens))
print(json.dumps({
    "samples": samples, "extent": tokens.extent.sizes[0][0], "frames": tokens.levels[0].shape[1],
    "levels": len(tokens.levels), "starts alike": bool((tokens.indices[..., :2000] == start.indices[..., :2000]).all()),
    "before": before, "encoded": encoded, "decoded": peak(),
}))
"""


@pytest.mark.slow
def test_ten_hours_never_lie_in_memory(tmp_path: Path) -> None:
    seconds = HOURS * 3600
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "hours.wav"), str(RATE), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=7200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["samples"] == found["extent"] == seconds * RATE
    assert found["frames"] == -(-seconds * RATE // 640)
    assert found["starts alike"]
    ids = 8 * found["levels"] * found["frames"]
    # tokens as they come and joined at the end; the samples, which are 3.5 GB in float32, never lie in memory
    assert found["encoded"] - found["before"] < 3 * ids + 2**25, found
    assert found["decoded"] - found["before"] < 3 * ids + 2**25, found
