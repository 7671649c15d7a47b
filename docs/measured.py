"""Writes the measured tables of the pages from experiments/results/*.csv.

Usage: python docs/measured.py [--figure]

``--figure`` draws speed_cpu.png, too, which needs matplotlib and the package.

A page has a table between ``<!-- measured: NAME -->`` and ``<!-- measured: end -->``; the function
of this name below makes it. So no number on a page is typed, and the tests see to it that the pages
are what this script makes of the results.
"""

from __future__ import annotations

import csv
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace

FOLDER = Path(__file__).resolve().parent
PAGES = (FOLDER.parent / "README.md", *sorted(FOLDER.glob("*.md")))
RESULTS = FOLDER.parent / "experiments" / "results"
BLOCK = re.compile(r"(<!-- measured: (?!end)(\w+) -->\n).*?(<!-- measured: end -->)", re.DOTALL)

Row = dict[str, str]

RATES = ("0.7", "0.5", "0.4", "0.3")


def results(name: str) -> list[Row]:
    """The rows of a file of results."""
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def chosen(rows: Iterable[Row], **values: str) -> list[Row]:
    """Those that have these values."""
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def one(rows: Iterable[Row], **values: str) -> Row:
    """The only one that has these values."""
    (row,) = chosen(rows, **values)
    return row


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# ---------------------------------------------------------------------------- without training


def compressed(row: Row) -> list[str]:
    """Cells of a network of headline.py: size, accuracy, the difference to dense, and times."""
    change = f"{float(row['difference']):+.1f} ± {float(row['standard_error']):.1f}"
    times = (f"{kind}_ms_1" for kind in ("pytorch", "onnx"))
    return [
        whole(row["parameters"]),
        f"{float(row['file_bytes']) / 1e6:.2f}",
        f"{float(row['multiply_adds']) / 1e6:.0f}",
        f"{float(row['accuracy']):.1f}",
        "" if row["method"] == "dense" else change,
        ", ".join(f"{float(row[time]):.1f}" for time in times),
        f"{float(row['seconds']) / 60:.1f}" if row["seconds"] else "",
    ]


COMPRESSED = (
    *("parameters", "file, MB", "multiply-adds, millions", "accuracy, %"),
    *("difference to dense, points", "ms an image: PyTorch, ONNX Runtime", "minutes to make"),
)


HEADLINE = ("resnet20", "resnet18")


def headline() -> str:
    """What `compress` gives by default at three sizes, and under a budget of bytes."""
    calls = {
        ("dense", "1"): "dense",
        ("fitted", "0.5"): "`rate=0.5`",
        ("fitted", "0.3"): "`rate=0.3`",
        ("fitted", "0.15"): "`rate=0.15`",
        ("few bits", "0.1"): "`bytes_rate=0.1`",
    }
    lines, last = [], None
    for row in results("headline_cpu_intel_xeon"):
        call = calls.get((row["form"], row["rate"]))
        if call and row["method"] in ("dense", "auto") and row["network"] in HEADLINE:
            name = network_and_data(row)
            lines.append(["" if name == last else name, call, *compressed(row)])
            last = name
    return table(["network", "call", *COMPRESSED], lines)


def compressed_networks() -> str:
    """Every network of headline.py."""
    lines = [
        [
            network_and_data(row),
            "dense" if row["method"] == "dense" else f"{row['method']}, {row['form']}",
            row["rate"],
            *compressed(row),
        ]
        for row in results("headline_cpu_intel_xeon")
    ]
    return table(["network", "made by", "rate", *COMPRESSED], lines)


def network_and_data(row: Row) -> str:
    """As a reader knows them."""
    return f"{NAMES[row['network']]}, {row['data']}"


