"""``export_onnx``: ONNX Runtime's outputs, and rounded weights as whole numbers in the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sketchlayers
from sketchlayers.nn._rounding import roundings

from .networks import METHODS, Network, images

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.filterwarnings("ignore:compress.*:UserWarning")


def rounded(model: nn.Module, bits: int, method: str = "svd", **how: Any) -> nn.Module:
    torch.manual_seed(0)
    how = {"rate": 1.0, "keep_first": False, "progress": False} | how
    return sketchlayers.compress(model.eval(), method, bits=bits, **how)[0]


def network() -> nn.Module:
    torch.manual_seed(0)
    model = Network()
    for _ in range(3):
        model(images())
    return model


def numbers(path: Path) -> dict[str, int]:
    """How the whole numbers of weights are stored, by the weight's name."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    return {
        one.name.removesuffix(".numbers"): one.data_type
        for one in model.graph.initializer
        if one.name.endswith(".numbers")
    }


def outputs(path: Path, inputs: Mapping[str, Tensor] | Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    if isinstance(inputs, Tensor):
        inputs = {session.get_inputs()[0].name: inputs}
    (found,) = session.run(None, {name: one.numpy() for name, one in inputs.items()})
    return torch.from_numpy(found)


def assert_same(model: nn.Module, path: Path, *inputs: Tensor, atol: float = 1e-4) -> None:
    for x in inputs:
        with torch.no_grad():
            torch.testing.assert_close(outputs(path, x), model(x), rtol=1e-4, atol=atol)


def assert_all_numbers(model: nn.Module, path: Path) -> None:
    """Also of weights that have another name there since they are transposed."""
    assert len(numbers(path)) == len(list(roundings(model)))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 7, 8])
def test_every_number_of_bits(bits: int, tmp_path: Path) -> None:
    small = rounded(network(), bits, "tucker2", rate=0.5)
    path = sketchlayers.export_onnx(small, images(), tmp_path / "s.onnx", quantized=True)
    own = {name: one.bits for name, one in roundings(small)}
    kinds = {True: onnx.TensorProto.UINT8, False: onnx.TensorProto.INT8}
    assert numbers(path) == {name: kinds[few <= 4] for name, few in own.items()}
    assert_same(small, path, images(1), images(7))


@pytest.mark.parametrize("method", ["cp", "blocks", "hashednet", "dictionary"])
def test_methods(method: str, tmp_path: Path) -> None:
    name, options = METHODS[method]
    small = rounded(network(), 4, name, rate=0.5, **options)
    path = sketchlayers.export_onnx(small, images(), tmp_path / "s.onnx", quantized=True)
    # PyTorch computes some weights of the others, which are small.
    assert method in ("hashednet", "dictionary") or numbers(path)
    assert_same(small, path, images(1), images(7))


@pytest.mark.parametrize("bits", [4, 8])
def test_groups_of_inputs(bits: int, tmp_path: Path) -> None:
    small = rounded(network(), bits, group_size=16)
    path = sketchlayers.export_onnx(small, images(), tmp_path / "s.onnx", quantized=True)
    assert any(one.scale.shape[1] > 1 for _, one in roundings(small))
    assert_all_numbers(small, path)
    assert_same(small, path, images(3))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Linear(12, 20), torch.randn(3, 5, 12)),
        (nn.Sequential(nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8)), torch.randn(2, 4, 9)),
        (nn.Conv3d(4, 8, 3, groups=2), torch.randn(2, 4, 5, 5, 5)),
        (nn.ConvTranspose2d(6, 8, 3, stride=2), torch.randn(2, 6, 5, 5)),
        (nn.Sequential(nn.ConvTranspose2d(6, 8, 3), nn.BatchNorm2d(8)), torch.randn(2, 6, 5, 5)),
        (nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1)), torch.randn(2, 8, 6, 6)),
        (nn.Embedding(40, 8), torch.randint(0, 40, (3, 5))),
    ],
    ids=["linear", "conv1d", "conv3d", "transposed", "transposed, norm", "depthwise", "table"],
)
def test_layers(model: nn.Module, x: Tensor, tmp_path: Path) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    small = rounded(model, 8)
    path = sketchlayers.export_onnx(small, x, tmp_path / "s.onnx", quantized=True)
    if not merged_across_rows(small):
        assert_all_numbers(small, path)
    assert_same(small, path, x)


