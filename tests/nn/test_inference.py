"""The dense weight kept between inference calls, and the best form of each layer, measured."""

import copy
import gc
import io
import json
import pickle
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.export import export
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

import sketchlayers
from sketchlayers import SKConv2d, SKLinear, inference, ops, optimize_for_inference
from sketchlayers.nn._cache import WeightCache
from sketchlayers.nn.sketch import _layer

IMAGE = (2, 8, 9, 9)
CONVOLUTIONS = {
    "spatial": {"rank": 2, "padding": 1},
    "strided": {"rank": 2, "stride": 2, "dilation": 2, "bias": False},
    "grouped": {"rank": 1, "groups": 2, "padding": (1, 0), "mixing": "channel"},
    "same": {"rank": 2, "padding": "same", "padding_mode": "reflect", "num_sketches": 2},
    "frame": {"rank": 2, "frame": "signs"},
}


def convolution(kind="spatial", **arguments):
    layer = SKConv2d(8, 12, 3, **{**CONVOLUTIONS[kind], **arguments}, seed=3).eval()
    layer.path = "folded"
    return layer


def linear(**arguments):
    layer = SKLinear(8, 12, **{"rank": 2, "seed": 3, **arguments}).eval()
    layer.path = "folded"
    return layer


def uncached(layer, value):
    """What the operator says, without any cache, by a copy of the layer."""
    other = copy.deepcopy(layer).train()
    with torch.no_grad():
        return other(value)


@pytest.fixture
def formed(monkeypatch):
    """Counts how often a dense weight is formed in Python: a call that hits forms none."""
    calls = []
    original = ops.sk_weight

    def counted(*args, **kwargs):
        calls.append(threading.get_ident())
        return original(*args, **kwargs)

    monkeypatch.setattr(ops, "sk_weight", counted)
    return calls


def assert_formed_once(layer, value, formed):
    """Two calls form one weight, whatever was formed before, and both are right."""
    expected = uncached(layer, value)
    before = len(formed)
    with torch.no_grad():
        outputs = [layer(value), layer(value)]
    assert len(formed) == before + 1
    for output in outputs:
        torch.testing.assert_close(output, expected)


def assert_kept(layer, value, formed):
    """A call forms none, and is right."""
    before = len(formed)
    expected = uncached(layer, value)
    with torch.no_grad():
        torch.testing.assert_close(layer(value), expected)
    assert len(formed) == before


# ------------------------------------------------------------------------------ values and choices


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_kept_convolution_is_the_folded_one(kind, dtype, memory_format, formed):
    layer = convolution(kind).to(dtype=dtype, memory_format=memory_format)
    for image in (torch.randn(IMAGE, dtype=dtype), torch.randn(IMAGE[1:], dtype=dtype)):
        expected = uncached(layer, image)
        with torch.no_grad():
            outputs = [layer(image), layer(image)]
        for output in outputs:
            torch.testing.assert_close(output, expected)
            assert output.stride() == expected.stride()
    assert len(formed) == 1


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8), (0, 8)])
def test_a_kept_linear_layer_is_the_folded_one(shape, formed):
    assert_formed_once(linear(frame="signs"), torch.randn(shape), formed)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_both_modes_without_gradients_share_the_weight(mode, formed):
    layer, image = convolution(), torch.randn(IMAGE)
    with mode():
        layer(image)
    with torch.inference_mode():
        layer(image)
    assert_kept(layer, image, formed)
    assert not layer._kept.weight.is_inference()
    frozen = image.clone().requires_grad_()
    layer.requires_grad_(False)  # nothing to train here: the weight serves the input's gradient too
    (gradient,) = torch.autograd.grad(layer(frozen).sum(), frozen)
    assert len(formed) == 1
    (expected,) = torch.autograd.grad(layer.train()(frozen).sum(), frozen)
    torch.testing.assert_close(gradient, expected)


