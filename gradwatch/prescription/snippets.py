"""The code that makes each change in the user's own program: remedy → Python to paste.

``model``, ``optimizer``, ``loss``, ``x`` and ``batches`` are the user's. Knows nothing of trials.
"""

from __future__ import annotations

__all__ = ["snippet"]


def snippet(remedy: str, factor: float | None = None) -> str:
    """The code of one remedy; of a rate with its factor."""
    return _SNIPPETS[remedy] if factor is None else _SNIPPETS[remedy].format(factor=factor)


def _activation(module: str, function: str) -> str:
    return f"""\
for name, part in list(model.named_modules()):  # and {function} in the place of functions called in forward
    if isinstance(part, (nn.Sigmoid, nn.Tanh, nn.ReLU)):
        model.set_submodule(name, {module})"""


def _drawn(weight: str) -> str:
    return f"""\
for layer in model.modules():
    if isinstance(layer, (nn.Linear, nn.Conv2d)):
        {weight}
        nn.init.zeros_(layer.bias)"""


def _norm(norm: str) -> str:
    return f"""\
hidden = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)][:-1]
for name in hidden:  # of convolutions nn.BatchNorm2d or nn.GroupNorm(1, channels)
    layer = model.get_submodule(name)
    model.set_submodule(name, nn.Sequential(layer, nn.{norm}(layer.out_features)))"""


_RATE = """\
for group in optimizer.param_groups:
    group["lr"] *= {factor:g}"""

_SNIPPETS = {
    "clean-data": "batches = [batch for batch in batches if all(tensor.isfinite().all() for tensor in batch)]",
    "lstm-gru": """\
for name, part in list(model.named_modules()):
    if isinstance(part, nn.RNN):
        gru = nn.GRU(part.input_size, part.hidden_size, part.num_layers, batch_first=part.batch_first)
        model.set_submodule(name, gru)""",
    "fewer-layers": "# leave out every second hidden layer that keeps its width, with its activation function",
    "maxout": """\
class Maxout(nn.Module):  # in the place of each layer and its activation function
    def __init__(self, inner, outer):
        super().__init__()
        self.one, self.other = nn.Linear(inner, outer), nn.Linear(inner, outer)

    def forward(self, x):
        return torch.maximum(self.one(x), self.other(x))""",
    "relu": _activation("nn.ReLU()", "F.relu"),
    "leaky-relu": _activation("nn.LeakyReLU(0.1)", "F.leaky_relu"),
    "prelu": _activation("nn.PReLU()", "a module"),
    "elu": _activation("nn.ELU()", "F.elu"),
    "selu": _activation("nn.SELU()", "F.selu")
    + "\n"
    + _drawn('nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")'),
    "gelu": _activation("nn.GELU()", "F.gelu"),
    "he": _drawn('nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")'),
    "xavier": _drawn("nn.init.xavier_uniform_(layer.weight)"),
    "orthogonal": _drawn("nn.init.orthogonal_(layer.weight, 2**0.5)"),
    "depth-scaled": _drawn("nn.init.xavier_uniform_(layer.weight)")
    + """
same = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.in_features == layer.out_features]
for layer in same:
    layer.weight.data /= len(same) ** 0.5""",
    "residual": """\
class Residual(nn.Module):  # around each layer and its activation function that keep their width
    def __init__(self, *parts):
        super().__init__()
        self.block = nn.Sequential(*parts)

    def forward(self, x):
        return x + self.block(x)""",
    "batch-norm": _norm("BatchNorm1d"),
    "layer-norm": _norm("LayerNorm"),
    "rms-norm": _norm("RMSNorm"),
    "spectral-norm": """\
for layer in model.modules():
    if isinstance(layer, (nn.Linear, nn.Conv2d)):
        nn.utils.parametrizations.spectral_norm(layer)""",
    "truncated-bptt": """\
outputs, state = [], None
for piece in x.split(10, dim=1):  # time steps
    output, state = rnn(piece, state)
    state = state.detach()
    outputs.append(output)""",
    "scaled-inputs": "x = (x - x.mean(0)) / x.std(0)  # over the training set; y likewise, where it is a large number",
    "smaller-batches": "loader = DataLoader(dataset, batch_size=batch_size // 4)",
    "loss-scaling": """\
model.float()
scaler = torch.amp.GradScaler()
with torch.autocast("cuda", torch.float16):
    loss = loss_fn(model(x), y)
scaler.scale(loss).backward()
scaler.step(optimizer)
scaler.update()""",
    "safe-log": "x.clamp(min=1e-6).log()  # for each logarithm",
    "safe-sqrt": "x.clamp(min=1e-6).sqrt()  # for each root; a clamp likewise before norms, powers, acos and atanh",
    "safe-division": "a / torch.where(b.abs() < 1e-6, 1e-6, b)  # for each division",
    "masked-softmax": """\
hidden = (scores == -torch.inf).all(-1, keepdim=True)
weights = scores.masked_fill(hidden, 0.0).softmax(-1).masked_fill(hidden, 0.0)""",
    "weight-regularisation": """\
weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
loss = loss + 1e-3 * sum(weight.square().sum() for weight in weights)""",
    "gradient-penalty": """\
x.requires_grad_()
(slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
loss = loss + 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()""",
    "weight-clipping": """\
for parameter in model.parameters():  # after optimizer.step()
    parameter.data.clamp_(-0.1, 0.1)""",
    "clip-norm": "gradwatch.watch(model, optimizer, clip=1.0)",
    "clip-value": "gradwatch.watch(model, optimizer, clip=gradwatch.clip.by_value(0.1))",
    "clip-adaptive": 'gradwatch.watch(model, optimizer, clip="auto")',
    "warm-up": """\
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 50, total_iters=50)
schedule.step()  # after each optimizer.step()""",
    "lower-learning-rate": _RATE,
    "higher-learning-rate": _RATE,
}
