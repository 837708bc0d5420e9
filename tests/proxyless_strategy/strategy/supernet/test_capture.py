"""Captured candidates against eager ones, bit for bit, by a recorder that fills with NaN what must not be read."""

import copy
import logging
from contextlib import nullcontext

import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn

from hardware.errors import UnsupportedSpaceError
from proxyless_strategy.seeds import seed_everything
from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from proxyless_strategy.strategy.rules import GradientUpdate, ReinforceUpdate, alpha_optimizer, apply_outcome
from proxyless_strategy.strategy.supernet.capture import MOST_CHANGES, MOST_SHAPES, Captures
from proxyless_strategy.strategy.supernet.recorders import CudaRecorder, PlainRecorder
from proxyless_strategy.strategy.supernet.step_mode import ArchitectureStepMode
from proxyless_strategy.strategy.supernet.stillness import Stillness
from tests.proxyless_strategy.strategy import spaces
from tests.proxyless_strategy.strategy.spaces import problem_of
from tests.proxyless_strategy.tiny import Conv, TinySpace

UPDATES = {
    "two": GradientUpdate,
    "unbiased": lambda: GradientUpdate(estimator="unbiased"),
    "all": lambda: GradientUpdate(paths="all"),
    "reinforce": lambda: ReinforceUpdate(samples=3),
}


@pytest.fixture(autouse=True)
def _heard(caplog):
    """Other tests of the process may have set another level."""
    caplog.set_level(logging.WARNING, "proxyless_strategy")


class StillScale(spaces.Scale):
    """A `Scale` that does not count."""

    def forward(self, x):
        return torch.tanh(x * self.weight) + x**2 * 0.1


def still(kind):
    """Returns a factory of a test space whose candidates count nothing, as what counts is not captured."""

    def make():
        space = kind()
        for module in space.modules():
            if type(module) is spaces.Scale:
                module.__class__ = StillScale
        return space

    return make


