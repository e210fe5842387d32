"""Each published rule, on both sides of its threshold."""

import math

import pytest
import torch
from torch import nn

from benchmarks.detection.program import Program, plain
from benchmarks.detection.rivals import (
    RIVALS,
    Activation,
    AutoTrainer,
    DeepDiagnosis,
    DeepLocalize,
    GradientStatsMonitor,
    SageMakerDebugger,
    TheDeepChecker,
    Umlaut,
    Update,
    run_rival,
)

NAN = math.nan


def tensors(*norms):
    """Kernels of four equal entries, of these L2 norms, in order."""
    return {f"{index}.weight": torch.full((2, 2), norm / 2, dtype=torch.float64) for index, norm in enumerate(norms)}


def update(number=0, *, gradients=(1.0, 1.0), before=None, moved=None, losses=(1.0,), steps=100, rate=0.1, **other):
    """One update of one optimizer; the weights have norm 1 and move by 0.01 of it, unless told."""
    gradients = tensors(*gradients) if isinstance(gradients, tuple) else gradients
    before = before or {name: torch.full_like(g, 0.5) for name, g in gradients.items()}
    after = {name: weight * 1.01 if moved is None else weight + moved / 2 for name, weight in before.items()}
    rates = dict.fromkeys(gradients, rate)
    return Update(number, number, 0, number, steps, gradients, before, after, rates, losses, **other)


def said(rival, *updates):
    for each in updates:
        rival.judge(each)
    return [(alarm.kind, alarm.layer) for alarm in rival.alarms]


def relu(share_active, units=10, examples=200):
    """A ReLU's output, ``share_active`` of the units active in every example."""
    output = torch.zeros(examples, units)
    output[:, : round(share_active * units)] = 1
    return Activation("act", "relu", output, output)


def moving(number, **change):
    """Updates of which nothing stands still."""
    change = {"gradients": (1.0 + number,), "losses": (1.0 / (1 + number),)} | change
    return update(number, before=tensors(1.0 + number), **change)


ungated = lambda: AutoTrainer(gated=False)


@pytest.mark.parametrize(
    ("gradients", "expected"),
    [
        ((0.9e-4, 1.0), [("vanishing", "0.weight")]),
        ((1.1e-4, 1.0), []),  # the ratio is below a thousandth, the norm not below 1e-4
        ((0.9e-4, 0.08), []),  # the norm is, the ratio not
        ((71.0, 1.0), [("exploding", "0.weight")]),
        ((69.0, 1.0), []),
        ((1.0, NAN), [("nonfinite", "1.weight")]),
    ],
)
def test_autotrainer_compares_the_first_kernel_with_the_last(gradients, expected):
    assert said(ungated(), update(gradients=gradients)) == expected


@pytest.mark.parametrize(("zeros", "expected"), [(7, [("dead", "")]), (6, [])])
def test_autotrainer_counts_gradient_entries_of_zero(zeros, expected):
    gradient = torch.ones(1, 10, dtype=torch.float64)
    gradient[0, :zeros] = 0
    assert said(ungated(), update(gradients={"0.weight": gradient})) == expected


@pytest.mark.parametrize(
    ("loss", "expected"), [(1e5, [("exploding", "")]), (0.9e5, []), (math.inf, [("nonfinite", "")])]
)
def test_autotrainer_calls_a_large_loss_exploding(loss, expected):
    assert said(AutoTrainer(), update(losses=(loss,))) == expected


def test_autotrainer_waits_for_a_third_of_the_run_and_stops_at_its_first_finding():
    run = [update(number, gradients=(0.9e-4, 1.0)) for number in range(60)]
    rival = AutoTrainer()
    said(rival, *run, update(60, gradients=(NAN, 1.0)))
    assert [(alarm.kind, alarm.step) for alarm in rival.alarms] == [("vanishing", 30)]


@pytest.mark.parametrize(("low", "expected"), [(0.59, []), (0.61, [("vanishing", "0.weight")])])
def test_autotrainer_is_silent_where_the_loss_has_come_down(low, expected):
    run = [update(number, gradients=(0.9e-4, 1.0), losses=(low if number else 1.0,)) for number in range(60)]
    assert said(AutoTrainer(), *run) == expected


def test_autotrainer_leaves_embeddings_out():
    alone = update(gradients=(0.9e-4, 1.0), embeddings=frozenset(["0.weight"]))
    assert said(ungated(), alone) == []


