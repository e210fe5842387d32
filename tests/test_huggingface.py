"""GradWatch in real Trainers of Hugging Face, TRL's among them, and watchers in loops of Accelerate."""

import inspect
import json
import os

import numpy as np
import peft
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState, GradientState
from packaging.version import Version
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

import gradwatch
from gradwatch import Memory
from gradwatch.huggingface import GradWatch

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:accelerate"),
    pytest.mark.filterwarnings("ignore::FutureWarning:accelerate"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*was not found in your.*:UserWarning"),
]
STEPS, BATCH, LEARNING_RATE = 6, 4, 0.05
KNOWS_ITEMS = Version(transformers.__version__) >= Version("4.49")  # an older Trainer adds up the means of all passes


@pytest.fixture(autouse=True)
def _every_trainer_chooses_its_own_precision():
    """Accelerate keeps that of the first one for the whole process, and older Trainers leave it in the environment."""
    yield
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"):
        os.environ.pop(name, None)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Regression(nn.Module):
    """A network whose loss is a mean, which the Trainer divides by the number of micro-batches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x, y):
        outputs = self.net(x)
        return {"loss": F.mse_loss(outputs, y), "logits": outputs}


class Tagger(nn.Module):
    """A network whose loss is a sum that the Trainer has it divide by the number of tokens in the whole update."""

    accepts_loss_kwargs = True

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(10, 8), nn.Linear(8, 10)

    def forward(self, tokens, labels, num_items_in_batch=None, **kwargs):
        logits = self.head(self.embedding(tokens))
        total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        items = labels.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch
        return {"loss": total / items, "logits": logits}


def rows(kind, spoil=()):
    """Enough data for two accumulated batches an update; that of the batches ``spoil`` holds a NaN."""
    generator = torch.Generator().manual_seed(0)
    count = 2 * STEPS * BATCH
    if kind is Regression:
        x = torch.randn(count, 4, generator=generator)
        for index in spoil:
            x[index * BATCH] = torch.nan
        return [{"x": row, "y": row.sum(0, keepdim=True)} for row in x]
    tokens = torch.randint(10, (count, 5), generator=generator)
    lengths = torch.randint(3, 6, (count,), generator=generator)
    labels = tokens.masked_fill(torch.arange(5) >= lengths[:, None], -100)
    return [{"tokens": row, "labels": label} for row, label in zip(tokens, labels, strict=True)]


class InOrder(Trainer):
    """A Trainer that takes its data in their order."""

    def get_train_dataloader(self):
        return DataLoader(self.train_dataset, batch_size=BATCH)


def arguments(folder, **options):
    options = {
        "max_steps": STEPS, "max_grad_norm": 0.0, "logging_steps": 1, "report_to": "none", "save_strategy": "no",
        "use_cpu": True, "disable_tqdm": True, "remove_unused_columns": False, "lr_scheduler_type": "constant",
        "dataloader_pin_memory": False, "per_device_train_batch_size": BATCH, "per_device_eval_batch_size": BATCH,
    } | options  # fmt: skip
    return TrainingArguments(str(folder / "out"), **options)


def trainer_of(model, folder, *callbacks, spoil=(), data=None, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    data = rows(type(model), spoil) if data is None else data
    settings = arguments(folder, label_names=["y" if isinstance(model, Regression) else "labels"], **options)
    trainer = InOrder(
        model,
        settings,
        train_dataset=data,
        eval_dataset=data[:8],
        callbacks=list(callbacks),
        optimizers=(optimizer, constant),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def fit(model, folder, *callbacks, resume=None, **options):
    trainer = trainer_of(model, folder, *callbacks, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def by_hand(kind, accumulate=1, clip=None, steps=STEPS):
    """(norms of each parameter before clipping, losses, weights) of the same training as a plain loop."""
    model, norms, losses = kind(), [], []
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    batches = list(DataLoader(rows(kind), batch_size=BATCH))
    for step in range(steps):
        optimizer.zero_grad()
        parts = batches[step * accumulate : (step + 1) * accumulate]
        if kind is Tagger and not KNOWS_ITEMS:
            loss = sum(model(**part)["loss"] for part in parts)
        elif kind is Tagger:
            items = sum(part["labels"].ne(-100).sum() for part in parts)
            loss = sum(model(**part, num_items_in_batch=items)["loss"] for part in parts)
        else:
            loss = sum(model(**part)["loss"] for part in parts) / accumulate
        loss.backward()
        norms.append([p.grad.norm().item() for p in model.parameters()])
        losses.append(loss.item())
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return np.array(norms), np.array(losses), list(model.parameters())


def assert_same_weights(model, expected, **tolerance):
    for mine, theirs in zip(model.parameters(), expected, strict=True):
        np.testing.assert_allclose(mine.detach(), theirs.detach(), **tolerance)


@pytest.mark.parametrize("limit", [0.0, 1e-3])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", [Regression, Tagger])
def test_figures_are_those_of_the_plain_loop_before_the_trainer_clips(kind, accumulate, limit, tmp_path, caplog):
    callback, model = GradWatch(), kind()
    trainer = fit(model, tmp_path, callback, gradient_accumulation_steps=accumulate, max_grad_norm=limit)
    norms, losses, weights = by_hand(kind, accumulate, clip=limit or None)
    history = callback.watcher.history
    assert history.layers == tuple(name for name, _ in model.named_parameters())
    np.testing.assert_allclose(history["grad_norm"], norms, rtol=1e-5)
    np.testing.assert_allclose(history["grad_norm_total"], np.linalg.norm(norms, axis=1), rtol=1e-5)
    np.testing.assert_allclose(history["grad_norm_clipped_total"], limit or history["grad_norm_total"], rtol=1e-2)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    assert_same_weights(model, weights, rtol=1e-5)
    assert [log["loss"] for log in trainer.state.log_history if "loss" in log] == pytest.approx(losses, abs=1e-4)
    assert callback.findings == []
    assert not [record for record in caplog.records if record.name == "gradwatch"]


def test_watching_leaves_the_weights_bit_for_bit(tmp_path):
    bare, watched = Tagger(), Tagger()
    fit(bare, tmp_path, gradient_accumulation_steps=2)
    fit(watched, tmp_path, GradWatch(histograms=True), gradient_accumulation_steps=2)
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), watched.parameters(), strict=True))


def test_gradwatch_clips_in_place_of_the_trainer(tmp_path, caplog):
    callback, model = GradWatch(clip=0.1), Regression()
    fit(model, tmp_path, callback, gradient_accumulation_steps=2)
    norms, _, weights = by_hand(Regression, 2, clip=0.1)
    history = callback.watcher.history
    np.testing.assert_allclose(history["grad_norm"], norms, rtol=1e-5)
    np.testing.assert_allclose(history["grad_norm_clipped_total"], 0.1, rtol=1e-4)
    assert_same_weights(model, weights, rtol=1e-5)
    assert not [record for record in caplog.records if record.name == "gradwatch"]  # the Trainer clips by infinity


def test_both_clips_at_once_is_an_error_that_names_both(tmp_path):
    model = Regression()
    with pytest.raises(ValueError, match=r"GradWatch\(clip='auto'\) and TrainingArguments\(max_grad_norm=0\.5\)"):
        fit(model, tmp_path, GradWatch(clip="auto"), max_grad_norm=0.5)
    assert_same_weights(model, Regression().parameters())


def test_the_keywords_are_those_of_watch():
    ours, known = (set(inspect.signature(each).parameters) for each in (GradWatch, gradwatch.watch))
    assert ours == known - {"model", "optimizer", "scaler"}  # those the Trainer has


def test_a_bad_keyword_is_refused_where_it_is_written():
    with pytest.raises(ValueError, match="clip"):
        GradWatch(clip=-1.0)
    with pytest.raises(ValueError, match="on_nonfinite"):
        GradWatch(on_nonfinite="stop")
    with pytest.raises(ValueError, match="log_every_n_steps=0: expected a whole number of steps"):
        GradWatch(log_every_n_steps=0)


@pytest.mark.parametrize("resumes", [False, True])
def test_a_second_gradwatch_in_one_trainer_is_refused(resumes, tmp_path):
    checkpoint = cut(tmp_path, GradWatch()) if resumes else None
    first, model = GradWatch(clip=0.1), Regression()
    trainer = trainer_of(model, tmp_path, first, GradWatch())
    with pytest.raises(ValueError, match=r"Keep one of them.*GradWatch\(sinks="):
        trainer.train(resume_from_checkpoint=checkpoint)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    trainer.remove_callback(first)
    trainer.train()
    assert trainer.state.global_step == STEPS


def test_a_second_gradwatch_is_refused_where_a_copy_has_replaced_the_first(tmp_path):
    kept = {"restore_callback_states_from_checkpoint": True}
    checkpoint = cut(tmp_path, GradWatch(clip=0.1), **kept)
    trainer = trainer_of(Regression(), tmp_path, GradWatch(clip=0.1), GradWatch(clip=0.1), **kept)
    with pytest.raises(ValueError, match=r"Keep one of them.*GradWatch\(sinks="):
        trainer.train(resume_from_checkpoint=checkpoint)


def test_trainers_of_one_model_and_its_arguments_each_have_a_gradwatch(tmp_path):
    model, settings = Regression(), arguments(tmp_path)
    watches = GradWatch(), GradWatch()
    trainers = [Trainer(model, settings, train_dataset=rows(Regression), callbacks=[watch]) for watch in watches]
    for trainer in trainers:
        trainer.train()
    assert [len(watch.watcher.history) for watch in watches] == [STEPS, STEPS]


def test_the_totals_are_part_of_the_trainers_log(tmp_path, capsys):
    callback = GradWatch(clip=0.1)
    trainer = trainer_of(Regression(), tmp_path, callback, eval_strategy="steps", eval_steps=2)
    trainer.add_callback(PrinterCallback)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    history = callback.watcher.history
    assert [log["grad_norm_total"] for log in logs] == pytest.approx(history["grad_norm_total"].tolist())
    assert [log["grad_norm_clipped_total"] for log in logs] == pytest.approx([0.1] * STEPS, rel=1e-4)
    evaluations = [log for log in trainer.state.log_history if "eval_loss" in log]
    assert [log.get("grad_norm_total") for log in evaluations] == [None] * (STEPS // 2)
    assert capsys.readouterr().out.count("grad_norm_clipped_total") == STEPS


def test_tensorboard_files_go_to_a_folder_of_the_trainers_logging_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))  # since transformers 5
    extra = {"logging_dir": str(tmp_path / "logs")} if "logging_dir" in TrainingArguments.__dataclass_fields__ else {}
    fit(Regression(), tmp_path, GradWatch(), report_to="tensorboard", logging_steps=2, **extra)
    assert len(list((tmp_path / "logs").glob("events*"))) == 1
    assert len(list((tmp_path / "logs" / "gradwatch").glob("events*"))) == 1
    events = EventAccumulator(str(tmp_path / "logs" / "gradwatch"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("grad_norm_total")] == [0, 2, 4]


def test_a_trainer_that_does_not_report_to_tensorboard_leaves_no_files(tmp_path):
    fit(Regression(), tmp_path, GradWatch())
    assert list(tmp_path.rglob("events*")) == []


def test_a_log_dir_of_its_own_is_used_where_given(tmp_path):
    fit(Regression(), tmp_path, GradWatch(log_dir=tmp_path / "own"))
    assert len(list((tmp_path / "own").glob("events*"))) == 1


@pytest.mark.parametrize(("strategy", "expected"), [({"logging_steps": 3}, [0, 3]), ({"logging_steps": 0.5}, [0, 3])])
def test_rows_follow_the_trainers_logging_steps(strategy, expected, tmp_path):
    memory = Memory()
    fit(Regression(), tmp_path, GradWatch(sinks=[memory]), **strategy)
    assert [row.report.step for row in memory.rows] == expected


def test_nan_is_found(tmp_path):
    found = []
    callback = GradWatch(on_finding=found.append)
    fit(Regression(), tmp_path, callback, spoil=[3])
    assert [(f.kind, f.layer, f.step) for f in callback.findings] == [("nonfinite", "net.2.bias", 3)]
    assert [(f.kind, f.step) for f in found] == [("nonfinite", 3)]


def test_raise_stops_the_training_before_the_update(tmp_path):
    model = Regression()
    with pytest.raises(gradwatch.NonFiniteError, match="step 3"):
        fit(model, tmp_path, GradWatch(on_nonfinite="raise"), spoil=[3])
    assert_same_weights(model, by_hand(Regression, steps=3)[2], rtol=1e-5)


def test_skip_goes_on_without_the_bad_batch(tmp_path):
    model, callback = Regression(), GradWatch(on_nonfinite="skip")
    fit(model, tmp_path, callback, spoil=[3])
    assert callback.watcher.history["skipped"].tolist() == [step == 3 for step in range(STEPS)]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_evaluation_in_between_changes_no_figure(tmp_path):
    alone, between = GradWatch(log_every_n_steps=1), GradWatch(log_every_n_steps=1)
    fit(Regression(), tmp_path, alone)
    fit(Regression(), tmp_path, between, eval_strategy="steps", eval_steps=1, eval_on_start=True)
    for name in alone.watcher.history.keys():  # noqa: SIM118  # it is no dict
        np.testing.assert_array_equal(between.watcher.history[name], alone.watcher.history[name], err_msg=name)


def test_a_second_training_has_a_watcher_of_its_own_and_findings_outlive_the_first(tmp_path):
    callback, memory = GradWatch(), Memory()
    trainer = trainer_of(Regression(), tmp_path, callback, spoil=[3])
    trainer.train()
    first = callback.watcher
    assert [finding.step for finding in callback.findings] == [3]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in trainer.model.modules())
    callback._sinks = [memory]
    trainer.train()
    assert callback.watcher is not first
    assert callback.watcher.history.steps.tolist() == list(range(STEPS))
    assert len(first.findings) == 1
    assert memory.closed


def test_a_training_that_fails_can_be_begun_again(tmp_path, caplog):
    class Failing(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise RuntimeError("out of memory")

    callback = GradWatch()
    trainer = trainer_of(Regression(), tmp_path, callback, Failing())
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    trainer.remove_callback(Failing)
    trainer.train()
    assert callback.watcher.history.steps.tolist() == list(range(STEPS))
    assert not [record for record in caplog.records if record.name == "gradwatch"]


# --- checkpoints


def cut(folder, callback, *others, model=None, **options):
    """Train to the checkpoint in the middle, and return its path."""
    kept = {"save_strategy": "steps", "save_steps": STEPS // 2} | options
    fit(Regression() if model is None else model, folder, callback, *others, max_steps=STEPS // 2, **kept)
    return str(folder / "out" / f"checkpoint-{STEPS // 2}")


@pytest.mark.parametrize("restores", [False, True])
@pytest.mark.parametrize("clip", [None, "auto"])
def test_a_resumed_training_finds_what_the_uncut_one_finds(clip, restores, tmp_path):
    kept = {"restore_callback_states_from_checkpoint": restores}
    whole, first, second = GradWatch(clip=clip), GradWatch(clip=clip), GradWatch(clip=clip)
    uncut = fit(Regression(), tmp_path / "whole", whole, spoil=[1]).model
    checkpoint = cut(tmp_path, first, spoil=[1], **kept)
    model = Regression()
    resumed = fit(model, tmp_path, second, spoil=[1], resume=checkpoint, **kept)
    history = second.watcher.history
    assert history.steps.tolist() == list(range(STEPS // 2, STEPS))
    for name in ("grad_norm", "grad_norm_clipped_total", "loss"):
        np.testing.assert_array_equal(history[name], whole.watcher.history[name][STEPS // 2 :])
    outline = lambda callback: [(each.kind, each.step, each.last_step) for each in callback.findings]
    assert outline(second) == outline(whole) == [("nonfinite", 1, STEPS - 1)]
    assert_same_weights(model, uncut.parameters())
    assert resumed.state.global_step == STEPS


def test_a_run_cut_twice_goes_on_from_the_later_checkpoint(tmp_path):
    steps = {"save_strategy": "steps", "save_steps": 2, "restore_callback_states_from_checkpoint": True}
    for end in (2, 4, 6):
        callback = GradWatch()
        resume = str(tmp_path / "out" / f"checkpoint-{end - 2}") if end > 2 else None
        fit(Regression(), tmp_path, callback, max_steps=end, resume=resume, **steps)
        assert callback.watcher.history.steps.tolist() == [end - 2, end - 1]


def test_the_state_of_other_callbacks_is_restored_beside_it(tmp_path):
    class Stopping(EarlyStoppingCallback):
        pass

    kept = {
        "restore_callback_states_from_checkpoint": True, "eval_strategy": "steps", "eval_steps": 3,
        "save_strategy": "steps", "save_steps": 3, "metric_for_best_model": "loss", "load_best_model_at_end": True,
    }  # fmt: skip
    callback = GradWatch(clip=1.0)
    checkpoint = cut(tmp_path, GradWatch(clip=1.0), Stopping(early_stopping_patience=9), **kept)
    trainer = fit(Regression(), tmp_path, callback, Stopping(), resume=checkpoint, **kept)
    (stopping,) = [each for each in trainer.callback_handler.callbacks if isinstance(each, Stopping)]
    assert stopping.early_stopping_patience == 9
    assert callback.watcher.history.steps.tolist() == [3, 4, 5]


def test_a_copy_without_its_keywords_is_refused(tmp_path):
    kept = {"restore_callback_states_from_checkpoint": True}
    checkpoint = cut(tmp_path, GradWatch(clip=1.0), **kept)
    trainer = trainer_of(Regression(), tmp_path, **kept)
    trainer.add_callback(GradWatch(clip=1.0))
    with pytest.raises(ValueError, match="rather than by add_callback"):
        trainer.train(resume_from_checkpoint=checkpoint)


def test_a_checkpoint_of_another_choice_of_layers_goes_on_and_says_so(tmp_path, caplog):
    checkpoint = cut(tmp_path, GradWatch(clip="auto"))
    callback = GradWatch(clip="auto", include="*.weight")
    fit(Regression(), tmp_path, callback, resume=checkpoint)
    assert callback.watcher.history.steps.tolist() == list(range(STEPS // 2, STEPS))
    (line,) = [record.message for record in caplog.records if record.name == "gradwatch"]
    assert line.startswith(
        "gradwatch: other layers are watched than in the checkpoint: 2 gone (net.0.bias, net.2.bias)"
    )


def test_a_checkpoint_serves_trainers_with_and_without_the_callback(tmp_path):
    with_it = cut(tmp_path / "with", GradWatch())
    without = cut(tmp_path / "without", TrainerCallback())
    callback, again = GradWatch(), GradWatch()
    saves = {"save_strategy": "steps", "save_steps": STEPS // 2}
    fit(Regression(), tmp_path / "without", callback, resume=without, **saves)
    assert callback.watcher.history.steps.tolist() == [0, 1, 2]
    saved = str(tmp_path / "without" / "out" / f"checkpoint-{STEPS}")
    fit(Regression(), tmp_path / "without", again, resume=saved, max_steps=STEPS + 1, **saves)
    assert again.watcher.history.steps.tolist() == [3]
    trainer = fit(Regression(), tmp_path / "with", resume=with_it, **saves)
    assert trainer.state.global_step == STEPS


def test_a_state_that_cannot_be_read_stops_no_training(tmp_path, caplog):
    checkpoint = cut(tmp_path, GradWatch())
    path = tmp_path / "out" / f"checkpoint-{STEPS // 2}" / "trainer_state.json"
    stored = json.loads(path.read_text())
    stored["stateful_callbacks"]["GradWatch"]["watcher"] = "AAAA"
    path.write_text(json.dumps(stored))
    trainer = fit(Regression(), tmp_path, GradWatch(), resume=checkpoint)
    assert trainer.state.global_step == STEPS
    assert "a fault in gradwatch itself (resuming)" in caplog.text


# --- precision and compilers


def test_bf16_is_that_of_the_plain_loop_under_autocast(tmp_path):
    callback = GradWatch()
    fit(Regression(), tmp_path, callback, bf16=True)
    model, totals = Regression(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for batch in list(DataLoader(rows(Regression), batch_size=BATCH))[:STEPS]:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch)["loss"]
        loss.backward()
        totals.append(nn.utils.get_total_norm([p.grad for p in model.parameters()]).item())
        optimizer.step()
    np.testing.assert_allclose(callback.watcher.history["grad_norm_total"], totals, rtol=1e-3)
    assert callback.findings == []


@pytest.mark.slow
def test_a_compiled_model_has_the_figures_of_the_plain_loop(tmp_path):
    callback, model = GradWatch(), Regression()
    fit(model, tmp_path, callback, torch_compile=True, torch_compile_backend="aot_eager")
    norms, losses, _ = by_hand(Regression)
    history = callback.watcher.history
    assert history.layers == tuple(name for name, _ in model.named_parameters())
    np.testing.assert_allclose(history["grad_norm"], norms, rtol=1e-4)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-4)


# --- PEFT and TRL

WORDS = ["<pad>", "<eos>", *["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran"]]
SENTENCES = ["the cat sat on a mat", "a dog ran and sat", "the dog and the cat ran on the mat"]


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def adapted():
    return peft.get_peft_model(llama(), lora())


def lora():
    return peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def sentences():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, len(WORDS), (STEPS * BATCH, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in tokens]


def test_lora_is_watched_where_it_trains_and_frozen_weights_are_silent(tmp_path, caplog):
    callback, model = GradWatch(), adapted()
    fit(model, tmp_path, callback, data=sentences())
    reference, norms, losses = adapted(), [], []
    optimizer = torch.optim.SGD(reference.parameters(), lr=LEARNING_RATE)
    for batch in DataLoader(sentences(), batch_size=BATCH):
        optimizer.zero_grad()
        loss = reference(**batch).loss
        loss.backward()
        norms.append({name: p.grad.norm().item() for name, p in reference.named_parameters() if p.grad is not None})
        losses.append(loss.item())
        optimizer.step()
    history = callback.watcher.history
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    for name in history.layers:
        expected = [row.get(name, np.nan) for row in norms]
        np.testing.assert_allclose(history.layer(name)["grad_norm"], expected, rtol=1e-4, err_msg=name)
    assert {name for name in history.layers if "lora_" in name} == set(norms[0])
    assert callback.findings == []
    assert not [record for record in caplog.records if record.name == "gradwatch"]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, lora], ids=["whole", "LoRA"])
def test_trls_trainer_is_watched_and_a_healthy_run_has_no_finding(adapter, tmp_path):
    import datasets
    import tokenizers
    import trl

    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>"
    )
    settings = trl.SFTConfig(
        str(tmp_path / "out"), max_steps=100, learning_rate=1e-3, per_device_train_batch_size=BATCH, logging_steps=1,
        gradient_accumulation_steps=2, max_grad_norm=0.5, report_to="none", save_strategy="no", use_cpu=True,
        disable_tqdm=True, bf16=False, dataloader_pin_memory=False,
    )  # fmt: skip
    callback = GradWatch()
    trainer = trl.SFTTrainer(
        llama(),
        settings,
        train_dataset=datasets.Dataset.from_list([{"text": text} for text in SENTENCES * 30]),
        processing_class=tokenizer,
        peft_config=None if adapter is None else adapter(),
        callbacks=[callback],
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    history = callback.watcher.history
    assert callback.findings == []
    np.testing.assert_allclose(history["loss"], [log["loss"] for log in logs], atol=1e-4)
    np.testing.assert_allclose(history["grad_norm_total"], [log["grad_norm"] for log in logs], rtol=1e-4)
    assert history["loss"][-1] < history["loss"][0]