def test_the_planner_decides_once_for_each_shape(formed, monkeypatch):
    asked = []
    original = _layer.SketchLayer._planned
    monkeypatch.setattr(
        _layer.SketchLayer,
        "_planned",
        lambda layer, *call, **ready: asked.append(call) or original(layer, *call, **ready),
    )
    spatial = SKConv2d(32, 32, 3, padding=1, rate=0.9).eval()
    fully = SKLinear(2048, 2048, rate=0.1).eval()
    with torch.no_grad():
        for _ in range(3):
            spatial(torch.randn(8, 32, 28, 28))
            fully(torch.randn(1, 2048))
    assert len(formed) == 1  # the fully connected layer needs no dense weight
    assert len(asked) == 2
    assert spatial._kept is not None and fully._kept is None


def test_a_plan_tells_of_the_kept_weight():
    layer = SKConv2d(32, 32, 3, padding=1, rate=0.9)
    shape = (8, 32, 28, 28)
    trained = layer.plan(shape)
    assert trained.folded_multiply_adds > trained.dense_multiply_adds
    assert layer.eval().plan(shape) == trained
    with torch.no_grad():
        kept = layer.plan(shape)
        assert layer.multiply_adds(shape) == kept.dense_multiply_adds
    assert kept.path == "folded" and "kept" in kept.reason
    assert kept.folded_multiply_adds == kept.dense_multiply_adds == trained.dense_multiply_adds


def test_decisions_of_ever_new_shapes_do_not_pile_up():
    layer = linear()
    with torch.no_grad():
        for batch in range(600):
            layer(torch.zeros(batch, 8))
    assert len(layer._decisions) <= 256


@pytest.mark.parametrize(
    "bad",
    [torch.randn(2, 7, 9, 9), torch.randn(2, 8, 9, 9).double(), torch.randn(2, 8, 9, 9).int(),
     torch.randn(9, 9), torch.randn(2, 8, 1, 1), torch.randn(2, 8, 9, 9, device="meta")],
)  # fmt: skip
def test_bad_input_meets_the_operators_errors(bad):
    layer = convolution("strided")
    with torch.no_grad():
        layer(torch.randn(IMAGE))
        with pytest.raises(Exception) as expected:
            copy.deepcopy(layer).train()(bad)
        with pytest.raises(expected.type, match="sk_conv2d"):
            layer(bad)
        layer(torch.randn(IMAGE))


# ------------------------------------------------------------------------------------ invalidation


def other_state(layer):
    return {name: value.clone() for name, value in type_of(layer).state_dict().items()}


def type_of(layer):
    """Another layer of the same shape, with another seed."""
    other = copy.deepcopy(layer)
    other.seed = 77
    other.reset_parameters()
    return other


def step(layer):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(IMAGE)).square().sum().backward()
    optimizer.step()


def written(layer):
    with torch.no_grad():
        layer.s2.mul_(1.5)


def written_in_inference_mode(layer):
    with torch.inference_mode():
        layer.s1.mul_(1.5)


def written_through_a_detached_alias(layer):
    layer.s1.detach()[0].fill_(3.0)


def another_parameter(layer):
    layer.s1 = nn.Parameter(torch.randn_like(layer.s1))


def swapped_data(layer):
    layer.s1.data = torch.randn_like(layer.s1)


def swapped_data_and_back(layer):
    # The first memory is free now, and the allocator likes to give it out again.
    layer.s1.data = layer.s1.data.clone() + 1
    layer.s1.data = layer.s1.data.clone() + 1


def another_seed(layer):
    layer.seed = 12345


def another_scale(layer):
    layer.scale *= 2


def converted_and_back(layer):
    layer.half().float()


def swapped_tensors(layer):
    torch.utils.swap_tensors(layer.s1, nn.Parameter(torch.randn_like(layer.s1)))


def written_by_a_compiled_graph(layer):
    def write(tensor):
        with torch.no_grad():
            tensor.mul_(1.5)

    torch.compile(write, backend="aot_eager", fullgraph=True)(layer.s1)
    torch._dynamo.reset()


CHANGES = [
    step,
    written,
    written_in_inference_mode,
    written_through_a_detached_alias,
    another_parameter,
    swapped_data,
    swapped_data_and_back,
    another_seed,
    another_scale,
    converted_and_back,
    swapped_tensors,
    written_by_a_compiled_graph,
    lambda layer: layer.load_state_dict(other_state(layer)),
    lambda layer: layer.load_state_dict(other_state(layer), assign=True),
    lambda layer: layer.reset_parameters(),
    lambda layer: layer.to(memory_format=torch.channels_last),
    lambda layer: layer.train().eval(),
    lambda layer: layer.clear_cache(),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["spatial", "frame"])
