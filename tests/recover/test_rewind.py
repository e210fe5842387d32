"""A run that goes back equals, bit for bit, one that never saw the batches in between: against a loop by hand."""

import copy
import math

import pytest
import torch
from torch import nn

import gradwatch
from gradwatch import RecoveryError, Rewind

EVERY, CONFIRM, FAULT, STEPS = 10, 5, 37, 60
BACK_TO = 30  # the newest snapshot that has stayed healthy for 5 steps before the fault
OPTIMIZERS = {
    "SGD": lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "AdamW": lambda weights: torch.optim.AdamW(weights, lr=0.02, amsgrad=True),
}


class Run:
    """A small training run with everything that has a state: dropout, batch normalisation, scheduler, scaler."""

    def __init__(self, optimizer, scales=False):
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 1))
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=STEPS)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=7, enabled=scales)
        generator = torch.Generator().manual_seed(5)
        inputs = torch.randn(STEPS, 16, 6, generator=generator)
        self.batches = [(x, x.sum(dim=1, keepdim=True)) for x in inputs]
        self.losses = []

    def step(self, number, rate_factor=1.0):
        x, y = self.batches[number]
        loss = (self.model(x) - y).square().mean()
        self.losses.append(loss.item())
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        rates = [group["lr"] for group in self.optimizer.param_groups]
        if rate_factor != 1:
            for group in self.optimizer.param_groups:
                group["lr"] = group["lr"] * rate_factor
        self.scaler.step(self.optimizer)
        if rate_factor != 1:
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        self.scaler.update()
        self.scheduler.step()

    def flip_a_bit(self):
        with torch.no_grad():
            self.model[4].weight[0, :6] = 1e38  # of several units, so that every batch meets one

    def state(self):
        return copy.deepcopy(
            [
                self.model.state_dict(),
                self.optimizer.state_dict(),
                self.scheduler.state_dict(),
                self.scaler.state_dict(),
                torch.get_rng_state(),
            ]
        )


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def train(run, recover, fault, **keywords):
    with gradwatch.watch(run.model, run.optimizer, recover=recover, **keywords) as watcher:
        for number in range(STEPS):
            if number == FAULT:
                fault(run)
            run.step(number)
    return watcher


def actions_of(watcher):
    return [action for finding in watcher.findings for action in finding.actions]


@pytest.mark.parametrize("lr_factor", [1.0, 0.5])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("in_file", [False, True], ids=["in memory", "in a file"])
def test_going_back_equals_a_run_that_never_saw_those_batches(optimizer, lr_factor, in_file, tmp_path):
    run = Run(optimizer)
    recover = Rewind(
        every=EVERY, confirm=CONFIRM, lr_factor=lr_factor, state=[run.scheduler], path=tmp_path if in_file else None
    )
    watcher = train(run, recover, Run.flip_a_bit)
    assert actions_of(watcher)[-1].startswith(f"step {FAULT + 2}: the run went back to the snapshot after step 29")
    by_hand = Run(optimizer)
    for number in range(BACK_TO):
        by_hand.step(number)
    for number in range(FAULT + 3, STEPS):
        by_hand.step(number, rate_factor=lr_factor)
    assert equal(run.state(), by_hand.state())


def test_a_black_box_changes_nothing_that_recovery_does(tmp_path):
    states = []
    for box in (None, tmp_path / "failed.pt"):
        run = Run("AdamW")
        recover = Rewind(every=EVERY, confirm=CONFIRM, state=[run.scheduler])
        watcher = train(run, recover, Run.flip_a_bit, black_box=box)
        assert "went back to the snapshot after step 29" in actions_of(watcher)[-1]
        states.append(run.state())
    assert equal(*states)
    assert (tmp_path / "failed.pt").exists()


