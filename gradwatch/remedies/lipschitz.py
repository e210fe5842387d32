"""The Lipschitz constraint of a critic (WGAN): its slope is bounded, and so is the gradient that it hands on."""

from gradwatch.remedies.pasted import LAYERS
from gradwatch.remedies.remedy import Remedy

REMEDIES = (
    Remedy(
        name="spectral-norm",
        title="Spectral normalisation",
        advice="spectral normalisation of the critic's layers",
        applies="exploding or unstable critics and discriminators",
        kinds=("exploding", "nonfinite", "unstable"),
        why="W ← W/σ₁(W): each layer stretches by at most 1, so that |f(x) − f(y)| ≤ ‖x − y‖ through any ReLU stack",
        source="Miyato et al. 2018, arXiv:1802.05957",
        code=LAYERS
        + """\
for name in layers:
    nn.utils.parametrizations.spectral_norm(model.get_submodule(name))
""",
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
        code="""\
between = x.detach().clone().requires_grad_()  # of a GAN: points between real and made samples
(slope,) = torch.autograd.grad(model(between).sum(), between, create_graph=True)
loss = loss + 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()  # before loss.backward()
""",
        cost="a second backward pass per step of the critic",
    ),
    Remedy(
        name="weight-clipping",
        title="Weight clipping",
        advice="weights of the critic clamped after each update",
        applies="exploding critics, where nothing better can be had",
        kinds=("exploding",),
        why="wᵢ ← max(−c, min(c, wᵢ)): bounded weights bound the slope, with c = 0.01 often so far that "
        "gradients vanish",
        source="Arjovsky, Chintala and Bottou 2017, arXiv:1701.07875",
        code="""\
with torch.no_grad():  # after each optimizer.step()
    for parameter in model.parameters():
        parameter.clamp_(-0.1, 0.1)
""",
        cost="one pass over the weights; a critic that can express less",
    ),
)