class Search:
    """A search without Lightning, captured or eager.

    Args:
        make: Makes the space.
        recorder: Records; None: everything runs eagerly.
        update: Moves alpha.
        precision: Of autocast; None for none.
        device: Where it trains.
    """

    def __init__(self, make=TinySpace, recorder=None, *, update="two", precision=None, device="cpu"):
        torch.manual_seed(0)
        self.strategy = ProxylessStrategy()
        self.network = self.strategy.mutate_model(make()).to(device).train()
        self.device, self.precision = device, precision
        self.captures = None if recorder is None else Captures(recorder)
        self.update, self.problem = UPDATES[update](), problem_of(self.strategy, self.strategy.architecture)
        # Momentum and decay move a weight whose gradient is 0, and not one whose gradient is None.
        self.weights = torch.optim.SGD(self.network.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
        self.alpha = alpha_optimizer(self.strategy.architecture, 0.3)
        self.mode = ArchitectureStepMode(self.network)
        self.generator = torch.Generator().manual_seed(1)
        self.sizes = [len(edge.candidates) for edge in self.strategy.architecture.edges]
        self.paths, self.gradients = [0] * len(self.sizes), []
        self.images = isinstance(self.network, TinySpace)

    def batch(self, count=6):
        shape = (count, 1, 6, 6) if self.images else (count,)
        return torch.randn(*shape, generator=self.generator).to(self.device)

    def draw(self):
        self.paths = [int(torch.randint(size, (), generator=self.generator)) for size in self.sizes]

    def loss(self, x):
        with torch.autocast(self.device, dtype=self.precision, enabled=self.precision is not None):
            output = self.network(x)
            if not self.images:
                return output
            return nn.functional.cross_entropy(output, torch.arange(len(x), device=self.device) % 3)

    def capturing(self):
        return nullcontext() if self.captures is None else self.captures.active(self.strategy.paths_of_space.selector)

    def add_gradients(self, count=6):
        with self.capturing(), self.strategy.paths_of_space.running(self.paths):
            self.loss(self.batch(count)).backward()

    def move(self):
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.weights.step()
        self.weights.zero_grad(set_to_none=True)

    def weight_step(self, number, *, batches=1, count=6):
        seed_everything(number)
        self.draw()
        for _ in range(batches):
            self.add_gradients(count)
        self.gradients += [None if p.grad is None else p.grad.clone() for p in self.network.parameters()]
        self.move()

    def architecture_step(self, number):
        seed_everything(number)
        x = self.batch()
        loss = isinstance(self.update, GradientUpdate)
        with self.capturing(), self.mode.active(), torch.set_grad_enabled(loss):
            outcome = self.update.compute(
                self.problem, lambda: self.loss(x) if loss else (-self.loss(x)).exp(), number, scale=None
            )
        self.gradients.append(outcome.gradient)
        apply_outcome(self.strategy.architecture, self.alpha, outcome)

    def run(self, steps=8, **options):
        for number in range(steps):
            self.weight_step(number, **options)
            self.architecture_step(number)
        return self

    def state(self):
        return {**self.network.state_dict(), "alpha": self.strategy.architecture.alpha.detach()}


def assert_same(captured, eager):
    """Two searches with the same weights, buffers, alpha and gradients on the way, bit for bit."""
    assert captured.state().keys() == eager.state().keys()
    assert [name for name, value in eager.state().items() if not torch.equal(captured.state()[name], value)] == []
    assert len(captured.gradients) == len(eager.gradients)
    for mine, other in zip(captured.gradients, eager.gradients, strict=True):
        assert (mine is None) == (other is None)
        assert mine is None or torch.equal(mine, other)


@pytest.mark.parametrize("update", UPDATES)
def test_captured_searches_are_eager_ones_bit_for_bit(update):
    captured, eager = Search(recorder=PlainRecorder(), update=update).run(), Search(update=update).run()
    assert_same(captured, eager)
    assert captured.captures.replayed > 2 * captured.captures.recorded, "candidates were replayed"


@pytest.mark.parametrize("space", [spaces.Chain, spaces.Shared, spaces.InPlace, spaces.OfList, spaces.Nested])
@pytest.mark.parametrize("update", ["two", "all", "reinforce"])
def test_captured_spaces_are_eager_ones_bit_for_bit(space, update):
    """Skips, shared labels, a choice at the very input, changes in place by what follows, lists, choices in choices."""
    captured = Search(still(space), PlainRecorder(), update=update).run(6)
    assert_same(captured, Search(still(space), update=update).run(6))
    assert captured.captures.replayed > captured.captures.recorded > 0


@pytest.mark.parametrize("update", ["two", "all", "reinforce"])
def test_mixed_precision_casts_follow_the_weights(update):
    """A cast that was kept would be of the weights of before, and autocast's cache would keep a captured one."""
    captured = Search(recorder=PlainRecorder(), update=update, precision=torch.bfloat16).run()
    assert_same(captured, Search(update=update, precision=torch.bfloat16).run())


def test_gradients_of_several_batches_add_up():
    captured = Search(recorder=PlainRecorder()).run(5, batches=2)
    assert_same(captured, Search().run(5, batches=2))


def test_memory_formats_stay_as_they_are():
    def last():
        return TinySpace().to(memory_format=torch.channels_last)

    class Images(Search):
        def batch(self, count=6):
            return super().batch(count).contiguous(memory_format=torch.channels_last)

    found = []
    for recorder in (PlainRecorder(), None):
        search, strides = Images(last, recorder), []
        search.network.layers[1].register_forward_hook(lambda _, inputs, output, to=strides: to.append(output.stride()))
        found.append((search.run(4), strides))
    (captured, strides), (eager, expected) = found
    assert strides == expected
    # A gradient may come in another format, in which the gate gradient's products are added up in another order.
    for name, value in eager.state().items():
        torch.testing.assert_close(captured.state()[name], value, rtol=1e-5, atol=1e-6)


def test_a_search_that_is_captured_from_its_middle_on_is_the_same():
    """As one that is resumed: nothing was recorded before, and everything is recorded later."""
    whole, broken = Search(recorder=PlainRecorder()).run(4), Search(recorder=PlainRecorder()).run(2)
    broken.captures = Captures(PlainRecorder())
    for number in (2, 3):
        broken.weight_step(number)
        broken.architecture_step(number)
    assert_same(broken, whole)


def test_what_a_step_gives_away_is_not_overwritten_by_the_next():
    """Outputs, gradients of inputs and of weights stay as they are, whoever keeps them."""
    search = Search(recorder=PlainRecorder())
    kept = []
    for _ in range(4):
        x = torch.randn(6, 4, 6, 6, requires_grad=True)
        layer = search.network.layers[0]
        with search.capturing(), search.strategy.paths_of_space.running([1, 0, 0]):
            output = layer(x)
            output.sum().backward()
        weight = layer._modules["k3"].conv.weight
        tensors = [output, x.grad, weight.grad]
        kept.append([(tensor, tensor.detach().clone()) for tensor in tensors])
        weight.grad = None
    assert search.captures.replayed == 4
    for tensor, value in (pair for pairs in kept for pair in pairs):
        assert torch.equal(tensor, value)
        assert value.isfinite().all()


def test_a_measured_path_leaves_alone_what_the_active_one_keeps():
    search = Search(recorder=PlainRecorder())
    layer = search.network.layers[0]
    x = torch.randn(6, 4, 6, 6)
    with search.capturing(), search.strategy.paths_of_space.running([0, 0, 0]):
        output = layer(x)
    with search.capturing(), search.strategy.paths_of_space.running([1, 0, 0]), torch.no_grad():
        layer(x * 2)
        layer(x * 3)
    output.sum().backward()
    found = [p.grad for p in layer._modules["k1"].parameters()]
    other = Search()
    with other.strategy.paths_of_space.running([0, 0, 0]):
        other.network.layers[0](x).sum().backward()
    expected = [p.grad for p in other.network.layers[0]._modules["k1"].parameters()]
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("paths", [([0, 0, 0], [0, 0, 0]), ([0, 1, 1], [1, 0, 1])], ids=["same", "others"])
def test_a_layer_that_runs_again_before_its_backward_pass_runs_eagerly(paths, caplog):
    """Two forward passes, one backward pass: what the first one keeps must outlast the second one."""
    searches = Search(recorder=PlainRecorder()), Search()
    for search in searches:
        for _ in range(3):
            losses = []
            for path in paths:
                with search.capturing(), search.strategy.paths_of_space.running(path):
                    losses.append(search.loss(search.batch()))
            sum(losses).backward()
            search.move()
    assert_same(*searches)
    assert searches[0].captures.eager > 0
    assert [r.getMessage() for r in caplog.records if "runs again before its backward pass" in r.getMessage()] != []


def test_a_forward_pass_without_a_backward_pass_frees_its_layer():
    search = Search(recorder=PlainRecorder())
    for _ in range(3):
        with search.capturing(), search.strategy.paths_of_space.running([0, 0, 0]):
            search.loss(search.batch())
    assert search.captures.eager == 0


def test_a_second_backward_pass_is_refused():
    search = Search(recorder=PlainRecorder())
    with search.capturing(), search.strategy.paths_of_space.running([0, 0, 0]):
        loss = search.loss(search.batch())
        loss.backward(retain_graph=True)
        with pytest.raises(UnsupportedSpaceError, match="one backward pass"):
            loss.backward()


# ---- what changes on the way -------------------------------------------------------------------------------------


def frozen_norms(search):
    for module in search.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def frozen_weights(search):
    for name, parameter in search.network.named_parameters():
        parameter.requires_grad_("bn" not in name)


def moved_weights(search):
    for parameter in search.network.parameters():
        parameter.data = parameter.data.clone()


def assigned_state(search):
    state = {name: value.clone() for name, value in search.network.state_dict().items()}
    search.network.load_state_dict(state, assign=True)
    search.weights = torch.optim.SGD(search.network.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    search.mode = ArchitectureStepMode(search.network)


def another_momentum(search):
    for module in search.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5


def another_part(search):
    torch.manual_seed(3)
    for module in search.network.modules():
        if isinstance(module, Conv):
            module.bn = nn.GroupNorm(2, 4)
    search.weights = torch.optim.SGD(search.network.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    search.mode = ArchitectureStepMode(search.network)


def a_hook(search):
    for module in search.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda module, inputs, output: output * 0.5)


def a_hook_on_a_weight(search):
    for name, parameter in search.network.named_parameters():
        if "conv" in name:
            parameter.register_hook(lambda gradient: gradient * 0.5)


CHANGES = [
    frozen_norms,
    frozen_weights,
    moved_weights,
    assigned_state,
    another_momentum,
    another_part,
    a_hook,
    a_hook_on_a_weight,
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_makes_recordings_void(change):
    """A plain recording would follow some of them, as it runs the candidate; a graph would not."""
    search = Search()
    stills = [Stillness(layer._modules[name]) for layer in search.network.layers for name in ("k1", "k3")]
    assert [still.change() for still in stills] == [None] * 6
    assert not any(still.hooked() for still in stills)
    change(search)
    assert all(still.change() is not None or still.hooked() for still in stills)


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_between_steps_takes_effect(change):
    captured, eager = Search(recorder=PlainRecorder()), Search()
    for search in (captured, eager):
        search.run(4)
        change(search)
        search.run(4)
    assert_same(captured, eager)


def test_a_candidate_that_is_changed_all_the_time_ends_eager(caplog):
    captured, eager = Search(recorder=PlainRecorder()), Search()
    for search in (captured, eager):
        for number in range(2 * MOST_CHANGES):
            for kernel in ("k1", "k3"):
                search.network.layers[0]._modules[kernel].bn.eps = 1e-5 * (1 + number)
            search.weight_step(number)
            search.weight_step(number)
    assert_same(captured, eager)
    assert sum("changed all the time" in r.getMessage() for r in caplog.records) == 1


def test_further_shapes_run_eagerly(caplog):
    captured, eager = Search(recorder=PlainRecorder()), Search()
    for search in (captured, eager):
        for number in range(6):
            search.weight_step(number, count=6 + number % (MOST_SHAPES + 1))
    assert_same(captured, eager)
    assert sum(f"more than {MOST_SHAPES} shapes" in r.getMessage() for r in caplog.records) == 1


# ---- what is not captured ----------------------------------------------------------------------------------------


class Dropped(Conv):
    def __init__(self, *arguments):
        super().__init__(*arguments, dropout=0.5)


class Reading(Conv):
    def forward(self, x):
        return super().forward(x) if x.mean() > 0 else super().forward(2 * x)


class Counting(Conv):
    count = 0

    def forward(self, x):
        self.count += 1
        return super().forward(x) * self.count


class Pairing(Conv):
    def forward(self, x):
        return super().forward(x), x


class InPlace(Conv):
    def forward(self, x):
        y = super().forward(x)
        x.mul_(1.0)
        return y


class Borrowing(Conv):
    """Trains a weight that is not registered, as a layer of shared weights has."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.others = [nn.Parameter(torch.ones(()))]

    def forward(self, x):
        return super().forward(x) * self.others[0]


class Rebinding(Conv):
    """Replaces a buffer, instead of writing into it."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        return super().forward(x) + self.mean


class Elsewhere(Conv):
    """Has a tensor that did not move with it: on a GPU's host it would become a constant of the graph."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.temperature = torch.ones((), device="meta")


class Unused(Conv):
    """Has a weight that takes no part: eagerly it gets no gradient, and so no decay."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.spare = nn.Parameter(torch.ones(3))


def of(kind):
    class Space(ModelSpace):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(1, 4, 3, padding=1)
            self.layers = nn.Sequential(*(LayerChoice({"a": kind(4, 1), "b": kind(4, 3)}, label=f"e{i}") for i in "01"))
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            y = self.layers[0](self.stem(x))
            y = self.layers[1]((y[0] if isinstance(y, tuple) else y) * 1.0)
            return self.head((y[0] if isinstance(y, tuple) else y).mean((2, 3)))

    return Space


class Kind(Search):
    def __init__(self, kind, recorder=None, **options):
        super().__init__(of(kind), recorder, **options)
        self.images = True


REFUSED = {
    Dropped: "draws random numbers",
    Reading: "reads values on the host (local_scalar_dense)",
    Counting: "running it changes it (its attribute count is another one)",
    Pairing: "its output is no tensor of floats but tuple",
    Borrowing: "trains weights that are not registered as its own",
    Elsewhere: "a tensor of it lies on another device than its input",
    Rebinding: "running it changes it (a weight, a buffer or a part is another one)",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_captured_runs_eagerly_and_is_named_once(kind, caplog):
    captured = Kind(kind, PlainRecorder()).run(4)
    assert_same(captured, Kind(kind).run(4))
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert REFUSED[kind] in told[0]
    assert "candidate 'a' of the choice 'e0'" in told[0] or "candidate 'b' of the choice 'e0'" in told[0]
    assert not told[0].endswith(".")
    if kind is not Borrowing:  # which can be measured
        assert (captured.captures.replayed > 0) == (kind is Dropped), "an architecture step has no dropout"


def test_a_candidate_that_changes_its_input_in_place_runs_eagerly(caplog):
    captured = Kind(InPlace, PlainRecorder(), update="reinforce")
    with captured.capturing(), captured.strategy.paths_of_space.running([0, 0]), torch.no_grad():
        captured.loss(captured.batch())
    assert captured.captures.replayed == 0
    assert "it changes its input in place" in caplog.text


def test_a_weight_that_takes_no_part_keeps_no_gradient():
    captured = Kind(Unused, PlainRecorder()).run(4)
    assert_same(captured, Kind(Unused).run(4))
    assert captured.captures.eager == 0
    assert all(torch.equal(p, torch.ones(3)) for n, p in captured.network.named_parameters() if "spare" in n)


def test_hooks_on_what_autograd_keeps_see_eager_runs():
    search, seen = Search(recorder=PlainRecorder()), []
    with search.capturing(), search.strategy.paths_of_space.running([0, 0, 0]):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
            search.loss(search.batch()).backward()
        assert search.captures.replayed == 0
        search.loss(search.batch()).backward()
    assert search.captures.replayed == 3
    assert seen


def test_a_checkpoint_around_the_network_gives_the_same_gradients():
    """It runs the network again within the backward pass."""
    found = []
    for recorder in (PlainRecorder(), None):
        search = Search(recorder=recorder)
        for reentrant in (True, False, True):
            with search.capturing(), search.strategy.paths_of_space.running([0, 1, 0]):
                x = search.batch().requires_grad_()
                torch.utils.checkpoint.checkpoint(search.loss, x, use_reentrant=reentrant).backward()
        found.append({name: p.grad for name, p in search.network.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[1])


def test_a_copy_of_the_network_has_recordings_of_its_own():
    search = Search(recorder=PlainRecorder()).run(2)
    twin = copy.deepcopy(search.network)
    x = search.batch()
    with search.capturing(), search.strategy.paths_of_space.running([0, 1, 0]), torch.no_grad():
        before = search.network(x)
        for parameter in twin.parameters():
            parameter.zero_()
        assert not torch.equal(twin(x), before)
        assert torch.equal(search.network(x), before) or search.network.training


def test_nothing_is_recorded_outside_of_the_context():
    search = Search(recorder=PlainRecorder())
    with search.strategy.paths_of_space.running([0, 0, 0]):
        search.loss(search.batch())
    assert (search.captures.recorded, search.captures.replayed, search.captures.eager) == (0, 0, 0)


# ---- on a GPU ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="it needs a GPU")
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_graphs_compute_what_eager_steps_compute(update, precision):
    device = torch.device("cuda")
    captured = Search(recorder=CudaRecorder(device), update=update, precision=precision, device="cuda").run()
    eager = Search(update=update, precision=precision, device="cuda").run()
    assert captured.captures.replayed > captured.captures.recorded > 0
    tolerance = 1e-4 if precision is None else 5e-2
    for name, value in eager.state().items():
        torch.testing.assert_close(captured.state()[name], value, rtol=tolerance, atol=tolerance)
