import os

import pytest


class Synced(dict):
    """What was put on the disk, files and folders: the number of its node → its size then."""

    def take(self, path):
        """Return the size of ``path`` as it was put there last; None if it was not since this was asked."""
        return self.pop(path.stat().st_ino, None)


@pytest.fixture
def synced(monkeypatch):
    """What is put on the disk, where it is put nevertheless."""
    sizes, sync = Synced(), os.fsync

    def follow(handle):
        sync(handle)
        about = os.fstat(handle)
        sizes[about.st_ino] = about.st_size

    monkeypatch.setattr(os, "fsync", follow)
    return sizes