def other_packages() -> str:
    """Accuracy, bytes, time and lines of code by other packages, without training."""
    rows = results("other_packages_cpu_intel_xeon")

    def line(row: Row) -> list[str]:
        name = "dense" if row["peer"] == "dense" else f"{row['peer']}, {float(row['rate']):g}"
        if not row["accuracy"]:
            return [name, *["-"] * 6]
        return [
            name,
            f"{int(row['parameters']):,}",
            f"{int(row['bytes']):,}",
            f"{float(row['accuracy']):.1f} ± {float(row['standard_error']):.1f}",
            f"{float(row['milliseconds']):.1f}",
            f"{float(row['seconds'] or 0):.0f}",
            row["lines"] or "-",
        ]

    order = sorted(rows, key=lambda row: (-float(row["rate"]), -float(row["accuracy"] or 0)))
    return table(
        ["network by", "parameters", "bytes", "accuracy %", "ms an image", "made in s", "lines"],
        map(line, order),
    )


ZERO_SHOT = results("zero_shot_cpu_amd_epyc")


def zero_shot_row(
    network: str, method: str, rate: str, variant: str = "sensitivity", data: str = "same"
) -> Row:
    """A run on test images; ``data`` is what it was calibrated on."""
    if variant == "frobenius":
        data = "none"
    return one(
        ZERO_SHOT,
        network=network,
        split="test",
        method=method,
        rate=rate,
        variant=variant,
        calibration_data=data,
    )


def accuracy(*run: str) -> str:
    """Of `zero_shot_row`, in percent."""
    return f"{float(zero_shot_row(*run)['accuracy']):.1f}"


def dense_accuracy(network: str) -> str:
    """In percent."""
    return f"{float(one(ZERO_SHOT, network=network, method='dense')['accuracy']):.1f}"


def zero_shot() -> str:
    """Points gained or lost by rate, method and network."""
    columns = [
        ("auto", "sensitivity", "`auto`"),
        ("tucker2", "refined", "`tucker2`, `refine=True`"),
        ("tucker2", "sensitivity", "`tucker2`"),
        ("svd", "sensitivity", "`svd`"),
        ("tucker2", "frobenius", "`tucker2`, no images"),
    ]

    def cell(network: str, method: str, variant: str, rate: str) -> str:
        try:
            row = zero_shot_row(network, method, rate, variant)
        except ValueError:
            return ""
        return f"{float(row['difference']):+.1f} ± {float(row['standard_error']):.1f}"

    return table(
        ["network (dense)", "parameters kept", *(heading for *_, heading in columns)],
        (
            [
                f"{title} ({dense_accuracy(network)} %)",
                f"{float(rate):.2f}",
                *(cell(network, method, variant, rate) for method, variant, _ in columns),
            ]
            for network, title in (("resnet20", "ResNet-20"), ("resnet32", "ResNet-32"))
            for rate in RATES
        ),
    )


def seconds(row: Row, key: str = "seconds") -> str:
    """With the unit."""
    return f"{float(row[key]):.0f} s"


NAMES = {
    "resnet18": "ResNet-18",
    "resnet20": "ResNet-20",
    "resnet32": "ResNet-32",
    "resnet50": "ResNet-50",
    "vgg16": "VGG-16",
}


def cost() -> str:
    """Seconds and memory of `compress`."""
    stages = ("calibration", "sensitivity", "ranks", "fit")
    return table(
        ["network, method", "images", *stages, "all", "peak memory"],
        (
            [
                f"{NAMES[row['network']]}, `{row['method']}`",
                f"{int(row['images']):,} of {row['size']}x{row['size']}",
                *(seconds(row, f"seconds_{stage}") for stage in stages),
                seconds(row),
                f"{float(row['gib_peak']):.1f} GiB",
            ]
            for row in results("compress_cost_cpu_intel_xeon")
        ),
    )


# ---------------------------------------------------------------------------- trained from scratch

STUDY = results("recipe_study_cpu_amd_epyc")
TRIALS = {
    "dense": "dense lr=0.1",
    "freshnet": "freshnet lr=0.1",
    "hashednet": "hashednet lr=0.1",
    "frame": "sketch lr=0.1",
    "blocks": "sketch-blocks lr=0.1",
    "paper": "sketch-paper lr=0.1",
    "dictionary": "lowrank1 lr=0.1",
    "lowrank": "lowrank2 lr=0.2",
}
"""Those of the study that were run with several seeds."""


