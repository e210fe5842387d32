"""The library of remedies: for each one its text and the lines that make its change, family by family.

The lines call functions of ``gradwatch.remedies`` or are an idiom of torch. Trials of ``gradwatch.prescribe`` execute
them, so that there is no second definition of what a remedy does.
"""

from __future__ import annotations

from gradwatch.findings import KINDS
from gradwatch.remedies.remedy import Change, Place, Remedy

__all__ = ["FAMILIES", "LIBRARY"]

_MODEL: Place = "before the optimizer is made"
_OPTIMIZER: Place = "after the optimizer is made"
_LOSS: Place = "before loss.backward()"
_STEP: Place = "after optimizer.step()"


def _rate_times(factor: float) -> Change:
    lines = f"""\
for group in optimizer.param_groups:  # before a scheduler is made, since that starts from the rate that it finds
    group["lr"] *= {factor:g}"""
    return Change(_OPTIMIZER, lines)


def _call(function: str, arguments: str = "model, x") -> Change:
    return Change(_MODEL, f"{function}({arguments})", (function,))


def _activation(module: str) -> Change:
    return _call("replace_activations_", f"model, x, {module}")


def _safe(mode: str, by_hand: str) -> Change:
    return Change(_MODEL, f"loss_fn = {mode}().around_(model, loss_fn)  # or by hand: {by_hand}", (mode,))


def _watch(clip: str, comment: str = "") -> Change:
    return Change(_OPTIMIZER, f"watcher = gradwatch.watch(model, optimizer, clip={clip}){comment}")


_LEARNING_RATE = (
    Remedy(
        name="lower-learning-rate",
        title="A lower learning rate",
        advice="a lower learning rate{lower}",
        applies="exploding, unstable, dead, or NaN after the loss grew",
        kinds=KINDS,
        why="w ← w − lr·g converges on a curvature λ for lr < 2/λ, and grows by |1 − lr·λ| a step beyond it",
        source="LeCun et al. 1998, Efficient backprop",
        change=_rate_times(0.1),
        strengths={factor: _rate_times(factor) for factor in (0.1, 0.01, 1e-3, 1e-4)},
        cost="more steps to the same loss",
    ),
    Remedy(
        name="higher-learning-rate",
        title="A higher learning rate",
        advice="a higher learning rate{higher}; look first whether its schedule begins at 0, whether the optimizer was "
        "given this model's parameters, and whether the loss depends on the output (no detach, no argmax)",
        applies="stalled; no help against vanishing",
        kinds=("vanishing", "dead", "saturated", "stalled"),
        why="the update |Δw| = lr·|g|: below 2⁻²⁴·|w| it is rounded away in float32, and below 2⁻⁹·|w| in bfloat16",
        source="Smith 2015 (to find the range), arXiv:1506.01186",
        change=_rate_times(10),
        strengths={factor: _rate_times(factor) for factor in (10, 100)},
        cost="none; a rate that is too high explodes",
    ),
    Remedy(
        name="warm-up",
        title="Learning rate warm-up",
        advice="a learning rate that warms up over the first {warm_up} steps",
        applies="exploding or unstable in the first steps only: Adam, transformers, large batches; no help where the "
        "rate itself is too high",
        kinds=("exploding", "nonfinite", "dead", "saturated", "unstable"),
        why="lr(t) = lr·min(1, t/T): curvature is highest, and Adam's averages least certain, in the first steps",
        source="Goyal et al. 2017, arXiv:1706.02677; Liu et al. 2019, arXiv:1908.03265",
        change=Change(
            _OPTIMIZER,
            "warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50))\n"
            "optimizer.register_step_post_hook(lambda *_: warm_up.step())  # after each optimizer.step()",
        ),
        cost="T slower steps",
    ),
    Remedy(
        name="longer-schedule",
        title="A schedule as long as the run",
        advice="a schedule as long as the run: give it the number of calls of scheduler.step(), epochs × batches "
        "where that is once a batch",
        applies="stalled where the learning rate is 0 before anything was learned",
        kinds=("stalled",),
        why="w(T) = w(0) − Σₜ lr(t)·g(t): the steps with lr(t) = 0 add nothing",
        source="Lightning issue 18570",
        change=Change(
            _OPTIMIZER,
            'peak = [group["lr"] for group in optimizer.param_groups]\n\n\n'
            "def keep_rate_up(optimizer, args, kwargs):  # until the schedule is as long as the run\n"
            "    for number, group in enumerate(optimizer.param_groups):\n"
            '        peak[number] = max(peak[number], group["lr"])\n'
            '        group["lr"] = max(group["lr"], 0.1 * peak[number])\n\n\n'
            "optimizer.register_step_pre_hook(keep_rate_up)",
        ),
        cost="none",
    ),
    Remedy(
        name="own-parameters",
        title="An optimizer of the model's own parameters",
        advice="{connected}",
        applies="stalled where weights get gradients and belong to no optimizer, or an optimizer's never get one",
        kinds=("stalled",),
        why="w ← w − lr·g for each w that the optimizer holds: another tensor of the same name and value is another w",
        source="Accelerate issue 2665; PyTorch issue 149205",
        change=Change(
            _OPTIMIZER,
            'held = {id(each) for group in optimizer.param_groups for each in group["params"]}\n'
            "left_out = [each for each in model.parameters() if each.requires_grad and id(each) not in held]\n"
            "if left_out:\n"
            '    optimizer.add_param_group({"params": left_out})',
        ),
        cost="none",
    ),
    Remedy(
        name="zero-grad",
        title="Cleared gradients",
        advice="call optimizer.zero_grad() once an update: after step(), or before backward()",
        applies="unstable, dead, exploding or nonfinite in a loop that never clears its gradients",
        kinds=("exploding", "nonfinite", "dead", "saturated", "unstable"),
        why="backward() adds to p.grad: without clearing, update t is made of g₁ + … + gₜ, descent without friction",
        source="PyTorch, torch.optim.Optimizer.zero_grad",
        change=Change(_STEP, "optimizer.zero_grad()"),
        cost="none",
    ),
    Remedy(
        name="zero-grad-after-step",
        title="Gradients cleared after the update",
        advice="call optimizer.zero_grad() after optimizer.step(), or before backward(), never between the two",
        applies="stalled in a loop that clears its gradients before they are used",
        kinds=("stalled",),
        why="w ← w − lr·g moves nothing where g is None or 0",
        source="PyTorch, torch.optim.Optimizer.zero_grad",
        change=Change(_STEP, "optimizer.zero_grad()"),
        cost="none",
    ),
)