def test_going_back_under_a_scaler_restores_its_scale_and_equals_the_run_by_hand():
    run = Run("SGD", scales=True)
    recover = Rewind(every=EVERY, confirm=CONFIRM, lr_factor=1.0, state=[run.scheduler])
    watcher = train(run, recover, Run.flip_a_bit)
    step = int(actions_of(watcher)[-1].split()[1].rstrip(":"))
    by_hand = Run("SGD", scales=True)
    for number in [*range(BACK_TO), *range(step + 1, STEPS)]:
        by_hand.step(number)
    assert equal(run.state(), by_hand.state())


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e6], ids=["nan", "inf", "finite"])
def test_a_corrupt_batch_is_left_out_and_leaves_nothing_behind(factor):
    """Neither in the statistics of batch normalisation nor in the random state."""
    run = Run("AdamW")

    def corrupt(run):
        run.batches[FAULT] = (run.batches[FAULT][0], run.batches[FAULT][1] * factor)

    train(run, Rewind(every=EVERY, confirm=CONFIRM), corrupt)
    by_hand = Run("AdamW")
    for number in range(STEPS):
        if number == FAULT:
            by_hand.scheduler.step()  # a step that was left out is one of the schedule
        else:
            by_hand.step(number)
    ours, theirs = run.state(), by_hand.state()
    assert equal(ours[0], theirs[0])
    assert equal(ours[4], theirs[4])


def test_a_healthy_run_is_bit_for_bit_what_it_was_and_never_goes_back():
    run = Run("AdamW")
    watcher = train(run, Rewind(every=EVERY, confirm=CONFIRM, state=[run.scheduler]), lambda run: None)
    ours, plain = run.state(), Run("AdamW")
    for number in range(STEPS):
        plain.step(number)
    assert equal(ours, plain.state())
    assert watcher.findings == []


def test_a_finding_keeps_what_was_done_and_ends_with_the_rewind():
    run = Run("SGD")
    memory = gradwatch.Memory()
    recover = Rewind(every=EVERY, confirm=CONFIRM, state=[run.scheduler])
    watcher = train(run, recover, Run.flip_a_bit, sinks=[memory])
    (finding,) = watcher.findings
    assert (finding.kind, finding.step, finding.last_step) == ("nonfinite", FAULT, FAULT + 2)
    assert [action.split(":")[0] for action in finding.actions] == [f"step {FAULT + each}" for each in range(3)]
    assert "What was done:" in str(finding)
    assert gradwatch.Finding.from_dict(finding.as_dict()) == finding
    assert watcher.history["skipped"][FAULT : FAULT + 3].all()


def test_a_rate_that_is_too_high_ends_in_an_error_with_the_whole_story():
    run = Run("SGD")
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] = 1e4
    with pytest.raises(RecoveryError, match="no snapshot had stayed healthy for 5 steps") as caught:
        train(run, Rewind(every=EVERY, confirm=CONFIRM), lambda run: None)
    assert caught.value.finding is not None
    assert caught.value.actions
    assert str(caught.value.finding) in str(caught.value)


def test_a_sickness_that_comes_back_each_time_ends_in_an_error_after_max_times():
    run = Run("SGD")
    watcher = gradwatch.watch(run.model, run.optimizer, recover=Rewind(every=EVERY, confirm=CONFIRM, max_times=2))

    def train_with_many_flips():
        for number in range(STEPS):
            if number >= FAULT:
                run.flip_a_bit()
            run.step(number)

    with pytest.raises(RecoveryError, match="the run has gone back 2 times, and may not more often") as caught:
        train_with_many_flips()
    watcher.close()
    assert sum("went back" in action for action in caught.value.actions) == 2
    assert caught.value.step == FAULT + 8


def test_what_comes_back_makes_the_run_go_further_back():
    run = Run("SGD")
    recover = Rewind(every=EVERY, confirm=CONFIRM, lr_factor=1.0, state=[run.scheduler])
    with gradwatch.watch(run.model, run.optimizer, recover=recover) as watcher:
        for number in range(STEPS):
            if FAULT <= number < FAULT + 6:
                run.flip_a_bit()
            run.step(number)
    backs = [action for action in actions_of(watcher) if "went back" in action]
    assert [action.split("after ")[1] for action in backs] == ["step 29", "step 19"]


