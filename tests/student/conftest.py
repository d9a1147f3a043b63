"""Stores of digits that several of the student's tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from student_stores import digits, soft_labels, write_store


@pytest.fixture(scope="session")
def digits_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1400 digits, 300 of them labelled, with soft labels for all."""
    inputs, labels = digits()
    few = np.where(np.arange(len(labels)) < 300, labels, -1)
    return write_store(
        tmp_path_factory.mktemp("stores") / "digits",
        inputs[:1400],
        few[:1400],
        logits=soft_labels(inputs, few)[:1400],
        codec="topk",
        k=4,
    )


@pytest.fixture(scope="session")
def digits_eval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The other 397 digits, all labelled, without a teacher."""
    inputs, labels = digits()
    return write_store(tmp_path_factory.mktemp("stores") / "eval", inputs[1400:], labels[1400:], first_id=1400)


@pytest.fixture(scope="session")
def plain_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 digits as float inputs of an odd width, all labelled, with dense soft labels and a feature vector."""
    inputs, labels = digits()
    flat = (inputs[:500].reshape(500, -1)[:, :61] / 16).astype(np.float32)
    return write_store(
        tmp_path_factory.mktemp("stores") / "plain",
        flat,
        labels[:500],
        block_rows=64,
        logits=soft_labels(inputs, labels)[:500],
        features=flat[:, 20:40].copy(),
        format="hdf5",
    )


@pytest.fixture(scope="session")
def rich_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 digits with dense soft labels, and of each image what is known of it: a fact, scores, maps of two depths."""
    inputs, labels = digits()
    images = inputs[:300].astype(np.float32) / 16
    halves = images.reshape(-1, 4, 2, 4, 2)
    shallow = np.stack([halves.mean((2, 4)), halves.max((2, 4))], 1)
    return write_store(
        tmp_path_factory.mktemp("stores") / "rich",
        inputs[:300],
        labels[:300],
        block_rows=64,
        logits=soft_labels(inputs, labels)[:300],
        more={
            "fact": images.reshape(-1, 4, 16).mean(2),
            "features.deep": np.ascontiguousarray(shallow.reshape(-1, 2, 2, 2, 2, 2).mean((3, 5))),
            "features.shallow": shallow,
            "features.vector": shallow.reshape(-1, 32),
            "scores": np.ascontiguousarray(images[:, :3].mean(2)),
        },
    )
