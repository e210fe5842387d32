import json
import math
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import gradwatch
from gradwatch.cli import main
from gradwatch.recover.black_box_file import read_black_box
from gradwatch.recover.failed_step import UnreplayableError, step_in
from gradwatch.recover.row_shares import ranked, worst
from gradwatch.recover.step_replay import replay

CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)
        self.drop, self.norm = nn.Dropout(0.2), nn.LayerNorm(8)

    def forward(self, x):
        return self.second(self.drop(self.norm(self.first(x)).log()))


def make_model():
    return Net()


def make_plain():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2))


def make_with_batch_norm():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))


def loss_fn(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def not_a_loss(model, batch):
    return "high"


a_number = 3
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """Return a module of a user's, which can be imported."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "mine_to_replay.py").write_text(CODE)
    sys.path.insert(0, str(folder))
    import mine_to_replay

    yield mine_to_replay
    sys.path.remove(str(folder))
    del sys.modules["mine_to_replay"]


def train(make, mine, path, *, steps=5, change=None, notes=True, write=False, **keywords):
    """Train ``steps`` steps with a black box; ``change`` is given each step's number, model and batch."""
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with gradwatch.watch(model, optimizer, black_box=path, **keywords) as watcher:
        for step in range(steps):
            batch = torch.randn(16, 4), torch.randn(16, 2)
            undo = change(step, model, batch) if change else None
            if notes:
                watcher.black_box.note_batch(batch)
            mine.loss_fn(model, batch).backward()
            if undo is not None:
                undo.remove()
            optimizer.step()
            optimizer.zero_grad()
        if write:
            watcher.black_box.write()
    return read_black_box(path.path if isinstance(path, gradwatch.BlackBox) else path)


def spoil_row(step, model, batch):
    if step == 4:
        batch[0][3, 1] = float("inf")


def run_command(*arguments):
    done = CliRunner().invoke(main, ["replay", *map(str, arguments)])
    return done.exit_code, done.output


def test_a_failed_step_is_replayed_bit_for_bit_and_names_the_row(tmp_path, mine):
    content = train(mine.make_plain, mine, tmp_path / "box.pt", change=spoil_row)
    torch.manual_seed(77)
    shown = replay({"": mine.make_plain()}, step_in(content), mine.loss_fn)
    assert shown.verdict == "reproducible"
    assert shown.is_bitwise is True
    assert shown.compared == "the loss and the gradients of 4 parameters"
    assert shown.rows[0].row == 3
    assert not shown.rows[0].is_finite
    assert "already held NaN or Inf, in 1 of 16 rows: 3" in shown.origin
    tried = {variant.name: variant.happens for variant in shown.variants}
    assert tried == {"float64": True, "eager": None, "CPU": None, "without autocast": None, "without rows 3": False}


def test_a_step_that_recovery_leaves_out_is_replayed_bit_for_bit_too(tmp_path, mine):
    content = train(
        mine.make_with_batch_norm, mine, tmp_path / "box.pt", steps=8, change=spoil_row, recover=gradwatch.Rewind()
    )
    shown = replay({"": mine.make_with_batch_norm()}, step_in(content), mine.loss_fn)
    assert (shown.step, shown.verdict, shown.is_bitwise) == (4, "reproducible", True)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_healthy_step_with_its_own_weights_is_replayed_bit_for_bit(tmp_path, mine, number):
    box = gradwatch.BlackBox(tmp_path / "box.pt", copy_state=True)
    content = train(mine.make_plain, mine, box, steps=number + 1, write=True)
    shown = replay({"": mine.make_plain()}, step_in(content), mine.loss_fn)
    assert (shown.step, shown.verdict, shown.is_bitwise) == (number, "healthy", True)
    assert shown.replayed == pytest.approx(shown.recorded, rel=0, abs=0)


def test_another_weight_is_not_the_same_step(tmp_path, mine):
    content = train(mine.make_plain, mine, tmp_path / "box.pt", write=True)  # of after the last step
    shown = replay({"": mine.make_plain()}, step_in(content), mine.loss_fn)
    assert shown.is_bitwise is False
    assert "nobody could wait for a copy" in shown.notes[0]


def test_a_fault_that_only_the_run_had_is_transient(tmp_path, mine):
    def flip_bit(step, model, batch):
        if step == 4:
            return model[0].register_forward_hook(lambda module, args, output: output * float("nan"))
        return None

    content = train(mine.make_plain, mine, tmp_path / "box.pt", change=flip_bit)
    shown = replay({"": mine.make_plain()}, step_in(content), mine.loss_fn)
    assert shown.verdict == "transient"
    assert shown.is_bitwise is False
    assert math.isfinite(shown.replayed["loss"])


def test_the_module_and_the_operation_are_named(tmp_path, mine):
    content = train(mine.make_model, mine, tmp_path / "box.pt", steps=1)
    shown = replay({"": mine.make_model()}, step_in(content), mine.loss_fn)
    assert shown.verdict == "reproducible"
    assert "log" in shown.origin
    assert shown.is_bitwise is True


def test_without_a_loss_function_the_backward_pass_begins_with_the_gradients_in_the_file(tmp_path, mine):
    content = train(mine.make_plain, mine, tmp_path / "box.pt", change=spoil_row, notes=False)
    shown = replay({"": mine.make_plain()}, step_in(content))
    assert shown.is_bitwise is True
    assert shown.compared == "the gradients of 4 parameters"
    assert shown.rows[0].row == 3
    assert any("give --loss" in note for note in shown.notes)


def test_rows_that_depend_on_each_other_are_ranked_by_the_gradient_at_the_output(tmp_path, mine):
    def grow(step, model, batch):
        if step == 4:
            batch[1][7] *= 1e3

    box = gradwatch.BlackBox(tmp_path / "box.pt", copy_state=True)
    content = train(mine.make_with_batch_norm, mine, box, change=grow, write=True)
    shown = replay({"": mine.make_with_batch_norm()}, step_in(content), mine.loss_fn)
    assert shown.rows[0].row == 7
    assert shown.rows[0].gradient_share > 0.9
    assert shown.rows_are.startswith("the gradient at what the model returned")
    assert shown.is_bitwise is True


def test_accumulated_batches_are_replayed_together(tmp_path, mine):
    torch.manual_seed(0)
    model = mine.make_plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, black_box=tmp_path / "box.pt") as watcher:
        for part in range(3):
            batch = torch.randn(8, 4), torch.randn(8, 2)
            if part == 1:
                batch[0][0, 0] = float("nan")
            watcher.black_box.note_batch(batch)
            mine.loss_fn(model, batch).backward()
        optimizer.step()
    shown = replay({"": mine.make_plain()}, step_in(read_black_box(tmp_path / "box.pt")), mine.loss_fn)
    assert (shown.verdict, shown.is_bitwise) == ("reproducible", True)


