"""Programs that others wrote, as the four arguments of ``prescribe``."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import gradwatch
from benchmarks.cures.form import Form
from benchmarks.external import compare, forms, kept, keras_layers, tensors
from benchmarks.external.execute import Places
from benchmarks.external.keras_training import loss_of, optimizer_of, targets_of
from benchmarks.external.program import External, sick

NOWHERE = Places(Path("nowhere"), Path("nowhere"), Path(sys.executable))


def dense(units, inputs, activation="linear", initializer="GlorotUniform", **config):
    kernel = {"class_name": initializer, "config": config}
    return {
        "kind": "Dense",
        "config": {"use_bias": True, "activation": activation, "kernel_initializer": kernel,
                   "bias_initializer": {"class_name": "Zeros", "config": {}}},
        "weights": [torch.ones(inputs, units).numpy(), torch.ones(units).numpy()],
    }  # fmt: skip


def test_weights_are_drawn_anew_from_the_distribution_of_keras():
    layers = [dense(300, 100), dense(300, 300, initializer="RandomUniform", minval=-0.05, maxval=0.05)]
    torch.manual_seed(1)
    one, other = keras_layers.model_of(layers), keras_layers.model_of(layers)
    assert not one[0].weight.equal(other[0].weight)
    assert one[0].weight.abs().max().item() == pytest.approx((6 / 400) ** 0.5, rel=1e-2)
    assert one[1].weight.abs().max().item() == pytest.approx(0.05, rel=1e-2)
    assert not one[0].bias.any()
    assert keras_layers.model_of(layers, as_kept=True)[0].weight.eq(1).all()
    torch.manual_seed(1)
    assert keras_layers.model_of(layers)[0].weight.equal(one[0].weight)


@pytest.mark.parametrize(
    "layer",
    [{"kind": "Lambda", "config": {}, "weights": []}, dense(2, 2, "gelu"), dense(2, 2, initializer="HeNormal")],
)
def test_what_has_no_translation_is_refused(layer):
    with pytest.raises(keras_layers.NoTranslationError):
        keras_layers.model_of([layer])


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("Lion", {"learning_rate": 0.1}),
        ("SGD", {"learning_rate": {"class_name": "ExponentialDecay"}}),
        ("SGD", {"learning_rate": 0.1, "clipnorm": 1.0}),
    ],
)
def test_an_optimizer_without_a_counterpart_is_refused(kind, config):
    with pytest.raises(keras_layers.NoTranslationError):
        optimizer_of(kind, config)
    with pytest.raises(keras_layers.NoTranslationError):
        loss_of("poisson", False)


def test_targets_take_the_shape_in_which_keras_compares_them():
    outputs = torch.zeros(4, 1)
    assert targets_of(torch.zeros(4), outputs, "mse").shape == (4, 1)
    assert targets_of(torch.zeros(4, 1), torch.zeros(4, 3), "sparse_categorical_crossentropy").shape == (4,)
    with pytest.raises(keras_layers.NoTranslationError):
        targets_of(torch.zeros(4, 2), outputs, "mse")


def test_an_epoch_is_given_once_unless_nothing_of_it_could_be_held_out():
    x = torch.arange(100.0)[:, None]
    once = forms.batches_of(x, x, 10, 0)
    assert [len(inputs) for inputs, _ in once] == [10] * 10
    assert sorted(torch.cat([inputs for inputs, _ in once]).flatten().tolist()) == x.flatten().tolist()
    assert not once[0][0].equal(forms.batches_of(x, x, 10, 1)[0][0])
    assert forms.batches_of(x, x, 10, None)[0][0].equal(x[:10])
    assert len(forms.batches_of(x, x, 25, 0)) == forms.REPEATED
    assert len(forms.batches_of(x, x, 24, 0)) == 5


def test_a_loss_that_no_output_changes_is_told_apart():
    batches = [(torch.rand(8, 2), torch.ones(8, 1))] * 5
    make = lambda: keras_layers.model_of([dense(1, 2, "sigmoid")])
    optimizer = optimizer_of("Adam", {"learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7})
    is_constant = {
        name: forms.is_constant(Form(make, optimizer, batches, loss_of(name, False)))
        for name in ("categorical_crossentropy", "binary_crossentropy", "mse")
    }
    assert is_constant == {"categorical_crossentropy": True, "binary_crossentropy": False, "mse": False}


@pytest.mark.parametrize("name", ["GRIST/34", "GRIST/37"])
def test_bare_tensors_become_a_model_with_the_losses_of_torch(name):
    written = tensors.WRITTEN[name]
    x = torch.rand(6, 4)
    labels = torch.tensor([0, 1, 2, 0, 1, 2]) if written.classes == 3 else torch.tensor([[0.0], [1.0]] * 3)
    weights = [torch.zeros(written.classes, 4), torch.zeros(written.classes)]
    if not written.is_layer:
        weights[0] = weights[0].T
    kept = {"weights": weights, "optimizer": ("SGD", [{"lr": 0.1}]), "batches": [(x, labels)] * 8, "losses": []}
    form = forms.of_tensors(written, kept)
    p = form.make_model()(x)
    expected = nn.functional.nll_loss(p.log(), labels) if written.classes == 3 else nn.functional.binary_cross_entropy(
        p, labels
    )  # fmt: skip
    torch.testing.assert_close(form.loss_fn(p, labels), expected)
    losses = compare.losses_of_tensors(name, kept)
    assert losses[-1] < losses[0]
    assert compare.difference(losses, losses) == 0.0
    assert compare.difference([1.0, float("nan")], [1.0, float("nan")]) == 0.0
    assert compare.difference([1.0], [2.0]) == 0.5


def test_a_module_of_torch_is_copied_with_weights_drawn_anew():
    model = nn.Sequential(nn.Linear(3, 2), nn.Softmax(1))
    kept = {
        "model": model, "loss": nn.CrossEntropyLoss(), "reshaped": (-1, 2), "batches": [],
        "optimizer": ("AdamW", [{"lr": 0.5, "decoupled_weight_decay": True}]),
    }  # fmt: skip
    form = forms.of_torch(kept)
    torch.manual_seed(0)
    one, other = form.make_model(), form.make_model()
    assert not one[0].weight.equal(other[0].weight)
    assert form.make_optimizer(one.parameters()).defaults["lr"] == 0.5
    assert form.loss_fn(torch.rand(1, 5, 2), torch.zeros(5).long()).isfinite()
    with pytest.raises(keras_layers.NoTranslationError):
        forms.same_optimizer("SGD", [{"lr": 0.1}, {"lr": 0.2}])


def test_the_sick_programs_are_those_that_count_for_detection():
    names = [program.name for program in forms.programs(NOWHERE)]
    assert len(names) == len(set(names)) == 56
    assert set(forms.EXCLUDED) < set(names)
    assert set(tensors.WRITTEN) < set(names)
    assert forms.form_of("reproduced/075", 1, NOWHERE) == forms.EXCLUDED["reproduced/075"]


KERAS = """
import numpy as np
from keras import Sequential
from keras.layers import {layers}
from keras.optimizers import SGD
x, y = np.random.rand(20, {shape}), np.random.randint(0, 2, 20)
model = Sequential([{model}])
model.compile(loss="{loss}", optimizer=SGD(learning_rate=0.1, momentum=0.5, nesterov=True))
model.fit(x, y, batch_size=4, validation_split=0.2)
"""
CHAINS = {
    "dense": ("5", "Dense(7, activation='relu'), BatchNormalization(), Dropout(0.5), Dense(1, activation='sigmoid')",
              "binary_crossentropy"),
    "images": ("9, 9, 3", "Conv2D(4, 3, padding='same', activation='tanh'), MaxPooling2D(), Conv2D(5, 2), LeakyReLU(), "
               "Flatten(), Dense(3, activation='softmax')", "sparse_categorical_crossentropy"),
    "sequences": ("8, 2", "Conv1D(4, 4, padding='same'), BatchNormalization(), MaxPooling1D(), Flatten(), Dense(1)",
                  "mse"),
    "recurrent": ("6, 2", "GRU(3, return_sequences=True), Masking(0.0), LSTM(2, activation='sigmoid', "
                  "recurrent_activation='hard_sigmoid'), Dense(1, activation='softmax')", "mean_absolute_error"),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("external")
    (root / "scratch").mkdir()
    return Places(root / "repositories", root / "scratch", Path(sys.executable))


def keep(places, name, script, adapters):
    folder = places.repositories / "pytorch" / "examples" / name
    folder.mkdir(parents=True)
    (folder / "train.py").write_text(script, encoding="utf-8")
    program = External(f"own/{name}", "own", "pytorch/examples", f"{name}/train.py", sick("stalled", "It stays."),
                       adapters=adapters)  # fmt: skip
    return kept.kept(program, places)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
def test_a_translated_model_has_the_losses_of_keras(places, name):
    shape, model, loss = CHAINS[name]
    layers = ", ".join({part.split("(")[0].strip() for part in model.split("), ")})
    script = KERAS.format(layers=layers, shape=shape, model=model, loss=loss)
    found = keep(places, name, script, ("keras_torch",))
    assert len(found["x"]) == 16
    assert len(found["losses"]) == 10
    ours, theirs = compare.losses_of_keras(found), found["losses"]
    assert compare.difference(ours[:2], theirs[:2]) < 1e-5
    assert compare.difference(ours, theirs) < 1e-2  # Keras takes the variance as E[x²] − E[x]², which is less precise
    form = forms.of_keras(found, 1)
    assert [len(x) for x, _ in form.batches[:4]] == [4] * 4


TORCH = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
    def forward(self, x):
        return torch.sigmoid(self.linear(x))
net, loss_fn = Net(), torch.nn.MSELoss()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for _ in range(400):
    optimizer.zero_grad()
    loss_fn(net(torch.rand(4, 3)), torch.full((4, 2), 100.0)).backward()
    optimizer.step()
"""


@pytest.mark.process
@pytest.mark.slow
def test_a_program_of_torch_is_given_to_prescribe(places):
    found = keep(places, "torch", TORCH, ())
    assert len(found["batches"]) == kept.UPDATES
    form = forms.of_torch(found)
    assert type(form.make_model()).__name__ == "Net"
    told = gradwatch.prescribe(form.make_model, form.make_optimizer, form.batches[:20], form.loss_fn, budget_seconds=3)
    assert told.note
