"""``gradwatch run`` around real training scripts, each a process of its own.

Most of them are forked from one that has loaded what they import; those that compare with a bare ``python``, are
interrupted or run under ``torchrun`` start one themselves.
"""

import os
import re
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import gradwatch
from tests import forked_python
from tests.ctrl_c import interrupted_twice
from tests.forked_python import FRAMEWORKS, TORCH
from tests.written import layers_in

pytestmark = pytest.mark.process

WATCHED = (sys.executable, "-m", "gradwatch", "run")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
    "PYTHONPATH": str(Path(gradwatch.__file__).parent.parent),
    "PYTHONWARNINGS": "ignore",  # of packages that these scripts use
}
SECONDS = 600  # on a busy machine; alone, each takes some ten

LOOP = """
    import os, sys
    os.environ["OMP_NUM_THREADS"] = "1"
    assert "torch" not in sys.modules
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 1)

        def forward(self, x):
            return self.last(self.first(x).tanh())

    def train(model, batches, factor=1.0):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x in batches:
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean() * factor
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        return loss.item(), sum(weight.double().sum().item() for weight in model.parameters())
"""


def write(directory, *programs):
    (directory / "train.py").write_text("\n".join(map(textwrap.dedent, programs)), encoding="utf-8")


def run(directory, *command):
    """Run a command line as a real process, from its very start."""
    return subprocess.run(
        command, cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def run_forked(directory, *command, loaded=TORCH):
    return forked_python.run(command, loaded=loaded, cwd=directory, env=ENVIRONMENT, timeout=SECONDS)


def summary_of(done):
    lines = done.stderr.splitlines()
    return [line for line in lines if re.match(r"gradwatch: .*\d steps?, (no|\d+) finding", line)]


def scalars(directory, tag):
    events = EventAccumulator(str(directory))
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def test_a_script_with_workers_its_own_clipping_and_a_crash_does_what_it_does_bare(tmp_path):
    program = """
        from torch.utils.data import DataLoader, Dataset

        class Numbers(Dataset):
            def __len__(self):
                return 64

            def __getitem__(self, index):
                return torch.full((4,), index / 64.0)

        if __name__ == "__main__":
            print(torch.get_num_threads())
            for method in ("fork", "spawn"):
                loader = DataLoader(Numbers(), batch_size=8, num_workers=1, multiprocessing_context=method)
                print(method, train(Net(), loader))
            raise ValueError("as it happens")
    """
    write(tmp_path, LOOP, program)
    with ThreadPoolExecutor() as pool:
        started = [pool.submit(run, tmp_path, *before, "train.py") for before in ([sys.executable], WATCHED)]
    bare, watched = (each.result() for each in started)
    assert bare.stdout.splitlines()[0] == "1"
    assert watched.stdout == bare.stdout
    assert watched.returncode == bare.returncode == 1
    assert watched.stderr.startswith(bare.stderr)
    assert bare.stderr.endswith("ValueError: as it happens\n")
    assert summary_of(watched) == [
        f"gradwatch: Net: 8 steps, no findings; event files in {tmp_path / 'runs' / 'train'}",
        f"gradwatch: Net_2: 8 steps, no findings; event files in {tmp_path / 'runs' / 'train' / 'Net_2'}",
    ]
    assert "first.weight" in layers_in(tmp_path / "runs" / "train")
    assert scalars(tmp_path / "runs" / "train", "grad_norm_total") == list(range(8))


WITHOUT_END = """
    def batches():
        for step in range(1_000_000):
            print(step, flush=True)
            yield torch.randn(8, 4)

    train(Net(), batches())
"""
"""A training that tells each step, until somebody ends it."""


def test_ctrl_c_ends_it_as_ever_with_a_summary_and_whole_files(tmp_path):
    write(tmp_path, LOOP, WITHOUT_END)
    command = [*WATCHED, "--log-dir", "here", "train.py"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, text=True, **pipes) as process:
        for line in process.stdout:
            if line == "120\n":
                process.send_signal(signal.SIGINT)
                break
        _, error = process.communicate(timeout=SECONDS)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in error
    assert "gradwatch/" not in error.partition("KeyboardInterrupt")[0]
    assert "no findings; event files in" in error.splitlines()[-1]
    assert scalars(tmp_path / "here", "grad_norm_total")[:34] == [*range(32), 32, 34]


def test_a_second_ctrl_c_ends_no_summary(tmp_path):
    write(tmp_path, LOOP, WITHOUT_END)
    ended = interrupted_twice(
        [*WATCHED, "train.py"], lambda line: line == "120\n", cwd=tmp_path, env=ENVIRONMENT, seconds=SECONDS
    )
    assert ended.returncode == -signal.SIGINT
    assert "no findings; event files in" in ended.stderr.splitlines()[-1]


def test_what_lies_in_the_current_directory_is_none_of_what_the_command_imports(tmp_path):
    for name in ("click", "rich", "numpy", "torch"):
        write_at = tmp_path / f"{name}.py"
        write_at.write_text("raise SystemExit('the wrong one')\n", encoding="utf-8")
    done = run(tmp_path, sys.executable, "-m", "gradwatch", "report", ".")
    assert done.returncode == 4
    assert "expected event files" in done.stderr


def test_findings_decide_about_the_status_where_the_script_does_not(tmp_path):
    program = """
        print(train(Net(), torch.ones(3, 8, 4), factor=float("nan")))
        sys.exit(int(sys.argv[1]))
    """
    write(tmp_path, LOOP, program)
    fails = run_forked(tmp_path, *WATCHED, "--log-dir", "fails", "--fail-on", "exploding,nonfinite", "train.py", "0")
    own = run_forked(tmp_path, *WATCHED, "--log-dir", "own", "--fail-on", "any", "train.py", "3")
    assert (fails.returncode, own.returncode) == (1, 3)
    assert summary_of(fails)[0].startswith("gradwatch: 3 steps, 1 finding (1 nonfinite); event files in ")
    assert "gradwatch: nonfinite in last.bias since step 0: " in fails.stderr


def test_a_run_that_could_not_be_measured_is_not_called_healthy(tmp_path):
    program = """
        model = Net()
        for parameter in model.parameters():  # an optimizer for each parameter, which steps inside the backward pass
            single = torch.optim.SGD([parameter], lr=0.1)
            parameter.register_post_accumulate_grad_hook(lambda _, optimizer=single: optimizer.step())
        for _ in range(5):
            model(torch.ones(8, 4)).square().mean().backward()
    """
    write(tmp_path, LOOP, program)
    plain = run_forked(tmp_path, *WATCHED, "--log-dir", "plain", "train.py")
    gate = run_forked(tmp_path, *WATCHED, "--log-dir", "gate", "--fail-on", "nonfinite", "train.py")
    assert (plain.returncode, gate.returncode) == (0, 7)
    for done in (plain, gate):
        assert "20 steps, none measured: nothing is known of this run, watched by nobody" in done.stderr
        assert "no findings" not in done.stderr


def test_rows_are_written_as_often_as_asked_and_no_line_names_a_watcher_that_is_not_there(tmp_path):
    program = """
        train(Net(), torch.randn(40, 8, 4))
        train(Net(), torch.ones(3, 8, 4), factor=float("nan"))
    """
    write(tmp_path, LOOP, program)
    often = run_forked(tmp_path, *WATCHED, "--log-dir", "often", "--log-every", "7", "train.py")
    densely = run_forked(tmp_path, *WATCHED, "--log-dir", "densely", "train.py")
    assert scalars(tmp_path / "often", "grad_norm_total") == list(range(0, 40, 7))
    assert scalars(tmp_path / "densely", "grad_norm_total") == [*range(32), 32, 34, 36, 38]
    for done in (often, densely):
        assert "gradwatch: nonfinite in " in done.stderr
        assert "print(finding)" not in done.stderr


def test_lightning_with_and_without_the_callback(tmp_path):
    program = """
        import lightning.pytorch as L
        from lightning.pytorch.demos.boring_classes import BoringModel
        from gradwatch.lightning import GradWatch

        def fit(model, *callbacks):
            quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False)
            trainer = L.Trainer(max_steps=8, enable_checkpointing=False, accelerator="cpu", accumulate_grad_batches=2,
                                gradient_clip_val=1e-3, callbacks=list(callbacks), **quiet)
            trainer.fit(model)

        class Other(BoringModel):
            pass

        if __name__ == "__main__":
            fit(BoringModel())
            watch = GradWatch()
            fit(Other(), watch)
            print(len(watch.watcher.history))
    """
    write(tmp_path, program)
    done = run_forked(tmp_path, *WATCHED, "train.py", loaded=FRAMEWORKS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "8"
    first, second = summary_of(done)
    assert first.startswith("gradwatch: BoringModel: 8 steps, ")
    assert second.startswith("gradwatch: Other: 8 steps, ")
    assert second.endswith("watched by the program's own watcher")
    assert "layer.weight" in layers_in(tmp_path / "runs" / "train")
    assert scalars(tmp_path / "runs" / "train", "grad_norm_total") == list(range(8))


def test_hugging_faces_trainer(tmp_path):
    program = """
        import torch
        from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

        config = GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2)
        tokens = [{"input_ids": torch.arange(8) + i % 4, "labels": torch.arange(8) + i % 4} for i in range(64)]
        arguments = TrainingArguments("out", max_steps=6, per_device_train_batch_size=4, gradient_accumulation_steps=2,
                                      report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no")
        result = Trainer(GPT2LMHeadModel(config), arguments, train_dataset=tokens).train()
        print(result.global_step)
    """
    write(tmp_path, program)
    done = run_forked(tmp_path, *WATCHED, "train.py", loaded=FRAMEWORKS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "6"
    assert summary_of(done)[0].startswith("gradwatch: 6 steps, ")
    assert "transformer.h.0.attn.c_attn.weight" in layers_in(tmp_path / "runs" / "train")
    assert scalars(tmp_path / "runs" / "train", "grad_norm_total") == list(range(6))
    assert scalars(tmp_path / "runs" / "train", "loss") == list(range(6))


def test_hugging_faces_trainer_with_the_callback(tmp_path):
    program = """
        import torch
        from torch import nn
        from transformers import Trainer, TrainingArguments
        from gradwatch.huggingface import GradWatch

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(4, 1)

            def forward(self, x, labels):
                return {"loss": nn.functional.mse_loss(self.layer(x), labels)}

        data = [{"x": row, "labels": row.sum(0, keepdim=True)} for row in torch.randn(64, 4)]
        arguments = TrainingArguments("out", max_steps=6, report_to=[], use_cpu=True, disable_tqdm=True,
                                      save_strategy="no", max_grad_norm=0.0)
        watch = GradWatch(clip=1e-3)
        Trainer(Net(), arguments, train_dataset=data, callbacks=[watch]).train()
        history = watch.watcher.history
        print(len(history), float(history["grad_norm_clipped_total"].max()) < 2e-3)
    """
    write(tmp_path, program)
    done = run_forked(tmp_path, *WATCHED, "train.py", loaded=FRAMEWORKS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "6 True"
    assert summary_of(done) == ["gradwatch: 6 steps, no findings, watched by the program's own watcher"]
    assert "clips" not in done.stderr


def test_frameworks_that_step_optimizers_of_torch(tmp_path):
    program = """
        import torch
        from accelerate import Accelerator
        from ignite.engine import create_supervised_trainer
        from lightning.fabric import Fabric
        from skorch import NeuralNetRegressor
        from torch import nn
        from torch.utils.data import DataLoader, TensorDataset

        inputs = torch.randn(32, 4)
        targets = inputs.sum(1, keepdim=True)
        batches = DataLoader(TensorDataset(inputs, targets), batch_size=8)

        class OfFabric(nn.Linear): pass
        class OfAccelerate(nn.Linear): pass
        class OfIgnite(nn.Linear): pass

        def loop(model, optimizer, backward):
            for x, y in batches:
                backward(nn.functional.mse_loss(model(x), y))
                optimizer.step()
                optimizer.zero_grad()

        def made(kind):
            model = kind(4, 1)
            return model, torch.optim.SGD(model.parameters(), 0.01)

        for runner, kind in ((Fabric(accelerator="cpu"), OfFabric), (Accelerator(cpu=True), OfAccelerate)):
            setup = runner.setup if kind is OfFabric else runner.prepare
            loop(*setup(*made(kind)), runner.backward)
        create_supervised_trainer(*made(OfIgnite), nn.functional.mse_loss).run(batches, max_epochs=1)
        net = NeuralNetRegressor(lambda: nn.Linear(4, 1), max_epochs=1, batch_size=8, train_split=None, verbose=0)
        net.fit(inputs.numpy(), targets.numpy())
    """
    write(tmp_path, program)
    done = run_forked(tmp_path, *WATCHED, "train.py", loaded=FRAMEWORKS)
    assert done.returncode == 0, done.stderr
    lines = summary_of(done)
    assert [line.split(": ")[1] for line in lines if " 4 steps" in line] == [
        "OfFabric", "OfAccelerate", "OfIgnite", "module_",
    ]  # fmt: skip


def test_keras_updates_its_weights_by_itself_and_a_line_says_what_to_call(tmp_path):
    program = """
        import os
        os.environ["KERAS_BACKEND"] = "torch"
        import keras, numpy as np

        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.01), loss="mse")
        model.fit(np.ones((16, 4)), np.ones((16, 1)), verbose=0)
    """
    write(tmp_path, program)
    done = run_forked(tmp_path, *WATCHED, "train.py")
    assert done.returncode == 0, done.stderr
    assert "no optimizer of torch.optim has stepped" in done.stderr
    assert "calls gradwatch.watch(model) and watcher.step()" in done.stderr


def test_under_torchrun_the_first_rank_writes_and_speaks(tmp_path):
    program = """
        import time
        import torch.distributed as dist

        dist.init_process_group("gloo")
        torch.manual_seed(dist.get_rank())
        model = nn.parallel.DistributedDataParallel(Net())
        weights = train(model, torch.randn(5, 8, 4))[1]
        # In one write: print makes several where streams are not buffered, and the ranks share a pipe.
        sys.stdout.write(f"rank {dist.get_rank()} {weights}\\n")
        dist.destroy_process_group()
        time.sleep(0.5)  # gloo's threads still hold the last tensors, and torch aborts if the process ends now
    """
    write(tmp_path, LOOP, program)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = run(tmp_path, *launcher, "-m", "gradwatch", "run", "--log-dir", "here", "train.py")
    assert done.returncode == 0, done.stderr
    weights = sorted(line.split() for line in done.stdout.splitlines())
    assert [line[1] for line in weights] == ["0", "1"]
    assert weights[0][2] == weights[1][2]
    assert summary_of(done) == [f"gradwatch: 5 steps, no findings; event files in {tmp_path / 'here'}"]
    assert "changed otherwise" not in done.stderr  # averaging over the ranks is no clipping
    assert len(list((tmp_path / "here").iterdir())) == 1
    assert "first.weight" in layers_in(tmp_path / "here")
    assert scalars(tmp_path / "here", "grad_norm_total") == list(range(5))
