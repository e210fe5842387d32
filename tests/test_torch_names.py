import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import gradwatch
from gradwatch import _torch

PACKAGE = Path(gradwatch.__file__).parent
HOME = PACKAGE / "_torch.py"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != HOME)
WITHOUT_UNDERSCORE = {"found_inf", "grad_scale", "profile_hook_step"}  # no documentation names them
OF_PYTHON = {"_exit", "_getframe"}
OF_TENSORBOARD = {"_stub"}  # of its data server
OF_WANDB = {"_telemetry_obj"}  # says whether a loop gives steps
OPERATIONS = {"_ctc_loss", "_softmax", "_log_softmax", "_to_copy"}  # what they are called in a graph

OF_LAST_RESORT = {"watcher/plain_loop.py": {"found_inf", "grad_scale"}}
"""What clips where everything else failed asks for these itself: it shares no function with what failed."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and len(name) > 1


def names_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of attributes of anything but ``self``, parts of imports and strings that are a name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") not in ("self", "cls"):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith("gradwatch"):
            for part in [*str(node.module).split("."), *(alias.name for alias in node.names)]:
                yield node.lineno, part
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield from ((node.lineno, part) for part in alias.name.split("."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.lineno, node.value


def defined_in(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in [HOME, *FILES]}
OF_TORCH = WITHOUT_UNDERSCORE | {name for _, name in names_in(TREES[HOME]) if is_private(name)} - OF_PYTHON
OWN = set().union(*(defined_in(TREES[path]) for path in FILES)) - OF_TORCH


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_no_other_file_touches_a_private_name_of_torch(path: Path):
    allowed = OWN | OF_PYTHON | OF_TENSORBOARD | OF_WANDB | OPERATIONS
    allowed |= OF_LAST_RESORT.get(path.relative_to(PACKAGE).as_posix(), set())
    found = [(line, name) for line, name in names_in(TREES[path]) if name in OF_TORCH or is_private(name)]
    strange = [(line, name) for line, name in found if name not in allowed]
    assert not strange, f"{path}: move these to gradwatch/_torch.py: {strange}"


def test_the_check_finds_what_it_looks_for():
    code = "import torch._C\nx._version\ngetattr(y, '_modules')\nz.grad_scale\nfrom torch.utils._pytree import tree_map"
    names = {name for _, name in names_in(ast.parse(code))}
    assert {"_C", "_version", "_modules", "grad_scale", "_pytree"} <= names
    assert {"_version", "_modules", "grad_scale", "_foreach_norm", "_C"} <= OF_TORCH


def test_every_function_of_the_file_says_what_it_does():
    functions = [node for node in TREES[HOME].body if isinstance(node, ast.FunctionDef)]
    assert all(ast.get_docstring(node) for node in functions)
    assert set(_torch.__all__) <= set(dir(_torch))


@pytest.mark.parametrize("ask", [_torch.saved_tensors_are_packed, _torch._cannot_forbid_hooks])
def test_hooks_on_saved_tensors_are_noticed_on_every_version(ask):
    answers = []

    def forward(x):
        answers.append(ask())
        return x.exp()

    x = torch.ones(3, requires_grad=True)
    forward(x)
    checkpoint(forward, x, use_reentrant=False).sum().backward()
    with torch.autograd.graph.save_on_cpu():
        forward(x)
    forward(x)
    # a checkpoint runs forward twice, and has hooks of its own the second time, too
    assert answers == [False, True, True, True, False]
    assert torch.allclose(x.grad, torch.ones(3).exp())


def test_hooks_that_were_forbidden_stay_forbidden():
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        assert not _torch._cannot_forbid_hooks()
        with pytest.raises(RuntimeError, match="not here"), torch.autograd.graph.save_on_cpu():
            pass