def test_an_epoch_is_a_hundredth_of_the_run_and_ends_with_its_last_update():
    run = [update(number, gradients=(71.0, 1.0), steps=500) for number in range(5)]
    rival = ungated()
    assert said(rival, *run[:4]) == []
    said(rival, run[4])
    assert rival.alarms[0].step == 4


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"gradients": (1.9e-7,)}, [("vanishing", "0.weight")]),  # a norm of 2e-7 is a mean of 1e-7
        ({"gradients": (2.1e-7,)}, []),
        ({"gradients": (1e30,)}, []),
        ({"gradients": (math.inf,)}, [("nonfinite", "0.weight")]),
        ({"losses": (NAN,)}, [("nonfinite", "")]),
        ({"gradients": (1.0,), "moved": 10.1}, [("unstable", "0.weight")]),
        ({"gradients": (1.0,), "moved": 9.9}, []),
        ({"gradients": (1.0,), "moved": 0.9e-8}, [("stalled", "0.weight")]),
        ({"gradients": (1.0,), "moved": 1.1e-8}, []),
        ({"gradients": {"0.bias": torch.ones(2)}, "moved": 1e3}, []),
    ],
)
def test_sagemaker_looks_at_each_tensor_alone(change, expected):
    assert said(SageMakerDebugger(), update(**change)) == expected


@pytest.mark.parametrize(("active", "expected"), [(0.4, [("dead", "act")]), (0.5, [])])
def test_sagemaker_calls_a_layer_dead_where_more_than_half_of_its_units_are(active, expected):
    rival = SageMakerDebugger()
    rival.hear(relu(active))
    assert said(rival, update()) == expected


@pytest.mark.parametrize(("examples", "expected"), [(1, [("dead", "act")]), (2, [])])
def test_sagemaker_calls_a_unit_dead_that_is_active_in_less_than_one_percent(examples, expected):
    rival, output = SageMakerDebugger(), torch.zeros(200, 4)
    output[:examples] = 1
    rival.hear(Activation("act", "relu", output, output))
    assert said(rival, update()) == expected


def test_sagemaker_takes_a_channel_for_a_unit():
    rival, output = SageMakerDebugger(), torch.zeros(2, 3, 4, 4)
    output[:, :2, 0, 0] = 1
    rival.hear(Activation("act", "relu", output, output))
    assert said(rival, update()) == []


@pytest.mark.parametrize(
    ("function", "before", "expected"),
    [
        ("tanh", 9.5, [("saturated", "act")]),
        ("tanh", -9.49, []),
        ("sigmoid", 17.0, [("saturated", "act")]),
        ("sigmoid", -22.9, []),
    ],
)
def test_sagemaker_calls_extreme_inputs_saturated(function, before, expected):
    rival, values = SageMakerDebugger(), torch.full((8, 4), before)
    rival.hear(Activation("act", function, values, values))
    assert said(rival, update()) == expected


def test_a_module_called_twice_is_sick_only_where_both_calls_are():
    rival = SageMakerDebugger()
    rival.hear(relu(0.0))
    rival.hear(relu(1.0))
    assert said(rival, update()) == []


def test_sagemaker_sees_only_the_steps_it_saves():
    assert said(SageMakerDebugger(save_interval=500), update(499, gradients=(0.0,))) == []
    assert said(SageMakerDebugger(save_interval=500), update(500, gradients=(0.0,), steps=1000))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"gradients": (1.9e-7,)}, [("vanishing", "0.weight")]),
        ({"gradients": (2.1e-7,)}, []),
        ({"gradients": (0.0, 0.0)}, [("vanishing", "1.weight")]),  # from the back, and no more after the first
        ({"losses": (math.inf,)}, [("nonfinite", "")]),
    ],
)
def test_deepdiagnosis_looks_at_gradients_and_loss(change, expected):
    assert said(DeepDiagnosis(), update(**change)) == expected


@pytest.mark.parametrize(("active", "number", "expected"), [(0.3, 99, [("dead", "act")]), (0.4, 99, []), (0.3, 98, [])])
def test_deepdiagnosis_calls_a_relu_dead_in_the_last_epoch(active, number, expected):
    rival = DeepDiagnosis()
    rival.hear(relu(active))
    assert said(rival, update(number)) == expected


@pytest.mark.parametrize(("rate", "expected"), [(0.9e-5, "stalled"), (1.1e-5, None), (0.09, None), (0.11, "unstable")])
def test_deepdiagnosis_takes_the_learning_rate_for_a_symptom_only_alone(rate, expected):
    once = update(rate=rate, gradients=(1.0,))
    assert said(DeepDiagnosis(), once) == []
    assert said(DeepDiagnosis(ratio_alone=True), once) == ([(expected, "0.weight")] if expected else [])


