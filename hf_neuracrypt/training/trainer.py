"""`Trainer` that publishes with our card, and only what the guard has looked at.

It overrides the three places where `Trainer` talks to the Hub: making the repository, writing the card, uploading a
checkpoint. The upload itself is Trainer's own, so every `--hub_strategy` works as users know it. And it reads a
checkpoint back whole.
"""

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.constants import FSDP_MODEL_NAME
from datasets import Dataset
from huggingface_hub import HfApi, get_token
from torch.distributed.fsdp import StateDictType
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainerState, TrainingArguments
from transformers.modelcard import extract_hyperparameters_from_trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from hf_neuracrypt.data.record import Record
from hf_neuracrypt.errors import HubError, KeyMismatchError, LeakError, NeuraCryptError, first_line
from hf_neuracrypt.hub import hub_errors
from hf_neuracrypt.models.load import load_model_config, model_records
from hf_neuracrypt.publish.cards import model_card
from hf_neuracrypt.publish.guard import CHECKPOINT_FILES, MODEL_FILES, Guard, find_key_file
from hf_neuracrypt.training.tasks import ALL_FIGURES


NOT_UPLOADED = ("_*", "checkpoint-*", ".cache", ".git")  # what Trainer's `upload_folder` passes over

log = logging.getLogger(__name__)