def studied(name: str) -> str:
    """Mean accuracy and standard deviation over the seeds, in percent."""
    values = [float(row["test_accuracy"]) for row in chosen(STUDY, trial=TRIALS[name])]
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def step_times(*names: str) -> str:
    """Of a training step of Network-in-Network's convolutions, over the dense layer's."""
    rows = [
        float(row["time"])
        for row in results("method_speed_cpu_amd_epyc")
        if row["method"] in names and row["layer"].startswith("CONV")
    ]
    return f"{min(rows):.1f} to {max(rows):.1f}"


def scratch() -> str:
    """Accuracy and time of training by method."""
    rows = [
        ("the dense network", "dense", ()),
        ('`FreshConv2d` ("freshnet")', "freshnet", ("freshnet",)),
        ('`HashedConv2d` ("hashednet")', "hashednet", ("hashednet",)),
        ('`SKConv2d(frame="signs")`', "frame", ("sketch",)),
        ('`SKConv2d(blocks=8, mixing="channel")`', "blocks", ("sketch-blocks",)),
        ("`SKConv2d()`, as in the paper", "paper", ("sketch-paper",)),
        ('`DictionaryConv2d` ("dictionary")', "dictionary", ("lowrank1",)),
        ('`LowRankConv2d` ("lowrank")', "lowrank", ("lowrank2",)),
    ]
    return table(
        ["layers", "accuracy %, three seeds", "time of a training step over dense"],
        (
            [title, studied(name), step_times(*methods) if methods else "1"]
            for title, name, methods in rows
        ),
    )


# ------------------------------------------------------------------------------------ few bits


def few_bits() -> str:
    """Bytes of a file and accuracy of four ways to get there."""
    ways = {
        "bits": "{} bits, dense",
        "rank": "low rank, rate {}, float32",
        "in turn": "low rank, rate {}, then 8 bits, each number the nearest",
        "together": "`bytes_rate={}`",
    }

    def line(row: Row) -> list[str]:
        name = ways.get(row["way"], "dense, float32").format(f"{float(row['size']):g}")
        name += ", batch norms folded before" * row["network"].endswith("folded")
        found = f"{float(row['accuracy']):.1f} ± {float(row['standard_error']):.1f}"
        network = row["network"].removesuffix(" folded").replace("resnet", "ResNet-")
        return [network, name, whole(row["bytes"]), found]

    return table(
        ["network", "form", "bytes of the file", "accuracy %"],
        map(line, results("few_bits_cpu_intel_xeon")),
    )


def whole(number: str) -> str:
    """With thousands apart."""
    return f"{round(float(number)):,}"


# --------------------------------------------------------------------------------------- speed

LAYERS = (
    "5x5 96->192 @16",
    "3x3 192->192 @8",
    "3x3 96->208 @14",
    "3x3 512->512 @7",
    "1x1 192->192 @16",
    "1x1 192->160 @32",
    "3x3 64->64 @56",
    "3x3 128->256 @28 /2",
)


def speed(name: str, **values: str) -> float:
    """Times as fast as the faster of PyTorch's, of the only row that has these values."""
    return float(one(results(name), **values)["speed"])


