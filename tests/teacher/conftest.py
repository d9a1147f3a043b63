"""Weights and folders that the tests of stage one share."""

from __future__ import annotations

from pathlib import Path

import pytest
from teacher_recipes import write_weights


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mlp.safetensors and cnn.safetensors, where recipes are written too."""
    folder = tmp_path_factory.mktemp("teachers")
    write_weights(folder)
    return folder