@pytest.mark.parametrize(("extreme", "expected"), [(0.6, [("saturated", "act")]), (0.5, [])])
def test_deepdiagnosis_calls_inputs_beyond_five_saturated_every_fifth_epoch(extreme, expected):
    rival, values = DeepDiagnosis(), torch.full((10,), 4.9)
    values[: round(extreme * 10)] = -5
    for number in range(5):
        assert rival.alarms == []
        rival.hear(Activation("act", "tanh", values, values.tanh()))
        rival.judge(moving(number))
    assert said(rival) == expected


@pytest.mark.parametrize(("rate", "kind"), [(0.01, "stalled"), (1.0, "unstable")])
def test_deepdiagnosis_names_the_rate_where_losses_stand_still(rate, kind):
    run = [update(number, rate=rate, gradients=(1.0 + number,)) for number in range(5)]
    assert said(DeepDiagnosis(), *run[:4]) == []
    assert said(DeepDiagnosis(), *run) == [(kind, "")]


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ([moving(n) for n in range(9)], []),
        ([moving(n, losses=(1.0,)) for n in range(4)], []),
        ([moving(n, losses=(1.0,)) for n in range(5)], [("stalled", "")]),
        ([moving(n, gradients=(0.0 if n < 3 else 1.0 + n,)) for n in range(5)], [("vanishing", "0.weight")]),
        ([moving(n, gradients=(0.0 if n < 2 else 1.0 + n,)) for n in range(5)], []),
        ([moving(0, gradients=(NAN,))], [("nonfinite", "0.weight")]),
    ],
)
def test_deeplocalize_looks_for_what_stands_still(run, expected):
    assert said(DeepLocalize(), *run) == expected


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ([1.9e-6] * 11, "vanishing"),
        ([2.1e-6] * 11, None),
        ([2.1e6] * 11, "exploding"),
        ([1.9e6] * 11, None),
        ([0.5**n for n in range(11)], "vanishing"),
        ([0.51**n for n in range(11)], None),
        ([1.0] * 7 + [0.4, 0.16, 0.06, 0.02], "vanishing"),
        ([1.0] * 8 + [0.4, 0.16, 0.06], None),  # three in a row
        ([2.0**n for n in range(11)], "exploding"),
        ([1.99**n for n in range(11)], None),
        ([2.0**n for n in range(10)], None),  # nothing is looked at before the update 10
    ],
)
def test_thedeepchecker_looks_at_gradients_every_ten_updates(figures, expected):
    run = [update(number, gradients=(figure,)) for number, figure in enumerate(figures)]
    assert said(TheDeepChecker(), *run) == ([(expected, "0.weight")] if expected else [])


@pytest.mark.parametrize(
    ("moved", "expected"), [(0.11, "unstable"), (0.09, None), (1.1e-4, None), (0.9e-4, "stalled"), (0.0, "stalled")]
)
def test_thedeepchecker_looks_at_the_size_of_updates(moved, expected):
    run = [update(number, gradients=(1.0,), moved=moved) for number in range(11)]
    assert said(TheDeepChecker(), *run) == ([(expected, "0.weight")] if expected else [])


@pytest.mark.parametrize(("active", "expected"), [(0.4, [("dead", "act")]), (0.5, [])])
def test_thedeepchecker_calls_silent_units_dead(active, expected):
    rival = TheDeepChecker()
    for number in range(11):
        rival.hear(relu(active))
        rival.judge(update(number))
    assert said(rival) == expected


@pytest.mark.parametrize(
    ("function", "after", "expected"),
    [
        ("tanh", -0.86, [("saturated", "act")]),
        ("tanh", 0.84, []),
        ("sigmoid", 0.93, [("saturated", "act")]),
        ("sigmoid", 0.92, []),
    ],
)
def test_thedeepchecker_measures_saturation_of_outputs(function, after, expected):
    rival, values = TheDeepChecker(), torch.full((8, 4), after)
    for number in range(11):
        rival.hear(Activation("act", function, values, values))
        rival.judge(update(number))
    assert said(rival) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"losses": (NAN,)}, [("nonfinite", "")]),
        ({"losses": (math.inf,)}, []),
        ({"rate": 0.011, "is_adam": True}, [("unstable", "")]),
        ({"rate": 0.01, "is_adam": True}, []),
        ({"rate": 0.9e-7, "is_adam": True}, [("stalled", "")]),
        ({"rate": 1.0}, []),
    ],
)
def test_umlaut_looks_at_loss_and_rate(change, expected):
    assert said(Umlaut(), update(**change)) == expected


