"""Safe forms of operations whose value or slope has no bound."""

from gradwatch.remedies.remedy import Remedy

REMEDIES = (
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
        code="""\
import math


def safe_log(p):  # for each logarithm; better, where exp is behind it: torch.logsumexp, F.log_softmax, F.cross_entropy
    return p.clamp(min=1e-6).log()


def safe_exp(x):  # for each exponential; 80 is a tenth below where float32 overflows
    return x.clamp(max=0.9 * math.log(torch.finfo(x.dtype).max)).exp()
""",
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
        code="""\
def safe_sqrt(x):  # for each root, power below 1; safe_sqrt(x.var(0)) for x.std(0)
    return x.clamp(min=1e-6).sqrt()


def safe_norm(x, dim=-1):  # for each norm; of x[:, None] - y for cdist; a clamp to ±(1 - 1e-6) before acos and atanh
    return (x.square().sum(dim) + 1e-12).sqrt()
""",
        cost="a bias of at most √ε",
    ),
    Remedy(
        name="safe-division",
        title="A safe division",
        advice="keep the divisor away from 0: x / y.clamp(min=1e-6)",
        applies="nonfinite from a division, a reciprocal or a negative power; a mean over what may be empty",
        kinds=("exploding", "nonfinite"),
        why="∂(x/y)/∂y = −x/y²: at 0 ÷ 0 NaN. torch.where after the division hides the value, not the "
        "slope: ∞ · 0 is NaN",
        source="PyTorch issue 36923 (NaN through torch.where)",
        code="""\
def safe_divide(a, b):  # for each division; torch.where after it hides the value, not the slope
    return a / torch.where(b.abs() < 1e-6, torch.where(b < 0, -1e-6, 1e-6), b)
""",
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
        code="""\
def safe_softmax(scores, dim=-1):  # of scores that are -inf where they are masked: rows with nothing left become 0
    hidden = (scores == -torch.inf).all(dim, keepdim=True)
    return scores.masked_fill(hidden, 0.0).softmax(dim).masked_fill(hidden, 0.0)


def safe_mask(mask):  # of -inf, for nn.MultiheadAttention (add one of padding to it): such a row is not masked at all
    return mask.masked_fill((mask == -torch.inf).all(-1, keepdim=True), 0.0)
""",
        cost="one multiplication",
    ),
)