def test_what_changes_the_weight_is_noticed(change, kind, formed):
    layer, image = convolution(kind), torch.randn(IMAGE)
    assert_formed_once(layer, image, formed)
    change(layer)
    assert_formed_once(layer, image, formed)


def test_the_old_weight_is_freed_before_the_new_one_is_formed(monkeypatch):
    layer, value = linear(), torch.randn(3, 8)
    with torch.no_grad():
        layer(value)
        old = weakref.ref(layer._kept.weight)
        layer.s1.mul_(2)
        original = layer.dense_weight
        monkeypatch.setattr(layer, "dense_weight", lambda: (gc.collect(), old(), original())[1:][1])
        layer(value)
    assert old() is None


def test_double_after_float(formed):
    layer, image = convolution(), torch.randn(IMAGE)
    assert_formed_once(layer, image, formed)
    layer.double()
    assert_formed_once(layer, image.double(), formed)


def test_functional_call_uses_its_own_parameters(formed):
    layer, value = linear(), torch.randn(3, 8)
    assert_formed_once(layer, value, formed)
    others = [type_of(layer), type_of(layer)]
    with torch.no_grad():
        for other in others:
            swapped = {**dict(other.named_parameters()), **dict(other.named_buffers())}
            torch.testing.assert_close(functional_call(layer, swapped, value), other.train()(value))
        before = len(formed)
        for _ in range(5):  # plain tensors, each likely where the last one was
            swapped = {"s1": torch.randn_like(layer.s1), "s2": torch.randn_like(layer.s2)}
            reference = copy.deepcopy(layer)
            reference.load_state_dict(swapped, strict=False)
            torch.testing.assert_close(
                functional_call(layer, swapped, value), reference.train()(value)
            )
        assert len(formed) == before
    assert_formed_once(layer, value, formed)


class Doubled(nn.Module):
    def forward(self, value):
        return 2 * value


def test_parametrised_and_pruned_factors_are_never_kept(formed):
    layer, value = linear(), torch.randn(3, 8)
    assert_formed_once(layer, value, formed)
    expected = 2 * (uncached(layer, value) - layer.bias) + layer.bias
    parametrize.register_parametrization(layer, "s1", Doubled())
    parametrize.register_parametrization(layer, "s2", Doubled())
    before = len(formed)
    with torch.no_grad():
        torch.testing.assert_close(layer(value), expected)
        layer.parametrizations.s1.original.data.zero_()
        layer.parametrizations.s2.original.data.zero_()
        torch.testing.assert_close(layer(value), layer.bias.expand(3, 12))
    pruned = linear()
    with torch.no_grad():
        pruned(value)
        prune.random_unstructured(pruned, "s1", 0.5)
        expected = uncached(prune.remove(copy.deepcopy(pruned), "s1"), value)
        torch.testing.assert_close(pruned(value), expected)
    assert len(formed) == before + 1  # before the pruning


LAYERS = {
    "SKConv2d": lambda: sketchlayers.SKConv2d(16, 16, 3, rate=0.5),
    "SKLinear": lambda: sketchlayers.SKLinear(64, 64, rate=0.5),
    "HashedConv2d": lambda: sketchlayers.HashedConv2d(16, 16, 3, rate=0.5),
    "HashedLinear": lambda: sketchlayers.HashedLinear(64, 64, rate=0.5),
    "FreshConv2d": lambda: sketchlayers.FreshConv2d(16, 16, 3, rate=0.5),
    "DictionaryConv2d": lambda: sketchlayers.DictionaryConv2d(16, 16, 3, rate=0.5),
    "DictionaryLinear": lambda: sketchlayers.DictionaryLinear(64, 64, rate=0.5),
}


def averaged_data(parameter):  # as ema-pytorch and torch_ema write
    parameter.data.lerp_(torch.randn_like(parameter), 0.1)


def through_numpy(parameter):
    parameter.detach().numpy()[...] *= 3


def through_dlpack(parameter):
    torch.from_dlpack(parameter.detach()).mul_(3)


