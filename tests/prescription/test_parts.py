"""Surgery and settings: each against what it must leave as it was, or against a slow twin."""

import copy
import dataclasses
import math
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradwatch.findings import KINDS, Finding
from gradwatch.prescription import data, fitting, formulas
from gradwatch.prescription.problem import Problem, called
from gradwatch.prescription.setup import NotApplicableError, Setup
from gradwatch.prescription.surgery import activations, calls, initialisation, recurrence, structure
from gradwatch.prescription.treatments import TREATMENTS, Treatment
from gradwatch.prescription.trial import run
from gradwatch.remedies import LIBRARY


def setup_of(model, x=None, y=None, count=3):
    x = torch.randn(8, 6) if x is None else x
    y = torch.randint(3, (len(x),)) if y is None else y
    return Setup(model, [(x, y)] * count, F.cross_entropy)


def sequential(activation=nn.Sigmoid):
    return nn.Sequential(
        nn.Linear(6, 5), activation(), nn.Linear(5, 5), activation(), nn.Linear(5, 5), activation(), nn.Linear(5, 3)
    )


def convolutional():
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv1d(4, 4, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


def transposed(dimensions=1):
    """A convolution down, two transposed ones up, a head."""
    down, up = getattr(nn, f"Conv{dimensions}d"), getattr(nn, f"ConvTranspose{dimensions}d")
    return nn.Sequential(
        nn.Unflatten(1, (1, *(1,) * (dimensions - 1), 6)), down(1, 4, 1), nn.Sigmoid(), up(4, 4, 1), nn.Sigmoid(),
        up(4, 2, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


class Custom(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.second(F.relu(self.first(x)))))


class Rectified(Custom):
    def forward(self, x):
        return self.head(torch.relu(self.second(F.relu(self.first(x)))))


MODELS = {"sequential": sequential, "convolutional": convolutional, "transposed": transposed, "custom": Custom}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("treatment", TREATMENTS, ids=lambda treatment: treatment.remedy + treatment.strength)
def test_a_treated_model_keeps_its_shapes_and_passes_gradients(model, treatment):
    setup = setup_of(MODELS[model]())
    try:
        treatment.change(setup)
    except NotApplicableError:
        return
    output = called(setup.model, setup.batches[0][0])
    assert output.shape == (len(setup.batches[0][0]), 3)
    output.square().sum().backward()
    assert any(parameter.grad is not None for parameter in setup.model.parameters())


@pytest.mark.parametrize(
    ("model", "other"),
    [
        (sequential(nn.ReLU), "other "),
        (Rectified(), "other "),
        (nn.Sequential(nn.Linear(6, 3)), ""),
        (nn.Sequential(nn.Linear(6, 3), nn.Sigmoid()), "hidden "),
    ],
    ids=["modules are that one", "functions are", "there is none", "it ends the model"],
)
def test_an_activation_that_would_change_nothing_does_not_apply(model, other):
    with pytest.raises(NotApplicableError, match=rf"no {other}activation function was found$"):
        activations.activate(setup_of(model), nn.ReLU())


def test_one_activation_in_several_places_goes_from_all():
    shared = nn.Sigmoid()
    model = nn.Sequential(nn.Linear(6, 5), shared, nn.Linear(5, 5), shared, nn.Linear(5, 3))
    activations.activate(setup_of(model), nn.ReLU())
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]


def test_functions_inside_forward_are_answered_and_names_stay():
    model, x = Custom(), torch.randn(8, 6)
    names = [name for name, _ in model.named_parameters()]
    setup = setup_of(model)
    activations.activate(setup, nn.ELU())
    expected = model.head(F.elu(model.second(F.elu(model.first(x)))))
    assert torch.equal(model(x), expected)
    assert setup.not_done == ["forward calls relu and tanh by name: there write ELU(alpha=1.0) by hand"]
    assert [name for name, _ in model.named_parameters()] == names


def test_a_sigmoid_at_the_end_stays_and_a_relu_at_the_end_goes():
    bounded = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), nn.Sigmoid())
    activations.activate(setup_of(bounded), nn.GELU())
    assert [type(module) for module in bounded] == [nn.Linear, nn.GELU, nn.Linear, nn.Sigmoid]
    rectified = nn.Sequential(nn.Linear(6, 3), nn.ReLU())
    activations.activate(setup_of(rectified), nn.LeakyReLU())
    assert isinstance(rectified[1], nn.LeakyReLU)


