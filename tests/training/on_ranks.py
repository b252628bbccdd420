"""`accelerate launch tests/training/on_ranks.py [--fsdp] FLAGS.json …`: scripts/train.py with each file of flags.

A map that alignment finds is kept for certain: with few images, the last digits of a processor would decide. With
--fsdp, accelerate, which shards on accelerators only, is told that these ranks are GPUs. All else is what runs on GPUs
too: Trainer, accelerate's sharding and torch's `fully_shard`, here over gloo.
"""

import itertools
import sys
from pathlib import Path

from accelerate import DistributedType
from accelerate.state import PartialState

from hf_neuracrypt.training import recipes


sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))
import train


answers = itertools.count()
recipes.probe = lambda *_: next(answers)
for flags in (word for word in sys.argv[1:] if word != "--fsdp"):
    parsed = train.parse([flags])  # makes the process group, on the CPU
    if "--fsdp" in sys.argv:
        PartialState().distributed_type = DistributedType.MULTI_GPU
    train.main(*parsed)
PartialState().destroy_process_group()
