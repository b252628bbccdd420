"""Several processes: whole copies of the model, and shards of it, learn what one process with as large a batch does."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification, pipeline

from hf_neuracrypt import alignment
from hf_neuracrypt.data.dataset import make_plan
from hf_neuracrypt.errors import NeuraCryptError
from hf_neuracrypt.jobs.job import Job
from hf_neuracrypt.jobs.run import run
from hf_neuracrypt.training import aligned
from hf_neuracrypt.training.trainer import settle_sharding
from tests.commands import launch, load_script
from tests.helpers import ROOT, TINY_VIT, make_dataset
from tests.loopback_hub import LoopbackHub


CONFIGS = ROOT / "scripts" / "accelerate"
RECIPE = {
    "learning_rate": 1e-3, "class_weights": True, "gradient_accumulation_steps": 2, "max_steps": 6, "logging_steps": 1,
    "eval_strategy": "steps", "eval_steps": 3, "save_steps": 3, "load_best_model_at_end": True,
    # The first of the two evaluations is made the better one.
    "metric_for_best_model": "loss", "greater_is_better": True,
    "per_device_train_batch_size": 4, "seed": 3, "report_to": "none", "disable_tqdm": True, "use_cpu": True,
}  # fmt: skip


def write_flags(folder, name: str, **more: object) -> str:
    """A file of flags for the run NAME, which writes into the folder NAME."""
    flags = {"dataset_name": str(folder / "encrypted"), "model_name_or_path": str(folder / "pretrained")}
    flags |= {"public_images": str(folder / "public"), "output_dir": str(folder / name)} | RECIPE | more
    (folder / f"{name}.json").write_text(json.dumps(flags))
    return str(folder / f"{name}.json")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small_encoder):
    """One process, two ranks with whole models, two with shards; the same images in each step."""
    folder, train = tmp_path_factory.mktemp("ranks"), load_script("train")
    splits = {"train": make_dataset(192, size=32), "validation": make_dataset(16, size=32, seed=1)}
    run(Job(splits, make_plan(splits, small_encoder), folder / "encrypted"))
    make_dataset(64, size=32, seed=2).remove_columns("label").save_to_disk(str(folder / "public"))
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**TINY_VIT)).save_pretrained(folder / "pretrained")

    one_process(folder, train)
    with LoopbackHub() as hub:
        middle = folder / "sharded" / "checkpoint-3"
        pushed = {"push_to_hub": True, "hub_strategy": "checkpoint", "load_best_model_at_end": False}
        result = launch(
            "accelerate", "launch", "--config_file", CONFIGS / "fsdp.yaml", "--num_processes", 2,
            ROOT / "tests" / "training" / "on_ranks.py", folder / "map.pt",
            write_flags(folder, "two"), "--fsdp",
            write_flags(folder, "sharded"),
            write_flags(folder, "continued", resume_from_checkpoint=str(middle), hub_model_id="owner/vit", **pushed),
            **hub.environment(folder / "home", "hf_owner"),
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return SimpleNamespace(folder=folder, train=train, hub=hub)


def one_process(folder, train) -> None:
    """As in on_ranks.py: the map is kept, and left in map.pt; on one thread, as ranks are."""
    answers, threads, align = itertools.count(), torch.get_num_threads(), alignment.align

    def recorded(*arguments):
        found = align(*arguments)
        torch.save(found, folder / "map.pt")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aligned, "probe", lambda *_: next(answers))
        patch.setattr(alignment, "align", recorded)
        torch.set_num_threads(1)
        train.main(*train.parse([write_flags(folder, "one", per_device_train_batch_size=8)]))
        torch.set_num_threads(threads)


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def curve(folder) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.parametrize("name", ["two", "sharded"])
def test_ranks_learn_what_one_process_with_as_large_a_batch_does(name, runs):
    """From an aligned start, with class weights and accumulation; the best model comes back."""
    one, several = runs.folder / "one", runs.folder / name
    start, end = (weights(folder)["vit.embeddings.position_embeddings"] for folder in (runs.folder / "pretrained", one))
    assert (end - start).abs().max() > 0.02  # further than six steps could: the start was aligned
    assert len(curve(one)) == 6 and curve(several) == pytest.approx(curve(one), abs=2e-4)
    assert (several / "checkpoint-6" / "rng_state_1.pth").exists()
    for part in ("", "checkpoint-3", "checkpoint-6"):
        expected, found = weights(one / part), weights(several / part)
        assert set(found) == set(weights(runs.folder / "pretrained"))
        for key, weight in expected.items():
            torch.testing.assert_close(found[key], weight, atol=2e-4, rtol=0, msg=f"{part} {key}")
    best, last = weights(several / "checkpoint-3"), weights(several / "checkpoint-6")
    assert all(torch.equal(weight, best[key]) for key, weight in weights(several).items())
    assert any((best[key] - weight).abs().max() > 1e-3 for key, weight in last.items())
    image = make_dataset(1, size=32)[0]["img"]
    assert len(pipeline("image-classification", model=str(several))(image)) == 3


def test_shards_are_continued_and_published_whole(runs):
    last = weights(runs.folder / "sharded" / "checkpoint-6")
    for key, weight in weights(runs.folder / "continued").items():
        torch.testing.assert_close(weight, last[key], atol=1e-6, rtol=0, msg=key)
    files = runs.hub.files("model", "owner/vit")
    checkpoint = {name.removeprefix("last-checkpoint/") for name in files if name.startswith("last-checkpoint/")}
    assert {"model.safetensors", "pytorch_model_fsdp.bin", "optimizer.bin", "rng_state_1.pth"} <= checkpoint
    assert files["model.safetensors"] == (runs.folder / "continued" / "model.safetensors").read_bytes()


def test_the_config_of_whole_models():
    """accelerate refuses fields it does not know."""
    config = load_config_from_file(str(CONFIGS / "gpus.yaml"))
    assert config.distributed_type == DistributedType.MULTI_GPU and config.mixed_precision == "no"


@pytest.mark.parametrize(
    "options",
    [
        {"fsdp_version": 2, "state_dict_type": "SHARDED_STATE_DICT"},
        {"fsdp_version": 1, "state_dict_type": "FULL_STATE_DICT", "sync_module_states": False},
    ],
)
def test_fsdp_that_would_save_no_model_is_refused(options):
    plugin = FullyShardedDataParallelPlugin(**options)
    with pytest.raises(NeuraCryptError, match="fsdp_version: 2 and fsdp_state_dict_type: FULL_STATE_DICT"):
        settle_sharding(plugin, ViTForImageClassification(ViTConfig(**TINY_VIT)))


def test_a_checkpoint_of_shards_is_not_continued_without(runs):
    flags = write_flags(runs.folder, "alone", resume_from_checkpoint=str(runs.folder / "sharded" / "checkpoint-3"))
    with pytest.raises(NeuraCryptError, match="checkpoint-3 was saved with FSDP: continue it in the same way"):
        runs.train.main(*runs.train.parse([flags]))
