"""Skips every test of this folder where CUDA, or the package's CUDA part, is missing."""

import os
from pathlib import Path

import pytest
import torch

# cuBLAS reads it when its first handle is made; deterministic algorithms need it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

HERE = Path(__file__).parent


def reason_to_skip() -> str | None:
    """Why nothing here can run, or None."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    from sketchlayers._extension import _C

    return None if _C.build_info()["cuda"] else "sketchlayers was built without CUDA"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    reason = reason_to_skip() if ours else None
    for item in ours:
        item.add_marker(pytest.mark.gpu)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def full_float32():
    """No TensorFloat-32: float32 is compared as float32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