@pytest.mark.parametrize(
    ("gradients", "expected"), [((6e3, 8.1e3), [("exploding", "")]), ((6e3, 7.9e3), []), ((NAN,), [])]
)
def test_lightning_bounds_the_norm_of_all_gradients(gradients, expected):
    assert said(GradientStatsMonitor(), update(gradients=gradients)) == expected


def program(rate, *, clip=None, activation=nn.ReLU, bias=0.0):
    """A perceptron on random numbers, 40 updates."""

    def make(seed):
        model = nn.Sequential(nn.Linear(8, 16), activation(), nn.Linear(16, 1))
        nn.init.constant_(model[0].bias, bias)
        inputs = torch.randn(32, 8)
        targets = inputs.sum(1, keepdim=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        made.append(model)

        def before_update(number):
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)

        loss = lambda number: nn.functional.mse_loss(model(inputs), targets)
        return plain(model, optimizer, loss, 40, before_update=before_update)

    made = []
    return Program("perceptron", make, None), made


def test_a_healthy_run_alarms_none_but_is_heard_by_all():
    heard = run_rival(program(0.005)[0], seed=0)
    assert heard.keys() == RIVALS.keys()
    assert {name: alarms for name, alarms in heard.items() if alarms} == {}


def test_a_run_that_diverges_is_nonfinite_to_those_who_look():
    heard = run_rival(program(3.0)[0], seed=0, names=["SageMaker Debugger", "Lightning GradientStatsMonitor"])
    assert "nonfinite" in {alarm.kind for alarm in heard["SageMaker Debugger"]}
    assert [alarm.kind for alarm in heard["Lightning GradientStatsMonitor"]] == ["exploding"]


@pytest.mark.parametrize(("scale", "expected"), [(6e3, ["exploding"]), (4e3, [])])
def test_gradients_are_those_before_the_loop_clips(scale, expected):
    def make(seed):
        model = nn.Linear(4, 1, bias=False)  # the gradient is twice the scale
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
        clip = lambda number: nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        return plain(model, optimizer, lambda n: scale * model(torch.ones(2, 4)).mean(), 5, before_update=clip)

    name = "Lightning GradientStatsMonitor"
    assert [alarm.kind for alarm in run_rival(Program("clipped", make, None), 0, [name])[name]] == expected


@pytest.mark.parametrize(("activation", "kind"), [(nn.ReLU, "dead"), (nn.Tanh, "saturated")])
def test_activation_modules_are_heard_by_name(activation, kind):
    sick, _ = program(0.05, activation=activation, bias=-1e3)
    alarms = run_rival(sick, 0, ["SageMaker Debugger"])["SageMaker Debugger"]
    assert [(alarm.layer, alarm.step) for alarm in alarms if alarm.kind == kind] == [("1", 0)]


def test_no_hook_is_left_behind():
    once, made = program(0.05)
    run_rival(once, 0)
    modules, parameters = list(made[0].modules()), list(made[0].parameters())
    assert not any(module._forward_hooks for module in modules)
    assert not any(parameter._post_accumulate_grad_hooks for parameter in parameters)


def test_listening_changes_no_training():
    once, made = program(0.05, clip=0.5)
    run_rival(once, 0)
    run_rival(once, 0, names=[])
    assert all(torch.equal(heard, bare) for heard, bare in zip(made[0].parameters(), made[1].parameters(), strict=True))


def test_sparse_complex_closures_and_second_optimizers_are_heard():
    def make(seed):
        models = {"a": nn.EmbeddingBag(10, 4, sparse=True, mode="sum"), "b": nn.Linear(4, 1, dtype=torch.complex64)}
        first = torch.optim.SGD(models["a"].parameters(), lr=0.1)
        second = torch.optim.SGD(models["b"].parameters(), lr=0.1)

        def forward():
            rows = models["a"](torch.tensor([[1, 2], [3, 4]]))
            return models["b"](rows.to(torch.complex64)).abs().mean()

        def step(number, observe):
            first.zero_grad()
            second.zero_grad()
            loss = forward()
            observe(loss)
            loss.backward()
            first.step()

            def closure():
                second.zero_grad()
                again = forward()
                again.backward()
                return again

            second.step(closure)

        made = plain(nn.Identity(), first, forward, 12)
        return type(made)(models, [first, second], 12, step)

    alarms = run_rival(Program("odd", make, None), 0)
    assert alarms["SageMaker Debugger"] == []
    assert alarms["Lightning GradientStatsMonitor"] == []