def layer_speed() -> str:
    """One block and eight, both mixings, and the memory of training."""

    def cell(file: str, layer: str, mixing: str) -> str:
        method = "any" if layer.startswith("1x1") else mixing
        own = chosen(results(file), layer=layer, method=method)
        if not own:
            return "not measured"
        forward = [float(one(own, mode="forward", batch=batch)["speed"]) for batch in ("64", "1")]
        training = float(one(own, mode="training", batch="64")["speed"])
        return f"{forward[0]:.1f}x, {forward[1]:.1f}x; {training:.1f}x"

    return table(
        [
            "layer",
            "channel mixing: inference 64, 1; training 64",
            "eight blocks",
            "spatial mixing",
            "peak memory, training",
        ],
        (
            [
                layer.replace("->", " to "),
                cell("figures_cpu_amd_epyc", layer, "channel"),
                cell("blocks_cpu_amd_epyc", layer, "channel"),
                "the same layer"
                if layer.startswith("1x1")
                else cell("figures_cpu_amd_epyc", layer, "spatial"),
                memory(layer),
            ]
            for layer in LAYERS
        ),
    )


def choices() -> str:
    """How many of the planner's choices are within 1.15 times the best path's time."""
    files = {
        "AMD EPYC, float32": "planner_cpu_amd_epyc",
        "Intel Xeon, float32": "planner_cpu_intel_xeon",
        "Intel Xeon with AMX, bfloat16": "planner_bfloat16_cpu_intel_xeon",
    }

    def good(row: Row, mode: str) -> bool:
        forming = float(row["form_training"]) if mode == "training" else 0.0
        seconds = {
            "folded": float(row[f"dense_{mode}"]) + forming,
            "factored": float(row[f"factored_{mode}"]),
        }
        return seconds[row[f"path_{mode}"]] <= 1.15 * min(seconds.values())

    def share(rows: list[Row], mode: str) -> str:
        return f"{100 * sum(good(row, mode) for row in rows) / len(rows):.1f} %"

    return table(
        ["machine", "inference", "training"],
        (
            [name, share(results(file), "forward"), share(results(file), "training")]
            for name, file in files.items()
        ),
    )


def other_machines() -> str:
    """Speeds of layers on two machines and, on the second, in bfloat16."""
    files = ("figures_cpu_amd_epyc", "figures_cpu_intel_xeon", "figures_bfloat16_cpu_intel_xeon")

    def cell(file: str, layer: str, batch: str) -> str:
        mixing = "any" if layer.startswith(("1x1", "FC")) else "channel"
        own = chosen(results(file), layer=layer, method=mixing, batch=batch)
        modes = [chosen(own, mode=mode) for mode in ("forward", "training")]
        speeds = [max(float(row["speed"]) for row in rows) for rows in modes if rows]
        return "; ".join(f"{speed:.1f}x" for speed in speeds) or "not measured"

    layers = [(layer, "64") for layer in LAYERS[:-2]]
    linear = [("FC 4096x4096", batch) for batch in ("1", "16", "256")]
    return table(
        ["layer", "batch", "EPYC, float32", "Xeon, float32", "Xeon, bfloat16"],
        (
            [layer.replace("->", " to "), batch, *(cell(file, layer, batch) for file in files)]
            for layer, batch in [*layers, *linear, ("FC 1024x1024", "256")]
        ),
    )


def factors() -> str:
    """Speeds of layers of factors by one pass and, in brackets, by their parts."""
    rows = chosen(results("factors_cpu_intel_xeon"), mode="forward")

    def cell(layer: str, batch: str, method: str, format: str) -> str:
        own = [
            one(rows, layer=layer, batch=batch, method=method, format=format, rate=rate)
            for rate in ("0.5", "0.3")
        ]
        fused = ", ".join(f"{float(row['speed']):.1f}x" for row in own)
        parts = ", ".join(f"{float(row['dense_ms']) / float(row['parts_ms']):.1f}x" for row in own)
        return f"{fused} ({parts})"

    kinds = [(method, format) for method in ("cp", "tucker2") for format in ("nchw", "nhwc")]
    names = {"cp": "CP", "tucker2": "Tucker-2", "nchw": "contiguous", "nhwc": "channels_last"}
    return table(
        ["layer", "batch", *(f"{names[method]}, {names[format]}" for method, format in kinds)],
        (
            [layer.replace("->", " to "), batch, *(cell(layer, batch, *kind) for kind in kinds)]
            for layer, batch in dict.fromkeys((row["layer"], row["batch"]) for row in rows)
        ),
    )