class PublishingTrainer(Trainer):
    """A `Trainer` for encrypted images.

    Args:
        records: how the training images were encrypted; none: they are plain.
        dataset_ids: those training datasets that are on the Hub.
        base_model: the pre-trained model, if it is on the Hub.

    Raises:
        LeakError: a key file lies in the output folder, or an access token would be published.
        HubError: the repository cannot be made, or is public although that was not asked for.
        NeuraCryptError: FSDP of another kind than `scripts/accelerate/fsdp.yaml` says; whatever Trainer refuses.
    """

    def __init__(
        self, *args, records: Sequence[Record] = (), dataset_ids: Sequence[str] = (), base_model: str | None, **options
    ):
        self.records, self.dataset_ids, self.base_model = list(records), list(dataset_ids), base_model
        try:
            super().__init__(*args, **options)
        except (ImportError, RuntimeError, ValueError) as error:
            raise NeuraCryptError(first_line(error)) from None
        self._stock_model.config.name_or_path = base_model or ""  # trackers log it: no path
        if self.is_fsdp_enabled:
            settle_sharding(self.accelerator.state.fsdp_plugin, self._stock_model)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository: private, unless `--hub_private_repo False` says otherwise."""
        wanted = self.args.hub_private_repo if private is None else private
        with hub_errors(self._repo_name):
            super().init_hf_repo(token, private=wanted is not False)
            if not self.is_world_process_zero():
                return
            if wanted is not False and not HfApi().model_info(str(self.hub_model_id)).private:
                raise HubError(
                    f"the repository {self.hub_model_id} is public: give --hub_private_repo False to publish there, "
                    "or choose another --hub_model_id"
                )

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **options) -> TrainOutput:
        """See `Trainer.train`, which would train a finished run a step further: that is loaded as it is."""
        if isinstance(resume_from_checkpoint, str):
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
            if state.global_step >= steps_of(self.args, len(cast(Dataset, self.train_dataset))) or self._gave_up(state):
                best = state.best_model_checkpoint if self.args.load_best_model_at_end else None
                self._load_weights(best or resume_from_checkpoint)
                self.state = state
                log.info("%s is a finished run of %d steps: nothing is left to train", self._output, state.global_step)
                return TrainOutput(state.global_step, 0.0, {})
            log.info("Going on from %s, after %d steps", resume_from_checkpoint, state.global_step)
        return super().train(resume_from_checkpoint, *args, **options)

    def _gave_up(self, state: TrainerState) -> bool:
        """Whether early stopping, as it is asked for now, ended the run that `state` is of."""
        saved = cast(dict, state.stateful_callbacks or {}).get("EarlyStoppingCallback", {}).get("attributes", {})
        asked = [each for each in self.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]
        return any(saved.get("early_stopping_patience_counter", 0) >= each.early_stopping_patience for each in asked)

    def final_metrics(self) -> dict[str, float]:
        """Of the model as training left it; evaluated once more only if the last step was not, or is not what is kept.

        Trackers end their run with training: what is logged later would be of another.
        """
        last = self._last_evaluation
        if last.pop("step", None) != self.state.global_step or self.args.load_best_model_at_end:
            return self.evaluate()
        return last

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write our README.md into the output folder; before an upload, look at everything that would go."""
        if not self.is_world_process_zero():
            return
        last = self._last_evaluation
        results = {metric: last[f"eval_{metric}"] for metric in (*ALL_FIGURES, "loss") if f"eval_{metric}" in last}
        text = model_card(
            self.records,
            self._stock_model.config.model_type,
            getattr(self, "hub_model_id", None) or self._repo_name,
            extract_hyperparameters_from_trainer(self),
            results,
            last.get("step", self.state.global_step),
            last.get("epoch", self.state.epoch or 0.0),
            self.dataset_ids,
            self.base_model,
            self._stock_model.config.problem_type,
        )
        output = self._output
        if (upload := getattr(self, "push_in_progress", None)) is not None:
            upload.wait_until_done()  # or it would find the card half-written
        (output / "README.md").write_text(text, encoding="utf-8")
        if self.args.push_to_hub:
            Guard(tokens=[get_token()]).check_folder(output, MODEL_FILES, NOT_UPLOADED)

    def push_to_hub(self, *args, **options):
        """See `Trainer.push_to_hub`, which saves the model, then the card (see above), then uploads."""
        with hub_errors(self._repo_name):
            return super().push_to_hub(*args, **options)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero() and self.args.hub_strategy != "end":
            self.create_model_card()
            Guard(tokens=[get_token()]).check_folder(Path(checkpoint_folder), CHECKPOINT_FILES)
        with hub_errors(self._repo_name):
            super()._push_from_checkpoint(checkpoint_folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if (saved_so := (Path(resume_from_checkpoint) / f"{FSDP_MODEL_NAME}.bin").exists()) != self.is_fsdp_enabled:
            raise NeuraCryptError(
                f"{resume_from_checkpoint} was saved with{'' if saved_so else 'out'} FSDP: continue it in the same way"
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # their files have the model's own names
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_best_model()
        self._load_weights(str(self.state.best_model_checkpoint))

    def _load_weights(self, checkpoint: str) -> None:
        """All weights of a checkpoint. transformers 5 saves a ViT's layers under the names they had in 4, but Trainer
        looks for the new ones and goes on without (transformers issue 43701); `from_pretrained` knows both."""
        model = self._stock_model
        saved = type(model).from_pretrained(checkpoint, trust_remote_code=False, use_safetensors=True)
        model.load_state_dict(saved.state_dict())

    @property
    def _last_evaluation(self) -> dict[str, float]:
        return dict(next((entry for entry in reversed(self.state.log_history) if "eval_loss" in entry), {}))

    @property
    def _stock_model(self) -> PreTrainedModel:
        return cast(PreTrainedModel, self.model)

    @property
    def _repo_name(self) -> str:
        return self.args.hub_model_id or self._output.absolute().name

    @property
    def _output(self) -> Path:
        return Path(str(self.args.output_dir))


def check_output(output_dir: str, hub_token: str | None) -> None:
    """Before training: nothing secret may lie where Trainer saves and uploads. Raises LeakError."""
    output = Path(output_dir).resolve()
    key_file = os.environ.get("NEURACRYPT_KEY_FILE")
    if key_file and Path(key_file).resolve().is_relative_to(output):
        raise LeakError(f"the key file {key_file} lies inside the output {output_dir}: keep it elsewhere")
    if found := find_key_file(output):
        raise LeakError(f"there is a key file inside the output: {found}: keep it elsewhere")
    if hub_token:
        raise LeakError("--hub_token would be published in training_args.bin: set HF_TOKEN instead")


def steps_of(args: TrainingArguments, images: int) -> int:
    """How many steps a run over so many images makes. Raises NeuraCryptError if it can make none."""
    batches: float = images / (args.train_batch_size * args.world_size)
    batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
    epoch = math.ceil(batches / args.gradient_accumulation_steps)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * epoch)
    if not epoch or steps < 1:
        raise NeuraCryptError(
            f"there is no step to train: {images} images make {batches} batches of {args.train_batch_size} an epoch, "
            f"for {args.num_train_epochs:g} epochs"
        )
    return steps


def find_checkpoint(args: TrainingArguments, records: Sequence[Record]) -> str | None:
    """Where to continue: the checkpoint asked for, else (or for "True") the newest in the output folder, else none.

    Raises:
        KeyMismatchError: it was trained on images of another key or config.
        NeuraCryptError: the output folder holds a model and nothing to continue.
    """
    output, checkpoint = Path(str(args.output_dir)), args.resume_from_checkpoint
    if str(checkpoint) in ("None", "True", "true"):
        checkpoint = get_last_checkpoint(str(output)) if output.is_dir() else None
        if checkpoint is None and (output / "model.safetensors").exists():
            raise NeuraCryptError(f"{output} already holds a model: choose another --output_dir")
    if checkpoint is not None and model_records(load_model_config(checkpoint)) != list(records):
        raise KeyMismatchError(f"{checkpoint} was trained on images of another key or config: it cannot be continued")
    return checkpoint


def settle_sharding(plugin: FullyShardedDataParallelPlugin, model: PreTrainedModel) -> None:
    """Before FSDP shards the model. Raises NeuraCryptError where checkpoints would be shards, or under FSDP1."""
    if plugin.fsdp_version != 2 or plugin.state_dict_type != StateDictType.FULL_STATE_DICT:
        raise NeuraCryptError(
            "FSDP takes fsdp_version: 2 and fsdp_state_dict_type: FULL_STATE_DICT here, as in "
            "scripts/accelerate/fsdp.yaml: shards are no model, and nobody could look into them before an upload"
        )
    if plugin.transformer_cls_names_to_wrap is None:
        # Not all of `_no_split_modules`: accelerate 1.15 would shard a ViT's patch embedding twice, which fails.
        names = model._no_split_modules or []
        plugin.transformer_cls_names_to_wrap = [name for name in names if not name.endswith("Embeddings")]
