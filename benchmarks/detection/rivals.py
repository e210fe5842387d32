"""The published rules of other tools, listening to one bare run together.

Enters: a program and a seed. Leaves: what each tool's rules would have said. Knows nothing of gradwatch or of labels.

The rules are written anew from their published facts: papers, documentation, and the default settings of public
repositories. Where those leave a choice, the reading that alarms less often is taken, and each docstring says so. What
all share:

- A gradient is the one that the last backward pass left, before the loop's own clipping, as in ``bare.py``.
- Where a tool counts epochs, one is a hundredth of the run, for AUTOTRAINER reproduces its results with 100.
- A (kind, layer) is said once. A tool that stops the training at its first finding says only that one.
- Activations are those of modules (``nn.ReLU``, ``nn.Sigmoid``, ``nn.Tanh``) called for training; functions such as
  ``torch.relu`` stay unseen, as they do to those tools. A module called several times between updates is sick only
  where every call was. Their alarms name the module, all others a parameter, or "" for the run.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.detection.bare import named_parameters, start
from benchmarks.detection.program import Program, Training

__all__ = ["RIVALS", "Activation", "Alarm", "Rival", "Update", "run_rival"]

EPOCHS = 100
"""Of a run, for tools that check by the epoch: ``epoch=100`` in AUTOTRAINER's reproduce.py at 03a463e."""


@dataclass(frozen=True)
class Alarm:
    """What a tool says, once.

    Attributes:
        kind: vanishing, exploding, nonfinite, stalled, unstable, dead or saturated.
        layer: a parameter's or an activation module's name; "" for the run.
        step: the update at which it is said, over all optimizers, from 0.
    """

    kind: str
    layer: str
    step: int


@dataclass(frozen=True)
class Activation:
    """One call of an activation module.

    Attributes:
        layer: its name.
        function: relu, sigmoid or tanh.
        before: (N, …) what went in; relu's is not to be read, for it may have been overwritten in place.
        after: (N, …) what came out.
    """

    layer: str
    function: str
    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class Update:
    """One update by one optimizer; its parameters that had a gradient, in order of registration.

    Attributes:
        step: updates before it, over all optimizers.
        turn: updates before it by the same optimizer.
        optimizer: which one.
        number: of the program's iteration, of ``steps``.
        gradients: real, float64, by name; the stored values of sparse ones.
        before, after: the weights, real, float64.
        learning_rates: by name.
        losses: observed since the update before.
        is_adam: whether the optimizer is one of Adam's family.
        embeddings: names of weights of embeddings.
    """

    step: int
    turn: int
    optimizer: int
    number: int
    steps: int
    gradients: Mapping[str, Tensor]
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    learning_rates: Mapping[str, float]
    losses: tuple[float, ...] = ()
    is_adam: bool = False
    embeddings: frozenset[str] = frozenset()

    @property
    def epoch(self) -> int:
        """From 0 to ``EPOCHS`` − 1."""
        return self.number * EPOCHS // self.steps

    @property
    def kernels(self) -> list[str]:
        """Names of weights of two dimensions or more: what the tools on Keras and TensorFlow take for a layer."""
        return [name for name, gradient in self.gradients.items() if gradient.dim() > 1]


class Rival:
    """A tool's rules: hears activations and updates, collects alarms.

    Attributes:
        stops: whether the tool ends the training at its first finding.
        alarms: so far.
    """

    stops = False

    def __init__(self) -> None:
        self.alarms: list[Alarm] = []

    def hear(self, activation: Activation) -> None:
        """Takes a call of an activation module, before the update that it belongs to."""

    def judge(self, update: Update) -> None:
        """Takes an update."""
        raise NotImplementedError

    def say(self, kind: str, layer: str, step: int) -> None:
        """Raises an alarm, unless it was said or the tool has stopped the training."""
        is_new = all((alarm.kind, alarm.layer) != (kind, layer) for alarm in self.alarms)
        if is_new and not (self.stops and self.alarms):
            self.alarms.append(Alarm(kind, layer, step))