def memory(layer: str) -> str:
    """The most of both mixings in training, over the dense layer's."""
    rows = chosen(results("figures_cpu_amd_epyc"), layer=layer, mode="training")
    return f"{max(float(row['memory']) for row in rows):.2f}x"


def linear_speed() -> str:
    """Fully connected layers by batch."""
    batches = ("1", "16", "256")

    def cell(layer: str, mode: str, batch: str) -> str:
        rows = chosen(results("figures_cpu_amd_epyc"), layer=layer, mode=mode, batch=batch)
        return f"{float(rows[0]['speed']):.1f}x" if rows else "not measured"

    return table(
        [
            "layer",
            *(f"inference {batch}" for batch in batches),
            "training 256",
            "peak memory, training",
        ],
        (
            [
                layer.replace("FC", "fully connected").replace("x", " to "),
                *(cell(layer, "forward", batch) for batch in batches),
                cell(layer, "training", "256"),
                memory(layer),
            ]
            for layer in ("FC 4096x4096", "FC 1024x1024")
        ),
    )


def networks() -> str:
    """Whole networks in channels_last."""
    titles = {
        "ninn": "Network-in-Network, rate 0.15",
        "googlenet_bn": "GoogLeNet with batch norm, rate 0.2",
    }
    rows = chosen(results("networks_cpu_amd_epyc"), format="nhwc")
    return table(
        ["network", "mixing", "call", "batch", "dense", "times as fast"],
        (
            [
                titles[row["layer"]],
                row["method"],
                {"forward": "inference", "training": "training step"}[row["mode"]],
                row["batch"],
                f"{float(row['dense_ms']):.0f} ms",
                f"{float(row['speed']):.2f}",
            ]
            for row in rows
        ),
    )


def peers() -> str:
    """Other packages' layers of as many parameters."""
    names = {
        "channel": "`SKConv2d`, channel mixing",
        "spatial": "`SKConv2d`, spatial mixing",
        "tensorly Tucker": "tensorly-torch, Tucker",
        "tensorly CP": "tensorly-torch, CP",
        "compiled channel": "channel mixing in plain PyTorch, `torch.compile`",
    }
    file, layers = "peers_cpu_amd_epyc", ("3x3 192->192 @8", "3x3 96->208 @14")
    return table(
        [
            "layer of as many parameters",
            *(f"{x.replace('->', ' to ')}: inference; training" for x in layers),
        ],
        (
            [
                title,
                *(
                    "; ".join(
                        f"{speed(file, layer=layer, method=method, mode=mode):.1f}x"
                        for mode in ("forward", "training")
                    )
                    for layer in layers
                ),
            ]
            for method, title in names.items()
        ),
    )


# ------------------------------------------------------------------------------------- exported


def exported() -> str:
    """One image at a time by runtime and method."""
    rows = results("export_latency_cpu_amd_epyc")
    titles = {
        "resnet18": "ResNet-18",
        "googlenet": "GoogLeNet",
        "resnet50": "ResNet-50",
        "aoti": "AOTInductor",
        "onnx": "ONNX Runtime",
    }
    methods = tuple(dict.fromkeys(row["method"] for row in rows))

    def cell(found: Row) -> str:
        speed, low, high = (float(found[key]) for key in ("speed", "speed_low", "speed_high"))
        return f"{speed:.2f} ({low:.2f} to {high:.2f})"

    cases = dict.fromkeys((row["network"], row["runtime"]) for row in rows)
    return table(
        ["network", "runtime", "dense", *(f"`{method}`" for method in methods)],
        (
            [
                titles[network],
                titles[runtime],
                f"{float(own[0]['dense_ms']):.0f} ms",
                *(cell(one(own, method=method)) for method in methods),
            ]
            for network, runtime in cases
            for own in [chosen(rows, network=network, runtime=runtime)]
        ),
    )