def merged_across_rows(model: nn.Module) -> bool:
    """Whether a batch norm's factors are those of a weight's columns."""
    kinds = [type(module) for module in model.modules()]
    return nn.ConvTranspose2d in kinds and nn.BatchNorm2d in kinds


def test_half_precision(tmp_path: Path) -> None:
    small = rounded(network(), 8).half()
    path = sketchlayers.export_onnx(small, images().half(), tmp_path / "s.onnx", quantized=True)
    assert numbers(path)
    assert_same(small, path, images(3).half(), atol=1e-2)


def test_whole_numbers_take_a_quarter_and_an_eighth_of_the_bytes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256))
    x, weights = torch.randn(2, 256), 2 * 256 * 512
    for bits, each in ((8, 1.0), (4, 0.5)):
        small = rounded(model, bits)
        whole = sketchlayers.export_onnx(small, x, tmp_path / "f.onnx").stat().st_size
        path = sketchlayers.export_onnx(small, x, tmp_path / "s.onnx", quantized=True)
        assert whole > 4 * weights
        assert path.stat().st_size < each * weights + 24_000


def test_nothing_of_the_program_is_in_the_file(tmp_path: Path) -> None:
    path = sketchlayers.export_onnx(network(), images(), tmp_path / "s.onnx")
    assert not any(node.metadata_props for node in onnx.load(path).graph.node)
    assert str(Path(__file__).parent).encode() not in path.read_bytes()


class TwoInputs(nn.Module):
    """Takes two arguments, of which the second has no batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        return self.linear(x) * factor


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_several_inputs(kind: str, tmp_path: Path) -> None:
    model, x, factor = TwoInputs(), torch.randn(1, 4), torch.tensor(2.0)
    inputs: Any = (x, factor) if kind == "tuple" else {"x": x, "factor": factor}
    path = sketchlayers.export_onnx(model, inputs, tmp_path / "s.onnx")
    more = torch.randn(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(
            outputs(path, {"x": more, "factor": factor}), model(more, factor)
        )


def test_the_model_stays_as_it_was(tmp_path: Path) -> None:
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = sketchlayers.export_onnx(model, images(), tmp_path / "s.onnx")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert_same(model.eval(), path, images(3))


class FixedSize(nn.Module):
    """Works for the batch alone that it was made for."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 12).relu()


def test_a_model_that_fixes_the_size_of_the_batch(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="does not allow batches of any size: it gets 2"):
        path = sketchlayers.export_onnx(FixedSize(), torch.randn(2, 12), tmp_path / "s.onnx")
    assert_same(FixedSize(), path, torch.randn(2, 12))


class Unexportable(nn.Module):
    """Takes a way that depends on its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if float(x.sum()) > 0 else x.tanh()


def test_wrong_arguments(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    with pytest.raises(ValueError, match=r"export_onnx: the file must end in \.onnx"):
        sketchlayers.export_onnx(nn.Linear(4, 4), x, tmp_path / "s.pb")
    for model in (nn.Linear(4, 4), rounded(nn.Linear(4, 4), 12)):
        with pytest.raises(ValueError, match="must have a model with weights rounded to 8 bits"):
            sketchlayers.export_onnx(model, x, tmp_path / "s.onnx", quantized=True)
    with pytest.raises(RuntimeError, match="export_onnx: PyTorch cannot export this model"):
        sketchlayers.export_onnx(Unexportable(), x, tmp_path / "s.onnx")
    assert not list(tmp_path.iterdir())


def test_packages_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sketchlayers.onnx

    monkeypatch.setattr(sketchlayers.onnx, "_PACKAGES", ("no_such_package",))
    with pytest.raises(ImportError, match="export_onnx needs no_such_package"):
        sketchlayers.export_onnx(nn.Linear(4, 4), torch.randn(2, 4), tmp_path / "s.onnx")