@pytest.mark.parametrize(
    "end", [torch.sigmoid, torch.Tensor.tanh, F.softplus, nn.Sigmoid()], ids=["sigmoid", "tanh", "softplus", "module"]
)
def test_what_forward_calls_behind_its_last_layer_stays_and_the_rest_goes(end):
    class Ends(Custom):
        def forward(self, x):
            return end(super().forward(x))

    model, x = Ends(), torch.randn(8, 6)
    activations.activate(setup_of(model), nn.ELU())
    expected = end(model.head(F.elu(model.second(F.elu(model.first(x))))))
    for _ in range(2):
        assert torch.equal(model(x), expected)


def test_one_place_in_the_code_may_be_hidden_at_first_and_end_the_model_at_last():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x).sigmoid()
            return x

    model, x = Loop(), torch.randn(8, 6)
    activations.activate(setup_of(model), nn.ReLU())
    one, two, three = model.layers
    assert torch.equal(model(x), three(two(one(x).relu()).relu()).sigmoid())


def test_a_module_that_forward_calls_between_layers_goes_wherever_it_was_registered():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head, self.squash, self.end = nn.Linear(6, 6), nn.Linear(6, 3), nn.Sigmoid(), nn.Sigmoid()

        def forward(self, x):
            return self.end(self.head(self.squash(self.first(x))))

    model = Late()
    activations.activate(setup_of(model), nn.ReLU())
    assert isinstance(model.squash, nn.ReLU)
    assert isinstance(model.end, nn.Sigmoid)


def test_weights_that_are_no_layers_count_as_layers():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6, 3))

        def forward(self, x):
            return torch.sigmoid(torch.tanh(x @ self.one) @ self.two)

    model, x = Bare(), torch.randn(8, 6)
    activations.activate(setup_of(model), nn.ReLU())
    assert torch.equal(model(x), torch.sigmoid(torch.relu(x @ model.one) @ model.two))


def test_a_transformer_layer_evaluates_by_the_function_that_was_put_in():
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, activation=nn.GELU(), batch_first=True)
    x = torch.randn(2, 3, 6)
    activations.activate(setup_of(layer, x), nn.ELU())
    expected = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), expected)


def test_prelu_needs_a_module_to_hold_its_weight():
    with pytest.raises(NotApplicableError, match="a function has no room for its weight"):
        activations.activate(setup_of(Custom()), nn.PReLU())


def test_prelu_says_which_functions_it_could_not_replace():
    class Mixed(Custom):
        def __init__(self):
            super().__init__()
            self.squash = nn.Sigmoid()

        def forward(self, x):
            return self.head(torch.tanh(self.second(self.squash(self.first(x)))))

    setup = setup_of(Mixed())
    activations.activate(setup, nn.PReLU())
    assert isinstance(setup.model.squash, nn.PReLU)
    assert setup.not_done == ["tanh, which forward calls by name, stayed: no room for a weight"]


def test_a_residual_connection_adds_what_went_in():
    model, x = sequential(), torch.randn(8, 6)
    plain = copy.deepcopy(model)
    structure.residual(setup_of(model))
    h = plain[1](plain[0](x))
    h = h + plain[3](plain[2](h))
    h = h + plain[5](plain[4](h))
    assert torch.equal(model(x), plain[6](h))


def test_a_residual_connection_around_attention_keeps_the_weights_it_returns():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend, self.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.attend(x, x, x)[0].mean(1))

    model, x = Attends(), torch.randn(8, 4, 6)
    expected = model.head((x + model.attend(x, x, x)[0]).mean(1))
    structure.residual(setup_of(model, x))
    assert torch.equal(model(x), expected)


