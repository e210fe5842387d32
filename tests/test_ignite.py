"""GradWatch in real Ignite engines, against the same loop by hand."""

import inspect
import sys

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver
from torch import nn
from torch.amp import GradScaler

import gradwatch
from gradwatch import Memory, NonFiniteError
from gradwatch.ignite import GradWatch
from tests.forked_python import run

BATCHES = 6
mse = nn.functional.mse_loss


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def batches(spoiled=None):
    generator = torch.Generator().manual_seed(0)
    made = [(torch.randn(8, 4, generator=generator), torch.ones(8, 1)) for _ in range(BATCHES)]
    if spoiled is not None:
        made[spoiled][0][0, 0] = torch.nan
    return made


def by_hand(epochs=1, accumulate=1):
    """Return (model, losses, norms of each update) of the loop that ``create_supervised_trainer`` runs."""
    model = net()
    optimizer, losses, norms, parts = adam(model), [], [], []
    for number, (x, y) in enumerate(batches() * epochs, 1):
        if (number - 1) % accumulate == 0:
            optimizer.zero_grad()
        loss = mse(model(x), y)
        (loss / accumulate).backward()
        parts.append(loss.item())
        if number % accumulate == 0:
            losses.append(np.mean(parts))
            norms.append([p.grad.norm().item() for p in model.parameters()])
            parts.clear()
            optimizer.step()
    return model, losses, norms


def assert_same(watcher, model, reference):
    bare, losses, norms = reference
    assert all(map(torch.equal, model.parameters(), bare.parameters()))
    np.testing.assert_allclose(watcher.history["loss"], losses, rtol=1e-6)
    np.testing.assert_allclose(watcher.history["grad_norm"], norms, rtol=1e-4)


def trained(watch, epochs=1, data=None, **options):
    """Return (engine, model) after ``watch`` has watched a supervised trainer."""
    model = net()
    optimizer = adam(model)
    engine = create_supervised_trainer(model, optimizer, mse, **options)
    assert watch.attach(engine, model, optimizer) is watch
    engine.run(batches() if data is None else data, max_epochs=epochs)
    return engine, model


@pytest.mark.parametrize("accumulate", [1, 3])
def test_figures_losses_and_weights_are_those_of_the_loop_by_hand(accumulate):
    watch = GradWatch()
    assert (watch.watcher, watch.findings) == (None, [])
    _, model = trained(watch, 2, gradient_accumulation_steps=accumulate)
    assert_same(watch.watcher, model, by_hand(2, accumulate))
    assert watch.findings == []


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize("accumulate", [1, 3])
def test_amp_is_unscaled_and_its_scaler_is_found(accumulate):
    watch, scaler = GradWatch(), GradScaler("cpu", init_scale=1024.0)
    _, model = trained(watch, amp_mode="amp", scaler=scaler, gradient_accumulation_steps=accumulate)
    assert_same(watch.watcher, model, by_hand(1, accumulate))


def test_an_update_function_of_ones_own_with_several_models():
    models = {"generator": nn.Linear(4, 4), "critic": nn.Linear(4, 1)}
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in models.values()]
    expected = []

    def update(engine, batch):
        x, _ = batch
        for optimizer in optimizers:
            for each in optimizers:
                each.zero_grad()
            loss = models["critic"](models["generator"](x)).square().mean()
            loss.backward()
            expected.append(loss.item())
            optimizer.step()
        return {"anything": "at all"}

    engine = Engine(update)
    watch = GradWatch().attach(engine, models, optimizers)
    engine.run(batches())
    assert watch.watcher.history["optimizer"].tolist() == [0, 1] * BATCHES
    np.testing.assert_allclose(watch.watcher.history["loss"], expected)


def test_optimizers_are_found_where_none_is_given():
    model = net()
    engine = create_supervised_trainer(model, adam(model), mse)
    watch = GradWatch().attach(engine, model)
    engine.run(batches())
    assert_same(watch.watcher, model, by_hand())


def test_clipping_is_that_of_watch():
    watch = GradWatch(clip=0.1)
    _, model = trained(watch)
    bare = net()
    optimizer = adam(bare)
    for x, y in batches():
        optimizer.zero_grad()
        mse(bare(x), y).backward()
        nn.utils.clip_grad_norm_(bare.parameters(), 0.1)
        optimizer.step()
    for found, expected in zip(model.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(found, expected)
    assert (watch.watcher.history["grad_norm_clipped_total"] <= 0.1 + 1e-6).all()


def test_each_run_of_an_engine_has_a_watcher_of_its_own():
    watch = GradWatch()
    engine, model = trained(watch)
    first = watch.watcher
    engine.state.max_epochs = None  # from the beginning again
    engine.run(batches(), max_epochs=2)
    assert watch.watcher is not first
    assert (len(first.history), len(watch.watcher.history)) == (BATCHES, 2 * BATCHES)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_everything_is_written_before_handlers_of_completed_that_were_added_later():
    memory, model = Memory(), net()
    optimizer = adam(model)
    engine = create_supervised_trainer(model, optimizer, mse)
    watch = GradWatch(sinks=[memory], log_every_n_steps=1).attach(engine, model, optimizer)
    seen = []
    engine.add_event_handler(Events.COMPLETED, lambda: seen.append((len(memory.rows), watch.findings)))
    engine.run(batches())
    assert seen == [(BATCHES, [])]


def failing(error):
    """Return (engine, watch) whose third update raises ``error``."""
    model = net()
    optimizer = adam(model)
    bare = create_supervised_trainer(model, optimizer, mse)

    def update(engine, batch):
        if engine.state.iteration == 3:
            raise error
        return bare._process_function(engine, batch)

    engine = Engine(update)
    return engine, GradWatch().attach(engine, model, optimizer), optimizer


@pytest.mark.parametrize("error", [ArithmeticError("no update"), KeyboardInterrupt()])
def test_an_exception_closes_the_watcher_and_is_raised_as_ever(error):
    engine, watch, optimizer = failing(error)
    with pytest.raises(type(error)):
        engine.run(batches())
    assert not optimizer._optimizer_step_pre_hooks
    assert len(watch.watcher.history) == 2


@pytest.mark.parametrize("error", [ArithmeticError("no update"), KeyboardInterrupt()])
def test_an_exception_that_the_users_handler_takes_is_not_raised(error):
    engine, watch, optimizer = failing(error)
    taken = []
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: taken.append(error))
    engine.run(batches())
    assert taken == [error]
    assert not optimizer._optimizer_step_pre_hooks
    assert len(watch.watcher.history) == 2


