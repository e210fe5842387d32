"""Safe forms of operations whose value or slope has no bound."""

from gradwatch.remedies.remedy import Remedy

REMEDIES = (
    Remedy(
        name="safe-log",
        title="A safe logarithm",
        advice="clamp what goes into the logarithm, or let log_softmax, logsigmoid or cross_entropy take it",
        applies="nonfinite from a logarithm, in the loss or in a module",
        why="log′(p) = 1/p: −∞ at 0, NaN below. log softmax(x) = x − logsumexp(x) has a slope within ±1 "
        "and never takes log 0",
        source="Blanchard, Higham and Higham 2021, Accurately computing the log-sum-exp and softmax functions",
        code="""\
logits = model(inputs)
loss = F.cross_entropy(logits, targets)  # in place of F.nll_loss(logits.softmax(1).log(), targets)
entropy = -(probability := logits.softmax(1)).mul(probability.clamp(min=1e-6).log()).sum(1)
""",
        cost="none; a clamp passes no gradient below it",
    ),
    Remedy(
        name="safe-sqrt",
        title="A safe square root",
        advice="an epsilon inside the square root or norm: (x.square().sum() + 1e-6).sqrt()",
        applies="nonfinite from sqrt, norm, std or cdist, most of all in the backward pass with a finite loss",
        why="√′(x) = 1/(2√x) is ∞ at 0, and ∞ · 0 in the chain rule is NaN; √(x + ε) has a slope of at most 1/(2√ε)",
        source="PyTorch documentation, autograd mechanics: gradients of non-differentiable functions",
        code="""\
first, second = inputs[:32], inputs[:32].clone()
distance = ((first - second).square().sum(1) + 1e-6).sqrt()  # in place of (first - second).norm(dim=1)
""",
        cost="a bias of at most √ε",
    ),
    Remedy(
        name="safe-division",
        title="A safe division",
        advice="keep the divisor away from 0: x / y.clamp(min=1e-6)",
        applies="nonfinite from a division, a reciprocal or a negative power; a mean over what may be empty",
        why="∂(x/y)/∂y = −x/y²: at 0 ÷ 0 NaN. torch.where after the division hides the value, not the "
        "slope: ∞ · 0 is NaN",
        source="PyTorch issue 36923 (NaN through torch.where)",
        code="""\
mask = torch.zeros(64, 20)
mean = (inputs * mask).sum(1) / mask.sum(1).clamp(min=1)
ratio = inputs[:, 0] / torch.where(inputs[:, 1].abs() < 1e-6, 1.0, inputs[:, 1])  # where, before the division
""",
        cost="none",
    ),
    Remedy(
        name="masked-softmax",
        title="A safe masked softmax",
        advice="never mask a whole row of a softmax: leave one entry, or fill with a large finite number",
        applies="nonfinite from a softmax or attention over a row that is masked entirely (padding alone)",
        why="softmax(−∞, …, −∞) = 0 ÷ 0. Filled with a finite m it is uniform, and multiplied by the mask 0",
        source="PyTorch issue 41508 (nn.MultiheadAttention under full masks)",
        code="""\
scores, is_kept = torch.randn(2, 4), torch.tensor([[True, True, False, False], [False] * 4])
filled = scores.masked_fill(~is_kept, torch.finfo(scores.dtype).min)
weights = filled.softmax(-1) * is_kept  # rows with nothing kept are 0
""",
        cost="one multiplication",
    ),
)