def test_normalisation_stands_before_the_activation_and_not_twice():
    model = sequential()
    structure.normalise(setup_of(model), "layer")
    assert isinstance(model[0], nn.Sequential)
    assert isinstance(model[0][1], nn.LayerNorm)
    assert isinstance(model[6], nn.Linear)
    normalised = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(NotApplicableError, match="no hidden layer was found"):
        structure.normalise(setup_of(normalised), "batch")


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_convolutions_are_normalised_by_channel(kind):
    model = convolutional()
    structure.normalise(setup_of(model), kind)
    assert type(model[1][1]) is {"batch": nn.BatchNorm1d, "layer": nn.GroupNorm}[kind]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_transposed_convolutions_are_layers(dimensions):
    norm = getattr(nn, f"BatchNorm{dimensions}d")
    model = transposed(dimensions)[:-2]  # an autoencoder that ends in one, and its sigmoid
    inputs = torch.randn(8, 6)
    activations.activate(setup_of(model, inputs), nn.ReLU())
    structure.normalise(setup_of(model, inputs), "batch")
    assert [type(model[place]) for place in (2, 4, 6)] == [nn.ReLU, nn.ReLU, nn.Sigmoid]
    assert [type(model[place][1]) for place in (1, 3)] == [norm, norm]
    before = [model[3][0].weight.clone(), model[5].weight.clone()]
    initialisation.he(setup_of(model, inputs))
    assert not torch.equal(model[3][0].weight, before[0])
    assert not torch.equal(model[5].weight, before[1])


def test_every_second_layer_of_the_same_width_goes():
    model, x = sequential(), torch.randn(8, 6)
    plain = copy.deepcopy(model)
    structure.fewer_layers(setup_of(model))
    assert torch.equal(model(x), plain[6](plain[3](plain[2](plain[1](plain[0](x))))))


def test_maxout_is_the_larger_of_two_layers():
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(8, 6)
    activations.maxout(setup_of(model))
    assert torch.equal(model(x), model[2](torch.maximum(model[0].one(x), model[0].other(x))))
    assert not torch.equal(model[0].one.weight, model[0].other.weight)


@pytest.mark.parametrize(
    ("initialise", "deviation"),
    [(initialisation.he, math.sqrt(2 / 400)), (initialisation.xavier, math.sqrt(2 / 800))],
)
def test_initialisations_have_their_deviation(initialise, deviation):
    model = nn.Sequential(nn.Linear(6, 400), nn.ReLU(), nn.Linear(400, 400), nn.BatchNorm1d(400), nn.Linear(400, 3))
    nn.init.constant_(model[3].weight, 100.0)
    initialise(setup_of(model))
    assert model[2].weight.std().item() == pytest.approx(deviation, rel=0.02)
    assert not model[2].bias.any()
    assert (model[3].weight == 1).all()


def test_orthogonal_weights_are():
    model = sequential(nn.Tanh)
    initialisation.orthogonal(setup_of(model))
    torch.testing.assert_close(model[2].weight @ model[2].weight.T, torch.eye(5))


def test_a_computed_weight_is_drawn_through_its_parametrization():
    layer = nn.Linear(6, 5)
    nn.init.zeros_(layer.weight)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(layer), nn.ReLU(), nn.Linear(5, 3))
    initialisation.he(setup_of(model))
    assert model(torch.randn(8, 6)).isfinite().all()


def test_a_recurrent_state_starts_from_orthogonal_weights_and_an_open_forget_gate():
    cell = nn.LSTM(6, 5)
    initialisation.xavier(setup_of(nn.Sequential(cell), torch.randn(4, 8, 6)))
    for block in cell.weight_hh_l0.split(5):
        torch.testing.assert_close(block @ block.T, torch.eye(5))
    assert (cell.bias_ih_l0[5:10] == 1).all()
    assert not cell.bias_hh_l0.any()


class Reader(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell, self.head = cell, nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


def test_a_gru_takes_the_place_of_an_rnn():
    model = Reader(nn.RNN(6, 5, num_layers=2, batch_first=True))
    recurrence.gated(setup_of(model, torch.randn(8, 4, 6)))
    assert isinstance(model.cell, nn.GRU)
    assert model(torch.randn(8, 4, 6)).shape == (8, 3)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_truncation_changes_gradients_and_nothing_else(kind):
    torch.manual_seed(0)
    x = torch.randn(8, 25, 6, requires_grad=True)
    model = Reader(kind(6, 5, batch_first=True))
    before = model(x)
    recurrence.truncated(setup_of(model, x.detach()))
    after = model(x)
    torch.testing.assert_close(after, before)
    (slope,) = torch.autograd.grad(after.sum(), x)
    assert not slope[:, :20].any()  # pieces of 10: the last begins at 20
    assert slope[:, 20:].any()


def test_what_is_not_there_is_not_changed():
    for change in (recurrence.gated, recurrence.truncated):
        with pytest.raises(NotApplicableError, match=r"no nn\.RNN"):
            change(setup_of(sequential()))
    with pytest.raises(NotApplicableError, match="no block returns the shape"):
        structure.residual(setup_of(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))))


