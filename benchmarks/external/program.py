"""What a program of others is: where it comes from, how it is run, and what is true of it.

Knows nothing of gradwatch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

COMMITS = {
    "Jacob-yen/GRIST": "c5f0cb645064c43f4c52b8fda8c9e1f59df00e51",
    "mehilshah/Bug_Reproducibility_DL_Bugs": "11b01d62e3a72ec02873f4e9a60ac8199c4e59e9",
    "ali-ghanbari/deepmufl-ase-2023": "a69ba43a024df79abaabd92e9a726257ec81a724",
    "seungeunrho/minimalRL": "c8efed8481e3cd40e9739cfde220a55522555b57",
    "vwxyzjn/cleanrl": "fe8d8a03c41a7ef5b523e2e354bd01c363e786bb",
    "DLR-RM/stable-baselines3": "e05d2dbe6eda0acd0ef2e316e3e4065677add3eb",
    "pytorch/examples": "77f55b912142e11fcfdf5b530231fb9c52f181e8",
    "karpathy/nanoGPT": "3adf61e154c3fe3fca428ad6bc3818b27a3b8291",
    "karpathy/minGPT": "37baab71b9abea1b76ab957409a1cc2fbfba8a26",
    "karpathy/makemore": "988aa59e4d8fefa526d06f3b453ad116258398d4",
    "karpathy/ng-video-lecture": "52201428ed7b46804849dea0b3ccf0de9df1a5c3",
    "yunjey/pytorch-tutorial": "0500d3df5a2a8080ccfccbc00aca0eacc21818db",
    "MorvanZhou/PyTorch-Tutorial": "dbe154a9e56635e51c6b0c2ccea8ae36cfb585a7",
    "hunkim/PyTorchZeroToAll": "e5a260fac0b4ff1e2ec434fc6f0d962ac97fc289",
    "jcjohnson/pytorch-examples": "0003fcdc606a79951e53bf8f46f8574fa4739f23",
    "graykode/nlp-tutorial": "d05e31ec81d56d70c1db89b99ab07e948f7ebc11",
    "eriklindernoren/PyTorch-GAN": "36d3c77e5ff20ebe0aeefd322326a134a279b93e",
    "tanelp/tiny-diffusion": "726b6bbbf2c9e3d23dff9eaea2fda10d0af6a78c",
}
"""Repository → the commit that the results are of."""


@dataclass(frozen=True)
class Truth:
    """What is true of a program, as its suite has it.

    Attributes:
        kinds: those of ``gradwatch.findings`` that say rightly what is wrong; empty for a healthy program.
        operation: the operation that makes the NaN or Inf, as torch names it in lower case; ``""`` if there is none.
        because: one sentence: the fault, or why the program is healthy.
    """

    kinds: frozenset[str]
    operation: str
    because: str


@dataclass(frozen=True)
class External:
    """A program that others wrote.

    Attributes:
        name: suite and a short name.
        suite: the collection it counts in.
        repository: owner and name, a key of ``COMMITS``; ``""`` for the drivers of an installed package.
        path: of the script, within the repository.
        truth: what is true of it.
        arguments: of its command line.
        updates: end the run after so many updates.
        adapters: modules of ``adapters/external_adapters``, ``updates`` excepted, which all use.
        folders: of the repository that its modules are imported from, beside the script's own.
        feed: file that the script reads → where its content comes from (``feeds.py``).
        environment: variables to set.
        not_run: why it cannot run here; ``""`` where it can.
        cannot_show: why its fault cannot show in gradients, activations or updates; ``""`` where it can.
    """

    name: str
    suite: str
    repository: str
    path: str
    truth: Truth
    arguments: tuple[str, ...] = ()
    updates: int = 300
    adapters: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    feed: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    not_run: str = ""
    cannot_show: str = ""


def healthy(because: str) -> Truth:
    """Return the truth of a program that trains well."""
    return Truth(frozenset(), "", because)


def sick(kinds: str, because: str, operation: str = "") -> Truth:
    """Return the truth of a program with a fault; ``kinds`` are separated by spaces, all of them right."""
    return Truth(frozenset(kinds.split()), operation, because)
