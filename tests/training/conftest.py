"""What training in this process changes of it is put back."""

import os
from unittest import mock

import pytest
import torch


@pytest.fixture(autouse=True)
def _environment():
    """`TrainingArguments` say how to compile by environment variables, which the next run would read."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def _random_numbers():
    """A run with a seed sets the one that all share."""
    with torch.random.fork_rng(devices=[]):
        yield
