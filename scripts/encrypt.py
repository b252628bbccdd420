"""`hf-neuracrypt encrypt` for several GPUs or machines that share a folder: each rank encrypts its part of the shards.

accelerate launch --num_processes 4 scripts/encrypt.py --dataset photos/ --key-file hospital.key --output encrypted/
torchrun --nproc_per_node 8 scripts/encrypt.py --dataset photos/ --key-file hospital.key --output encrypted/
srun --ntasks 16 python scripts/encrypt.py --dataset photos/ --key-file hospital.key --output encrypted/

All options are those of `hf-neuracrypt encrypt`. Rank and world size come from RANK and WORLD_SIZE (accelerate,
torchrun), else from SLURM_PROCID and SLURM_NTASKS (srun). Ranks never wait for each other: the last to finish completes
the folder, and if some were killed, any number of ranks may be started again to do what is left.
"""

import os
import sys

import torch

from hf_neuracrypt import cli


def rank_and_world_size() -> tuple[int, int]:
    """From the launcher's environment; (0, 1) without one."""
    for rank, world_size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and world_size in os.environ:
            return int(os.environ[rank]), int(os.environ[world_size])
    return 0, 1


def device() -> str:
    """This rank's own GPU, if there are any."""
    local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
    return f"cuda:{local % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def main(arguments: list[str]) -> None:
    if "--help" in arguments:
        print(__doc__)
    rank, world_size = rank_and_world_size()
    added = ["--rank", str(rank), "--world-size", str(world_size)]
    if "--device" not in arguments:
        added += ["--device", device()]
    sys.argv = ["hf-neuracrypt", "encrypt", *arguments, *added]
    cli.main()


if __name__ == "__main__":
    main(sys.argv[1:])
