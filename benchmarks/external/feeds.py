"""Files that programs read and that their repositories do not hold: text of the standard library, and small tables."""

from __future__ import annotations

import pickle
import random
import sysconfig
from pathlib import Path

import numpy as np


def write(source: str, file: Path) -> None:
    """Write the content that ``source`` names to ``file``.

    ``text:N`` is N characters, ``lines:N`` are short lines, ``numbers:N`` is the text as nanoGPT reads
    it, and ``vocabulary:N`` the file that tells it how many tokens there are.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    what, _, size = source.partition(":")
    if what == "numbers":
        numbers(int(size)).tofile(file)
        return
    if what == "vocabulary":
        file.write_bytes(pickle.dumps({"vocab_size": int(size)}))
        return
    file.write_text({"text": text, "lines": lines}[what](int(size)), encoding="utf-8")


def text(size: int) -> str:
    """Return ``size`` characters of the docstrings and code of the standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    names = ("argparse.py", "typing.py", "inspect.py", "subprocess.py", "tarfile.py", "datetime.py", "doctest.py")
    whole = "\n".join((library / name).read_text(encoding="utf-8") for name in names if (library / name).exists())
    return "".join(letter for letter in whole if letter.isascii())[:size]


def lines(count: int) -> str:
    """Return ``count`` lines of a few words each, from the same text."""
    words = text(400_000).split()
    chosen = random.Random(0)
    return "\n".join(" ".join(chosen.choices(words, k=chosen.randint(5, 15))) for _ in range(count)) + "\n"


def numbers(size: int) -> np.ndarray:
    """Return the text as 16-bit numbers, one a character, as nanoGPT's files of tokens are."""
    return np.frombuffer(text(size).encode("ascii"), dtype=np.uint8).astype(np.uint16)
