"""How sketched layers choose between their paths: by estimates, or by times of the first calls."""

from __future__ import annotations

from sketchlayers import _extension
from sketchlayers.nn import _cache


def benchmark(enabled: bool = True) -> bool:
    """Sets whether the first call of a shape times both paths of a sketched layer.

    In the manner of ``torch.backends.cudnn.benchmark``: the first call of each combination of
    layer sizes, input shape, type, memory format, number of threads and mode (inference or
    training) runs the factored and the folded path a few times each, for about 0.1 seconds, and
    all later ones take the faster path. Without it the planner estimates their times. What was
    timed counts for the rest of the process, also after ``benchmark(False)``;
    ``layer.plan(shape)`` says "measured" in place of "estimated".

    A path's result differs from the other's by rounding, and which path is faster may come out
    differently in another process: two runs of a program may then differ in their last bits. Within
    a process the path of a shape stays the same. Under ``torch.use_deterministic_algorithms(True)``
    nothing is timed.

    Timed are calls on CPUs; on GPUs, and in graphs that are compiled, exported or traced, the
    planner estimates.

    Args:
        enabled: whether calls of new shapes are to be timed from now on.

    Returns:
        The former setting.

    Raises:
        ImportError: the compiled extension cannot be used.
        TypeError: ``enabled`` is no bool.
    """
    if not isinstance(enabled, bool):
        raise TypeError(f"benchmark: enabled must be True or False (got {enabled!r})")
    before = bool(_extension.require("benchmark").set_benchmark(enabled))
    if enabled != before:
        _cache.decide_again()
    return before
