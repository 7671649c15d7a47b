r"""Compression and int8 together: accuracy and bytes before and after quantisation.

    python experiments/study.py int8 --network resnet20 --weights FILE --data cifar10 --root DIR \
        --rates 0.5 --methods tucker2 svd cp auto --csv int8.csv

The dense network and every compressed one, with its factors, with these in 8 bits (``bits=8``) and
folded, are quantised by torchao: weights of convolutions and fully connected layers in int8 with a
scale for each output, activations in int8 with a scale that calibration images set, no training.
Takes zero_shot.py's options for network, images and compression.

Found: 8 bits of weights cost nothing; 8 bits of activations cost CP's factors several points, since
its components cancel and their rounding does not, and nothing if the network is folded first.
Tucker-2 and SVD lose nothing (docs/export.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec

import torch
from torch import nn
from torch.fx import GraphModule

import zero_shot
from common.runs import hardware, versions
from sketchlayers import fold
from sketchlayers._runtime.files import write_csv
from trained.pictures import Pictures, accuracies
from trained.results import Row
from trained.variants import STEPS
from zero_shot import DENSE_RUN, Experiment, Run

SENSITIVITY = next(step for step in STEPS if step.name == "sensitivity")


def quantized(network: nn.Module, calibration: Pictures) -> nn.Module:
    """The network with weights and activations of convolutions and linear layers in int8.

    Args:
        network: in evaluation mode, of layers that `torch.export` sees as PyTorch's own.
        calibration: the images that set the scales of activations.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    example = next(iter(calibration))[:2]
    any_batch = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(network, (example,), dynamic_shapes=any_batch).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    observed = prepare_pt2e(program, quantizer)
    with torch.no_grad():
        for batch in calibration:
            observed(batch)
    return convert_pt2e(observed)


def stored_bytes(network: nn.Module) -> int:
    """What parameters and buffers take; of a traced network those that its graph reads."""
    values = network.state_dict()
    if isinstance(network, GraphModule):
        # Converting leaves the float weights there.
        read = {node.target for node in network.graph.nodes if node.op == "get_attr" and node.users}
        values = {name: value for name, value in values.items() if name in read}
    return sum(value.nbytes for value in values.values())


def forms(experiment: Experiment, run: Run) -> Iterator[tuple[str, nn.Module]]:
    """The networks of a run to quantise, by the form of their layers."""
    if run is DENSE_RUN:
        yield "dense", experiment.trained.network
        return
    network, _ = experiment.compressed(run)
    yield "factored", network
    yield "factored, 8 bits", experiment.compressed(run, bits=8).model
    yield "folded", fold(network)


def measure(experiment: Experiment) -> Iterator[Row]:
    """A row for each form of each network."""
    args = experiment.args
    runs = [Run(method, SENSITIVITY, rate) for rate in args.rates for method in args.methods]
    label = {
        "data": args.label or args.data,
        "images": len(experiment.labels),
        "calibration_images": len(experiment.calibration.labels),
        **hardware(experiment.device),
        **versions(),
    }
    for run in (DENSE_RUN, *runs):
        for form, network in forms(experiment, run):
            small = quantized(network, experiment.calibration)
            correct, int8_correct = map(experiment.found, (network, small))
            measured = accuracies(int8_correct, correct)
            yield {
                "network": args.network,
                "method": run.method,
                "rate": run.rate,
                "form": form,
                "accuracy": 100 * float(correct.double().mean()),
                "int8_accuracy": measured["accuracy"],
                "difference": measured["difference"],
                "standard_error": measured["standard_error"],
                "bytes": stored_bytes(network),
                "int8_bytes": stored_bytes(small),
                **label,
            }


def main(arguments: Sequence[str]) -> None:
    """Runs the study."""
    args = zero_shot.parser(__doc__).parse_args(arguments)
    if find_spec("torchao") is None:
        raise ValueError("int8 needs `pip install torchao`")
    zero_shot.check(args)
    rows: list[Row] = []
    for row in measure(Experiment(args)):
        rows.append(row)
        print(
            f"{row['method']} {row['rate']:g} {row['form']}: {row['int8_accuracy']:.1f} % in int8, "
            f"{row['accuracy']:.1f} % in float32; {row['int8_bytes']:,} of {row['bytes']:,} bytes"
        )
        write_csv(args.csv, rows)
