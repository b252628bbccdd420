"""The public names: there without waiting for torch, and each with the docstring that a reader needs."""

import dataclasses
import inspect
import re
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


def arguments_of(public) -> set[str]:
    """The names described in the sections Args and Attributes, of a config also those of what it inherits from."""
    bases = public.__mro__[:-1] if inspect.isclass(public) else [public]
    lines = [line for base in bases for line in (inspect.getdoc(base) or "").splitlines()]
    entries = [re.match(r"    ((?:\w+, )*\w+): ", line) for line in lines]
    return {name for entry in entries if entry for name in entry[1].split(", ")}


def test_a_name_in_prose_describes_nothing():
    def encrypt(image, key):
        """Encrypt an image, key, or both: image, key.

        Args:
            image: what is encrypted, under a key: any.
        """

    assert arguments_of(encrypt) == {"image"}


@pytest.mark.parametrize("name", NAMES)
def test_arguments_and_methods_are_documented(name):
    public = getattr(hf_neuracrypt, name)
    if inspect.isfunction(public) or dataclasses.is_dataclass(public):
        described = arguments_of(public)
        for argument in inspect.signature(public).parameters:
            assert argument in described, f"{name}({argument})"
        parts = [public, *(vars(public).values() if inspect.isclass(public) else ()), *getattr(public, "__mro__", ())]
        assert any("Raises" in (inspect.getdoc(part) or "") for part in parts)
    for method, value in inspect.getmembers(public):
        if not method.startswith("_") and callable(value) and value.__qualname__.startswith(name):
            assert inspect.getdoc(value), f"{name}.{method}"