class Clock:
    """Strikes at the end of every n-th epoch, epoch 0 included; for each optimizer once, or at its next update."""

    def __init__(self, every: int) -> None:
        self.every = every
        self._due: dict[int, int] = defaultdict(int)

    def strikes(self, update: Update) -> bool:
        """Whether a check is due."""
        ends = (update.number + 1) * EPOCHS // update.steps > update.epoch
        due = self._due[update.optimizer]
        if update.epoch < due or (update.epoch == due and not ends):
            return False
        self._due[update.optimizer] = update.epoch - update.epoch % self.every + self.every
        return True


class AutoTrainer(Rival):
    """AUTOTRAINER: first kernel's gradient against the last one's, where accuracy stays low.

    Source: Zhang et al., ICSE 2021, doi 10.1109/ICSE43902.2021.00043; github.com/shiningrain/AUTOTRAINER at aafa2a4
    (the paper's), defaults in reproduce.py, rules in utils/monitor.py. In order, one finding ends the training:

    - dying ReLU: ≥ ``GAMMA`` of all gradient entries are exactly zero;
    - explode: ‖g_first‖ / ‖g_last‖ > ``BETA_3``;
    - vanish: that ratio < ``BETA_1`` and ‖g_first‖ < ``BETA_2``;
    - before all: NaN or Inf in a gradient, weight or loss, or a last loss ≥ ``LARGE_LOSS``: to it explode, too.

    Checked every ``CHECK`` epochs. The first three count only from ``JUDGMENT`` of the run on and where the best
    accuracy so far is below ``THETA`` (or never rose by 0.01 within an epoch).

    Read so as to alarm less: a bare run has losses, no accuracies, so here the gate stands open only while no
    interval's mean loss has come down to ``THETA`` times the first one's; ``gated=False`` leaves the gate and the wait
    out, and is the gradients' rules alone. The repository counts conditions met before the gate opened, here they must
    hold at the check. A large loss is 1e5, as at ICSE; the later revision says 1e3. Embeddings are left out, whose
    gradients TensorFlow holds as slices, which the tool skips. Oscillation and slow convergence need accuracies.
    """

    BETA_1, BETA_2, BETA_3, GAMMA = 1e-3, 1e-4, 70.0, 0.7
    THETA, JUDGMENT, CHECK = 0.6, 0.3, 3
    LARGE_LOSS = 1e5

    stops = True

    def __init__(self, *, gated: bool = True) -> None:
        super().__init__()
        self.gated = gated
        self._clock = Clock(self.CHECK)
        self._pending: list[float] = []
        self._first = self._best = math.nan

    def judge(self, update: Update) -> None:
        """See the class."""
        self._pending += update.losses
        if not self._clock.strikes(update):
            return
        losses, self._pending = self._pending, []
        sick = [name for name in update.gradients if _is_sick(update.gradients[name]) or _is_sick(update.after[name])]
        if sick or not all(map(math.isfinite, losses)):
            self.say("nonfinite", sick[0] if sick else "", update.step)
        elif losses and losses[-1] >= self.LARGE_LOSS:
            self.say("exploding", "", update.step)
        elif self._gate_is_open(losses, update) or not self.gated:
            self._judge_gradients(update)

    def _gate_is_open(self, losses: list[float], update: Update) -> bool:
        if losses:
            mean = sum(losses) / len(losses)
            self._first = mean if math.isnan(self._first) else self._first
            self._best = min(mean, mean if math.isnan(self._best) else self._best)
        attained = self._first * (self.THETA if self._first > 0 else 1.0)
        return update.number >= self.JUDGMENT * update.steps and self._best > attained

    def _judge_gradients(self, update: Update) -> None:
        gradients = {name: g for name, g in update.gradients.items() if name not in update.embeddings}
        kernels = [name for name in update.kernels if name in gradients]
        if not kernels:
            return
        first, last = (float(gradients[name].norm()) for name in (kernels[0], kernels[-1]))
        entries = sum(g.numel() for g in gradients.values())
        if sum(int((g == 0).sum()) for g in gradients.values()) >= self.GAMMA * entries:
            self.say("dead", "", update.step)
        elif _ratio(first, last) > self.BETA_3:
            self.say("exploding", kernels[0], update.step)
        elif _ratio(first, last) < self.BETA_1 and first < self.BETA_2:
            self.say("vanishing", kernels[0], update.step)