@pytest.mark.parametrize("write", [averaged_data, through_numpy, through_dlpack])
@pytest.mark.parametrize("kind", LAYERS)
def test_writes_past_the_version_counter_are_noticed(kind, write):
    layer = LAYERS[kind]().eval()
    value = torch.randn(2, 16, 8, 8) if "Conv" in kind else torch.randn(2, 64)
    if kind.startswith("SK"):
        layer.path = "folded"
    with torch.no_grad():
        before = layer(value)
        assert layer._kept is not None
        for parameter in layer.parameters():
            write(parameter)
        after = layer(value)
        assert not torch.allclose(after, before)
        torch.testing.assert_close(after, sketchlayers.fold(layer)(value))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_write_into_a_single_entry_past_the_version_counter_needs_clear_cache(kind):
    layer = LAYERS[kind]().eval()
    if kind.startswith("SK"):
        layer.path = "folded"
    model = nn.Sequential(layer)
    value = torch.randn(2, 16, 8, 8) if "Conv" in kind else torch.randn(2, 64)
    parameter = getattr(layer, layer._trained[0])
    with torch.no_grad():
        before = model(value)
        parameter.data.view(-1)[3] += 100  # between the places that are looked at
        assert torch.equal(model(value), before)
        sketchlayers.clear_cache(model)
        torch.testing.assert_close(model(value), sketchlayers.fold(model)(value))


def test_recording_gradients_and_training_let_the_weight_go():
    layer, image = convolution(), torch.randn(IMAGE)
    for let_go in (lambda: layer(image), layer.train):
        with torch.no_grad():
            layer.eval()(image)
        assert layer._kept is not None
        let_go()
        assert layer._kept is None
    with torch.no_grad():
        layer(image)
    assert layer._kept is None
    layer.eval()
    with torch.no_grad():
        layer(image)
    layer.path = "factored"
    assert layer._kept is None


# ------------------------------------------------------------------------------------- never cases


def assert_never(layer, call, formed):
    """The call forms and uses no kept weight."""
    layer.clear_cache()
    before = len(formed)
    with torch.no_grad():
        call()
    assert layer._kept is None and len(formed) == before


def test_graphs_hold_no_kept_weight(monkeypatch):
    formed = []
    original = WeightCache._form
    monkeypatch.setattr(WeightCache, "_form", lambda *args: formed.append(args) or original(*args))
    layer, value = linear(), torch.randn(3, 8)
    expected = uncached(layer, value)

    def compiled():
        return torch.compile(layer, backend="aot_eager", fullgraph=True)(value)

    def exported():
        return export(layer, (value,), strict=False).module()(value)

    def strictly_exported():
        return export(layer, (value,), strict=True).module()(value)

    def traced():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.trace(layer, value, check_trace=False)(value)

    def traced_by_fx():
        return make_fx(layer)(value)(value)

    def traced_before_dispatch():
        return make_fx(layer, pre_dispatch=True)(value)(value)

    for run in (
        compiled, exported, strictly_exported, traced, traced_by_fx, traced_before_dispatch
    ):  # fmt: skip
        for kept_before in (False, True):
            layer.clear_cache()
            with torch.no_grad():
                if kept_before:
                    layer(value)
                before = len(formed)
                torch.testing.assert_close(run(), expected)
            assert len(formed) == before
            assert (layer._kept is not None) == kept_before
    torch._dynamo.reset()


def test_graphs_follow_the_parameters_although_a_weight_was_kept():
    layer, value = linear(), torch.randn(3, 8)
    with torch.no_grad():
        layer(value)
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        compiled(value)
        layer.s1.mul_(3)
        torch.testing.assert_close(compiled(value), uncached(layer, value))
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:.*torch.jit.script")
def test_transforms_and_modes_never_use_it(formed):
    layer, value = linear(), torch.randn(3, 8)

    def forward_mode():
        with forward_ad.dual_level():
            layer(forward_ad.make_dual(value, torch.ones_like(value)))

    def counted():
        with FlopCounterMode(display=False):
            layer(value)

    def fake():
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            layer(mode.from_tensor(value))

    for call in (
        lambda: torch.func.vmap(layer)(value),
        lambda: torch.func.jvp(layer, (value,), (value,)),
        lambda: torch.func.functionalize(layer)(value),
        lambda: layer(nn.Parameter(value)),  # a subclass of Tensor
        forward_mode,
        counted,
        fake,
        lambda: torch.func.vmap(
            lambda s1: functional_call(layer, {"s1": s1}, value), randomness="error"
        )(torch.randn(4, *layer.s1.shape)),
    ):
        assert_never(layer, call, formed)