_DATA = (
    Remedy(
        name="scaled-inputs",
        title="Scaled inputs and targets",
        advice="{scaled}",
        applies="exploding, saturated or dead in the first layers; unstable regressions",
        kinds=KINDS,
        why="∂²L/∂W₁² ∝ E[x²]: inputs 16 times as large allow 1/256 of the learning rate",
        source="LeCun et al. 1998, Efficient backprop",
        change=Change(
            _MODEL,
            "batches, scaling = scale_batches(batches, model)\n"
            "# what comes later needs the same figures: scaling.outputs(model(scaling.inputs(x)))",
            ("scale_batches",),
        ),
        cost="one pass over the data; the figures must be kept with the model",
    ),
    Remedy(
        name="clean-data",
        title="Clean data",
        advice="{broken}",
        applies="nonfinite from the input of the model, from a target or a weight of the loss, or from a batch that "
        "has no finite loss",
        kinds=("exploding", "nonfinite"),
        why="x·w with one NaN is NaN, and one sample's NaN is every weight's after the mean over the batch",
        source="–",
        change=Change(_MODEL, "batches = clean_batches(batches, model, loss_fn)", ("clean_batches",)),
        cost='one pass over the data, once; on_nonfinite="skip" loses a whole batch instead',
    ),
)

_SAFE_FORMS = (
    Remedy(
        name="safe-log",
        title="A safe logarithm",
        advice="logsumexp, log_softmax, logsigmoid or cross_entropy in place of exp and log, or a clamp on what goes "
        "into them",
        applies="nonfinite from a logarithm or from an exponential that overflows, in the loss or in a module",
        kinds=("exploding", "nonfinite"),
        why="log′(p) = 1/p: −∞ at 0, NaN below; eˣ is Inf in float32 from x = 89. log softmax(x) = x − logsumexp(x) "
        "has a slope within ±1, takes no log of 0 and no eˣ above 1",
        source="Blanchard, Higham and Higham 2021, Accurately computing the log-sum-exp and softmax functions",
        change=_safe("SafeLog", "safe_log(p), safe_exp(x), F.log_softmax"),
        cost="none; a clamp passes no gradient below it",
    ),
    Remedy(
        name="safe-sqrt",
        title="A safe square root",
        advice="an epsilon inside the square root or norm: (x.square().sum() + 1e-6).sqrt()",
        applies="nonfinite from sqrt, norm, std or cdist, most of all in the backward pass with a finite loss",
        kinds=("nonfinite",),
        why="√′(x) = 1/(2√x) is ∞ at 0, and ∞ · 0 in the chain rule is NaN; √(x + ε) has a slope of at most 1/(2√ε)",
        source="PyTorch documentation, autograd mechanics: gradients of non-differentiable functions",
        change=_safe("SafeSqrt", "safe_sqrt(x), safe_norm(x), safe_pow(x, p)"),
        cost="a bias of at most √ε",
    ),
    Remedy(
        name="safe-division",
        title="A safe division",
        advice="keep the divisor away from 0: x / y.clamp(min=1e-6)",
        applies="nonfinite from a division, a reciprocal or a negative power; a mean over what may be empty",
        kinds=("exploding", "nonfinite"),
        why="∂(x/y)/∂y = −x/y²: at 0 ÷ 0 NaN. torch.where after the division hides the value, not the slope: ∞ · 0 is "
        "NaN",
        source="PyTorch issue 36923 (NaN through torch.where)",
        change=_safe("SafeDivision", "safe_divide(a, b)"),
        cost="none",
    ),
    Remedy(
        name="masked-softmax",
        title="A safe masked softmax",
        advice="never mask a whole row of a softmax: leave one entry, or fill with a large finite number",
        applies="nonfinite from a softmax or attention over a row that is masked entirely (padding alone)",
        kinds=("nonfinite", "saturated"),
        why="softmax(−∞, …, −∞) = 0 ÷ 0. Filled with a finite m it is uniform, and multiplied by the mask 0",
        source="PyTorch issue 41508 (nn.MultiheadAttention under full masks)",
        change=_safe("SafeSoftmax", "masked_softmax(scores), unmask_full_rows(mask)"),
        cost="one multiplication",
    ),
    Remedy(
        name="safe-power",
        title="A safe power",
        advice="keep what is raised to a power above 0: x.clamp(min=1e-6) before pow",
        applies="nonfinite from a power: of 0 with an exponent below 1, or with an exponent that is learnt; of a "
        "negative number with a fraction",
        kinds=("nonfinite",),
        why="∂xᵖ/∂x = p·xᵖ⁻¹ is ∞ at 0 for p < 1, and ∂xᵖ/∂p = xᵖ·log x takes the logarithm of 0; a negative x has no "
        "fractional power",
        source="Radenović, Tolias and Chum 2018 (generalised-mean pooling with a clamp), arXiv:1711.02512",
        change=_safe("SafePower", "safe_pow(x, p)"),
        cost="none; no gradient below the clamp",
    ),
    Remedy(
        name="safe-angle",
        title="A safe angle",
        advice="keep what goes into acos, asin or atanh within ±(1 − 1e-6), or take the angle by atan2",
        applies="nonfinite from acos, asin, atanh or acosh: at ±1 the slope is infinite, beyond it there is no value",
        kinds=("nonfinite",),
        why="acos′(x) = −1/√(1 − x²) is −∞ at ±1, where parallel vectors are; a clamp to ±1 itself leaves it there",
        source="PyTorch issue 8069",
        change=_safe("SafeAngle", "safe_acos(x), safe_asin(x), safe_atanh(x)"),
        cost="angles below 0.0014 count as 0.0014",
    ),
    Remedy(
        name="jitter",
        title="A jitter before a decomposition",
        advice="a little noise on the matrix that is decomposed (1e-4 of its scale; on the diagonal if it is "
        "symmetric), or a loss of its values without its vectors",
        applies="nonfinite from svd, eigh, qr, cholesky, inverse or solve: equal values, or a matrix without full rank",
        kinds=("nonfinite",),
        why="the derivative of singular vectors holds 1/(sᵢ² − sⱼ²) = ∞ for equal values; noise of ε makes it 1/ε",
        source="PyTorch documentation, torch.linalg.svd: gradients are unstable where singular values are not distinct",
        change=_safe("SafeDecomposition", "jittered(a), jittered_symmetric(a)"),
        cost="a bias of the size of the noise",
    ),
    Remedy(
        name="skip-step",
        title="Steps left out",
        advice="{guard}",
        applies="nonfinite from an operation that has no safe form, in single steps; no help where every step is sick",
        kinds=("nonfinite",),
        why="w ← w + NaN is NaN for good; a step that is left out costs one batch",
        source="–",
        change=Change(_OPTIMIZER, 'watcher = gradwatch.watch(model, optimizer, on_nonfinite="skip")'),
        cost="the steps; on an accelerator one wait for the device at each step",
    ),
    Remedy(
        name="softmax-over-classes",
        title="A softmax over the classes",
        advice="a softmax over one entry is 1 whatever it is given: for one output sigmoid with "
        "binary_cross_entropy_with_logits, for several the axis of the classes (dim=-1)",
        applies="vanishing, stalled or saturated where a softmax or cross-entropy runs along an axis of one entry",
        kinds=("vanishing", "saturated", "stalled"),
        why="eˣ/eˣ = 1, ∂/∂x = 0: neither value nor gradient depends on the model",
        source="PyTorch documentation, torch.nn.functional.softmax: dim",
        change=_safe("SoftmaxOverClasses", "torch.sigmoid(x), or x.softmax(-1)"),
        cost="none",
    ),
    Remedy(
        name="output-probabilities",
        title="Probabilities at the output",
        advice="a softmax at the output (of one output a sigmoid), or the loss of logits: cross_entropy, "
        "binary_cross_entropy_with_logits",
        applies="nonfinite, dead, vanishing, stalled or unstable where a loss takes the logarithm of outputs that are "
        "no probabilities",
        kinds=("vanishing", "nonfinite", "dead", "stalled", "unstable"),
        why="log p is NaN for p < 0, and max(p, ε) has a slope of 0 there; softmax(x)ᵢ = exp xᵢ / Σ exp x is above 0, "
        "and −log of it has the slope p − y, within ±1",
        source="Goodfellow, Bengio and Courville 2016, Deep learning, section 6.2.2",
        change=_safe("OutputProbabilities", "x.softmax(-1), of one output torch.sigmoid(x)"),
        cost="none",
    ),
)

