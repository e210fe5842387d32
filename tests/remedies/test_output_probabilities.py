"""A loss that takes the logarithm of outputs gets probabilities; where that is not what is wrong, it says why not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradwatch
from gradwatch.prescription.fitting import everything
from gradwatch.prescription.treatments import name_of
from gradwatch.remedies import NotApplicableError, OutputProbabilities

CLASSES = 3


def cross_entropy_of_probabilities(p, classes):
    return -p.log()[torch.arange(len(p)), classes].mean()


def clamped_cross_entropy(p, classes):
    p = p / p.sum(1, keepdim=True)
    return -(F.one_hot(classes, CLASSES) * p.clamp(1e-7, 1 - 1e-7).log()).sum(1).mean()


def both_logarithms(p, y):
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean()


def treated(loss_fn):
    return OutputProbabilities().around_(nn.Identity(), loss_fn)


@pytest.mark.parametrize("loss_fn", [cross_entropy_of_probabilities, clamped_cross_entropy])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_several_outputs_get_the_cross_entropy_of_logits(loss_fn, dtype):
    torch.manual_seed(0)
    logits, classes = 3 * torch.randn(8, CLASSES, dtype=dtype), torch.randint(CLASSES, (8,))
    expected = F.cross_entropy(logits.double(), classes)
    torch.testing.assert_close(treated(loss_fn)(logits, classes).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(8,), (8, 1), (8, 4)])
@pytest.mark.parametrize("loss_fn", [both_logarithms, F.binary_cross_entropy])
def test_one_output_or_two_logarithms_get_that_of_a_sigmoid(loss_fn, shape):
    torch.manual_seed(0)
    logits, y = torch.randn(shape), torch.randint(2, shape).float()
    expected = F.binary_cross_entropy_with_logits(logits.double(), y.double())
    torch.testing.assert_close(treated(loss_fn)(logits, y).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("loss_fn", "outputs", "words"),
    [
        (F.cross_entropy, torch.randn(8, CLASSES), "takes no logarithm"),
        (F.mse_loss, torch.randn(8, CLASSES), "takes no logarithm"),
        (lambda p, y: F.mse_loss(p, torch.xlogy(y, y)), torch.randn(8, CLASSES), "takes no logarithm"),
        (
            lambda p, y: -(y * p.softmax(1).log()).sum(),
            torch.randn(8, CLASSES),
            "makes probabilities of the outputs itself",
        ),
        (lambda p, y: -(y * torch.sigmoid(p).log()).sum(), torch.randn(8, CLASSES), "makes probabilities"),
        (lambda p, _: p.log().mean(), torch.rand(8, CLASSES), "between 0 and 1 already"),
        (lambda p, _: p.log().mean(), torch.randn(8, CLASSES, 5, 5), r"shape \(N,\) or \(N, C\)"),
        (lambda p, _: p[0].log().mean(), (torch.randn(8, CLASSES),), r"shape \(N,\) or \(N, C\)"),
    ],
)
def test_where_it_is_not_what_is_wrong_it_says_why(loss_fn, outputs, words):
    targets = torch.randint(CLASSES, (8,)) if loss_fn is F.cross_entropy else torch.rand(8, CLASSES)
    with pytest.raises(NotApplicableError, match=words):
        treated(loss_fn)(outputs, targets)


def test_the_first_outputs_decide_for_all():
    loss_fn = treated(cross_entropy_of_probabilities)
    classes = torch.zeros(2, dtype=torch.long)
    loss_fn(torch.tensor([[-1.0, 2.0], [0.5, 1.0]]), classes)
    between = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    torch.testing.assert_close(loss_fn(between, classes), F.cross_entropy(between, classes))


def trained(loss_fn):
    """(right answers, kinds of findings) of a small network that was trained by this loss."""
    torch.manual_seed(0)
    x = torch.randn(800, 6)
    classes = (x @ torch.randn(6, CLASSES)).argmax(1)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(200):
            some = slice(32 * (step % 25), 32 * (step % 25) + 32)
            optimizer.zero_grad()
            loss_fn(model(x[some]), classes[some]).backward()
            optimizer.step()
    right = (model(x).argmax(1) == classes).float().mean().item()
    return right, [finding.kind for finding in watcher.findings]


def test_it_cures_a_network_whose_logits_are_taken_for_probabilities():
    assert trained(clamped_cross_entropy)[0] < 0.7
    assert trained(treated(clamped_cross_entropy)) == (pytest.approx(1.0, abs=0.06), [])


def test_prescribe_tries_it_alone_and_with_a_rate():
    names = {name_of(candidate) for candidate in everything()}
    assert {"output-probabilities", "output-probabilities + higher-learning-rate"} <= names