def test_a_replica_on_another_device_uses_its_own_tensors(formed):
    """As ``DataParallel`` makes them: shallow copies with plain tensors as parameters."""
    layer, value = linear(), torch.randn(3, 8)
    assert_formed_once(layer, value, formed)
    other = type_of(layer)
    replica = layer._replicate_for_data_parallel()
    for name in ("s1", "s2", "bias"):
        setattr(replica, name, getattr(other, name).detach().clone())
    replica._buffers["seed_bits"] = other.seed_bits.clone()
    with torch.no_grad():
        torch.testing.assert_close(replica(value), uncached(other, value))
    assert_kept(layer, value, formed)


def test_symbolic_traces_hold_the_operator(formed):
    model, value = nn.Sequential(linear(), nn.ReLU()), torch.randn(3, 8)
    with torch.no_grad():
        model(value)
        before = len(formed)
        traced = torch.fx.symbolic_trace(model)
        torch.testing.assert_close(traced(value), model(value))
    assert len(formed) == before


def test_a_default_device_is_no_mode_to_mind(formed):
    layer, value = linear(), torch.randn(3, 8)
    with torch.device("cpu"):
        assert_formed_once(layer, value, formed)


def test_meta_layers_and_inputs(formed):
    layer = linear(device="meta")
    assert_never(layer, lambda: layer(torch.empty(3, 8, device="meta")), formed)


def test_parameters_made_in_inference_mode_are_never_kept(formed):
    with torch.inference_mode():
        layer = linear()
        value = torch.randn(3, 8)
        first = layer(value)
        layer.s1.mul_(2)
        assert layer._kept is None
        assert not torch.allclose(layer(value), first)
        torch.testing.assert_close(layer(value), layer.fold()(value))


def test_memory_that_other_processes_may_write_is_never_followed(formed):
    layer, value = linear(), torch.randn(3, 8)
    with torch.no_grad():
        layer(value)
    layer.share_memory()
    layer.path = "auto"
    with torch.no_grad():
        assert "kept" not in layer.plan((3, 8)).reason
    layer.path = "folded"
    assert_never(layer, lambda: layer(value), formed)
    with torch.no_grad():
        torch.testing.assert_close(layer(value), uncached(layer, value))


@pytest.mark.gpu
def test_no_weight_is_kept_on_a_gpu(formed):
    layer = convolution("frame").cuda()
    with torch.no_grad():
        layer(torch.randn(IMAGE, device="cuda"))
    assert layer._kept is None


# --------------------------------------------------------------------------------- autocast, copies


@pytest.mark.parametrize("make", [convolution, linear])
def test_autocast_keeps_a_weight_of_its_type(make, formed):
    layer = make()
    value = torch.randn(IMAGE) if make is convolution else torch.randn(3, 8)
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = copy.deepcopy(layer).train()(value)
            outputs = [layer(value), layer(value), layer(value.bfloat16())]
            assert layer._kept.weight.dtype == torch.bfloat16
        assert len(formed) == 1
        for output in outputs:
            assert output.dtype == torch.bfloat16
            torch.testing.assert_close(output, expected)
        torch.testing.assert_close(layer(value), uncached(layer, value))  # full precision again
        assert layer._kept.weight.dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.float16):
            assert layer(value).dtype == torch.float16
    layer.double()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(value.double()).dtype == torch.float64


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, copy.copy, lambda layer: pickle.loads(pickle.dumps(layer))],
)
def test_copies_have_no_weight_of_their_own(duplicate, formed):
    layer, image = convolution(), torch.randn(IMAGE)
    state, size = set(layer.state_dict()), len(pickle.dumps(layer))
    assert_formed_once(layer, image, formed)
    assert set(layer.state_dict()) == state
    assert len(pickle.dumps(layer)) == size
    assert not any("kept" in name for name, _ in layer.named_buffers())
    other = duplicate(layer)
    assert other._kept is None and layer._kept is not None
    assert_formed_once(other, image, formed)
    assert_kept(layer, image, formed)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.load(file, weights_only=False)._kept is None