class SageMakerDebugger(Rival):
    """Amazon SageMaker Debugger's built-in rules, with their documented defaults.

    Source: docs.aws.amazon.com/sagemaker/latest/dg/debugger-built-in-rules.html and its pages vanishing-gradient,
    exploding-tensor, dead-relu, saturated-activation, weight-update-ratio. The rules' code is not public.

    - VanishingGradient: mean |g| of a gradient < ``VANISHING``;
    - ExplodingTensor: a gradient, weight or loss is NaN or Inf (so "nonfinite" here: no size alone is too large);
    - DeadRelu: more than ``LAYER`` of a layer's units are active less than ``INACTIVITY`` of the time;
    - SaturatedActivation: the same of units whose input lies inside ``TANH`` or ``SIGMOID``;
    - WeightUpdateRatio: size of the update over that of the weight > ``LARGE`` or < ``SMALL``.

    Read so as to alarm less: a unit is one channel or feature, over all examples and positions of a saved step. The
    update ratio is of L2 norms, not of single entries, and of names with "weight" alone, as smdebug's collection of
    that name holds no biases. LossNotDecreasing and UnchangedTensor are left out: a mini-batch's loss trips the one,
    and the other needs its tensors named. One choice goes the other way: tensors are saved every ``save_interval`` = 1
    steps. The default is 500, at which it would see most of these runs once, and WeightUpdateRatio asks for 1.
    """

    VANISHING, LARGE, SMALL, EPSILON = 1e-7, 10.0, 1e-8, 1e-9
    INACTIVITY, LAYER = 0.01, 0.5
    TANH, SIGMOID = (-9.4999, 9.4999), (-23.0, 16.99999)

    def __init__(self, *, save_interval: int = 1) -> None:
        super().__init__()
        self.save_interval = save_interval
        self._inactive: dict[tuple[str, str], float] = {}

    def hear(self, activation: Activation) -> None:
        """See the class."""
        if activation.function == "relu":
            key, active = ("dead", activation.layer), activation.after > 0
        else:
            low, high = self.TANH if activation.function == "tanh" else self.SIGMOID
            key, active = ("saturated", activation.layer), (activation.before > low) & (activation.before < high)
        share = float((_by_unit(active).double().mean(0) < self.INACTIVITY).double().mean())
        self._inactive[key] = min(share, self._inactive.get(key, 1.0))

    def judge(self, update: Update) -> None:
        """See the class."""
        inactive, self._inactive = self._inactive, {}
        if update.turn % self.save_interval:
            return
        for (kind, layer), share in inactive.items():
            if share > self.LAYER:
                self.say(kind, layer, update.step)
        if not all(map(math.isfinite, update.losses)):
            self.say("nonfinite", "", update.step)
        for name, gradient in update.gradients.items():
            if _is_sick(gradient) or _is_sick(update.after[name]):
                self.say("nonfinite", name, update.step)
                continue
            if _mean_magnitude(gradient) < self.VANISHING:
                self.say("vanishing", name, update.step)
            self._judge_ratio(name, update)

    def _judge_ratio(self, name: str, update: Update) -> None:
        before, after = update.before[name], update.after[name]
        ratio = float((after - before).norm()) / (float(before.norm()) + self.EPSILON)
        if "weight" in name and ratio > self.LARGE:
            self.say("unstable", name, update.step)
        elif "weight" in name and ratio < self.SMALL:
            self.say("stalled", name, update.step)


