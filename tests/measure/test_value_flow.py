"""Values that come back to the loss without their graph."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradwatch.hooks.guard import Guard
from gradwatch.measure.layers import of_model
from gradwatch.measure.value_flow import ValueFlow

READER = 1


class Model(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.encoder, self.side, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self._forward = forward

    def forward(self, inputs):
        return self._forward(self, inputs)


def without_grad(model, inputs):
    with torch.no_grad():
        features = model.encoder(inputs).relu()
    return model.head(features)


def written_in_place(model, inputs):
    buffer = torch.zeros(3, 4)
    buffer[:] = model.encoder(inputs).detach()
    return model.head(buffer)


def joined_before_the_head(model, inputs):
    scores = (model.encoder(inputs) @ model.encoder(inputs).T).softmax(-1).detach()
    return model.head(scores @ model.side(inputs))


def pooled_beside(model, inputs):
    return model.head(model.side(inputs)), model.encoder(inputs)


def chosen_by(model, inputs):
    rows = model.encoder(inputs).argmax(1).clamp(max=2)
    return model.head(inputs[rows])


LOST = {
    "under no_grad": without_grad,
    "detached": lambda model, inputs: model.head(model.encoder(inputs).detach() * 2),
    "by .data": lambda model, inputs: model.head(model.encoder(inputs).data),
    "written in place": written_in_place,
    "joined before the head": joined_before_the_head,
    "a weight without its graph": lambda model, inputs: model.head(inputs @ model.encoder.weight.detach()),
    "added to the result": lambda model, inputs: model.side(inputs) + model.encoder(inputs).detach(),
    "put beside the result": lambda m, inputs: torch.cat([m.side(inputs), m.encoder(inputs).detach()], 1).relu(),
    "gone through a checkpoint": lambda m, inputs: m.head(
        checkpoint(m.side, m.encoder(inputs).detach(), use_reentrant=False)
    ),
}

KEPT = {
    "with its graph": lambda model, inputs: model.head(model.encoder(inputs)),
    "not called": lambda model, inputs: model.head(inputs),
    "called for nothing": pooled_beside,
    "a teacher's distance": lambda model, inputs: model.side(inputs) - model.encoder(inputs).detach(),
    "a teacher's loss": lambda model, inputs: (model.side(inputs) + model.encoder(inputs).detach()).mean(),
    "a cosine": lambda model, inputs: model.side(inputs) * model.encoder(inputs).detach(),
    "a choice": chosen_by,
}


def lost_in(model, run, trained):
    """Return the names of the modules that were lost on the way to those named."""
    layers = of_model(model)
    flow = ValueFlow({"": model}, layers, Guard())
    flow.begin(READER)
    run(model)
    columns = [column for column, name in enumerate(layers.names) if name.split(".")[0] in trained]
    found = flow.take(READER, columns)
    return {layers.names[column].split(".")[0] for column in found}


@pytest.mark.parametrize("name", LOST)
def test_what_is_lost_is_found(name):
    assert "encoder" in lost_in(Model(LOST[name]), lambda model: model(torch.randn(3, 4)), ["side", "head"])


@pytest.mark.parametrize("name", KEPT)
def test_what_is_not_lost_is_left_alone(name):
    assert lost_in(Model(KEPT[name]), lambda model: model(torch.randn(3, 4)), ["side", "head"]) == set()


def test_only_what_is_trained_counts():
    run = lambda model: model(torch.randn(3, 4))
    assert lost_in(Model(LOST["detached"]), run, ["side"]) == set()


@pytest.mark.parametrize("how", ["detach", "no_grad", "view"])
def test_a_value_is_known_again_between_two_calls_of_the_loop(how):
    def run(model):
        if how == "no_grad":
            with torch.no_grad():
                features = model.encoder(torch.randn(3, 4))
        else:
            features = model.encoder(torch.randn(3, 4)).detach()
        model.head(features.view(1, 3, 4) if how == "view" else features)

    assert lost_in(Model(None), run, ["head"]) == {"encoder"}


def test_what_the_loop_detaches_on_purpose_is_lost_as_well():  # whether it has a gradient elsewhere is asked elsewhere
    run = lambda model: model.head(model.encoder(torch.randn(3, 4)).detach())
    assert lost_in(Model(None), run, ["encoder", "head"]) == {"encoder"}


@pytest.mark.parametrize("part", ["encoder", "head"])
def test_evaluation_mode_is_not_followed(part):
    model = Model(LOST["detached"])
    getattr(model, part).eval()
    assert lost_in(model, lambda model: model(torch.randn(3, 4)), ["side", "head"]) == set()


def test_the_numbers_are_those_of_an_unfollowed_run():
    def numbers(is_followed):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(8, 16),
            nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True),
            nn.LSTM(16, 8, batch_first=True),
        )
        if is_followed:
            ValueFlow({"": model}, of_model(model), Guard()).begin(READER)
        output, _ = model(torch.randn(4, 5, 8))
        output.square().mean().backward()
        return [output, *(parameter.grad for parameter in model.parameters())]

    assert all(torch.equal(one, other) for one, other in zip(numbers(True), numbers(False), strict=True))


def test_a_call_that_raises_leaves_no_mode_behind():
    def fails(model, inputs):
        raise KeyError

    model = Model(fails)
    flow = ValueFlow({"": model}, of_model(model), Guard())
    flow.begin(READER)
    with pytest.raises(KeyError):
        model(torch.randn(3, 4))
    assert not is_followed(flow, model)
    flow.remove()


def test_a_call_that_stops_it_leaves_no_mode_behind():
    flows = []

    def stops(model, inputs):
        flows[0].remove()
        return model.head(inputs)

    model = Model(stops)
    flows.append(ValueFlow({"": model}, of_model(model), Guard()))
    flows[0].begin(READER)
    model(torch.randn(3, 4))
    assert not is_followed(flows[0], model)


def test_a_fault_stays_inside(monkeypatch):
    model = Model(LOST["detached"])
    guard = Guard()
    flow = ValueFlow({"": model}, of_model(model), guard)
    monkeypatch.setattr(flow, "_source_of", lambda *args: 1 / 0)
    flow.begin(READER)
    assert model(torch.randn(3, 4)).shape == (3, 4)
    assert flow.take(READER, range(6)) == []


def test_each_reader_gets_what_passed_since_it_began():
    model = Model(LOST["detached"])
    layers = of_model(model)
    flow = ValueFlow({"": model}, layers, Guard())
    flow.begin(1)
    flow.begin(2)
    model(torch.randn(3, 4))
    head = [column for column, name in enumerate(layers.names) if name.startswith("head")]
    assert flow.take(1, head) == flow.take(2, head) != []
    model(torch.randn(3, 4))
    assert flow.take(1, head) == []


def is_followed(flow, model):
    """Return True if an operation outside all calls is followed: a mode was left behind."""
    return model.encoder.weight * 2 in flow._known