def test_folding_a_model_carries_no_cache_over():
    model = nn.Sequential(convolution(), nn.ReLU())
    with torch.no_grad():
        model(torch.randn(IMAGE))
    folded = sketchlayers.fold(model)
    assert not vars(folded[0]).keys() & {"_kept", "_decisions", "_captured"}


def test_threads_share_one_layer(formed):
    layer = SKConv2d(16, 16, 3, rank=2).eval()
    layer.path = "folded"
    image = torch.randn(1, 16, 8, 8)
    expected = uncached(layer, image)
    start = threading.Barrier(8)

    def run(_):
        start.wait()
        with torch.no_grad():
            return [layer(image) for _ in range(50)]

    with ThreadPoolExecutor(8) as pool:
        for outputs in pool.map(run, range(8)):
            for output in outputs:
                torch.testing.assert_close(output, expected)
    assert 1 <= len(formed) <= 8


def test_a_change_while_forming_is_not_kept(monkeypatch):
    layer, value = linear(), torch.randn(3, 8)
    original = layer.dense_weight

    def slow():
        weight = original()
        layer.s1.detach().mul_(2)  # another thread, meanwhile
        return weight

    with torch.no_grad():
        monkeypatch.setattr(layer, "dense_weight", slow)
        layer(value)
        assert layer._kept is None
        monkeypatch.undo()
        torch.testing.assert_close(layer(value), layer.fold()(value))


# -------------------------------------------------------------------------- optimize_for_inference


class Network(nn.Module):
    """A convolution called twice, one registered twice, one never called, and two linear layers."""

    def __init__(self):
        super().__init__()
        self.twice = SKConv2d(8, 8, 3, padding=1, rank=2)
        self.shared = SKConv2d(8, 8, 3, rank=2, mixing="channel", frame="signs")
        self.same = self.shared
        self.never = SKLinear(8, 8, rank=1)
        self.fast = SKLinear(8, 64, rank=1, frame="signs")
        self.head = SKLinear(64, 10, rank=2)
        self.norm = nn.BatchNorm2d(8)
        self.seen = 0

    def forward(self, image):
        self.seen += 1
        image = self.twice(self.norm(self.twice(image))).relu()
        image = self.same(self.shared(image))
        return self.head(self.fast(image.mean((2, 3))).relu())


@pytest.fixture
def timed(monkeypatch):
    """Times by form instead of measured ones; to be filled by the test."""
    times = {"factored": 1.0, "folded": 2.0, "dense": 2.0, "dense channels_last": 3.0}
    monkeypatch.setattr(
        inference, "_measure", lambda forms, *_: {form: times[form] for form in forms}
    )
    return times


def run(model, image):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(image)


def rows(report):
    return {row.name: row for row in report.layers}


def hooks(model):
    return [
        (len(part._forward_hooks), len(part._forward_pre_hooks), part.training, vars(part).keys())
        for part in model.modules()
    ]


