"""The public names: there without waiting for torch, and each with the docstring that a reader needs."""

import inspect
import subprocess
import sys

import pytest

import hf_neuracrypt
from tests.helpers import ROOT


NAMES = [name for name in hf_neuracrypt.__all__ if name != "__version__"]


def test_the_public_names_come_when_they_are_used():
    code = (
        "import sys, hf_neuracrypt\n"
        "print('torch' in sys.modules, dir(hf_neuracrypt) == hf_neuracrypt.__all__)\n"
        "from hf_neuracrypt import *\n"
        "print(SecretKey.__name__, EncoderConfig.__name__, load_encoder.__name__, encrypt_dataset.__name__)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert shown.stdout == "False True\nSecretKey EncoderConfig load_encoder encrypt_dataset\n"
    with pytest.raises(AttributeError, match="'decrypt_everything'"):
        hf_neuracrypt.decrypt_everything  # noqa: B018


@pytest.mark.parametrize("name", NAMES)
def test_arguments_and_methods_are_documented(name):
    public = getattr(hf_neuracrypt, name)
    text = inspect.getdoc(public)
    if inspect.isfunction(public) or name == "EncoderConfig":
        for argument in inspect.signature(public).parameters:
            assert f"{argument}:" in text or f"{argument}," in text, f"{name}({argument})"
        assert "Raises:" in text
    for method, value in inspect.getmembers(public):
        if not method.startswith("_") and callable(value) and value.__qualname__.startswith(name):
            assert inspect.getdoc(value), f"{name}.{method}"