class DeepDiagnosis(Rival):
    """DeepDiagnosis: symptoms once an epoch, on one batch; the first ends the training.

    Source: Wardat et al., ICSE 2022, arXiv 2112.04036; github.com/DeepDiagnosis/ICSE2022, callback/callbacks.py.

    - nonfinite: the loss, a kernel's gradient or a kernel is NaN or Inf;
    - vanishing: mean |g| of a kernel < ``VANISHING``, the last layer looked at first;
    - dead: ≥ ``DEAD`` of a ReLU's outputs are ≤ 0, looked at in the last epoch alone;
    - saturated: |x| ≥ ``EXTREME`` for more than ``SATURATED`` of the inputs of a sigmoid or tanh, every ``WINDOW``;
    - stalled: loss, or mean of a kernel or of its gradient, exactly equal over ``WINDOW`` epochs;
    - learning rate: lr · ‖g‖ / ‖w‖ of a kernel outside ``RATIO``: stalled below, unstable above.

    Read so as to alarm less: in the repository the learning rate is a diagnosis, looked at only after a symptom, so
    here it only decides whether equal losses or weights are called stalled or unstable. ``ratio_alone=True`` makes it
    a symptom of its own. A mean gradient of exactly zero, a numerical error there, is left to the rule for vanishing.
    The ranges of outputs and the accuracy's rules need labels.
    """

    VANISHING, DEAD = 1e-7, 0.7
    EXTREME, SATURATED = 5.0, 0.5
    RATIO = (1e-5, 0.1)
    WINDOW = 5

    stops = True

    def __init__(self, *, ratio_alone: bool = False) -> None:
        super().__init__()
        self.ratio_alone = ratio_alone
        self._clock = Clock(1)
        self._checks: dict[int, int] = defaultdict(int)
        self._history: dict[tuple[int, str], list[float]] = defaultdict(list)
        self._share: dict[tuple[str, str], float] = {}
        self._pending: list[float] = []

    def hear(self, activation: Activation) -> None:
        """See the class."""
        if activation.function == "relu":
            key, extreme = ("dead", activation.layer), activation.after <= 0
        else:
            key, extreme = ("saturated", activation.layer), activation.before.abs() >= self.EXTREME
        share = float(extreme.double().mean())
        self._share[key] = min(share, self._share.get(key, 1.0))

    def judge(self, update: Update) -> None:
        """See the class."""
        share, self._share = self._share, {}
        self._pending += update.losses
        is_last = update.number == update.steps - 1
        if not (self._clock.strikes(update) or is_last):
            return
        losses, self._pending = self._pending, []
        self._checks[update.optimizer] += 1
        is_fifth = self._checks[update.optimizer] % self.WINDOW == 0
        for (kind, layer), value in share.items():
            is_sick = is_last and value >= self.DEAD if kind == "dead" else is_fifth and value > self.SATURATED
            if is_sick:
                self.say(kind, layer, update.step)
        if not all(map(math.isfinite, losses)):
            self.say("nonfinite", "", update.step)
        for name in reversed(update.kernels):
            if _is_sick(update.gradients[name]) or _is_sick(update.after[name]):
                self.say("nonfinite", name, update.step)
            elif _mean_magnitude(update.gradients[name]) < self.VANISHING:
                self.say("vanishing", name, update.step)
        self._judge_change(losses, is_fifth, update)
        if self.ratio_alone:
            for name, kind in self._ratios(update):
                self.say(kind, name, update.step)

    def _judge_change(self, losses: list[float], is_fifth: bool, update: Update) -> None:
        if losses:
            self._history[update.optimizer, ""].append(sum(losses) / len(losses))
        for name in update.kernels:
            self._history[update.optimizer, f"{name} gradient"].append(float(update.gradients[name].mean()))
            self._history[update.optimizer, name].append(float(update.after[name].mean()))
        if not is_fifth:
            return
        for (optimizer, name), values in self._history.items():
            if optimizer == update.optimizer:
                if len(values) == self.WINDOW and len(set(values)) == 1:
                    kinds = [kind for _, kind in self._ratios(update)]
                    self.say(kinds[0] if kinds else "stalled", name.removesuffix(" gradient"), update.step)
                values.clear()

    def _ratios(self, update: Update) -> list[tuple[str, str]]:
        found = []
        for name in update.kernels:
            gradient, weight = float(update.gradients[name].norm()), float(update.before[name].norm())
            ratio = _ratio(update.learning_rates[name] * gradient, weight)
            if ratio < self.RATIO[0] or ratio > self.RATIO[1]:
                found.append((name, "stalled" if ratio < self.RATIO[0] else "unstable"))
        return found