@pytest.mark.parametrize("allow_dense", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dense_is", [0.5, 2.0])
def test_the_fastest_form_is_frozen(allow_dense, inplace, dense_is, timed):
    timed.update({"dense": dense_is, "folded": dense_is})
    model, image = Network(), torch.randn(2, 8, 9, 9)
    model.head.eval()
    expected, before = run(model, image), copy.deepcopy(model)
    state = hooks(model)
    fast, report = optimize_for_inference(model, image, inplace=inplace, allow_dense=allow_dense)
    assert (fast is model) == inplace
    torch.testing.assert_close(run(fast, image), expected)
    assert [part.training for part in fast.modules()] == [
        part.training for part in before.modules()
    ]
    assert fast.same is fast.shared
    if not inplace:
        assert hooks(model) == state and model.seen == 0
        assert {part.path for part in (model.twice, model.fast, model.head)} == {"auto"}
    forced = "dense" if allow_dense else "folded"  # a frame needs the dense weight
    free = forced if dense_is < 1 else "factored"
    forms = {name: row.form for name, row in rows(report).items()}
    assert forms == {
        "twice": free, "shared": forced, "never": None, "fast": forced, "head": free
    }  # fmt: skip
    for name, form in forms.items():
        layer = fast.get_submodule(name)
        if form == "dense":
            assert type(layer) in (nn.Conv2d, nn.Linear)
        else:
            assert layer.path == (form or "auto")
    calls = {name: row.calls for name, row in rows(report).items()}
    assert calls == {"twice": 2, "shared": 2, "never": 0, "fast": 1, "head": 1}
    assert rows(report)["twice"].seconds[free] == 2 * min(dense_is, 1.0)
    assert rows(report)["shared"].seconds[forced] == 2 * dense_is  # of two shapes
    assert fast.never.path == "auto" and isinstance(fast.never, SKLinear)


def test_of_equal_times_the_smaller_form_wins(timed):
    layer, value = SKLinear(64, 64, rank=2), torch.randn(3, 64)
    model = nn.Sequential(layer)
    timed["dense"] = 0.98
    assert optimize_for_inference(model, value).report.layers[0].form == "factored"
    timed["dense"] = 0.96
    assert optimize_for_inference(model, value).report.layers[0].form == "dense"


def test_channels_last_is_measured_where_the_input_is(timed):
    image = torch.randn(2, 8, 9, 9)
    model = nn.Sequential(SKConv2d(8, 8, 3, rank=2))
    assert (
        "dense channels_last" not in optimize_for_inference(model, image).report.layers[0].seconds
    )
    timed["dense channels_last"] = 0.1
    image = image.to(memory_format=torch.channels_last)
    fast, report = optimize_for_inference(model, image)
    assert report.layers[0].form == "dense channels_last"
    assert fast[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[0].s1.is_contiguous()
    torch.testing.assert_close(run(fast, image), run(model, image))


def test_memory_is_dropped_and_told(timed):
    timed["dense"] = 0.1
    model, value = nn.Sequential(SKLinear(64, 64, rank=2)), torch.randn(3, 64)
    old = weakref.ref(model[0].s1), weakref.ref(model[0].u2), weakref.ref(model[0])
    _, report = optimize_for_inference(model, value, inplace=True)
    gc.collect()
    assert [reference() for reference in old] == [None] * 3
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert report.bytes_after == held == 4 * (64 * 64 + 64)
    signs = 2 * 2 * 16  # two rows of 64 signs, padded to 128 bits, twice
    assert report.bytes_before == 4 * (2 * 2 * 64 + 64) + signs + 4 * 96
    kept = nn.Sequential(SKLinear(64, 64, rank=2))
    timed["folded"] = 0.1
    _, report = optimize_for_inference(kept, value, inplace=True, allow_dense=False)
    assert report.bytes_after - report.bytes_before == 4 * 64 * 64


def test_the_report_reads_well(timed):
    _, report = optimize_for_inference(Network(), (torch.randn(2, 8, 9, 9),))
    text = str(report)
    assert repr(report) == text
    header, *lines = text.splitlines()[1:]
    assert header.split()[:5] == ["layer", "form", "calls", "factored", "dense"]
    assert any(line.split()[:5] == ["twice", "factored", "2", "2000", "4000"] for line in lines)
    assert any(line.startswith("never") and line.endswith("(1)") for line in lines)
    assert "4 of 5 sketched layers have a form (2 factored, 2 dense)" in text
    assert text.endswith("left alone:\n(1) not called on the example inputs")
    data = json.loads(report.to_json())
    assert data["seconds"] == report.seconds == 2 + 4 + 2 + 1
    assert data["layers"][0]["seconds"] == {"factored": 2.0, "dense": 4.0}
    assert max(map(len, text.splitlines())) <= 120


class OwnForward(SKLinear):
    def forward(self, input):
        return 2 * super().forward(input)


def test_unusual_layers_are_left_alone(timed):
    computed, replaced = SKLinear(8, 8, rank=1), SKLinear(8, 8, rank=1)
    parametrize.register_parametrization(computed, "s1", Doubled())
    original = replaced.forward
    replaced.forward = lambda input: original(input)
    model = nn.Sequential(computed, OwnForward(8, 8, rank=1), replaced, nn.Linear(8, 8))
    value = torch.randn(3, 8)
    expected = run(nn.Sequential(*model), value)
    fast, report = optimize_for_inference(model, value, inplace=True)
    assert [row.form for row in report.layers] == [None] * 3
    assert "its s1 is computed" in report.layers[0].reason
    assert "forward of its own" in report.layers[1].reason
    assert "forward of its own" in report.layers[2].reason
    torch.testing.assert_close(run(fast, value), expected)
    with torch.device("meta"):
        meta, empty = nn.Sequential(SKLinear(8, 8, rank=1)), torch.empty(3, 8)
    assert "meta" in optimize_for_inference(meta, empty).report.layers[0].reason


def test_models_without_sketched_layers_and_models_that_are_one(timed):
    _, report = optimize_for_inference(nn.Linear(4, 4), torch.randn(2, 4))
    assert report.layers == () and "0 of 0" in str(report)
    timed["dense"] = 0.1
    layer, value = SKLinear(8, 8, rank=1), torch.randn(2, 8)
    fast, _ = optimize_for_inference(layer, {"input": value})
    assert type(fast) is nn.Linear
    torch.testing.assert_close(fast(value), layer(value))
    with pytest.raises(ValueError, match=r"inplace must be False where the model itself"):
        optimize_for_inference(layer, value, inplace=True)


@pytest.mark.parametrize("inplace", [False, True])
def test_errors_leave_the_model_as_it_was(inplace, monkeypatch):
    model, image, bad = Network(), torch.randn(2, 8, 9, 9), torch.randn(2, 7, 9, 9)
    state, generator = hooks(model), torch.get_rng_state()
    children = dict(model.named_modules())

    def broken(*args, **kwargs):
        raise RuntimeError("no clock")

    with pytest.raises(ValueError, match=r"the model must run on example_inputs.*sk_conv2d"):
        optimize_for_inference(model, bad, inplace=inplace)
    with monkeypatch.context() as patch:
        patch.setattr(inference, "paired_times", broken)
        with pytest.raises(RuntimeError, match="no clock"):
            optimize_for_inference(model, image, inplace=inplace)
    model.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"optimize_for_inference: .*allow copy.deepcopy"):
        optimize_for_inference(model, image, inplace=inplace)
    del model.lock
    assert hooks(model) == state
    assert dict(model.named_modules()) == children
    assert {part.path for part in (model.twice, model.shared, model.head)} == {"auto"}
    assert torch.equal(torch.get_rng_state(), generator)
    with pytest.raises(TypeError, match=r"model must be an nn.Module \(got int\)"):
        optimize_for_inference(3, image)
    with pytest.raises(ValueError, match="seconds must be above 0"):
        optimize_for_inference(model, image, seconds=0)


def test_hooks_carry_over_and_are_not_timed(timed):
    timed["dense"] = 0.1
    model, value, seen = nn.Sequential(SKLinear(8, 8, rank=1)), torch.randn(2, 8), []
    handle = model[0].register_forward_hook(lambda *_: seen.append(1))
    optimize_for_inference(model, value, inplace=True)
    assert len(seen) == 1  # the example
    model(value)
    assert len(seen) == 2
    handle.remove()
    model(value)
    assert len(seen) == 2


def test_a_measured_choice_agrees_with_the_clock():
    """Factors of rank 1 against a large dense weight, and the other way round."""
    model = nn.Sequential(SKLinear(2048, 1024, rank=1), SKLinear(1024, 16, rank=16))
    value = torch.randn(1, 2048)
    generator = torch.get_rng_state()
    fast, report = optimize_for_inference(model, value, seconds=0.02)
    assert torch.equal(torch.get_rng_state(), generator)
    for row in report.layers:  # which one it is depends on what else the processor does
        assert row.seconds.keys() >= {"factored", "dense"}
        assert row.seconds[row.form] == min(row.seconds.values())
    torch.testing.assert_close(run(fast, value), run(model, value), rtol=1e-4, atol=1e-4)
    _, report = optimize_for_inference(model, value, seconds=0.02, allow_dense=False)
    assert {row.form for row in report.layers} <= {"factored", "folded"}
