"""The Lipschitz constraint of a critic (WGAN): its slope is bounded, and so is the gradient that it hands on."""

from gradwatch.remedies.remedy import Remedy

REMEDIES = (
    Remedy(
        name="spectral-norm",
        title="Spectral normalisation",
        advice="spectral normalisation of the critic's layers",
        applies="exploding or unstable critics and discriminators",
        why="W ← W/σ₁(W): each layer stretches by at most 1, so that |f(x) − f(y)| ≤ ‖x − y‖ through any ReLU stack",
        source="Miyato et al. 2018, arXiv:1802.05957",
        code="""\
from torch.nn.utils.parametrizations import spectral_norm

critic = nn.Sequential(spectral_norm(nn.Linear(20, 32)), nn.LeakyReLU(0.2), spectral_norm(nn.Linear(32, 1)))
""",
        cost="a power iteration per layer and forward pass",
    ),
    Remedy(
        name="gradient-penalty",
        title="Gradient penalty",
        advice="a gradient penalty on the critic",
        applies="exploding or unstable critics that have no batch normalisation",
        why="loss + λ·(‖∇ₓ̂ f(x̂)‖ − 1)² with x̂ between a real and a made sample: slope 1 is learnt, not forced",
        source="Gulrajani et al. 2017, arXiv:1704.00028",
        code="""\
def gradient_penalty(critic, real, made):
    mix = torch.rand(len(real), 1)
    between = (mix * real + (1 - mix) * made).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slope.norm(dim=1) - 1).square().mean()


critic = nn.Sequential(nn.Linear(20, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
real, made = torch.randn(64, 20), torch.randn(64, 20)
loss = critic(made).mean() - critic(real).mean() + 10 * gradient_penalty(critic, real, made)
loss.backward()
""",
        cost="a second backward pass per step of the critic",
    ),
    Remedy(
        name="weight-clipping",
        title="Weight clipping",
        advice="weights of the critic clamped after each update",
        applies="exploding critics, where nothing better can be had",
        why="wᵢ ← max(−c, min(c, wᵢ)): bounded weights bound the slope, with c = 0.01 often so far that "
        "gradients vanish",
        source="Arjovsky, Chintala and Bottou 2017, arXiv:1701.07875",
        code="""\
F.cross_entropy(model(inputs), targets).backward()
optimizer.step()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.clamp_(-0.01, 0.01)
""",
        cost="one pass over the weights; a critic that can express less",
    ),
)