class DeepLocalize(Rival):
    """DeepLocalize: numerical errors and values that stand still, every batch; the first ends the training.

    Source: Wardat et al., ICSE 2021, arXiv 2103.03376; its callback as kept in github.com/DeepDiagnosis/ICSE2022.

    - nonfinite: the loss, a kernel's gradient or a kernel is NaN or Inf;
    - vanishing: the mean of a kernel's gradient is exactly zero in at least ``ZERO`` of the batches so far;
    - stalled: loss, or mean of a kernel or of its gradient, exactly equal over ``WINDOW`` batches.

    Read so as to alarm less: a layer's output or weight whose mean is exactly zero, an error there, too, is let pass,
    as weights that begin at zero would trip it at once, and so is a gradient of zero that has not lasted ``WINDOW``
    batches.
    """

    ZERO, WINDOW = 0.5, 5

    stops = True

    def __init__(self) -> None:
        super().__init__()
        self._zeros: dict[str, int] = defaultdict(int)
        self._history: dict[str, list[float]] = defaultdict(list)

    def judge(self, update: Update) -> None:
        """See the class."""
        values = {"": sum(update.losses) / len(update.losses)} if update.losses else {}
        for name in update.kernels:
            values[name] = float(update.after[name].mean())
            values[f"{name} gradient"] = float(update.gradients[name].mean())
        for key, value in values.items():
            name = key.removesuffix(" gradient")
            self._history[key].append(value)
            seen = len(self._history[key])
            self._zeros[key] += value == 0
            if not math.isfinite(value):
                self.say("nonfinite", name, update.step)
            elif seen < self.WINDOW:
                continue
            elif key != name and self._zeros[key] >= self.ZERO * seen:
                self.say("vanishing", name, update.step)
            elif seen % self.WINDOW == 0 and len(set(self._history[key][-self.WINDOW :])) == 1:
                self.say("stalled", name, update.step)