_CLIPPING = (
    Remedy(
        name="clip-norm",
        title="Clip gradients by norm",
        advice="clip gradients by norm: clip=1.0",
        applies="exploding or unstable; recurrent networks above all; no help against vanishing, or against NaN made "
        "by one operation",
        kinds=("vanishing", "exploding", "nonfinite", "dead", "saturated", "unstable"),
        why="g ← g · min(1, c/‖g‖): the direction stays, and no update of plain descent is longer than lr · c",
        source="Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063",
        change=_watch("1.0", "\n# without gradwatch, in each step: nn.utils.clip_grad_norm_(model.parameters(), 1.0)"),
        cost="one pass over the gradients, which watching makes anyway; a threshold to choose",
    ),
    Remedy(
        name="clip-value",
        title="Clip gradients by value",
        advice="clip each gradient entry: clip=gradwatch.clip.by_value(0.1)",
        applies="exploding where a few entries are huge (rare embedding rows, outliers)",
        kinds=("exploding", "nonfinite", "unstable"),
        why="gᵢ ← max(−c, min(c, gᵢ)): each entry for itself, so that the direction changes",
        source="Mikolov 2012, Statistical language models based on neural networks",
        change=_watch("gradwatch.clip.by_value(0.1)"),
        cost="one more pass over the gradients; the direction is no longer that of descent",
    ),
    Remedy(
        name="clip-adaptive",
        title="Adaptive clipping",
        advice='clip as fits the optimizer, without a threshold: clip="auto"',
        applies="exploding where nobody knows a threshold",
        kinds=("exploding", "nonfinite", "unstable"),
        why="plain descent: ‖g‖ ≤ 0.16 · (1 − μ) · ‖w‖/lr, so that no gradient moves the weights by more than 0.16 of "
        "their norm; Adam: ‖g‖ ≤ 0.1 of its largest level, so that each update counts alike",
        source="by the weights: Brock et al. 2021, arXiv:2102.06171; by the total: You et al. 2020, arXiv:1904.00962",
        change=_watch('"auto"'),
        cost="as by norm; no threshold",
    ),
    Remedy(
        name="looser-clip",
        title="A clip norm near the usual one",
        advice='a clip norm near the usual total gradient norm, which history["grad_norm_total"] shows, or none; '
        "where one layer makes most of that, gradwatch.clip.by_layer_norm; gradients that a GradScaler has scaled are "
        "unscaled first",
        applies="stalled where clipping leaves next to nothing of the gradients",
        kinds=("stalled",),
        why="g ← g · c/‖g‖: Adam's update lr·m/(√v + ε) is lr·m/ε where √v lies far below ε = 10⁻⁸",
        source="Megatron-LM issue 5394",
        change=_watch("10.0", "  # in place of the loop's own clipping"),
        cost="none",
    ),
    Remedy(
        name="clip-before-step",
        title="Clipping between backward and step",
        advice="call clip_grad_norm_ between backward() and step(), or let gradwatch clip: clip=1.0",
        applies="exploding, unstable, dead or nonfinite in a loop that clips before backward(), or after step()",
        kinds=("exploding", "nonfinite", "dead", "unstable"),
        why="w ← w − lr·g takes g as it is when step() is called: what was scaled earlier is cleared or added to, what "
        "is scaled later is cleared",
        source="PyTorch, torch.nn.utils.clip_grad_norm_",
        change=_watch("1.0", "\n# in each step: loss.backward(), clip_grad_norm_(…, 1.0), optimizer.step()"),
        cost="none",
    ),
    Remedy(
        name="unscale-first",
        title="Gradients unscaled before they are clipped",
        advice="call scaler.unscale_(optimizer) before clip_grad_norm_, or let gradwatch clip, which knows the scale",
        applies="stalled in a loop that clips gradients which a GradScaler has scaled",
        kinds=("stalled",),
        why="‖S·g‖ > c always for a scale S of 65,536: what is left after unscaling has the norm c/S",
        source="PyTorch, Automatic mixed precision examples: working with scaled gradients",
        change=Change(
            _STEP,
            "# of the step before, in this order: scaler.scale(loss).backward(), scaler.unscale_(optimizer),\n"
            "# clip_grad_norm_(model.parameters(), 1.0), scaler.step(optimizer), scaler.update()",
        ),
        cost="none",
    ),
)

