"""What a step costs, in counts, which are exact: operations, host syncs, compilations, imports."""

import gc
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gradwatch
from gradwatch import clip
from gradwatch.measure import statistics
from gradwatch.measure.samples import relative_change, sample

SYNCS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal"}


class Counting(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func._schema.name.split("::")[-1]] += 1
        return func(*args, **(kwargs or {}))


def operations_of_an_update(watcher, optimizer, parameters):
    for parameter in parameters:
        parameter.grad = torch.ones(3)
    watcher.observe_loss(1.0)
    with Counting() as counting:
        watcher._loop.before_update(optimizer)
        watcher._loop.after_update(optimizer)
    return counting.counts


def every_step(tensors, **options):
    """Operations of one step that is neither sampled nor logged, of so many tensors."""
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(tensors)]
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    with gradwatch.watch(nn.ParameterList(parameters), optimizer, **options) as watcher:
        for step in range(6):
            counted = operations_of_an_update(watcher, optimizer, parameters)
            if step in (3, 5):
                counts = counted
    return counts


@pytest.mark.parametrize("options", [{}, {"clip": 1.0}, {"clip": "auto"}, {"clip": clip.by_layer_norm(1.0)}])
def test_the_operations_of_a_step_do_not_grow_with_the_tensors(options):
    few, many = every_step(10, **options), every_step(300, **options)
    grows = {name: count for name, count in (many - few).items() if name not in ("unbind", "select")}
    assert grows == {}  # of a foreach there is one, whatever it holds
    assert sum(few.values()) <= 70
    assert few["_foreach_norm"] == 1


def test_one_pass_reads_the_gradients_and_one_writes_them():
    counts = every_step(50, clip=1e-3)
    assert {name: count for name, count in counts.items() if "foreach" in name} == {
        "_foreach_norm": 1,
        "_foreach_mul_": 1,
    }


def test_what_stays_below_the_limit_is_not_written():
    assert "_foreach_mul_" not in every_step(50, clip=1e6)


def on_another_device(act, count=2):
    """(result, operations) of ``act(gradients)``, of tensors without values: whoever waits for one raises."""
    gradients = [torch.empty(4, 4, device="meta") for _ in range(count)]
    with Counting() as counting:
        return act(gradients), counting.counts


@pytest.mark.parametrize("make", [None, torch.optim.Adam, torch.optim.SGD], ids=["none", "Adam", "SGD"])
@pytest.mark.parametrize(
    "policy",
    [clip.by_norm(1.0), clip.by_layer_norm(1.0), clip.auto(), clip.percentile(), clip.skip_spikes()],
    ids=lambda p: p.description,
)
def test_measuring_and_clipping_off_the_cpu_never_wait_for_the_device(policy, make):
    def act(gradients):
        magnitudes, ours = statistics.measure(gradients), policy.renew()
        if ours.is_spike is not None:
            assert ours.is_spike(magnitudes.total, None).is_meta
        return ours.clip_(gradients, magnitudes, gradients, None if make is None else make(gradients))

    (total, few), (_, many) = on_another_device(act), on_another_device(act, count=200)
    assert total.is_meta
    assert not SYNCS & set(few)
    assert {name for name, count in (many - few).items() if name not in ("unbind", "select", "detach")} == set()
    looks_at_weights = policy.description == "auto" and make is torch.optim.SGD  # once in fifty updates
    # squares, and the largest entries, which alone tell what is finite
    assert few["_foreach_norm"] == 2 + looks_at_weights


def test_a_wait_would_be_noticed():
    with pytest.raises(RuntimeError, match="meta"):
        on_another_device(lambda gradients: float(statistics.measure(gradients).total))


def test_sampled_figures_off_the_cpu_never_wait_either():
    def figures(gradients):
        magnitudes = statistics.measure(gradients)
        statistics.entries(gradients, magnitudes.l2)
        rows = sample(gradients).expand(len(gradients), -1)
        return relative_change(rows, rows)

    change, counts = on_another_device(figures)
    assert change.is_meta
    assert not SYNCS & set(counts)


def test_watching_breaks_no_graph_and_compiles_nothing_again():
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradwatch.watch(compiled, optimizer, clip=1.0):
        for _ in range(25):
            optimizer.zero_grad()
            compiled(torch.ones(4, 8)).sum().backward()
            optimizer.step()
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_a_step_costs_the_same_however_many_have_run():
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(5)]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    counts, sizes = [], []
    with gradwatch.watch(nn.ParameterList(parameters), optimizer, clip=1.0, history=16) as watcher:
        for step in range(400):
            counted = operations_of_an_update(watcher, optimizer, parameters)
            if step in (123, 393):
                counts.append(counted)
                sizes.append(len(str(watcher.state_dict())))
    assert counts[0] == counts[1]
    assert sizes[1] <= 1.1 * sizes[0]


def collections_of_an_update(watcher, optimizer):
    """How often Python's garbage collector ran."""
    runs = []
    note = lambda phase, _: runs.append(phase)
    gc.collect()
    gc.callbacks.append(note)
    watcher._loop.before_update(optimizer)
    watcher._loop.after_update(optimizer)
    gc.callbacks.remove(note)
    return runs.count("start")


def test_the_objects_of_a_sampled_step_set_off_no_garbage_collection():
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2000)]
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    threshold = gc.get_threshold()
    with gradwatch.watch(nn.ParameterList(parameters), optimizer) as watcher:
        for parameter in parameters:
            parameter.grad = torch.ones(3)
        held = [parameter.grad for parameter in parameters]  # what a loop holds by itself is not counted
        try:
            gc.set_threshold(300)
            counts = [collections_of_an_update(watcher, optimizer) for _ in range(5)]
        finally:
            gc.set_threshold(*threshold)
        assert len(held) == 2000
    assert max(counts[1:]) <= 1  # as it is let go again
    assert gc.isenabled()


def test_a_garbage_collector_that_is_off_stays_off():
    parameters = [nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    gc.disable()
    try:
        with gradwatch.watch(nn.ParameterList(parameters), optimizer) as watcher:
            operations_of_an_update(watcher, optimizer, parameters)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.process
def test_watching_without_files_loads_no_tensorboard():
    code = (
        "import sys, torch, gradwatch; m = torch.nn.Linear(2, 1); o = torch.optim.SGD(m.parameters(), lr=0.1); "
        "w = gradwatch.watch(m, o); m(torch.ones(1, 2)).sum().backward(); o.step(); w.close(); "
        "print(*sorted({'tensorboard', 'lightning', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.process
def test_importing_gradwatch_after_torch_is_quick_and_loads_nothing_more():
    """Time of the processor, the least of up to five: others work on the machine, too."""
    code = (
        "import sys, time, torch; begin = time.process_time(); import gradwatch; "
        "print((time.process_time() - begin) * 1e3, *sorted({'tensorboard', 'lightning', 'rich'} & set(sys.modules)))"
    )
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        milliseconds, *loaded = done.stdout.split()
        assert loaded == []
        if float(milliseconds) < 50:
            break
    assert float(milliseconds) < 50


def test_watching_begins_without_a_search_through_all_that_lives(monkeypatch):
    import torch.distributed.pipelining.stage  # whose stages would be searched for among several ranks

    searched = []
    monkeypatch.setattr("gc.get_objects", lambda *_: searched.append(1) or [])
    model = torch.nn.Linear(2, 1)
    with gradwatch.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), find_loss=False):
        assert searched == []