class TheDeepChecker(Rival):
    """TheDeepChecker: properties of weights, gradients and activations, every ``PERIOD`` updates.

    Source: Ben Braiek and Khomh, TOSEM 2023, arXiv 2204.00694; github.com/thedeepchecker/thedeepchecker,
    config/settings.yaml (OverfitCheck) and hooks.py. Of every kernel, from the update ``PERIOD`` on:

    - nonfinite: its gradient is NaN or Inf (looked at every update);
    - vanishing: mean |g| < ``VANISHING``, or it fell to ``FALL`` or less ``WINDOW`` − 1 times in a row;
    - exploding: mean |g| > ``EXPLODING``, or it grew to ``RISE`` or more as often;
    - the mean over the period of log10(mean |Δw| / mean |w|) above ``FAST`` is unstable, below ``SLOW`` stalled;
    - dead: of more than ``UNITS`` of a ReLU's units the ``PERCENTILE`` of |a| is below ``SILENT``;
    - saturated: of more than ``UNITS`` of a sigmoid's or tanh's units Rakitianskaia and Engelbrecht's ρ_B is above
      ``RHO``: the mean of |a| scaled to [−1, 1], both over the activations of ``BUFFER`` updates.

    Read so as to alarm less: "in a row" is of updates, as the repository's buffer is, not of checks ten updates apart,
    at which healthy losses fall that far, too. An update of exactly zero counts only where all of a period are (the
    repository takes its logarithm for zero, which can call a weight at rest fast). The tool looks at the overfitting
    of one batch before the training; its rules for losses, accuracies and the spread of activations suppose that, and
    are left out.
    """

    PERIOD, WINDOW, BUFFER = 10, 5, 10
    VANISHING, FALL = 1e-6, 0.5
    EXPLODING, RISE = 1e6, 2.0
    FAST, SLOW = -1.0, -4.0
    SILENT, PERCENTILE, UNITS, RHO = 1e-5, 0.95, 0.5, 0.85

    def __init__(self) -> None:
        super().__init__()
        self._means: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=self.WINDOW))
        self._ratios: dict[str, list[float]] = defaultdict(list)
        self._calls: dict[tuple[str, str], Tensor] = {}
        self._buffer: dict[tuple[str, str], deque[Tensor]] = defaultdict(lambda: deque(maxlen=self.BUFFER))

    def hear(self, activation: Activation) -> None:
        """See the class."""
        after = _by_unit(activation.after).double()
        if activation.function == "relu":
            key, figure = ("dead", activation.layer), (after.abs() >= self.SILENT).double()
        else:
            scaled = after if activation.function == "tanh" else 2 * after - 1
            key, figure = ("saturated", activation.layer), scaled.abs()
        sums = torch.stack([figure.sum(0), torch.full(figure.shape[1:], float(len(figure)), dtype=torch.float64)])
        if key not in self._calls:
            self._calls[key] = sums
        elif self._calls[key].shape == sums.shape:
            self._calls[key] += sums

    def judge(self, update: Update) -> None:
        """See the class."""
        calls, self._calls = self._calls, {}
        for key, sums in calls.items():
            if self._buffer[key] and self._buffer[key][-1].shape != sums.shape:
                self._buffer[key].clear()
            self._buffer[key].append(sums)
        is_due = update.turn > 0 and update.turn % self.PERIOD == 0
        for key in calls if is_due else ():
            self._judge_units(key, update.step)
        for name in update.kernels:
            if _is_sick(update.gradients[name]):
                self.say("nonfinite", name, update.step)
                continue
            self._means[name].append(_mean_magnitude(update.gradients[name]))
            moved = _mean_magnitude(update.after[name] - update.before[name])
            self._ratios[name].append(_ratio(moved, _mean_magnitude(update.before[name])))
            if is_due:
                self._judge_gradient(name, update.step)
                self._judge_ratios(name, update.step)

    def _judge_units(self, key: tuple[str, str], step: int) -> None:
        total, count = torch.stack(list(self._buffer[key])).sum(0)
        figure = total / count
        sick = figure < 1 - self.PERCENTILE if key[0] == "dead" else figure > self.RHO
        if float(sick.double().mean()) > self.UNITS:
            self.say(*key, step)

    def _judge_gradient(self, name: str, step: int) -> None:
        means = list(self._means[name])
        ratios = [_ratio(later, earlier) for earlier, later in itertools.pairwise(means)]
        is_full = len(means) == self.WINDOW
        if means[-1] < self.VANISHING or (is_full and all(ratio <= self.FALL for ratio in ratios)):
            self.say("vanishing", name, step)
        if means[-1] > self.EXPLODING or (is_full and all(ratio >= self.RISE for ratio in ratios)):
            self.say("exploding", name, step)

    def _judge_ratios(self, name: str, step: int) -> None:
        ratios = [ratio for ratio in self._ratios.pop(name) if math.isfinite(ratio)]
        logarithms = [math.log10(ratio) for ratio in ratios if ratio > 0]
        if ratios and not logarithms:
            self.say("stalled", name, step)
        elif logarithms:
            mean = sum(logarithms) / len(logarithms)
            if mean > self.FAST or mean < self.SLOW:
                self.say("unstable" if mean > self.FAST else "stalled", name, step)