def test_a_step_that_is_not_finite_raises_out_of_the_run_before_its_update():
    watch = GradWatch(on_nonfinite="raise")
    with pytest.raises(NonFiniteError, match="step 2"):
        trained(watch, data=batches(spoiled=2))
    assert [(finding.kind, finding.step) for finding in watch.findings] == [("nonfinite", 2)]


if hasattr(Events, "INTERRUPT"):  # older releases of Ignite cannot interrupt a run

    def test_a_run_that_is_interrupted_goes_on_with_its_watcher():
        model = net()
        optimizer = adam(model)
        engine = create_supervised_trainer(model, optimizer, mse)
        watch = GradWatch().attach(engine, model, optimizer)
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: engine.interrupt())
        data = batches()
        engine.run(data)
        interrupted = watch.watcher
        assert len(interrupted.history) == 2
        engine.run(data)
        assert watch.watcher is interrupted
        assert_same(watch.watcher, model, by_hand())
        assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("skip_completed", [True, False])
def test_a_run_that_is_terminated_closes_the_watcher(skip_completed):
    model = net()
    optimizer = adam(model)
    engine = create_supervised_trainer(model, optimizer, mse)
    watch = GradWatch().attach(engine, model, optimizer)
    engine.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda: engine.terminate(skip_completed=skip_completed)
    )
    engine.run(batches())
    assert not optimizer._optimizer_step_pre_hooks
    assert len(watch.watcher.history) == 2


def test_ignites_checkpoint_lets_a_resumed_run_go_on(tmp_path):
    def made(data_epochs, resume=None):
        model = net()
        optimizer = adam(model)
        engine = create_supervised_trainer(model, optimizer, mse)
        watch = GradWatch(clip="auto").attach(engine, model, optimizer)
        parts = {"model": model, "optimizer": optimizer, "engine": engine, "watch": watch}
        saver = Checkpoint(parts, DiskSaver(tmp_path, require_empty=False), n_saved=None)
        engine.add_event_handler(Events.EPOCH_COMPLETED, saver)
        if resume is not None:
            Checkpoint.load_objects(parts, torch.load(resume, weights_only=True))
        engine.run(batches(), max_epochs=data_epochs)
        return watch, model

    whole, model = made(2)
    resumed, other = made(2, resume=tmp_path / f"checkpoint_{BATCHES}.pt")
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    assert resumed.watcher.history.steps.tolist() == list(range(BATCHES, 2 * BATCHES))
    for key in ("loss", "grad_norm_total", "grad_norm_clipped_total"):
        np.testing.assert_array_equal(resumed.watcher.history[key], whole.watcher.history[key][BATCHES:])


def test_a_run_resumes_with_another_choice_of_layers(caplog):
    first, second = GradWatch(clip="auto"), GradWatch(clip="auto", include="0.*")
    trained(first)
    second.load_state_dict(first.state_dict())
    trained(second)
    assert second.watcher.history.steps.tolist() == list(range(BATCHES, 2 * BATCHES))
    (line,) = [record.message for record in caplog.records if record.name == "gradwatch"]
    assert line.startswith("gradwatch: other layers are watched than in the checkpoint: 2 gone (2.bias, 2.weight)")


def test_a_state_that_cannot_be_read_stops_no_run(caplog):
    watch = GradWatch()
    watch.load_state_dict({"anything": "else"})
    trained(watch)
    assert watch.watcher.history.steps.tolist() == list(range(BATCHES))
    assert "the checkpoint's state is not used, and watching begins anew" in caplog.text


def test_keywords_are_those_of_watch():
    of_watch = dict(inspect.signature(gradwatch.watch).parameters)
    del of_watch["model"], of_watch["optimizer"]
    mine = inspect.signature(GradWatch).parameters
    assert {name: p.default for name, p in mine.items()} == {name: p.default for name, p in of_watch.items()}
    assert {name: p.annotation for name, p in mine.items()} == {name: p.annotation for name, p in of_watch.items()}


@pytest.mark.parametrize("options", [{"clip": -1.0}, {"on_nonfinite": "ignore"}, {"history": 0}])
def test_a_bad_keyword_is_refused_where_it_is_written(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        GradWatch(**options)


@pytest.mark.process
def test_without_ignite_the_error_says_what_to_install():
    program = "import sys; sys.modules['ignite'] = None; import gradwatch.ignite"
    done = run([sys.executable, "-c", program])
    assert done.stderr.endswith("Run: pip install 'gradwatch[ignite]'\n")
