"""What every test gets: few threads, a fixed seed, empty caches, no hub, and hypothesis without random search."""

import os
import tempfile

import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

# set here and not in a fixture, because huggingface_hub reads them when it is imported
_HOME = tempfile.TemporaryDirectory(prefix="zoo-tests-")
for _variable in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
    os.environ.pop(_variable, None)
os.environ |= {"HF_HOME": f"{_HOME.name}/hf", "ZOO_CACHE": f"{_HOME.name}/zoo", "HF_HUB_OFFLINE": "1"}

torch.set_num_threads(min(2, torch.get_num_threads()))
settings.register_profile(
    "zoo",
    deadline=None,
    max_examples=25,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("zoo")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A photo of 640 x 427 pixels."""
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg"))