_INITIALISATION = (
    Remedy(
        name="xavier",
        title="Xavier initialisation",
        advice="Xavier initialisation of {where}, biases 0",
        applies="vanishing, saturated or exploding from the start, with tanh, softsign or no function; no help to deep "
        "sigmoids",
        kinds=KINDS,
        why="Var(w) = 2/(fan_in + fan_out): between what keeps the signal and what keeps the gradient, where f′(0) = 1",
        source="Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks",
        change=_call("init_xavier_"),
        cost="none",
    ),
    Remedy(
        name="he",
        title="He initialisation",
        advice="He initialisation of {where}, biases 0",
        applies="vanishing or exploding from the start in deep stacks of ReLUs; dead from the start",
        kinds=KINDS,
        why="Var(w) = 2/fan_in: a ReLU halves the mean square, and 2 makes up for it. PyTorch's own nn.Linear has "
        "1/(3·fan_in), so that each ReLU layer passes on a sixth of the mean square",
        source="He et al. 2015, arXiv:1502.01852",
        change=_call("init_he_"),
        cost="none",
    ),
    Remedy(
        name="orthogonal",
        title="Orthogonal initialisation",
        advice="orthogonal initialisation of {recurrent}",
        applies="vanishing along time (recurrent weights) or depth (tanh, linear); no help where updates are too large",
        kinds=("vanishing", "exploding", "nonfinite", "dead", "saturated", "stalled"),
        why="WᵀW = I: ‖Wᵀg‖ = ‖g‖ for every g, so that T steps keep the norm where λᵀ would take or blow it up",
        source="Saxe, McClelland and Ganguli 2013, arXiv:1312.6120",
        change=_call("init_orthogonal_"),
        cost="a QR decomposition per weight, once",
    ),
    Remedy(
        name="depth-scaled",
        title="Initialisation scaled by depth",
        advice="the last weight of each residual branch divided by √(2·number of blocks), or begun at 0",
        applies="exploding or unstable in residual networks and transformers without normalisation on the main path",
        kinds=("vanishing", "exploding", "nonfinite", "stalled"),
        why="Var(x_L) = Var(x₀)·(1 + s²)ᴸ: s = 1/√L keeps it below e, s = 1 makes it 2ᴸ",
        source="Radford et al. 2019 (GPT-2); Zhang, Dauphin and Ma 2019, Fixup, arXiv:1901.09321",
        change=_call("init_depth_scaled_"),
        cost="none",
    ),
    Remedy(
        name="initialise",
        title="Weights that are initialised",
        advice="{restored}",
        applies="nonfinite where a weight is sick before the first update; nonfinite or exploding where something "
        "other than the optimizer wrote into it",
        kinds=("exploding", "nonfinite"),
        why="y = W·x with one NaN in W is NaN in every row; Var(w) = 1/fan_in keeps the variance",
        source="PyTorch documentation, torch.nn.init",
        change=_call("init_nonfinite_", "model"),
        cost="none",
    ),
    Remedy(
        name="nonzero-gain",
        title="Gains that are not 0",
        advice="{opened}",
        applies="vanishing where what a layer is given is 0 (its weight gets no gradient, its bias does), "
        "where a gain or a weight after it is, or where an operation before the loss passes no gradient",
        kinds=("vanishing",),
        why="∂L/∂W = Σ g·xᵀ = 0 for x = 0, whatever g is",
        source="Ba, Kiros and Hinton 2016 (gains begin at 1), arXiv:1607.06450",
        change=_call("init_zero_gains_", "model"),
        cost="none",
    ),
)