def quantized() -> str:
    """Accuracy and bytes with weights and activations of 8 bits."""
    return table(
        ["method", "form", "activations float32 %", "int8 %", "difference", "int8 bytes"],
        (
            [
                "none" if row["method"] == "dense" else f"`{row['method']}`",
                row["form"],
                f"{float(row['accuracy']):.1f}",
                f"{float(row['int8_accuracy']):.1f}",
                f"{float(row['difference']):+.1f} ± {float(row['standard_error']):.1f}",
                f"{int(row['int8_bytes']):,}",
            ]
            for row in results("int8_cpu_intel_xeon")
        ),
    )


def int8_accuracy(method: str, form: str) -> str:
    """In percent."""
    row = one(results("int8_cpu_intel_xeon"), method=method, form=form)
    return f"{float(row['int8_accuracy']):.1f}"


# -------------------------------------------------------------------------------------- decision


def decision() -> str:
    """What to take for which purpose, and why."""
    twenty, costs = "resnet20", results("compress_cost_cpu_intel_xeon")
    large = one(costs, network="resnet50")
    layer = {"layer": "3x3 192->192 @8", "mode": "training", "batch": "64", "method": "channel"}
    plain, eight = (speed(f"{name}_cpu_amd_epyc", **layer) for name in ("figures", "blocks"))
    frame = float(
        one(results("method_speed_cpu_amd_epyc"), method="sketch", layer="CONV_7")["time"]
    )
    channel = float(one(STUDY, trial="sketch-paper-channel lr=0.1")["test_accuracy"])
    lite = "efficientnet_lite0"
    tucker, auto = (
        one(
            results("headline_cpu_intel_xeon"),
            **{"network": "resnet18", "method": method, "form": "fitted", "rate": "0.3"},
        )
        for method in ("tucker2", "auto")
    )
    return table(
        ["you have, and want", "take", "measured"],
        [
            [
                "a trained network and images of its kind; smaller, without training",
                "`compress(model, rate=0.5, calibration=images)`: `method` is `auto`",
                "ResNet-20, with a `filter_fn` for its convolutions: "
                f"{accuracy(twenty, 'auto', '0.5')} % at 0.5 and "
                f"{accuracy(twenty, 'auto', '0.3')} % at 0.3 of the parameters, dense "
                f"{dense_accuracy(twenty)} %",
            ],
            [
                "the same for a large network, in less time or to run faster",
                '`method="tucker2"`',
                f"ResNet-50: {float(large['seconds']) / 60:.0f} minutes; ResNet-20: "
                f"{accuracy(twenty, 'tucker2', '0.5')} % at 0.5",
            ],
            [
                "the same, to run in ONNX Runtime",
                '`method="tucker2"`',
                "[ResNet-18 at 0.3](results.md#networks-and-sizes), times as fast as dense: "
                f"{float(tucker['onnx_speed_1']):.1f}, `auto` {float(auto['onnx_speed_1']):.1f}; "
                f"difference to dense {float(tucker['difference']):+.1f} and "
                f"{float(auto['difference']):+.1f} points",
            ],
            [
                "the same, with minutes to spend afterwards",
                '`method="tucker2", refine=True`',
                f"ResNet-20 at 0.3: {accuracy(twenty, 'tucker2', '0.3')} % become "
                f"{accuracy(twenty, 'tucker2', '0.3', 'refined')} %; `auto` gains nothing: "
                f"{accuracy(twenty, 'auto', '0.3')} and "
                f"{accuracy(twenty, 'auto', '0.3', 'refined')} %",
            ],
            [
                "the same, to run with weights and activations in int8",
                '`method="tucker2"`; or `auto`, folded before it is quantised',
                "ResNet-20 at 0.5, activations in int8: "
                f"Tucker-2 {int8_accuracy('tucker2', 'factored')} %; "
                f"`auto` {int8_accuracy('auto', 'factored')} % factored, "
                f"{int8_accuracy('auto', 'folded')} % folded",
            ],
            [
                "a network of 1x1 and depthwise convolutions",
                '`method="svd"`, 0.8 or milder; look at `output_change`',
                f"EfficientNet-Lite0: outputs change by "
                f"{float(zero_shot_row(lite, 'svd', '0.9')['output_change']):.2f} at 0.9, "
                f"{float(zero_shot_row(lite, 'svd', '0.8')['output_change']):.2f} at 0.8, "
                f"{float(zero_shot_row(lite, 'svd', '0.6')['output_change']):.2f} at 0.6",
            ],
            [
                "a trained network, but only images of another kind",
                "the same: calibrate on them",
                f"Tucker-2 of ResNet-20 calibrated on photographs (Imagenette): "
                f"{accuracy(twenty, 'tucker2', '0.5', 'sensitivity', 'Imagenette-96')} % at 0.5 "
                f"(with its own images {accuracy(twenty, 'tucker2', '0.5')} %), "
                f"{accuracy(twenty, 'tucker2', '0.3', 'sensitivity', 'Imagenette-96')} % at 0.3 "
                f"({accuracy(twenty, 'tucker2', '0.3')} %)",
            ],
            [
                "a trained network and no image at all",
                '`method="cp", init="fit"`, half of the parameters or more; train it if you can',
                f"ResNet-20 at 0.5: CP {accuracy(twenty, 'cp', '0.5', 'frobenius')} %, Tucker-2 "
                f"{accuracy(twenty, 'tucker2', '0.5', 'frobenius')} %; at 0.3 CP "
                f"{accuracy(twenty, 'cp', '0.3', 'frobenius')} %",
            ],
            [
                "to train from scratch; a small file, the best accuracy",
                '`SKConv2d(..., frame="signs")`, or hashing (`freshnet`, `hashednet`)',
                f"{studied('frame')}, {studied('freshnet')} and {studied('hashednet')} % (dense "
                f"{studied('dense')} %) in the study below; a step takes as long as dense "
                f"({frame:.2f} times, 3x3 192 to 192)",
            ],
            [
                "to train from scratch; small and fast",
                '`SKConv2d(..., mixing="channel", blocks=8)`',
                f"{studied('blocks')} %; a training step of a 3x3 layer {eight:.1f} times as fast "
                "as dense",
            ],
            [
                "speed above all",
                '`SKConv2d(..., mixing="channel")`',
                f"{plain:.1f} times as fast; {channel:.1f} % (one seed)",
            ],
            [
                "the paper's layer",
                "`SKConv2d(...)`",
                f"{studied('paper')} %",
            ],
        ],
    )


