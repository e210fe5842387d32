"""Scikit-learn's digits in the place of the image sets that torchvision and keras would download.

1,797 pictures of 8 × 8 pixels are magnified to 28 × 28 (MNIST, Fashion-MNIST) or 32 × 32 in three channels (CIFAR);
1,500 are for training. Labels are the ten digits.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from external_adapters.imports import after_import

TRAINING = 1500


def install() -> None:
    """Wait for torchvision, keras and scikit-learn."""
    after_import("torch", _stand_in_for_operators)
    after_import("torchvision.datasets", _change_torchvision)
    after_import("keras.datasets", _change_keras)
    after_import("sklearn.datasets", _change_sklearn)


def _stand_in_for_operators(torch: ModuleType) -> None:
    """Name the operators of torchvision where its binary does not fit this torch; no program calls them."""
    binary = next((Path(find_spec("torchvision").origin).parent).glob("_C*.so"), None)  # type: ignore[union-attr, arg-type]
    try:
        torch.ops.load_library(str(binary))
        return
    except OSError:
        pass
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def pictures(channels: int) -> tuple[Any, Any]:
    """Return all pictures as uint8, (N, 28, 28) or (N, 32, 32, 3), and their labels."""
    import numpy
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    small = (images.reshape(-1, 8, 8) * (255 / 16)).astype("uint8")
    if channels == 1:
        return numpy.pad(small.repeat(3, 1).repeat(3, 2), ((0, 0), (2, 2), (2, 2))), labels
    return small.repeat(4, 1).repeat(4, 2)[..., None].repeat(3, 3), labels


def _change_torchvision(datasets: ModuleType) -> None:
    for name, channels in {"MNIST": 1, "FashionMNIST": 1, "KMNIST": 1, "CIFAR10": 3}.items():
        made = _dataset(datasets.VisionDataset, channels)
        made.__name__ = name
        setattr(datasets, name, made)
        for module in (datasets.mnist, datasets.cifar):
            if hasattr(module, name):
                setattr(module, name, made)


def _dataset(base: type, channels: int) -> type:
    class Digits(base):  # type: ignore[misc, valid-type]
        """The interface of a torchvision set of images."""

        classes = tuple("0123456789")

        def __init__(
            self,
            root: Any = ".",
            train: bool = True,
            transform: Any = None,
            target_transform: Any = None,
            download: bool = False,
        ) -> None:
            import torch

            super().__init__(str(root), transform=transform, target_transform=target_transform)
            images, labels = pictures(channels)
            part = slice(None, TRAINING) if train else slice(TRAINING, None)
            self.train = train
            self.data = torch.as_tensor(images[part]) if channels == 1 else images[part]
            self.targets = torch.as_tensor(labels[part]) if channels == 1 else [int(label) for label in labels[part]]
            self.train_data = self.test_data = self.data
            self.train_labels = self.test_labels = self.targets

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, index: int) -> tuple[Any, Any]:
            from PIL import Image

            pixels = self.data[index].numpy() if channels == 1 else self.data[index]
            image, label = Image.fromarray(pixels), int(self.targets[index])
            if self.transform is not None:
                image = self.transform(image)
            return image, label if self.target_transform is None else self.target_transform(label)

    return Digits


def _change_keras(datasets: ModuleType) -> None:
    for name, channels in {"mnist": 1, "fashion_mnist": 1, "cifar10": 3}.items():
        getattr(datasets, name).load_data = lambda *_, channels=channels, **__: _split(channels)


def _split(channels: int) -> Any:
    images, labels = pictures(channels)
    labels = labels.astype("uint8") if channels == 1 else labels.astype("uint8")[:, None]
    return (images[:TRAINING], labels[:TRAINING]), (images[TRAINING:], labels[TRAINING:])


def _change_sklearn(datasets: ModuleType) -> None:
    def fetch_openml(*args: Any, **keywords: Any) -> Any:
        images, labels = pictures(1)
        return datasets._base.Bunch(data=images.reshape(len(images), -1), target=labels.astype(str))

    datasets.fetch_openml = fetch_openml  # type: ignore[attr-defined]
