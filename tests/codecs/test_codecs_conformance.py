"""No codec without a contract: each has a subclass of `CodecContract` in a test file of its own."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from codec_contract import CodecContract

from kdcache.codecs import CODECS


@pytest.mark.parametrize("name", sorted(CODECS))
def test_every_codec_is_held_to_the_contract(name: str) -> None:
    assert Path(__file__).with_name(f"test_codecs_{name}.py").is_file()
    module = importlib.import_module(f"test_codecs_{name}")
    held = [
        value.name
        for key, value in vars(module).items()
        if key.startswith("Test") and isinstance(value, type) and issubclass(value, CodecContract)
    ]
    assert name in held