_NORMALISATION = (
    Remedy(
        name="batch-norm",
        title="Batch normalisation",
        advice="batch normalisation ({batch_norm}) {between}",
        applies="vanishing, saturated, exploding or unstable; convolutions and linear layers, with batches of 16 or "
        "more; for linear layers of (N, time, features) take layer normalisation",
        kinds=KINDS,
        why="y = γ(x − μ_B)/σ_B + β over the batch: whatever the weights' scale, inputs of the next function have "
        "variance γ²",
        source="Ioffe and Szegedy 2015, arXiv:1502.03167",
        change=_call("insert_norms_", 'model, x, "batch"'),
        cost="two vectors a layer; samples of a batch depend on one another; train() and eval() differ",
    ),
    Remedy(
        name="layer-norm",
        title="Layer normalisation",
        advice="layer normalisation {between}",
        applies="vanishing, saturated or exploding; transformers, recurrent networks, small batches",
        kinds=KINDS,
        why="y = γ(x − μ)/σ + β over the units of one sample: the same at any batch size",
        source="Ba, Kiros and Hinton 2016, arXiv:1607.06450",
        change=_call("insert_norms_", 'model, x, "layer"'),
        cost="two vectors a layer, and a reduction per sample",
    ),
    Remedy(
        name="rms-norm",
        title="RMS normalisation",
        advice="RMS normalisation {between}",
        applies="as layer normalisation, in transformers; weaker before a sigmoid, since the mean stays",
        kinds=KINDS,
        why="y = γx/√(mean(x²)): the scale alone is taken out",
        source="Zhang and Sennrich 2019, arXiv:1910.07467",
        change=_call("insert_norms_", 'model, x, "rms"'),
        cost="one vector a layer, and a reduction per sample",
    ),
    Remedy(
        name="train-mode",
        title="Normalisations in training mode",
        advice="call model.train() before training, and model.eval() for measuring only",
        applies="exploding, dead, saturated, vanishing or unstable where a batch normalisation is in eval mode with "
        "the statistics that it began with",
        kinds=("vanishing", "exploding", "dead", "saturated", "unstable"),
        why="y = γ(x − μ)/√(σ² + ε) + β with the running μ and σ², which begin at 0 and 1 and which only training mode "
        "moves: y = γx + β",
        source="PyTorch documentation, torch.nn.BatchNorm1d",
        change=Change(_MODEL, "model.train()"),
        cost="none",
    ),
)

_LAYER_INPUTS = (
    Remedy(
        name="scaled-layer-inputs",
        title="Scaled inputs of a layer",
        advice="what {where} is given scaled to a root mean square of about 1: look for a factor before it, or put a "
        "normalisation right before it",
        applies="saturated where a layer inside the model is given large values and its own weights are not large",
        kinds=("vanishing", "saturated", "unstable"),
        why="z = W·x: with |x| ten times as large, z is ten times as far out, and tanh′(z) = 1 − tanh²(z) is 0 there",
        source="LeCun et al. 1998, Efficient backprop",
        change=_call("scale_layer_inputs_"),
        cost="one division",
    ),
)

