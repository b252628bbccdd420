"""`accelerate launch tests/fsdp_on_cpu.py FLAGS.json …`: scripts/train.py with each file of flags, under FSDP on a CPU.

accelerate shards on accelerators only, so it is told that these ranks are GPUs. All else is what runs on GPUs too:
Trainer, accelerate's sharding and torch's `fully_shard`, here over gloo.
"""

import sys
from pathlib import Path

from accelerate import DistributedType
from accelerate.state import PartialState


sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import train


for flags in sys.argv[1:]:
    parsed = train.parse([flags])  # makes the process group, on the CPU
    PartialState().distributed_type = DistributedType.MULTI_GPU
    train.main(*parsed)
PartialState().destroy_process_group()