def test_a_look_at_the_calls_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3))
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    found = calls.calls_of(model, torch.randn(8, 6))
    assert [(call.name, *call.made) for call in found] == [("0", 8, 5), ("3", 8, 3)]
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model[0]._forward_hooks


@pytest.mark.parametrize(
    ("mode", "formula", "inside", "edge"),
    [
        (formulas.SafeLog, torch.log, 0.5, 0.0),
        (formulas.SafeLog, lambda x: x.log(), 0.5, -1.0),
        (formulas.SafeLog, torch.log1p, 0.5, -1.0),
        (formulas.SafeLog, lambda x: torch.xlogy(x, x), 0.5, 0.0),
        (formulas.SafeLog, lambda x: x.exp() / x.exp().sum(), 0.5, 1000.0),
        (formulas.SafeSqrt, torch.sqrt, 0.5, 0.0),
        (formulas.SafeSqrt, lambda x: (x * torch.arange(3)).std(0, correction=0), 0.5, 0.0),
        (formulas.SafeSqrt, lambda x: torch.cdist(x.unsqueeze(0), 2 * x.unsqueeze(0)), 0.5, 0.0),
        (formulas.SafeSqrt, torch.linalg.norm, 0.5, 0.0),
        (formulas.SafeSqrt, lambda x: x.norm(dim=0), 0.5, 0.0),
        (formulas.SafeSqrt, lambda x: x**0.5, 0.5, 0.0),
        (formulas.SafeSqrt, torch.acos, 0.5, 1.0),
        (formulas.SafeDivision, lambda x: 1 / x, 0.5, 0.0),
        (formulas.SafeDivision, lambda x: x / x, 0.5, 0.0),
        (formulas.SafeDivision, lambda x: torch.div(x, x), 0.5, 0.0),
        (formulas.SafeSoftmax, lambda x: x.softmax(-1), 0.5, -math.inf),
        (formulas.SafeSoftmax, lambda x: F.softmax(x, dim=-1), 0.5, -math.inf),
    ],
)
def test_a_safe_formula_is_the_formula_inside_its_domain_and_finite_at_its_edge(mode, formula, inside, edge):
    x = torch.full((3,), inside, dtype=torch.float64)
    with mode():
        safe = formula(x)
    torch.testing.assert_close(safe, formula(x))
    x = torch.full((3,), edge, requires_grad=True)
    with mode():
        value = formula(x)
    value.sum().backward()
    assert value.isfinite().all()
    assert x.grad.isfinite().all()


def test_a_division_by_a_count_of_zero_is_finite():
    total, count = torch.zeros(3, requires_grad=True), torch.tensor([0, 1, 2])
    with formulas.SafeDivision():
        mean = torch.where(count == 0, 0.0, total / count)
    mean.sum().backward()
    assert total.grad[1:].tolist() == [1.0, 0.5]
    assert total.grad.isfinite().all()


def test_attention_to_nothing_gives_zeros():
    mask = torch.tensor([[True, False], [False, False]])
    q, k, v = torch.randn(3, 1, 2, 4)
    with formulas.SafeSoftmax():
        safe = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.equal(safe[:, 0], F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[:, 0])
    assert not safe[:, 1].any()


@pytest.mark.parametrize("needs_weights", [True, False])
@pytest.mark.parametrize("is_boolean", [True, False])
@pytest.mark.parametrize("masks", ["padding", "rows", "both"])
def test_heads_that_attend_to_nothing_make_no_nan_and_others_stay_as_they_were(masks, is_boolean, needs_weights):
    """Padding on the left under a causal mask: the first position sees itself alone, which is padding."""
    attend, x = nn.MultiheadAttention(6, 2, batch_first=True), torch.randn(3, 4, 6, requires_grad=True)
    padding, rows = torch.zeros(3, 4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool).triu(1)
    padding[1, :2], rows[0, 0] = True, masks == "rows"
    padding[2] = masks == "padding"
    hidden = {"padding": {"key_padding_mask": padding}, "rows": {"attn_mask": rows}}
    named = {**hidden["padding"], **hidden["rows"]} if masks == "both" else hidden[masks]
    if not is_boolean:
        named = {name: torch.zeros(mask.shape).masked_fill(mask, -math.inf) for name, mask in named.items()}
    plain = attend(x, x, x, need_weights=needs_weights, **named)[0]
    with formulas.SafeSoftmax():
        safe = attend(x, x, x, need_weights=needs_weights, **named)[0]
    seen = torch.ones(3, 4, dtype=torch.bool)
    seen[{"padding": (2,), "rows": (slice(None), 0), "both": (1, slice(2))}[masks]] = False
    assert torch.equal(plain.isnan().any(-1), ~seen) or not needs_weights  # the fused kernel makes zeros of them
    torch.testing.assert_close(safe[seen], plain[seen])
    safe.sum().backward()
    assert safe.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("rows", [None, torch.zeros(4, 4, dtype=torch.bool)])