_ACTIVATIONS = (
    Remedy(
        name="linear-output",
        title="An output without an activation function",
        advice="no activation function at the output (or one whose range holds the targets); or targets scaled into "
        "its range",
        applies="stalled, saturated, dead or vanishing where targets lie beyond what the output can give: 50 for a "
        "sigmoid, -1 for a ReLU",
        kinds=("vanishing", "dead", "saturated", "stalled"),
        why="|σ(x) − y| ≥ y − 1 for a target y > 1, whatever x is: that error stays, and σ′(x) → 0 as x grows",
        source="Goodfellow, Bengio and Courville 2016, Deep learning, section 6.2.2",
        change=_call("remove_output_activation_"),
        cost="none; outputs may lie outside of the old range",
    ),
    Remedy(
        name="relu",
        title="ReLU",
        advice="ReLU in place of {functions}, with He initialisation",
        applies="vanishing or saturated, in a stack of several layers with sigmoid or tanh",
        kinds=("vanishing", "saturated", "stalled"),
        why="f(x) = max(0, x), f′(x) = 1 for x > 0: L layers multiply the gradient by 1 where they are active; L "
        "sigmoids by 0.25ᴸ at most",
        source="Glorot, Bordes and Bengio 2011, Deep sparse rectifier neural networks",
        change=_activation("nn.ReLU()"),
        cost="none; units may die, and a deep stack still fades unless its weights are He's (`he`)",
    ),
    Remedy(
        name="leaky-relu",
        title="Leaky ReLU",
        advice="leaky ReLU in place of {functions}: its slope is never 0",
        applies="dead, with ReLU; vanishing, with sigmoid or tanh",
        kinds=("vanishing", "nonfinite", "dead", "saturated", "stalled"),
        why="f(x) = max(αx, x), f′(x) ≥ α > 0: a unit far below zero still passes on α times its gradient",
        source="Maas, Hannun and Ng 2013, Rectifier nonlinearities improve neural network acoustic models",
        change=_activation("nn.LeakyReLU(0.1)"),
        cost="none",
    ),
    Remedy(
        name="prelu",
        title="PReLU",
        advice="PReLU in place of {functions}: it learns the slope below zero",
        applies="dead, with ReLU, where a slope of 0.1 is too little; convolutional networks",
        kinds=("vanishing", "dead"),
        why="f(x) = max(0, x) + a·min(0, x) with a learnt, 0.25 at first; ∂f/∂a = min(0, x)",
        source="He et al. 2015, Delving deep into rectifiers, arXiv:1502.01852",
        change=_activation("nn.PReLU()"),
        cost="a parameter per function or per unit; leave it out of weight decay",
    ),
    Remedy(
        name="elu",
        title="ELU",
        advice="ELU in place of {functions}: smooth, with a mean near zero",
        applies="dead, with ReLU; vanishing in a stack of ReLUs",
        kinds=("vanishing", "dead", "saturated"),
        why="f(x) = x for x > 0, α(eˣ − 1) below; f′ = f + α there: activations average near 0, so that the next layer "
        "sees no bias shift",
        source="Clevert, Unterthiner and Hochreiter 2015, arXiv:1511.07289",
        change=_activation("nn.ELU()"),
        cost="an exponential an entry",
    ),
    Remedy(
        name="selu",
        title="SELU, with its initialisation",
        advice="SELU in place of {functions}, weights of variance 1/fan_in, no normalisation",
        applies="vanishing in a plain stack of linear layers that cannot have normalisation",
        kinds=("vanishing", "dead", "saturated", "stalled"),
        why="f(x) = λ·ELU(x) with λ = 1.0507, α = 1.6733: mean 0 and variance 1 are a fixed point of the layer if "
        "Var(w) = 1/fan_in",
        source="Klambauer et al. 2017, Self-normalizing neural networks, arXiv:1706.02515",
        change=Change(
            _MODEL,
            "replace_activations_(model, x, nn.SELU())\ninit_lecun_(model, x)",
            ("replace_activations_", "init_lecun_"),
        ),
        cost="an exponential an entry; inputs must be standardised, dropout must be AlphaDropout",
    ),
    Remedy(
        name="gelu",
        title="GELU (or SiLU)",
        advice="GELU or SiLU in place of {functions}",
        applies="vanishing or dead; the usual choice in transformers",
        kinds=("vanishing", "dead", "saturated"),
        why="f(x) = x·Φ(x): steep for x > 0 like ReLU, and f′(x) is 0 nowhere but at one point, so that few units die",
        source="Hendrycks and Gimpel 2016, arXiv:1606.08415",
        change=_activation("nn.GELU()"),
        cost="an error function an entry",
    ),
    Remedy(
        name="maxout",
        title="Maxout",
        advice="maxout in place of {functions}: the largest of k linear functions never saturates",
        applies="vanishing or dead, in linear layers that may grow k times",
        kinds=("vanishing", "dead", "saturated"),
        why="f(x) = maxⱼ(wⱼ·x + bⱼ): f′ is one of the wⱼ, so that some piece always passes the gradient",
        source="Goodfellow et al. 2013, Maxout networks, arXiv:1302.4389",
        change=_call("use_maxout_", "model"),
        cost="k times the weights and the multiplications",
    ),
)

_RESIDUAL = (
    Remedy(
        name="residual",
        title="Residual connections",
        advice="residual connections around {where}",
        applies="vanishing in deep stacks of layers of one width",
        kinds=("vanishing", "dead", "saturated", "stalled"),
        why="y = x + f(x), ∂y/∂x = 1 + f′(x): a product over L layers contains a path of factor 1, however small each "
        "f′ is",
        source="He et al. 2015, arXiv:1512.03385; in this order: He et al. 2016, arXiv:1603.05027",
        change=_call("add_residuals_"),
        cost="one addition a block; the widths must agree; activations grow with depth unless branches are scaled",
    ),
)

_RECURRENT = (
    Remedy(
        name="lstm-gru",
        title="LSTM or GRU",
        advice="LSTM or GRU in place of the plain RNN",
        applies="vanishing or exploding in a plain RNN",
        kinds=("vanishing", "exploding", "nonfinite", "saturated", "stalled"),
        why="cₜ = fₜ∘cₜ₋₁ + iₜ∘c̃ₜ, ∂cₜ/∂cₜ₋₁ = fₜ: a gate that learns to stay near 1, where the RNN multiplies by "
        "Wᵀ·tanh′ each step",
        source="Hochreiter and Schmidhuber 1997; Cho et al. 2014, arXiv:1406.1078",
        change=_call("replace_rnns_", "model"),
        cost="four times the weights and multiplications (GRU: three)",
    ),
    Remedy(
        name="truncated-bptt",
        title="Truncated backpropagation through time",
        advice="truncated backpropagation through time: detach the state every few dozen steps",
        applies="exploding or vanishing over long sequences, in any recurrent network; no help where the state itself "
        "grows",
        kinds=("vanishing", "exploding", "nonfinite"),
        why="∂L/∂W = Σₜ over the last k steps alone: the product has at most k factors, and what lies further back is "
        "not learnt",
        source="Williams and Peng 1990; Werbos 1990",
        change=_call("truncate_backprop_", "model, steps=10"),
        cost="less memory; dependencies longer than k are lost",
    ),
)

