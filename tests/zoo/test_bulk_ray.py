"""The Ray engine on a real local cluster of two workers: the shards of one machine, byte for byte."""

import os
import signal
import threading
import time

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.bulk import Job, ray_engine, tokenize
from zoo.media.sources import open_source

ray = pytest.importorskip("ray")
MODEL = "compact_f8.photos"


@pytest.fixture(scope="module")
def cluster():
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
    yield
    ray.shutdown()


@pytest.fixture
def job(tmp_path):
    """Two dozen pictures, one of them broken, and their tokens as one machine makes them."""
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(24):
        pixels = generator.integers(0, 255, (32, 32 + 8 * (number % 2), 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number:02d}.png")
    (tmp_path / "photos" / "11.png").write_bytes(b"broken")
    model = zoo.create_model(MODEL, pretrained=True)
    job = Job(MODEL, model.source.fingerprint, str(tmp_path / "photos"), part_size=4, batch_size=3)
    tokenize(model, open_source(job.source), job, tmp_path / "local")
    return model, job


def test_both_engines_give_the_same_bytes(cluster, job, tmp_path):
    model, job = job
    summary = ray_engine.tokenize(model, open_source(job.source), job, tmp_path / "ray", workers=2)
    assert (summary.items, summary.skipped, summary.parts, summary.made) == (23, 1, 6, 23)
    same(tmp_path)
    again = ray_engine.tokenize(model, open_source(job.source), job, tmp_path / "ray", workers=2)
    assert (again.items, again.made) == (23, 0)


@pytest.mark.slow
def test_a_killed_worker_does_no_harm(cluster, job, tmp_path):
    """kill -9 of the actors that hold the model, while parts are on their way."""
    import psutil

    model, job = job
    killed = []

    def kill() -> None:
        limit = time.monotonic() + 120
        while not killed and time.monotonic() < limit:
            for process in psutil.process_iter(["name", "cmdline"]):
                if "_Encode" in " ".join(process.info["cmdline"] or []):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    ray_engine.tokenize(model, open_source(job.source), job, tmp_path / "ray", workers=2)
    killer.join()
    assert killed
    same(tmp_path)


def same(folder) -> None:
    local, other = folder / "local", folder / "ray"
    names = sorted(path.relative_to(local) for path in local.rglob("*") if path.is_file())
    assert sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file()) == names
    assert all((local / name).read_bytes() == (other / name).read_bytes() for name in names)
