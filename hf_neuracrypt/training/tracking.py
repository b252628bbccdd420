"""What follows a run (`--report_to`): it is told no place on this machine, and shows the run to nobody else."""

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import BucketNotFoundError, RepositoryNotFoundError
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from hf_neuracrypt.errors import HubError, NeuraCryptError, first_line
from hf_neuracrypt.hub import hub_errors


OWN_ACCORD = {  # what W&B and MLflow add by themselves: the command line, what is printed, the script's place, the user
    "WANDB__DISABLE_META": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "MLFLOW_RUN_CONTEXT": json.dumps({"mlflow.source.name": "train.py", "mlflow.user": ""}),
}


class RunArguments(TrainingArguments):
    """`TrainingArguments` that name a file or folder by its last name alone when they are told; pickled as those."""

    def to_dict(self) -> dict[str, Any]:
        told = super().to_dict()
        return {
            name: Path(value).name if isinstance(value, str) and os.path.exists(value) else value
            for name, value in told.items()
        }

    def __reduce_ex__(self, _: Any) -> Any:
        stock = object.__new__(TrainingArguments)
        stock.__dict__ = self.__dict__
        return stock.__reduce_ex__(1)  # a later protocol would ask for an object of this class


def settle_trackers(args: TrainingArguments) -> None:
    """Before any work: every tracker is installed, and what it makes on the Hub is private.

    Raises:
        NeuraCryptError: a tracker that is not installed, or not known; something that would be public.
        HubError: the Hub cannot be asked.
    """
    if "trackio" in (args.report_to or []):
        _settle_trackio(args)
    for name, value in OWN_ACCORD.items():
        os.environ.setdefault(name, value)
    try:
        for tracker in get_reporting_integration_callbacks(args.report_to):
            tracker()
    except (ImportError, RuntimeError, ValueError) as error:
        raise NeuraCryptError(first_line(error)) from None


def _settle_trackio(args: TrainingArguments) -> None:
    """Its Space and the bucket of that are made private unless they are there already; a static Space never is."""
    if args.hub_private_repo is False or args.trackio_static_space_id:
        flag = "--trackio_static_space_id" if args.trackio_static_space_id else "--hub_private_repo False"
        raise NeuraCryptError(f"trackio would show the run to everybody: leave {flag} out, or trackio")
    args.trackio_static_space_id = False  # otherwise a push makes one
    space, bucket = args.trackio_space_id or os.environ.get("TRACKIO_SPACE_ID"), args.trackio_bucket_id
    if space is None:
        return
    with hub_errors(space):
        space = space if "/" in space else f"{HfApi().whoami()['name']}/{space}"
        for kind, found in (("Space", _space(space)), ("bucket", _bucket(bucket or f"{space}-bucket"))):
            if found is not None and not found.private:
                raise HubError(f"the {kind} {found.id} is public: make it private, or choose another for trackio")


def _space(name: str) -> Any:
    try:
        return HfApi().space_info(name)
    except RepositoryNotFoundError:
        return None


def _bucket(name: str) -> Any:
    try:
        return HfApi().bucket_info(name)
    except BucketNotFoundError:
        return None