def test_bfloat16_autocast_is_replayed_and_left_out(tmp_path, mine):
    def under_autocast(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return mine.loss_fn(model, batch)

    torch.manual_seed(0)
    model = mine.make_plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.randn(8, 4), torch.randn(8, 2)
    batch[0][2, 0] = float("nan")
    with gradwatch.watch(model, optimizer, black_box=tmp_path / "box.pt") as watcher:
        watcher.black_box.note_batch(batch)
        under_autocast(model, batch).backward()
        optimizer.step()
    shown = replay({"": mine.make_plain()}, step_in(read_black_box(tmp_path / "box.pt")), mine.loss_fn)
    assert shown.is_bitwise is True
    assert next(each.happens for each in shown.variants if each.name == "without autocast") is True


def slow_shares(x, y, weight):
    """Return each row's (loss share, gradient share) of a linear model with a squared error, in float64."""
    x, y, weight = (each.astype(np.float64) for each in (x, y, weight))
    losses, norms = [], []
    for row in range(len(x)):
        error = [sum(weight[k][i] * x[row][i] for i in range(x.shape[1])) - y[row][k] for k in range(len(weight))]
        losses.append(sum(e * e for e in error) / len(error))
        entries = [2 * e * value / len(error) for e in error for value in x[row]]
        norms.append(math.sqrt(sum(entry * entry for entry in entries)))
    return [(loss / sum(losses), norm / sum(norms)) for loss, norm in zip(losses, norms, strict=True)]


def test_row_shares_are_those_of_a_slow_twin_in_float64(tmp_path, mine):
    torch.manual_seed(3)
    model = nn.Linear(4, 2, bias=False)
    weight = model.weight.detach().numpy().copy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = torch.randn(12, 4), torch.randn(12, 2)
    with gradwatch.watch(model, optimizer, black_box=tmp_path / "box.pt") as watcher:
        watcher.black_box.note_batch(batch)
        mine.loss_fn(model, batch).backward()
        optimizer.step()
        watcher.black_box.write()
    shown = replay({"": nn.Linear(4, 2, bias=False)}, step_in(read_black_box(tmp_path / "box.pt")), mine.loss_fn)
    expected = slow_shares(batch[0].numpy(), batch[1].numpy(), weight)
    for row in shown.rows:
        assert (row.loss_share, row.gradient_share) == pytest.approx(expected[row.row], rel=1e-5)
    assert [row.row for row in shown.rows] == sorted(range(12), key=lambda row: -expected[row][1])


def test_rows_that_are_not_finite_come_first_and_have_no_share():
    rows = ranked([1.0, math.nan, 3.0], [3.0, 1.0, 1.0])
    assert [row.row for row in rows] == [1, 0, 2]
    assert (rows[0].loss_share, rows[1].loss_share, rows[2].gradient_share) == (None, 0.25, pytest.approx(0.2))
    assert worst(rows) == [1]
    assert worst(ranked([None] * 5, [1.0, 1.0, 50.0, 1.0, 20.0])) == [2, 4]
    assert worst(ranked([None] * 3, [1.0, 3.0, 2.0])) == [1]
    assert worst([]) == []
    assert [row.gradient_share for row in ranked([None, None], [0.0, 0.0])] == [0.0, 0.0]


def test_the_command_shows_a_replay_and_json_of_it(tmp_path, mine):
    train(mine.make_plain, mine, tmp_path / "box.pt", change=spoil_row)
    given = [tmp_path / "box.pt", "--model", "mine_to_replay:make_plain", "--loss", "mine_to_replay:loss_fn"]
    status, output = run_command(*given)
    assert status == 0
    assert "reproducible: the step fails again" in output
    assert "the loss and the gradients of 4 parameters: the same, bit for bit" in output
    assert "row 3: NaN or Inf" in output
    assert "without rows 3: it does not happen" in output
    shown = json.loads(run_command(*given, "--json")[1])
    assert (shown["verdict"], shown["is_bitwise"], shown["rows"][0]["row"]) == ("reproducible", True, 3)
    assert shown["recorded"]["grad_norm_total"] == "nan"


def test_without_the_model_the_command_shows_what_the_file_holds(tmp_path, mine):
    train(mine.make_plain, mine, tmp_path / "box.pt", change=spoil_row)
    status, output = run_command(tmp_path / "box.pt")
    assert status == 0
    assert "4 weights, 0 buffers and 1 optimizer of before step 4" in output
    assert "float32 (16, 4)" in output
    held = json.loads(run_command(tmp_path / "box.pt", "--json")[1])
    assert [step["step"] for step in held["steps"]] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--model", "mine_to_replay"], 2, "expected MODULE:CALLABLE"),
        (["--model", "nowhere_at_all:make"], 2, "there is no module 'nowhere_at_all'"),
        (["--model", "mine_to_replay:missing"], 2, "has no attribute 'missing'"),
        (["--model", "mine_to_replay:a_number"], 2, "is no callable"),
        (["--model", "mine_to_replay:CODE.upper"], 2, "has no attribute"),
        (["--model", "mine_to_replay:make_with_batch_norm"], 4, "other parameters than the saved state"),
        (["--model", "mine_to_replay:make_plain", "--step", "99"], 4, "it holds 1, 2, 3, 4"),
        (
            ["--model", "mine_to_replay:make_plain", "--loss", "mine_to_replay:not_a_loss"],
            4,
            "expected a scalar tensor",
        ),
        (["--model", "json:loads"], 1, ""),
    ],
)
def test_what_cannot_be_replayed_ends_with_words_and_a_status(tmp_path, mine, arguments, status, words):
    train(mine.make_plain, mine, tmp_path / "box.pt", change=spoil_row)
    found, output = run_command(tmp_path / "box.pt", *arguments)
    assert found == status
    assert words in " ".join(output.replace("│", " ").split())


def test_a_file_that_cannot_be_read_has_a_status_of_its_own(tmp_path):
    assert run_command(tmp_path / "none.pt")[0] == 3


def test_a_file_without_batches_is_shown_and_not_replayed(tmp_path, mine):
    box = gradwatch.BlackBox(tmp_path / "box.pt", identify=lambda args, kwargs: "batch 7")
    content = train(mine.make_plain, mine, box, change=spoil_row, notes=False)
    with pytest.raises(UnreplayableError, match="what identifies each batch"):
        replay({"": mine.make_plain()}, step_in(content))
    assert "batch 7" in run_command(tmp_path / "box.pt")[1]