TABLES = {
    function.__name__: function
    for function in (
        headline,
        compressed_networks,
        decision,
        zero_shot,
        other_packages,
        scratch,
        cost,
        layer_speed,
        factors,
        choices,
        other_machines,
        few_bits,
        linear_speed,
        networks,
        peers,
        exported,
        quantized,
    )
}


def rewritten(page: str) -> str:
    """The page with its tables as the results give them."""
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", page)


def draw_speed() -> None:
    """Draws speed_cpu.png."""
    from sketchlayers.bench import plot

    rows = [
        SimpleNamespace(
            layer=row["layer"],
            method=row["method"],
            format=row["format"],
            mode=row["mode"],
            batch=int(row["batch"]),
            speed=float(row["speed"]),
            speed_low=float(row["speed_low"]),
            speed_high=float(row["speed_high"]),
        )
        for row in results("figures_cpu_amd_epyc")
    ]
    title = "Sketched layers at rate 0.1, float32, two threads of an AMD EPYC"
    plot.write_png(FOLDER / "speed_cpu.png", rows, title)


def main() -> None:
    """Writes every page that has a table."""
    for path in PAGES:
        page = path.read_text()
        if page != (new := rewritten(page)):
            path.write_text(new)
            print(path)
    if "--figure" in sys.argv[1:]:
        draw_speed()


if __name__ == "__main__":
    main()
