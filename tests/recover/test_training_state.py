import copy

import pytest
import torch
from torch import nn

from gradwatch.recover.training_state import TrainingState, bytes_in, bytes_of_training, training_state


def model_of(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))


def train(model, optimizer, steps, seed):
    """Make ``steps`` updates; return the losses."""
    torch.manual_seed(seed)
    losses = []
    for _ in range(steps):
        x = torch.randn(16, 4)

        def closure(x=x):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss.detach()

        losses.append(float(optimizer.step(closure)))
    return losses


def same(a, b):
    """Tell bit for bit whether two nests of dicts, lists and tensors are the same."""
    if isinstance(a, torch.Tensor):
        is_same = a.dtype == b.dtype and a.shape == b.shape and a.device == b.device
        return is_same and a.detach().numpy().tobytes() == b.detach().numpy().tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01, amsgrad=True),
    "adamw with a tensor rate": lambda ps: torch.optim.AdamW(ps, lr=torch.tensor(0.01), capturable=False),
    "lbfgs": lambda ps: torch.optim.LBFGS(ps, lr=0.1, max_iter=3),
    "rprop": lambda ps: torch.optim.Rprop(ps, lr=0.01),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_restored_run_goes_on_bit_for_bit(make):
    model = model_of()
    optimizer = make(model.parameters())
    train(model, optimizer, 3, seed=1)
    state = training_state({"": model}, [optimizer])
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    first = train(model, optimizer, 4, seed=2)
    after = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    state.restore_({"": model}, [optimizer])
    assert same((model.state_dict(), optimizer.state_dict()), before)
    assert train(model, optimizer, 4, seed=2) == first
    assert same((model.state_dict(), optimizer.state_dict()), after)


def test_a_state_of_before_the_first_update_takes_away_what_the_optimizer_has_kept_since():
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters())
    state = training_state({"": model}, [optimizer])
    first = train(model, optimizer, 2, seed=2)
    state.restore_({"": model}, [optimizer])
    assert not optimizer.state
    assert train(model, optimizer, 2, seed=2) == first


def test_weights_and_what_the_optimizer_keeps_are_restored_in_place():
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, 1, seed=1)
    weight = model[0].weight
    places = [weight.data_ptr(), model[1].running_mean.data_ptr(), optimizer.state[weight]["exp_avg"].data_ptr()]
    training_state({"": model}, [optimizer]).restore_({"": model}, [optimizer])
    assert places == [
        model[0].weight.data_ptr(),
        model[1].running_mean.data_ptr(),
        optimizer.state[model[0].weight]["exp_avg"].data_ptr(),
    ]


def test_a_state_survives_a_file_that_executes_nothing_and_fits_a_new_model(tmp_path):
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, 3, seed=1)
    torch.save(training_state({"": model}, [optimizer]).as_plain(), tmp_path / "state.pt")
    fresh = model_of(seed=9)
    its_optimizer = torch.optim.AdamW(fresh.parameters())
    state = TrainingState.from_plain(torch.load(tmp_path / "state.pt", weights_only=True))
    state.restore_({"": fresh}, [its_optimizer])
    assert train(fresh, its_optimizer, 3, seed=4) == train(model, optimizer, 3, seed=4)


def test_optimizer_state_keeps_its_dtype_where_weights_have_another():
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    model = nn.Module()
    model.weight = weight
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer.state[weight]["master"] = torch.full((3,), 1 + 2**-20)
    state = training_state({"": model}, [optimizer])
    optimizer.state.clear()
    state.restore_({"": model}, [optimizer])
    assert same(optimizer.state[weight]["master"], torch.full((3,), 1 + 2**-20))


def test_values_that_are_not_finite_and_negative_zeros_come_back_bit_for_bit():
    model = nn.Linear(3, 1, bias=False)
    odd = torch.tensor([[float("nan"), float("-inf"), -0.0]])
    with torch.no_grad():
        model.weight.copy_(odd)
    state = training_state({"": model})
    nn.init.ones_(model.weight)
    state.restore_({"": model})
    assert same(model.weight, odd)


def test_buffers_that_were_exchanged_expanded_or_not_persistent_come_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)
            self.register_buffer("scale", torch.ones(1).expand(3))
            self.register_buffer("unset", None)

    model = Counting()
    state = training_state({"": model})
    model.seen, model.scale = torch.tensor(5), torch.full((1,), 7.0).expand(3)
    state.restore_({"": model})
    assert int(model.seen) == 0
    assert model.scale.tolist() == [1, 1, 1]
    assert model.unset is None


def test_several_models_and_tied_weights_have_names_of_their_own():
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    two.weight = one.weight
    state = training_state({"G": one, "D": two})
    assert sorted(state.weights) == ["D.bias", "D.weight", "G.bias", "G.weight"]
    kept = one.weight.detach().clone()
    nn.init.zeros_(one.weight)
    state.restore_({"G": one, "D": two})
    assert torch.equal(two.weight, kept)
    assert two.weight is one.weight


def test_another_model_or_optimizer_is_refused_before_anything_has_changed():
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = training_state({"": model}, [optimizer])
    other = nn.Sequential(nn.Linear(4, 8))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match="other parameters"):
        state.restore_({"": other})
    assert same(other.state_dict(), before)
    wider = model_of()
    wider[0].weight = nn.Parameter(torch.ones(9, 4))
    with pytest.raises(ValueError, match=r"0\.weight.*\(8, 4\).*\(9, 4\)"):
        state.restore_({"": wider})
    with pytest.raises(ValueError, match="SGD with 1 groups, the optimizer is AdamW"):
        state.restore_({"": model}, [torch.optim.AdamW(model.parameters())])
    with pytest.raises(ValueError, match="1 optimizers, but 2"):
        state.restore_({"": model}, [optimizer, optimizer])


def test_bytes_are_those_of_all_tensors_that_are_copied():
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, 1, seed=1)
    state = training_state({"": model}, [optimizer])
    copied = bytes_in([state.weights, state.buffers, [each.entries for each in state.optimizers]])
    assert bytes_of_training({"": model}, [optimizer]) == copied
    assert bytes_in({"a": torch.ones(3, dtype=torch.float64), "b": [torch.ones(2, dtype=torch.uint8), "text"]}) == 26
