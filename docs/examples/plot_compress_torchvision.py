"""
Compressing a torchvision network
=================================

A ResNet from torchvision learns scikit-learn's handwritten digits, loses most of its parameters
without being trained again, and we look at what happened to every layer. Nothing is downloaded: the
network starts from random weights, and the digits come with scikit-learn.
"""

# %%
# The images
# ----------
#
# 1,797 digits of 8x8 pixels, enlarged to 32x32. Every fifth one is for testing, and some of the
# others, without their labels, for calibration.

import warnings

import matplotlib.pyplot as plt
import sklearn.datasets
import torch
import torch.nn.functional as F
import torchvision
from matplotlib.patches import Patch

import sketchlayers

EPOCHS = 4
CALIBRATION_IMAGES = 512
RATES = (0.7, 0.5, 0.3, 0.15)

torch.manual_seed(0)
digits = sklearn.datasets.load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
images = F.interpolate(images, size=32, mode="bilinear").expand(-1, 3, -1, -1).contiguous()
labels = torch.tensor(digits.target)
testing = torch.arange(len(images)) % 5 == 0
train_images, train_labels = images[~testing], labels[~testing]
test_images, test_labels = images[testing], labels[testing]
print(f"{len(train_images):,} images for training, {len(test_images)} for testing")

# %%
# The network
# -----------
#
# Your own network takes the place of this one. It is a ResNet-18 without its last two stages, which
# are meant for larger images, and it is trained here in less than a minute.

model = torchvision.models.resnet18(num_classes=10)
model.layer3 = model.layer4 = torch.nn.Identity()
model.fc = torch.nn.Linear(128, 10)
steps = EPOCHS * (len(train_images) // 64)
optimizer = torch.optim.Adam(model.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
for _ in range(EPOCHS):
    order = torch.randperm(len(train_images))
    for batch in order.split(64)[: len(train_images) // 64]:
        optimizer.zero_grad()
        F.cross_entropy(model(train_images[batch]), train_labels[batch]).backward()
        optimizer.step()
        schedule.step()
model.eval()


@torch.no_grad()
def accuracy(network: torch.nn.Module) -> float:
    """Share of the test images that are recognised."""
    return float((network(test_images).argmax(1) == test_labels).float().mean())


dense_accuracy = accuracy(model)
print(f"accuracy of the dense network: {100 * dense_accuracy:.1f} %")

# %%
# A smaller network
# -----------------
#
# Calibration images go in as batches, without labels. The report has a line for every layer: its
# new method, its sizes, and the relative change of its output on these images. Layers that stay
# dense have a reason. Tucker-2 is quick; without ``"tucker2"`` each layer takes the best of several
# methods, which is more accurate on small networks, and slower.

batches = train_images[:CALIBRATION_IMAGES].split(64)
small, report = sketchlayers.compress(model, "tucker2", rate=0.3, calibration=batches)
print(report)

# %%
print(f"accuracy of the smaller network: {100 * accuracy(small):.1f} %")

# %%
# Where the parameters were, and where the error is
# -------------------------------------------------
#
# ``report.plot(path)`` draws this figure into a file. Its numbers are attributes of the report's
# layers, so any other figure takes a few lines as well.

rows = [row for row in report.layers if row.parameters_before]
places = range(len(rows))
colours = ["C0" if row.method else "0.6" for row in rows]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 5), sharey=True, layout="constrained")
left.barh(places, [row.parameters_before for row in rows], color="0.9")
left.barh(places, [row.parameters_after for row in rows], height=0.5, color=colours)
left.set_yticks(places, [row.name for row in rows], fontsize=8)
left.invert_yaxis()
left.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k")
left.set_xlabel("parameters")
right.barh(places, [row.relative_error or 0 for row in rows], height=0.5, color=colours)
right.set_xlabel("relative error of the layer's output")
kinds = {"before": "0.9", "Tucker-2": "C0", "stays dense": "0.6"}
left.legend([Patch(color=colour) for colour in kinds.values()], kinds, loc="upper right")
plt.show()

# %%
# How far can one go?
# -------------------
#
# One calibration is used for all rates. Without the images themselves the layers are fitted
# independently and not in sequence, which is less accurate, and quick. The second line has no data:
# least squares on the weights alone.

warnings.simplefilter("ignore")  # which say that the weights alone are not enough
calibration = sketchlayers.calibrate(model, batches)
results = {"with the moments of images": [], "the weights alone": []}
for rate in RATES:
    for name, data in zip(results, (calibration, None), strict=True):
        network, found = sketchlayers.compress(model, "tucker2", rate=rate, calibration=data)
        results[name].append((found.rate, accuracy(network)))

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
axes.axhline(100 * dense_accuracy, color="0.6", linestyle=":", label="dense")
for name, points in results.items():
    rates, accuracies = zip(*points, strict=True)
    axes.plot(rates, [100 * value for value in accuracies], marker="o", label=name)
axes.set_xlabel("parameters after / before")
axes.set_ylabel("accuracy (%)")
axes.legend(frameon=False)
plt.show()

# %%
# Back to dense layers
# --------------------
#
# ``small`` is an ordinary module with plain convolutions. ``fold`` gives dense layers with the same
# outputs, for programs that take nothing else.

plain = sketchlayers.fold(small)
with torch.no_grad():
    difference = (plain(test_images[:8]) - small(test_images[:8])).abs().max()
print(
    f"{report.parameters_before:,} parameters became {report.parameters_after:,}, "
    f"{report.bytes_before / 2**20:.1f} MiB became {report.bytes_after / 2**20:.1f} MiB"
)
print(f"the folded network's outputs differ by {float(difference):.1e} at most")