def test_two_optimizers_go_back_together_once_in_each_iteration():
    torch.manual_seed(0)
    one, two = nn.Linear(4, 4), nn.Linear(4, 1)
    first = torch.optim.SGD(one.parameters(), lr=0.05, momentum=0.9)
    second = torch.optim.AdamW(two.parameters(), lr=0.05)
    inputs = torch.randn(40, 8, 4)
    states = []
    recover = Rewind(every=10, confirm=5, lr_factor=1.0)
    with gradwatch.watch({"one": one, "two": two}, [first, second], recover=recover) as watcher:
        for number, x in enumerate(inputs):
            if number == 30:
                with torch.no_grad():
                    two.weight.fill_(1e38)
            (two(one(x)) - x.sum(dim=1, keepdim=True)).square().mean().backward()
            for optimizer in (first, second):
                optimizer.step()
            for optimizer in (first, second):
                optimizer.zero_grad()
            states.append(copy.deepcopy([one.state_dict(), two.state_dict()]))
    (back,) = {action for action in actions_of(watcher) if "went back" in action}  # it is in both findings
    step, snapshot = int(back.split()[1].rstrip(":")), int(back.split("after step ")[1].split(",")[0])
    assert equal(states[step // 2], states[snapshot // 2])  # two steps an iteration


@pytest.mark.parametrize("skip", [0, 12])
def test_a_loader_goes_back_too_and_leaves_out_the_sick_batches_alone_or_as_many_as_asked(skip):
    run = Run("AdamW")
    loader = gradwatch.RewindableLoader(range(STEPS))
    recover = Rewind(every=EVERY, confirm=CONFIRM, skip=skip, lr_factor=1.0, state=[run.scheduler, loader])
    seen = []
    with gradwatch.watch(run.model, run.optimizer, recover=recover):
        for number in loader:
            seen.append(number)
            if len(seen) == FAULT + 1:
                run.flip_a_bit()
            run.step(number)
    again = range(BACK_TO + skip, STEPS) if skip else [*range(BACK_TO, FAULT), *range(FAULT + 3, STEPS)]
    assert seen == [*range(FAULT + 3), *again]
    by_hand = Run("AdamW")
    for number in [*range(BACK_TO), *again]:
        by_hand.step(number)
    assert equal(run.state(), by_hand.state())


def test_bad_keywords_are_refused_in_words():
    for keywords, words in [
        ({"every": 0}, r"every=0\): expected a whole number, 1 or more"),
        ({"keep": 1}, "2 or more"),
        ({"confirm": 2.5}, "confirm=2.5"),
        ({"skip": -1}, "skip=-1"),
        ({"skip": 4}, "RewindableLoader"),
        ({"max_times": True}, "max_times=True"),
        ({"lr_factor": 0}, "above 0, and 1 at most"),
        ({"lr_factor": 1.5}, "lr_factor=1.5"),
    ]:
        with pytest.raises(ValueError, match=words):
            Rewind(**keywords)
    with pytest.raises(TypeError, match=r"wrap it in gradwatch\.RewindableLoader"):
        Rewind(state=[torch.utils.data.DataLoader([1])])
    with pytest.raises(TypeError, match=r"Write state=\(it,\)"):
        Rewind(state=nn.Linear(1, 1))
    with pytest.raises(TypeError, match="path=3"):
        Rewind(path=3)


def test_what_recovers_does_not_go_with_what_raises_or_with_bare_tensors():
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="Set one of them"):
        gradwatch.watch(model, recover=Rewind(), on_nonfinite="raise")
    with pytest.raises(TypeError, match=r"gradwatch\.Rewind\(…\) or None"):
        gradwatch.watch(model, recover=True)
    with pytest.raises(ValueError, match="Put them into a module"):
        gradwatch.watch_tensors({"w": torch.ones(2)}, recover=Rewind())
