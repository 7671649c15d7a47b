"""``sketchlayers bench``: sketched layers against PyTorch's own, layer by layer, on this machine.

All contenders are timed in one process, run by run in turn, so that a busy machine slows each of
them; a row gives the median of the ratios with its quartiles. The dense side is the faster of
PyTorch's layer in NCHW and in channels_last. Peak memory is that of one call: the parameters, the
input, and the largest sum of what PyTorch's allocator held during the call.

==============  ==================================================================
``cases``       the layers
``timing``      paired times, quartiles
``memory``      peaks of a call
``bound``       the machine's peaks and the least work of a layer
``gemms``       the two matrix products that channel mixing needs
``peers``       other packages' layers
``figures``     speeds to reach
``table plot``  rows, CSV, picture
==============  ==================================================================
"""

from .bound import Mode, Peaks, Work, dense_work, measure_peaks, sketch_work
from .cases import FULLY_CONNECTED, NINN, TABLE, Case, build_dense, build_sketch
from .memory import allocation_peak, held_bytes, inference_memory, step_memory
from .table import Row, Settings, cpu_name, machine, run_case, write_csv
from .timing import inference, paired_times, quartiles, speeds, synchronize, training_step

__all__ = [
    "FULLY_CONNECTED",
    "NINN",
    "TABLE",
    "Case",
    "Mode",
    "Peaks",
    "Row",
    "Settings",
    "Work",
    "allocation_peak",
    "build_dense",
    "build_sketch",
    "cpu_name",
    "dense_work",
    "held_bytes",
    "inference",
    "inference_memory",
    "machine",
    "measure_peaks",
    "paired_times",
    "quartiles",
    "run_case",
    "sketch_work",
    "speeds",
    "step_memory",
    "synchronize",
    "training_step",
    "write_csv",
]