def test_heads_may_be_given_a_sequence_by_itself(rows):
    attend, x = nn.MultiheadAttention(6, 2), torch.randn(4, 6)
    padding = torch.tensor([True, False, False, False])
    with formulas.SafeSoftmax():
        safe = attend(x, x, x, key_padding_mask=padding, attn_mask=rows)[0]
        nothing = attend(x, x, x, key_padding_mask=padding | True, attn_mask=rows)[0]
    torch.testing.assert_close(safe, attend(x, x, x, key_padding_mask=padding, attn_mask=rows)[0])
    assert nothing.isfinite().all()


def test_a_pasted_mask_hides_what_it_hid_but_for_whole_rows():
    names = {"torch": torch, "F": F, "nn": nn}
    exec(LIBRARY["masked-softmax"].code, names)
    mask = torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf]])
    assert names["safe_mask"](mask).tolist() == [[0.0, -math.inf], [0.0, 0.0]]


def test_scaled_inputs_keep_the_unit_of_the_held_out_loss():
    torch.manual_seed(0)
    x, y = 1000 + 50 * torch.randn(64, 6), 1e4 * torch.randn(64, 3)
    setup = setup_of(nn.Linear(6, 3), x, y)
    data.scale(setup)
    assert setup.inputs_of(x).std().item() == pytest.approx(1.0, rel=0.05)
    assert setup.targets_of(y).std().item() == pytest.approx(1.0, rel=0.05)
    torch.testing.assert_close(setup.outputs_of(setup.targets_of(y)), y, rtol=1e-3, atol=1.0)


@pytest.mark.parametrize("shape", [(64,), (64, 1, 1)])
def test_targets_are_scaled_where_the_loss_gives_the_outputs_their_shape(shape):
    x, y = torch.randn(64, 6), 3e5 + 1e5 * torch.randn(64)
    setup = setup_of(nn.Linear(6, 1), x, y.reshape(shape))
    data.scale(setup)
    targets = setup.targets_of(y.reshape(shape))
    assert targets.shape == shape
    assert abs(targets.mean().item()) < 1e-3
    outputs = setup.outputs_of(torch.zeros(64, 1))
    torch.testing.assert_close(outputs, y.mean().expand(64, 1))


def test_targets_are_scaled_where_inputs_are_names_of_things():
    setup = setup_of(nn.Embedding(9, 1), torch.arange(9), 1e4 * torch.randn(9, 1))
    data.scale(setup)
    assert torch.equal(setup.inputs_of(torch.arange(9)), torch.arange(9))
    assert setup.targets_of(setup.batches[0][1]).std(correction=0).item() == pytest.approx(1.0)


def test_targets_that_cannot_be_scaled_are_said_to_be_large():
    class Two(nn.Module):
        def forward(self, x):
            return x, x.exp()

    setup = setup_of(Two(), torch.randn(512, 6), 1e5 * torch.randn(512, 6))
    with pytest.raises(
        NotApplicableError, match=r"unit variance already; targets have a deviation of \S+e\+05, but the"
    ):
        data.scale(setup)


def test_inputs_that_are_scaled_without_their_large_targets_are_said_to_be():
    class Two(nn.Module):
        def forward(self, x):
            return x, x.exp()

    setup = setup_of(Two(), 50 * torch.randn(512, 6), 1e5 * torch.randn(512, 6))
    data.scale(setup)
    assert setup.inputs_of(setup.batches[0][0]).std().item() == pytest.approx(1.0, rel=0.05)
    assert setup.targets_of(setup.batches[0][1]) is setup.batches[0][1]
    assert setup.not_done[0].startswith("only the inputs were scaled; targets have a deviation of")