_PRECISION = (
    Remedy(
        name="loss-scaling",
        title="Loss scaling",
        advice="float32 weights under torch.autocast with loss scaling (torch.amp.GradScaler), or bfloat16, which "
        "needs none",
        applies="vanishing, stalled or nonfinite under float16; no help where the forward pass itself overflows",
        kinds=("vanishing", "nonfinite", "stalled"),
        why="∇(S·l) = S·∇l: what lies below float16's smallest 6·10⁻⁸ is lifted above it, and divided by S in float32",
        source="Micikevicius et al. 2017, Mixed precision training, arXiv:1710.03740",
        change=Change(
            _MODEL,
            "scaler = use_mixed_precision_(model)\n"
            "# in place of loss.backward(): scaler.scale(loss).backward()\n"
            "# in place of optimizer.step(): scaler.step(optimizer), then scaler.update()",
            ("use_mixed_precision_",),
        ),
        cost="one multiplication; a step skipped whenever the scale was too high",
    ),
    Remedy(
        name="bfloat16",
        title="bfloat16",
        advice="bfloat16 in place of float16 (its largest number is 3e38, not 65,504), or the module that overflows in "
        "float32, outside autocast; a loss scale does not act on the forward pass",
        applies="nonfinite where float16 overflows in the forward pass, or where a gradient scaler lowers its scale in "
        "vain",
        kinds=("nonfinite",),
        why="float16 has 5 bits of exponent, bfloat16 the 8 of float32: 2¹⁶ against 2¹²⁸, for 3 bits fewer of the "
        "fraction: max = 3.4·10³⁸",
        source="Kalamkar et al. 2019, A study of BFLOAT16 for deep learning training, arXiv:1905.12322",
        change=Change(
            _MODEL,
            "use_mixed_precision_(model, torch.bfloat16)\n"
            "# where the loop itself opens torch.autocast: dtype=torch.bfloat16, and no GradScaler",
            ("use_mixed_precision_",),
        ),
        cost="two to three digits in place of three to four",
    ),
    Remedy(
        name="optimizer-epsilon",
        title="An epsilon that the format holds",
        advice="an epsilon that is not 0 in the format of the weights: eps={epsilon}",
        applies="nonfinite where the update of Adam or the like divides by 0: eps=1e-8 and weights in float16, eps=0",
        kinds=("nonfinite",),
        why="Δw = lr·m/(√v + ε): in float16 ε = 10⁻⁸ is 0, and so is v = g² for |g| < 2·10⁻⁴, so that m/(0 + 0) = ∞",
        source="Lightning issue 20619",
        change=Change(
            _OPTIMIZER,
            "for group in optimizer.param_groups:\n"
            '    if "eps" in group:\n'
            '        group["eps"] = max(group["eps"], 1e-4)',
        ),
        cost="smaller updates where gradients are below ε",
    ),
    Remedy(
        name="float32-weights",
        title="Weights in float32",
        advice="weights and the state of the optimizer in float32, the forward pass under torch.autocast",
        applies="nonfinite, stalled or vanishing where weights are held in half precision",
        kinds=("nonfinite", "stalled", "vanishing"),
        why="√v, ε and lr·m are numbers down to 10⁻³⁸ in float32, and 6·10⁻⁸ in float16; an update below 2⁻⁹·|w| is 0 "
        "in bfloat16",
        source="Micikevicius et al. 2017, Mixed precision training (master weights), arXiv:1710.03740",
        change=Change(_MODEL, "use_mixed_precision_(model)", ("use_mixed_precision_",)),
        cost="twice the memory for weights",
    ),
    Remedy(
        name="safe-update",
        title="A safe update",
        advice="in the optimizer, keep every norm that it divides by away from 0 (norm.clamp(min=1e-8)), or leave out "
        "parameters whose gradient is 0",
        applies="nonfinite where an optimizer that divides by a norm is given a gradient of 0",
        kinds=("nonfinite",),
        why="Δw = lr·g·‖a‖/‖b‖ is 0 ÷ 0 for g = 0: a projection begun at 0 gives what lies before it such a gradient",
        source="github.com/microsoft/dion pull request 24",
        change=Change(_OPTIMIZER, "leave_out_zero_gradients_(optimizer)", ("leave_out_zero_gradients_",)),
        cost="a look at each gradient in each step",
    ),
    Remedy(
        name="finite-rate",
        title="A learning rate that is finite",
        advice="a learning rate that is a number at every step: look at the schedule, which divides by 0 or takes a "
        "root of a negative number at this step",
        applies="nonfinite where the learning rate is NaN or Inf",
        kinds=("nonfinite",),
        why="w ← w − lr·g is NaN for lr = NaN, whatever g is",
        source="–",
        change=Change(
            _OPTIMIZER,
            "def keep_rate_finite(optimizer, args, kwargs):\n"
            "    for group in optimizer.param_groups:\n"
            '        if not 0 <= group["lr"] < torch.inf:  # NaN, too\n'
            '            group["lr"] = 0.0\n\n\n'
            "optimizer.register_step_pre_hook(keep_rate_finite)",
        ),
        cost="steps without an update",
    ),
)

_REDESIGN = (
    Remedy(
        name="fewer-layers",
        title="Fewer layers",
        advice="fewer layers",
        applies="vanishing or exploding along depth, where the task does not need the depth",
        kinds=("vanishing", "exploding", "dead", "saturated"),
        why="‖∂L/∂x₀‖ ≤ Πₗ‖Jₗ‖·‖∂L/∂x_L‖: with L halved, a factor qᴸ becomes its square root",
        source="Bengio, Simard and Frasconi 1994, Learning long-term dependencies with gradient descent is difficult",
        change=_call("remove_layers_"),
        cost="less to compute, and less that it can express",
    ),
    Remedy(
        name="smaller-batches",
        title="Smaller batches",
        advice="smaller batches (where the loss is a sum over them)",
        applies="exploding or unstable, if the loss is summed over the batch; hardly any help where it is averaged",
        kinds=("exploding", "nonfinite", "unstable"),
        why="∇Σᵢ lᵢ = B·mean(∇l): a sum makes the step B times as long; of a mean only the noise changes, by 1/√B",
        source="Goyal et al. 2017 (the rate goes with the batch), arXiv:1706.02677",
        change=Change(_MODEL, "batches = split_batches(batches, parts=4)", ("split_batches",)),
        cost="more steps an epoch, less of the machine used, noisier gradients",
    ),
    Remedy(
        name="weight-regularisation",
        title="Weight regularisation",
        advice="{penalty}",
        applies="exploding where weights grow slowly over the run; no help within the few steps of a divergence",
        kinds=("exploding", "dead", "saturated", "unstable"),
        why="loss + α‖W‖²: each update shrinks W by 2·lr·α, and with it the factor ‖W‖ that every layer adds",
        source="Krogh and Hertz 1991; for RNNs Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063",
        change=Change(
            _LOSS, "loss = loss + 1e-3 * sum(weight.square().sum() for weight in model.parameters() if weight.ndim > 1)"
        ),
        cost="one pass over the weights; another α to choose",
    ),
)

