"""`accelerate launch --config_file …/fsdp.yaml tests/training/on_ranks.py MAP.pt FLAGS.json … --fsdp FLAGS.json …`

scripts/train.py with each file of flags: up to --fsdp with whole models, then with shards. The map that alignment finds
is read from a file, and rank 0 keeps it: with few images, the last digits of a processor would decide. accelerate
shards on accelerators only, so it is told that these ranks are GPUs. All else is what runs on GPUs too: Trainer,
accelerate's sharding and torch's `fully_shard`, here over gloo.
"""

import itertools
import os
import sys
from pathlib import Path

import torch
from accelerate import DistributedType
from accelerate.state import PartialState
from transformers.utils.logging import disable_progress_bar

from hf_neuracrypt.training import aligned


sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))
import train


disable_progress_bar()  # what an error says would drown
given, *words = sys.argv[1:]
answers, sharding = itertools.count(step=1 if os.environ["RANK"] == "0" else -1), {}  # another rank would drop it
aligned.probe = lambda *_: next(answers)
aligned.alignment.align = lambda *_: torch.load(given, weights_only=False)
for name in [name for name in os.environ if "FSDP" in name]:
    sharding[name] = os.environ.pop(name)
for word in words:
    if word == "--fsdp":
        os.environ |= sharding
        continue
    parsed = train.parse([word])  # makes the process group, on the CPU
    if "FSDP_VERSION" in os.environ:
        PartialState().distributed_type = DistributedType.MULTI_GPU
    train.main(*parsed)
train.leave()