def test_sequences_of_several_lengths_share_one_scale():
    batches = [(5000 + 2000 * torch.randn(32, length, 1), torch.zeros(32, 1)) for length in (10, 12, 11)]
    setup = Setup(Reader(nn.RNN(1, 5, batch_first=True)), batches, F.mse_loss)
    data.scale(setup)
    everything = torch.cat([setup.inputs_of(x).flatten() for x, _ in batches])
    assert abs(everything.mean().item()) < 1e-3
    assert everything.std().item() == pytest.approx(1.0, rel=1e-2)


def test_small_targets_and_classes_are_not_scaled():
    setup = setup_of(nn.Linear(6, 3), 100 * torch.randn(64, 6), torch.rand(64, 3))
    data.scale(setup)
    assert torch.equal(setup.targets_of(setup.batches[0][1]), setup.batches[0][1])
    with pytest.raises(NotApplicableError, match=r"unit variance already$"):
        data.scale(setup_of(nn.Linear(6, 3), torch.randn(512, 6)))


def cleaned(*batches):
    setup = Setup(nn.Identity(), list(batches), lambda output, y: torch.zeros(()))
    data.clean(setup)
    return setup.batches


def test_rows_of_nan_and_of_wild_numbers_go_and_sound_batches_stay_as_they_are():
    x, y = torch.randn(8, 6), torch.arange(8)
    sick, wild = x.clone(), x.clone()
    sick[2, 3], wild[5, 3] = math.nan, 1e6
    left = cleaned((x, y), (sick, y), (x, y), (wild, y), (torch.full((8, 6), math.inf), y))
    assert [batch[0] is x for batch in left] == [True, False, True, False]
    for (inputs, targets), row in ((left[1], 2), (left[3], 5)):
        assert targets.tolist() == [each for each in range(8) if each != row]
        assert torch.equal(inputs, x[targets])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_broken_row_in_every_batch_costs_that_row_alone(broken, dtype):
    batches = [(torch.randn(8, 2, 6).to(dtype), torch.randn(8).to(dtype)) for _ in range(4)]
    for row, (x, y) in enumerate(batches):
        x[row, 1, row] = broken
        y[row + 1] = broken
    left = cleaned(*batches)
    assert [(len(x), len(y)) for x, y in left] == [(6, 6)] * 4
    assert all(x.isfinite().all() and y.isfinite().all() for x, y in left)


def test_rows_are_left_out_of_every_tensor_of_a_structure():
    x, of = torch.arange(8.0), torch.arange(8)
    x[3] = math.nan
    ((inputs, targets),) = cleaned(({"x": x, "length": of}, (of, {"again": of})))
    assert all(
        tensor.tolist() == [0, 1, 2, 4, 5, 6, 7] for tensor in (inputs["length"], targets[0], targets[1]["again"])
    )


@pytest.mark.parametrize("other", [torch.zeros(7), torch.tensor(1.0), 0, None, "name"], ids=repr)
def test_batches_whose_leaves_do_not_begin_alike_go_whole(other):
    sick = torch.randn(8, 6)
    sick[2, 3] = math.nan
    sound = torch.randn(8, 6), other
    assert cleaned(sound, (sick, other), sound, sound, (1e6 * torch.randn(8, 6), other)) == [sound] * 3


def test_batches_of_numbers_alone_are_not_cleaned():
    with pytest.raises(NotApplicableError, match="no batch holds NaN"):
        cleaned(*((number, 0) for number in range(4)))


def test_a_batch_without_a_loss_goes_unless_all_are():
    ignored = torch.randn(8, 6), torch.full((8,), -100)
    setup = setup_of(nn.Linear(6, 3))
    setup.batches[1] = ignored
    data.clean(setup)
    assert len(setup.batches) == 2
    assert not setup.not_done
    setup.batches += [ignored] * 3
    data.clean(setup)
    assert len(setup.batches) == 2
    assert setup.not_done == ["3 of 5 batches have no finite loss and are left out: is it the loss?"]
    setup.batches = [ignored] * 3
    assert not F.cross_entropy(setup.model(ignored[0]), ignored[1]).isfinite()
    with pytest.raises(NotApplicableError, match="each has a finite loss"):
        data.clean(setup)


def test_a_graph_stays_whole():
    nodes, edges, labels = torch.randn(8, 6), torch.rand(8, 8), torch.arange(8)
    sick = nodes.clone()
    sick[2, 3] = math.nan
    sound = (nodes, edges), labels
    assert cleaned(sound, ((sick, edges), labels), sound) == [sound] * 2