class Umlaut(Rival):
    """UMLAUT: the loss and the learning rate, once an epoch.

    Source: Schoop, Huang and Hartmann, CHI 2021, doi 10.1145/3411764.3445538; github.com/BerkeleyHCI/umlaut,
    umlaut/heuristics.py.

    - nonfinite: the loss is NaN;
    - unstable: the learning rate is above ``HIGH``; stalled: below ``LOW``.

    Read so as to alarm less: the rates count for Adam's family alone, which the tool's advice speaks of. Its other
    heuristics look at inputs, validation and layers' settings.
    """

    HIGH, LOW = 1e-2, 1e-7

    def __init__(self) -> None:
        super().__init__()
        self._clock = Clock(1)
        self._has_nan = False

    def judge(self, update: Update) -> None:
        """See the class."""
        self._has_nan = self._has_nan or any(map(math.isnan, update.losses))
        if not self._clock.strikes(update):
            return
        if self._has_nan:
            self.say("nonfinite", "", update.step)
        rates = update.learning_rates.values() if update.is_adam else ()
        if any(rate > self.HIGH for rate in rates):
            self.say("unstable", "", update.step)
        if any(rate < self.LOW for rate in rates):
            self.say("stalled", "", update.step)


class GradientStatsMonitor(Rival):
    """Lightning's proposed GradientStatsMonitor: one bound for the norm of all gradients.

    Source: github.com/Lightning-AI/pytorch-lightning, issue 21589, pull requests 21596 (bound 1e3) and 21720 (1e4).

    - exploding: the L2 norm of all gradients before clipping > ``EXPLOSION``, at every update.

    Read so as to alarm less: the later, higher bound, and of several optimizers each has a norm of its own. NaN is
    above no bound.
    """

    EXPLOSION = 1e4

    def judge(self, update: Update) -> None:
        """See the class."""
        norm = math.sqrt(sum(float(gradient.norm()) ** 2 for gradient in update.gradients.values()))
        if norm > self.EXPLOSION:
            self.say("exploding", "", update.step)


RIVALS: dict[str, Callable[[], Rival]] = {
    "AUTOTRAINER": AutoTrainer,
    "AUTOTRAINER, gradients alone": lambda: AutoTrainer(gated=False),
    "SageMaker Debugger": SageMakerDebugger,
    "DeepDiagnosis": DeepDiagnosis,
    "DeepDiagnosis, learning rate alone": lambda: DeepDiagnosis(ratio_alone=True),
    "DeepLocalize": DeepLocalize,
    "TheDeepChecker": TheDeepChecker,
    "UMLAUT": Umlaut,
    "Lightning GradientStatsMonitor": GradientStatsMonitor,
}


def run_rival(program: Program, seed: int, names: Iterable[str] | None = None) -> dict[str, list[Alarm]]:
    """Runs the program once, the named rivals (or all) listening together; what each said, in order."""
    rivals = {name: RIVALS[name]() for name in (RIVALS if names is None else names)}
    training = start(program, seed)
    listener = _Listener(training, list(rivals.values()))
    try:
        for number in range(training.steps):
            listener.number = number
            training.step(number, lambda loss: listener.losses.append(float(loss.detach())))
    finally:
        listener.remove()
    return {name: rival.alarms for name, rival in rivals.items()}


