"""When kernels are used: the comparisons, and the first calls of processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from sketchlayers import _extension

pytestmark = pytest.mark.gpu

# A fully connected layer for one vector, whose kernels' names tell whether they ran.
SETUP = """
import torch, warnings
from sketchlayers import ops
warnings.filterwarnings("error", message="sketchlayers")
x, s1, s2 = torch.ones(1, 64).cuda(), torch.ones(4, 64).cuda(), torch.ones(32, 4).cuda()
u1, u2 = (ops.sign_matrix(1, i, 4, n).view(1, 4, -1).cuda() for i, n in enumerate((32, 64)))
def layer():
    return ops.sk_linear(x, s1, s2, u1, u2, None, path="factored")
def launches(function):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        torch.cuda.synchronize()
    return any("narrow_linear" in event.key for event in profile.key_averages())
launches(lambda: None)
"""


def printed(code: str, mode: str) -> list[str]:
    """What a new process prints."""
    environment = {**os.environ, "SKETCHLAYERS_CUDA_KERNELS": mode}
    result = subprocess.run(
        [sys.executable, "-c", SETUP + code], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split("\n")[:-1]


def test_every_kernel_agrees_with_the_composition():
    torch.backends.cudnn.allow_tf32 = True
    wrong = []
    for kernel in _extension.load().cuda_kernels():
        difference, tolerance = kernel.compare()
        if not difference <= tolerance:
            wrong.append((kernel.family, kernel.dtype, difference, tolerance))
    assert wrong == []


def test_both_ways_compute_the_large_problems():
    torch.backends.cudnn.allow_tf32 = True
    for kernel in _extension.load().cuda_kernels():
        step = kernel.step()
        step(True)
        step(False)
    torch.cuda.synchronize()


@pytest.mark.parametrize(("mode", "used"), [("check", "True"), ("on", "True"), ("off", "False")])
def test_which_kernels_a_mode_uses(mode, used):
    assert printed("layer(); print(launches(layer))", mode) == [used]


def test_a_check_leaves_the_caller_as_it_was():
    code = """
torch.cuda.set_sync_debug_mode("error")
before = torch.cuda.get_rng_state(), torch.get_rng_state(), torch.get_num_threads()
stream = torch.cuda.Stream()
with torch.cuda.stream(stream), torch.autocast("cuda", torch.bfloat16), torch.inference_mode():
    layer()
after = torch.cuda.get_rng_state(), torch.get_rng_state(), torch.get_num_threads()
print(torch.equal(before[0], after[0]), torch.equal(before[1], after[1]), before[2] == after[2])
print(torch.cuda.get_sync_debug_mode())
"""
    assert printed(code, "check") == ["True True True", "2"]


def test_a_first_call_in_a_graph_takes_the_composition():
    code = """
torch.ones(2, 2).cuda() @ torch.ones(2, 2).cuda()  # cuBLAS is ready
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    captured = layer()
graph.replay()
print(launches(graph.replay), torch.allclose(captured, layer(), rtol=1e-4), launches(layer))
"""
    assert printed(code, "check") == ["False True True"]


def test_a_wrong_mode_raises():
    code = """
try:
    layer()
except ValueError as error:
    print(error)
"""
    (line,) = printed(code.replace("layer()", "ops.sign_matrix(1, 0, 1, 1, device='cuda')"), "yes")
    assert line.startswith("SKETCHLAYERS_CUDA_KERNELS must be check, on or off (got 'yes')")