def test_where_every_row_is_broken_no_batch_would_be_left():
    with pytest.raises(NotApplicableError, match="no batch would be left"):
        cleaned(*[(torch.full((8, 6), math.nan), torch.arange(8))] * 3)


@pytest.mark.parametrize("size", [lambda z: z.tan(), lambda z: (4 * z).exp(), lambda z: 1e-4 + (z > 1)], ids=range(3))
def test_heavy_tails_and_rows_next_to_zero_are_not_wild(size):
    z = torch.randn(512, 1, generator=torch.Generator().manual_seed(0))
    batches = list(zip(size(z).split(64), torch.arange(512).split(64), strict=True))
    try:
        left = cleaned(*batches)
    except NotApplicableError:
        left = batches
    assert sum(len(y) for _, y in left) > 0.98 * 512


def test_as_many_features_as_items_relate_nothing():
    x, y = torch.randn(8, 8), torch.arange(8)
    setup = Setup(nn.Linear(8, 3), [(x, {"digit": y, "parity": y % 2})], F.cross_entropy)
    data.split(setup)
    assert [len(x) for x, _ in setup.batches] == [2] * 4


def test_smaller_batches_hold_the_same_items():
    setup = setup_of(nn.Linear(6, 3), torch.randn(10, 6), torch.arange(10), count=1)
    data.split(setup)
    assert [len(x) for x, _ in setup.batches] == [3, 3, 3, 1]
    assert torch.equal(torch.cat([y for _, y in setup.batches]), torch.arange(10))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_candidates_each_once(kind):
    found = fitting.candidates(kind)
    assert len(set(found)) == len(found)
    assert {len(candidate) for candidate in found} == {1, 2}
    assert set(found) <= set(fitting.everything())


def found(kind, *names):
    return Finding(kind, "error", "w", ("w",), 0, 0, 0, 1.0, 1.0, "", "", tuple(f"try this ({name})" for name in names))


def test_what_findings_of_the_kind_advise_is_tried_first_then_the_rest_of_the_library():
    findings = [
        found("dead", "elu", "he"),
        found("vanishing", "residual", "lower-learning-rate"),
        found("vanishing", "residual", "he"),
    ]
    order = [candidate[0] for candidate in fitting.candidates("vanishing", findings) if len(candidate) == 1]
    names = list(dict.fromkeys(treatment.remedy for treatment in order))
    rest = [name for name, remedy in LIBRARY.items() if "vanishing" in remedy.kinds]
    first = ["residual", "lower-learning-rate", "he"]
    assert names == [*first, *(name for name in rest if name not in first)]
    assert set(fitting.candidates("vanishing", findings)) == set(fitting.candidates("vanishing"))


def test_extreme_rates_come_last_among_singles_and_pairs_by_the_sum_of_their_places():
    tried = fitting.candidates("dead", [found("dead", "higher-learning-rate", "lower-learning-rate", "he")])
    singles = [candidate[0] for candidate in tried if len(candidate) == 1]
    pairs = [{treatment.remedy for treatment in candidate} for candidate in tried if len(candidate) == 2]
    assert tried[: len(singles)] == [(single,) for single in singles]
    assert [single.strength for single in singles[-3:]] == ["-100", "-0.001", "-0.0001"]
    assert pairs[0] == {"higher-learning-rate", "he"}
    assert pairs[1] == pairs[2] == {"lower-learning-rate", "he"}


def test_a_critics_constraint_is_tried_late_where_nothing_advises_it():
    names = [candidate[0].remedy for candidate in fitting.candidates("exploding") if len(candidate) == 1]
    assert names.index("lower-learning-rate") < names.index("batch-norm") < names.index("spectral-norm")


def learn(steps=60, *names, strength=""):
    chosen = tuple(t for t in TREATMENTS if t.remedy in names and t.strength in ("", strength))
    return run(identity(), chosen, 0, steps)


def identity():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(320, 6, generator=generator)
    batches = list(zip(x.split(32), x.split(32), strict=True))
    return Problem.of(
        lambda: nn.Linear(6, 6), lambda p: torch.optim.SGD(p, lr=0.05), batches, lambda out, y: F.mse_loss(out, y)
    )


def of_batches(batches):
    return Problem.of(lambda: nn.Linear(6, 6), lambda p: torch.optim.SGD(p, lr=0.05), batches, F.mse_loss)


