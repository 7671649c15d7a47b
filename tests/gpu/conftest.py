"""What the tests of CUDA share."""

import os
from pathlib import Path

import pytest
import torch

# cuBLAS reads it when its first handle is made; deterministic algorithms need it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips this folder where the package has no CUDA part; without a GPU all is skipped anyway."""
    ours = [item for item in items if HERE in item.path.parents]
    if not ours or not torch.cuda.is_available():
        return
    from sketchlayers import _extension

    if not _extension.load().build_info()["cuda"]:
        for item in ours:
            item.add_marker(pytest.mark.skip(reason="sketchlayers was built without CUDA"))


@pytest.fixture(autouse=True)
def full_float32():
    """No TensorFloat-32: float32 is compared as float32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