_LIPSCHITZ = (
    Remedy(
        name="spectral-norm",
        title="Spectral normalisation",
        advice="spectral normalisation of the critic's layers",
        applies="exploding or unstable critics and discriminators",
        kinds=("exploding", "nonfinite", "unstable"),
        why="W ← W/σ₁(W): each layer stretches by at most 1, so that |f(x) − f(y)| ≤ ‖x − y‖ through any ReLU stack",
        source="Miyato et al. 2018, arXiv:1802.05957",
        change=_call("add_spectral_norms_"),
        cost="a power iteration per layer and forward pass",
    ),
    Remedy(
        name="gradient-penalty",
        title="Gradient penalty",
        advice="a gradient penalty on the critic",
        applies="exploding or unstable critics that have no batch normalisation",
        kinds=("exploding", "nonfinite", "unstable"),
        why="loss + λ·(‖∇ₓ̂ f(x̂)‖ − 1)² with x̂ between a real and a made sample: slope 1 is learnt, not forced",
        source="Gulrajani et al. 2017, arXiv:1704.00028",
        change=Change(_LOSS, "loss = loss + 10 * gradient_penalty(model, x)", ("gradient_penalty",)),
        cost="a second backward pass per step of the critic",
    ),
    Remedy(
        name="target-network",
        title="Targets that do not chase themselves",
        advice="compute the targets by a copy of the model that follows it slowly (a target network), without "
        "gradients and with a discount below 1",
        applies="exploding or unstable where the targets of the loss are computed from the model's own outputs",
        kinds=("exploding", "nonfinite", "unstable"),
        why="Q ← r + γ·max Q multiplies an error by γ at each pass, and by more through what the network generalises; "
        "a slow copy holds the targets still meanwhile",
        source="Mnih et al. 2015, Human-level control through deep reinforcement learning",
        change=Change(
            _STEP,
            "# with target = copy.deepcopy(model).requires_grad_(False) from before the loop, and\n"
            "# targets = reward + 0.99 * target(next_state).max(1).values:\n"
            "# for slow, fast in zip(target.parameters(), model.parameters()): slow.lerp_(fast.detach(), 0.005)",
        ),
        cost="a second model in memory; values spread more slowly",
    ),
    Remedy(
        name="non-saturating-loss",
        title="A loss that does not saturate",
        advice="let the loss be −log D(x) in place of log(1 − D(x)), or a Wasserstein or hinge loss without a function "
        "at the end of D; a discriminator that learns more slowly keeps its lead small",
        applies="vanishing gradients of a generator whose discriminator is sure of itself",
        kinds=("vanishing",),
        why="with D = σ(a): d log(1 − D)/da = −D, which is 0 where D is sure; d(−log D)/da = D − 1, which is −1 there",
        source="Goodfellow et al. 2014, section 3, arXiv:1406.2661; Arjovsky and Bottou 2017, arXiv:1701.04862",
        change=Change(
            _LOSS,
            "# with logits = discriminator(generator(noise)), before its sigmoid:\n"
            "# loss = torch.nn.functional.softplus(-logits).mean()",
        ),
        cost="none; other gradients early in training, so the rate of the generator may have to be chosen again",
    ),
    Remedy(
        name="weight-clipping",
        title="Weight clipping",
        advice="weights of the critic clamped after each update",
        applies="exploding critics, where nothing better can be had",
        kinds=("exploding",),
        why="wᵢ ← max(−c, min(c, wᵢ)): bounded weights bound the slope, with c = 0.01 often so far that gradients "
        "vanish",
        source="Arjovsky, Chintala and Bottou 2017, arXiv:1701.07875",
        change=Change(
            _STEP,
            "with torch.no_grad():\n    for parameter in model.parameters():\n        parameter.clamp_(-0.1, 0.1)",
        ),
        cost="one pass over the weights; a critic that can express less",
    ),
)

FAMILIES: dict[str, tuple[Remedy, ...]] = {
    "learning_rate": _LEARNING_RATE,
    "data": _DATA,
    "safe_forms": _SAFE_FORMS,
    "clipping": _CLIPPING,
    "initialisation": _INITIALISATION,
    "normalisation": (*_NORMALISATION, *_LAYER_INPUTS),
    "activations": _ACTIVATIONS,
    "residual": _RESIDUAL,
    "recurrent": _RECURRENT,
    "precision": _PRECISION,
    "redesign": _REDESIGN,
    "lipschitz": _LIPSCHITZ,
}
"""Remedies by family, which is a file in ``examples/remedies/`` and a heading of docs/remedies.md.

First those that leave the model as it is, then those that change its weights, its layers, all of it: the order in which
``gradwatch.prescribe`` tries what no finding has advised.
"""

LIBRARY: dict[str, Remedy] = {remedy.name: remedy for family in FAMILIES.values() for remedy in family}
"""Every remedy by name."""
