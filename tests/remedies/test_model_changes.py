"""Changes of a model: each against what it must leave as it was, or against a slow twin."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradwatch.remedies import (
    NotApplicableError,
    PartlyAppliedWarning,
    add_residuals_,
    init_he_,
    init_orthogonal_,
    init_xavier_,
    insert_norms_,
    remove_layers_,
    replace_activations_,
    replace_rnns_,
    truncate_backprop_,
    use_maxout_,
)
from gradwatch.remedies.forward_pass import layer_calls


def inputs():
    return torch.randn(8, 6)


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
        replace_activations_(model, inputs(), nn.ReLU())


def test_one_activation_in_several_places_goes_from_all():
    shared = nn.Sigmoid()
    model = nn.Sequential(nn.Linear(6, 5), shared, nn.Linear(5, 5), shared, nn.Linear(5, 3))
    replace_activations_(model, inputs(), nn.ReLU())
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]


def test_functions_inside_forward_are_answered_and_names_stay():
    model, x = Custom(), torch.randn(8, 6)
    names = [name for name, _ in model.named_parameters()]
    with pytest.warns(PartlyAppliedWarning) as caught:
        replace_activations_(model, inputs(), nn.ELU())
    expected = model.head(F.elu(model.second(F.elu(model.first(x)))))
    assert torch.equal(model(x), expected)
    (warning,) = caught
    assert str(warning.message) == "forward calls relu and tanh by name: there write ELU(alpha=1.0) by hand"
    assert [name for name, _ in model.named_parameters()] == names


def test_a_sigmoid_at_the_end_stays_and_a_relu_at_the_end_goes():
    bounded = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), nn.Sigmoid())
    replace_activations_(bounded, inputs(), nn.GELU())
    assert [type(module) for module in bounded] == [nn.Linear, nn.GELU, nn.Linear, nn.Sigmoid]
    rectified = nn.Sequential(nn.Linear(6, 3), nn.ReLU())
    replace_activations_(rectified, inputs(), nn.LeakyReLU())
    assert isinstance(rectified[1], nn.LeakyReLU)


@pytest.mark.parametrize(
    "end", [torch.sigmoid, torch.Tensor.tanh, F.softplus, nn.Sigmoid()], ids=["sigmoid", "tanh", "softplus", "module"]
)
def test_what_forward_calls_behind_its_last_layer_stays_and_the_rest_goes(end):
    class Ends(Custom):
        def forward(self, x):
            return end(super().forward(x))

    model, x = Ends(), torch.randn(8, 6)
    with pytest.warns(PartlyAppliedWarning, match="forward calls relu and tanh by name"):
        replace_activations_(model, inputs(), nn.ELU())
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
    with pytest.warns(PartlyAppliedWarning, match="forward calls sigmoid by name"):
        replace_activations_(model, inputs(), nn.ReLU())
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
    replace_activations_(model, inputs(), nn.ReLU())
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
    with pytest.warns(PartlyAppliedWarning, match="forward calls tanh by name"):
        replace_activations_(model, inputs(), nn.ReLU())
    assert torch.equal(model(x), torch.sigmoid(torch.relu(x @ model.one) @ model.two))


def test_a_transformer_layer_evaluates_by_the_function_that_was_put_in():
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, activation=nn.GELU(), batch_first=True)
    x = torch.randn(2, 3, 6)
    replace_activations_(layer, x, nn.ELU())
    expected = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), expected)


def test_prelu_needs_a_module_to_hold_its_weight():
    with pytest.raises(NotApplicableError, match="a function has no room for its weight"):
        replace_activations_(Custom(), inputs(), nn.PReLU())


def test_prelu_says_which_functions_it_could_not_replace():
    class Mixed(Custom):
        def __init__(self):
            super().__init__()
            self.squash = nn.Sigmoid()

        def forward(self, x):
            return self.head(torch.tanh(self.second(self.squash(self.first(x)))))

    model = Mixed()
    said = "^tanh, which forward calls by name, stayed: no room for a weight$"
    with pytest.warns(PartlyAppliedWarning, match=said):
        replace_activations_(model, inputs(), nn.PReLU())
    assert isinstance(model.squash, nn.PReLU)


def test_a_residual_connection_adds_what_went_in():
    model, x = sequential(), torch.randn(8, 6)
    plain = copy.deepcopy(model)
    add_residuals_(model, inputs())
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
    add_residuals_(model, x)
    assert torch.equal(model(x), expected)


def test_normalisation_stands_before_the_activation_and_not_twice():
    model = sequential()
    insert_norms_(model, inputs(), "layer")
    assert isinstance(model[0], nn.Sequential)
    assert isinstance(model[0][1], nn.LayerNorm)
    assert isinstance(model[6], nn.Linear)
    normalised = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(NotApplicableError, match="no hidden layer was found"):
        insert_norms_(normalised, inputs(), "batch")


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_convolutions_are_normalised_by_channel(kind):
    model = convolutional()
    insert_norms_(model, inputs(), kind)
    assert type(model[1][1]) is {"batch": nn.BatchNorm1d, "layer": nn.GroupNorm}[kind]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_transposed_convolutions_are_layers(dimensions):
    norm = getattr(nn, f"BatchNorm{dimensions}d")
    model = transposed(dimensions)[:-2]  # an autoencoder that ends in one, and its sigmoid
    inputs = torch.randn(8, 6)
    replace_activations_(model, inputs, nn.ReLU())
    insert_norms_(model, inputs, "batch")
    assert [type(model[place]) for place in (2, 4, 6)] == [nn.ReLU, nn.ReLU, nn.Sigmoid]
    assert [type(model[place][1]) for place in (1, 3)] == [norm, norm]
    before = [model[3][0].weight.clone(), model[5].weight.clone()]
    init_he_(model, inputs)
    assert not torch.equal(model[3][0].weight, before[0])
    assert not torch.equal(model[5].weight, before[1])


def test_every_second_layer_of_the_same_width_goes():
    model, x = sequential(), torch.randn(8, 6)
    plain = copy.deepcopy(model)
    remove_layers_(model, inputs())
    assert torch.equal(model(x), plain[6](plain[3](plain[2](plain[1](plain[0](x))))))


def test_maxout_is_the_larger_of_two_layers():
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(8, 6)
    use_maxout_(model)
    assert torch.equal(model(x), model[2](torch.maximum(model[0].one(x), model[0].other(x))))
    assert not torch.equal(model[0].one.weight, model[0].other.weight)


@pytest.mark.parametrize(
    ("initialise", "deviation"),
    [(init_he_, math.sqrt(2 / 400)), (init_xavier_, math.sqrt(2 / 800))],
)
def test_initialisations_have_their_deviation(initialise, deviation):
    model = nn.Sequential(nn.Linear(6, 400), nn.ReLU(), nn.Linear(400, 400), nn.BatchNorm1d(400), nn.Linear(400, 3))
    nn.init.constant_(model[3].weight, 100.0)
    initialise(model, inputs())
    assert model[2].weight.std().item() == pytest.approx(deviation, rel=0.02)
    assert not model[2].bias.any()
    assert (model[3].weight == 1).all()


def test_orthogonal_weights_are():
    model = sequential(nn.Tanh)
    init_orthogonal_(model, inputs())
    torch.testing.assert_close(model[2].weight @ model[2].weight.T, torch.eye(5))


def test_a_computed_weight_is_drawn_through_its_parametrization():
    layer = nn.Linear(6, 5)
    nn.init.zeros_(layer.weight)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(layer), nn.ReLU(), nn.Linear(5, 3))
    init_he_(model, inputs())
    assert model(torch.randn(8, 6)).isfinite().all()


def test_a_recurrent_state_starts_from_orthogonal_weights_and_an_open_forget_gate():
    cell = nn.LSTM(6, 5)
    init_xavier_(nn.Sequential(cell), torch.randn(4, 8, 6))
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
    replace_rnns_(model)
    assert isinstance(model.cell, nn.GRU)
    assert model(torch.randn(8, 4, 6)).shape == (8, 3)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_truncation_changes_gradients_and_nothing_else(kind):
    torch.manual_seed(0)
    x = torch.randn(8, 25, 6, requires_grad=True)
    model = Reader(kind(6, 5, batch_first=True))
    before = model(x)
    truncate_backprop_(model)
    after = model(x)
    torch.testing.assert_close(after, before)
    (slope,) = torch.autograd.grad(after.sum(), x)
    assert not slope[:, :20].any()  # pieces of 10: the last begins at 20
    assert slope[:, 20:].any()


def test_what_is_not_there_is_not_changed():
    for change in (replace_rnns_, truncate_backprop_):
        with pytest.raises(NotApplicableError, match=r"no nn\.RNN"):
            change(sequential())
    with pytest.raises(NotApplicableError, match="no block returns the shape"):
        add_residuals_(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), inputs())


def test_a_look_at_the_calls_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 3))
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    found = layer_calls(model, torch.randn(8, 6))
    assert [(call.name, *call.output_shape) for call in found] == [("0", 8, 5), ("3", 8, 3)]
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model[0]._forward_hooks