def test_held_out_batches_lose_rows_that_are_not_finite_and_never_wild_ones():
    batches = [(torch.randn(8, 6), torch.randn(8, 6)) for _ in range(10)]
    for x, y in batches:
        x[2, 3], y[4, 1], x[5, 0] = math.nan, math.inf, 1e9
    problem = of_batches(batches)
    rows = [0, 1, 3, 5, 6, 7]
    expected = [(x[rows], y[rows]) for x, y in (batches[4], batches[9])]
    torch.testing.assert_close(problem.held_out, expected, rtol=0, atol=0)
    assert [x is batches[number][0] for (x, _), number in zip(problem.training, (0, 1, 2, 3, 5, 6, 7, 8), strict=True)]


def test_held_out_batches_go_whole_where_rows_cannot_be_told():
    batches = [((torch.randn(8, 6), 1.0), torch.randn(8, 6)) for _ in range(10)]
    batches[4][0][0][2, 3] = math.nan
    assert [inputs is batches[9][0] for inputs, _ in of_batches(batches).held_out] == [True]
    numbers = [(number, 0) for number in range(10)]
    assert of_batches(numbers).held_out == [(4, 0), (9, 0)]


@pytest.mark.parametrize(("count", "named"), [(5, "numbers 4"), (10, "numbers 4, 9"), (30, "numbers 4, 9, 14, 3 more")])
def test_held_out_batches_of_which_nothing_is_left_are_named(count, named):
    with pytest.raises(ValueError, match=rf"^batches: NaN or Inf leaves nothing of those held out \({named}\), so"):
        of_batches([(torch.full((8, 6), math.nan), torch.randn(8, 6))] * count)


@pytest.mark.parametrize("remedy", ["safe-log", "safe-sqrt", "safe-division", "masked-softmax"])
def test_a_safe_form_of_what_nothing_calls_does_not_apply(remedy):
    (safe,) = (treatment for treatment in TREATMENTS if treatment.remedy == remedy)
    with pytest.raises(NotApplicableError, match="neither the model nor its loss calls"):
        run(identity(), (safe,), 0, 5)


def test_a_treated_model_that_cannot_be_evaluated_says_so():
    def refuse(module, _):
        if not module.training:
            raise ZeroDivisionError("not in eval mode")

    broken = Treatment("he", "", lambda setup: setup.model.register_forward_pre_hook(refuse))
    with pytest.raises(ZeroDivisionError, match="not in eval mode"):
        run(identity(), (broken,), 0, 5)


def test_a_run_is_the_plain_loop():
    torch.manual_seed(0)
    model = nn.Linear(6, 6)
    x = torch.randn(320, 6, generator=torch.Generator().manual_seed(1)).split(32)
    training = [batch for number, batch in enumerate(x) if number not in (4, 9)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(60):
        optimizer.zero_grad()
        F.mse_loss(model(training[step % 8]), training[step % 8]).backward()
        optimizer.step()
    held_out = [F.mse_loss(model(x[number]), x[number]).item() for number in (4, 9)]
    assert learn(60).after == sum(held_out) / 2


def test_settings_act():
    plain = learn(60).after
    assert learn(60, "lower-learning-rate", strength="-0.1").after > plain
    assert learn(60, "higher-learning-rate", strength="-10").after < plain
    assert learn(60, "weight-regularisation").after != plain
    assert learn(60, "weight-clipping").after > plain
    assert plain < learn(60, "warm-up").after < learn(30).after


@pytest.mark.usefixtures("clock")
def test_a_run_tells_what_it_took_beside_its_loop():
    def make_model():
        time.sleep(0.1)
        return nn.Linear(6, 6)

    problem = dataclasses.replace(identity(), make_model=make_model)
    around = [run(problem, (), seed, 5).seconds_around for seed in range(2)]  # at first it is made twice
    assert all(0.1 <= seconds < 0.19 for seconds in around)


def test_an_optimizer_that_evaluates_the_loss_by_itself_trains():
    problem = of_batches(identity().training)
    found = run(dataclasses.replace(problem, make_optimizer=lambda p: torch.optim.LBFGS(p, lr=0.5)), (), 0, 10)
    assert found.steps == 10
    assert found.after < 0.1 * found.before


def test_a_run_is_the_same_twice():
    first, second = learn(20), learn(20)
    assert (first.before, first.after) == (second.before, second.after)
    assert first.before > first.after
