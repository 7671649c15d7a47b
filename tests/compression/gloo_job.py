"""Runs all workers of this folder in as many processes as ``torchrun`` started, in one job.

Most of what a job takes is three processes that import PyTorch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gloo_compress_worker
import gloo_worker
import torch
import torch.distributed as dist
import torch.distributed.nn  # before the group: its defaults would keep the group to the very end

if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for worker in (gloo_worker, gloo_compress_worker):
        folder = Path(sys.argv[1], worker.__name__)
        folder.mkdir(exist_ok=True)
        worker.main(folder)
    dist.barrier()  # none leaves while another still listens
    dist.destroy_process_group()