class _Listener:
    """Hooks on a run's parameters, optimizers and activation modules, which tell rivals of every update."""

    ACTIVATIONS: Mapping[type[nn.Module], str] = {nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.Tanh: "tanh"}

    def __init__(self, training: Training, rivals: list[Rival]) -> None:
        self.number = 0
        self.losses: list[float] = []
        self._rivals = rivals
        self._steps = training.steps
        self._names = {id(parameter): name for name, parameter in named_parameters(training)}
        self._turns = [0] * len(training.optimizers)
        self._left: dict[int, Tensor] = {}
        self._before: dict[int, Tensor] = {}
        models = {"": training.model} if isinstance(training.model, nn.Module) else training.model
        modules = {f"{key}.{name}".strip("."): m for key, model in models.items() for name, m in model.named_modules()}
        embeddings = [m.weight for m in modules.values() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
        self._embeddings = frozenset(self._names.get(id(weight), "") for weight in embeddings)
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._leave)
            for _, parameter in named_parameters(training)
            if parameter.requires_grad
        ]
        for name, module in modules.items():
            if type(module) in self.ACTIVATIONS:
                self._handles.append(module.register_forward_hook(self._activation_hook(name)))
        for index, optimizer in enumerate(training.optimizers):
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._after_step(index)))

    def remove(self) -> None:
        """Takes every hook away."""
        for handle in self._handles:
            handle.remove()

    def _leave(self, parameter: Tensor) -> None:
        if parameter.grad is not None:  # an optimizer inside the backward pass may have taken it
            self._left[id(parameter)] = _real(parameter.grad)

    def _activation_hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hear(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if module.training and torch.is_grad_enabled() and output.dim():
                with torch.no_grad():
                    call = Activation(name, self.ACTIVATIONS[type(module)], inputs[0].detach(), output.detach())
                    for rival in self._rivals:
                        rival.hear(call)

        return hear

    def _before_step(self, optimizer: Optimizer, _args: object, _kwargs: object) -> None:
        for parameter in _parameters(optimizer):
            self._before[id(parameter)] = _real(parameter)
            if parameter.grad is not None:
                self._left.setdefault(id(parameter), _real(parameter.grad))

    def _after_step(self, index: int) -> Callable[[Optimizer, object, object], None]:
        def tell(optimizer: Optimizer, _args: object, _kwargs: object) -> None:
            update = self._update(index, optimizer)
            with torch.no_grad():
                for rival in self._rivals:
                    rival.judge(update)
            self._turns[index] += 1
            self.losses.clear()

        return tell

    def _update(self, index: int, optimizer: Optimizer) -> Update:
        left = {id(p): self._left.pop(id(p)) for p in _parameters(optimizer) if id(p) in self._left}
        has = {id(p): p for p in _parameters(optimizer) if p.grad is not None and id(p) in left}
        own = {name: has[key] for key, name in self._names.items() if key in has}
        rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        return Update(
            step=sum(self._turns),
            turn=self._turns[index],
            optimizer=index,
            number=self.number,
            steps=self._steps,
            gradients={name: left[id(p)] for name, p in own.items()},
            before={name: self._before[id(p)] for name, p in own.items()},
            after={name: _real(p) for name, p in own.items()},
            learning_rates={name: rates[id(p)] for name, p in own.items()},
            losses=tuple(self.losses),
            is_adam="adam" in type(optimizer).__name__.lower(),
            embeddings=self._embeddings,
        )


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _real(tensor: Tensor) -> Tensor:
    """A copy in float64; magnitudes of complex entries; of a sparse tensor a matrix of the rows that it holds."""
    tensor = tensor.detach()
    tensor = tensor.coalesce().values() if tensor.is_sparse else tensor
    return (tensor.abs() if tensor.is_complex() else tensor).to(torch.float64, copy=True)


def _by_unit(values: Tensor) -> Tensor:
    """(examples and positions, units): channels are the second dimension of four or five, else the last."""
    units = 1 if values.dim() > 3 else values.dim() - 1
    return values.movedim(units, -1).reshape(-1, values.shape[units])


def _mean_magnitude(tensor: Tensor) -> float:
    return float(tensor.abs().mean())


def _is_sick(tensor: Tensor) -> bool:
    return not bool(torch.isfinite(tensor).all())


def _ratio(above: float, below: float) -> float:
    """NaN, which is beyond no threshold, for 0 / 0."""
    if below:
        return above / below
    return math.inf if above > 0 else math.nan
