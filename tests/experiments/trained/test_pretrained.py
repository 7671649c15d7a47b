from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from common.runs import RunFolder
from experiment import NetworkSpec, build
from image_data import load
from networks import Block, CifarResNet, count_parameters
from trained import pretrained
from trained.pretrained import WeightsError
from training import Recipe, Trainer


def with_prefix(network: nn.Module) -> dict[str, Tensor]:
    return {f"module.{name}": value for name, value in network.state_dict().items()}


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (32, 464_154), (56, 853_018)])
def test_cifar_resnets_have_the_sizes_of_the_paper(depth: int, parameters: int) -> None:
    assert count_parameters(CifarResNet(depth)) == parameters


def test_a_shortcut_takes_every_other_pixel_and_adds_channels_of_zeros() -> None:
    block = Block(4, 8).eval()
    nn.init.zeros_(block.conv2.weight)
    images = torch.rand(2, 4, 6, 6)
    out = block(images)
    assert torch.equal(out[:, 2:6], images[:, :, ::2, ::2])
    assert not out[:, :2].any() and not out[:, 6:].any()


def test_a_cifar_resnet_of_an_impossible_depth_is_refused() -> None:
    with pytest.raises(ValueError, match=r"depth must be 6 n \+ 2, n at least 1 \(got 18\)"):
        CifarResNet(18)


def test_cifar_resnets_can_be_trained_and_have_no_width() -> None:
    built = build(NetworkSpec(network="resnet20"), num_classes=7)
    assert built.network(torch.zeros(1, 3, 16, 16)).shape == (1, 7)
    with pytest.raises(ValueError, match=r"resnet20 takes no width \(got width=0\.5\)"):
        build(NetworkSpec(network="resnet20", width=0.5), num_classes=7)


def test_a_checkpoint_of_a_parallel_network_is_loaded(tmp_path: Path) -> None:
    network = CifarResNet(20, num_classes=7).eval()
    torch.save({"state_dict": with_prefix(network), "best_prec1": 91.7}, tmp_path / "checkpoint.th")
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    images = torch.rand(2, 3, 32, 32)
    for name in ("checkpoint.th", "weights.safetensors"):
        trained = pretrained.load("resnet20", tmp_path / name)
        assert (trained.classes, trained.size) == (7, 32)
        assert torch.equal(trained.network(images), network(images))


def test_a_torchvision_resnet_with_a_stem_for_small_images(tmp_path: Path) -> None:
    network = models.resnet18(num_classes=5)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    torch.save(network.eval().state_dict(), tmp_path / "weights.pt")
    images = torch.rand(2, 3, 16, 16)
    trained = pretrained.load("resnet18", tmp_path / "weights.pt")
    assert (trained.classes, trained.size) == (5, 32)
    assert torch.equal(trained.network(images), network(images))


@pytest.mark.usefixtures("resnet8")
def test_a_checkpoint_of_a_training_run_says_what_images_it_expects(tmp_path: Path) -> None:
    data = load("digits", size=20, subset=40, test_subset=20)
    network = CifarResNet(8)
    Trainer(network, data, Recipe(epochs=1, batch_size=20), folder=RunFolder(tmp_path)).fit()
    trained = pretrained.load("resnet8", tmp_path / "checkpoint.pt")
    assert (trained.classes, trained.size) == (10, 20)
    assert trained.normalisation == data.normalisation
    pixels = data.test.in_memory(20).pixels
    images = torch.cat(list(trained.pictures(data.test, "digits")))
    torch.testing.assert_close(images, data.normalisation(pixels))
    torch.testing.assert_close(trained.network(images), network.eval()(images))


def test_googlenet_gets_the_input_that_it_was_trained_on(tmp_path: Path) -> None:
    whole = models.googlenet(num_classes=5, transform_input=True, init_weights=False).eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pt")  # auxiliary heads included
    trained = pretrained.load("googlenet", tmp_path / "weights.pt")
    pixels = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    usual = pretrained.Definition(nn.Identity, "", 0).normalisation
    expected = whole(usual(pixels))
    torch.testing.assert_close(trained.network(trained.normalisation(pixels)), expected)


def test_efficientnet_lite0_is_that_of_its_package_with_plain_1x1_convolutions() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    trained = pretrained.load("efficientnet_lite0")
    original = package.EfficientNet.from_name("efficientnet-lite0").eval()
    original.load_state_dict(trained.network.state_dict())
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(trained.network(images), original(images))
    assert (trained.classes, count_parameters(trained.network)) == (1000, 4_652_008)
    small = [m for m in trained.network.modules() if getattr(m, "kernel_size", None) == (1, 1)]
    assert len(small) == 32 and all(type(layer) is nn.Conv2d for layer in small)


def test_unusable_weights_are_told(tmp_path: Path) -> None:
    torch.save(CifarResNet(20).state_dict(), tmp_path / "20.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for name, file, expected in (
        ("resnet20", None, r"resnet20 needs a file \(got none\)"),
        ("resnet20", "nowhere.pt", "no such file"),
        ("resnet20", "list.pt", "must hold a state dict"),
        ("resnet20", "text.pt", "cannot read"),
        ("resnet32", "20.pt", "must be those of resnet32"),
        ("resnet18", "20.pt", r"have a tensor fc\.weight"),
    ):
        with pytest.raises(WeightsError, match=expected):
            pretrained.load(name, None if file is None else tmp_path / file)
    with pytest.raises(ValueError, match=r"network: .* \(got 'resnet19'\)"):
        pretrained.load("resnet19")
    with pytest.raises(ValueError, match="must end with a fully connected layer"):
        pretrained.load("squeezenet1_0", random=0)


def test_batch_norms_are_folded() -> None:
    network = CifarResNet(20).train()
    network(torch.rand(8, 3, 16, 16))  # statistics that are not 0 and 1
    trained = dataclasses.replace(pretrained.load("resnet20", random=0), network=network.eval())
    folded = pretrained.with_batch_norms_folded(trained).network
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert all(m.bias is not None for m in folded.modules() if isinstance(m, nn.Conv2d))
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(folded(images), network(images), rtol=1e-4, atol=1e-5)
