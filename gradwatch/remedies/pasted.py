"""Lines that the code of several remedies is made of.

Enters: what is particular to one. Leaves: Python to paste, which runs on the user's ``model``. Runs none of it.
"""

from __future__ import annotations

__all__ = ["BEFORE", "BLOCKS", "KINDS", "LAYERS", "activation", "drawn", "normalised"]

BEFORE = "# before the optimizer is made: it would not train the new weights otherwise\n"
"""The first line of what puts weights into the model."""

KINDS = """\
kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
kinds += (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""
"""``kinds``: linear and convolutional layers."""

LAYERS = f"""\
whole = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)  # read their parts' weights
within = tuple(f"{{name}}." for name, part in model.named_modules() if isinstance(part, whole))
{KINDS}\
layers = [name for name, part in model.named_modules() if isinstance(part, kinds) and not name.startswith(within)]
"""
"""``layers``: names of the linear and convolutional ones, but for those whose weights torch's own modules read."""

_FUNCTIONS = """\
bounded = (nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Softsign, nn.LogSigmoid, nn.Softplus)
rectifying = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU)
rectifying += (nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish)
"""

BLOCKS = f"""\
{_FUNCTIONS}\
blocks = []
for stack in [part for part in model.modules() if isinstance(part, nn.Sequential)]:
    start = None
    for place, part in enumerate(stack):
        if start is not None and isinstance(part, bounded + rectifying):
            blocks.append((stack, start, place))
        if isinstance(part, kinds):
            start = place
        elif "Norm" not in type(part).__name__:
            start = None
"""
"""``blocks``, of ``kinds``: each ``nn.Sequential`` with the places of a layer and of the activation function behind."""


def activation(module: str, function: str) -> str:
    """``module`` in the place of every activation function, and what to write where ``forward`` calls one by itself."""
    return f"""\
{_FUNCTIONS}\
order = []
hooks = [part.register_forward_hook(lambda part, *_: order.append(part)) for part in model.modules()]
with torch.no_grad():
    model.eval()(x)  # one batch's inputs, to see what is called last
model.train()
for hook in hooks:
    hook.remove()
weighted = [place for place, part in enumerate(order) if any(w.ndim > 1 for w in part.parameters(recurse=False))]
ending = order[max(weighted, default=-1) + 1 :]
for name, part in list(model.named_modules(remove_duplicate=False)):
    if isinstance(part, rectifying) or (isinstance(part, bounded) and part not in ending):  # a sigmoid at the end stays
        # where forward itself calls F.relu or torch.tanh: {function}
        model.set_submodule(name, {module})
    elif isinstance(part, nn.TransformerEncoderLayer):
        part.activation_relu_or_gelu = 0  # or eval mode would go by the function that it was made with
"""


def drawn(hidden: str, last: str | None = None) -> str:
    """Weights drawn anew by the call ``hidden`` of ``weight``; those of the last layer by ``last``."""
    at_last = f'            elif part is last or "in_proj" in name:\n                {last}\n' if last else ""
    find_last = "last = [part for part in model.modules() if isinstance(part, kinds)][-1]\n" if last else ""
    return f"""\
{KINDS}\
norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
{find_last}\
for part in model.modules():
    if isinstance(part, (*kinds, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)):
        for name, weight in part.named_parameters(recurse=False):
            if "bias" in name:
                nn.init.zeros_(weight)
                if "bias_ih" in name and isinstance(part, (nn.LSTM, nn.LSTMCell)):
                    weight.data[part.hidden_size : 2 * part.hidden_size] = 1.0  # the forget gate begins open
            elif "weight_hh" in name:
                for gate in weight.data.split(part.hidden_size):
                    nn.init.orthogonal_(gate)
{at_last}\
            else:
                {hidden}
    elif isinstance(part, norms):
        part.reset_parameters()
"""


def normalised(norm: str, kinds: str = "kinds", before: str = "") -> str:
    """The normalisation ``norm`` of ``layer``, behind each hidden layer of ``kinds`` that has none.

    Args:
        norm: an expression.
        kinds: another.
        before: definitions that they need.
    """
    return f"""\
{BEFORE}\
{before}\
{LAYERS}\
stacks = [part for part in model.modules() if isinstance(part, nn.Sequential)]
normed = {{one for stack in stacks for one, other in zip(stack, stack[1:]) if "Norm" in type(other).__name__}}
for name in layers[:-1]:
    layer = model.get_submodule(name)
    if isinstance(layer, {kinds}) and layer not in normed:
        norm = {norm}
        model.set_submodule(name, nn.Sequential(layer, norm.to(layer.weight)))
"""
