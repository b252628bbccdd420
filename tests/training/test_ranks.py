"""Several processes: whole copies of the model, and shards of it, learn what one process with as large a batch does."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification, pipeline

from hf_neuracrypt.data.dataset import make_plan
from hf_neuracrypt.errors import NeuraCryptError
from hf_neuracrypt.jobs.job import Job
from hf_neuracrypt.jobs.run import run
from hf_neuracrypt.training import recipes
from hf_neuracrypt.training.trainer import settle_sharding
from tests.helpers import ROOT, TINY_VIT, launch, load_script, make_dataset
from tests.loopback_hub import LoopbackHub


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


def start(config: str, program: str, *flags: str, **environment: str) -> None:
    """Two ranks, with a config file of ours."""
    config = ROOT / "scripts" / "accelerate" / config
    result = launch(
        "accelerate", "launch", "--config_file", config, "--num_processes", 2, ROOT / program, *flags, **environment
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small_encoder):
    """One process, two ranks with whole models, two with shards; the same images in each step."""
    folder, train = tmp_path_factory.mktemp("ranks"), load_script("train")
    splits = {"train": make_dataset(192, size=32), "validation": make_dataset(16, size=32, seed=1)}
    run(Job(splits, make_plan(splits, small_encoder), folder / "encrypted"))
    make_dataset(64, size=32, seed=2).remove_columns("label").save_to_disk(str(folder / "public"))
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**TINY_VIT)).save_pretrained(folder / "pretrained")

    with pytest.MonkeyPatch.context() as patch:
        answers = itertools.count()
        patch.setattr(recipes, "probe", lambda *_: next(answers))  # as in on_ranks.py
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as ranks have: sums of other threads have other last digits
        train.main(*train.parse([write_flags(folder, "one", per_device_train_batch_size=8)]))
        torch.set_num_threads(threads)
    start("gpus.yaml", "tests/training/on_ranks.py", write_flags(folder, "two"))
    with LoopbackHub() as hub:
        middle = folder / "sharded" / "checkpoint-3"
        pushed = {"push_to_hub": True, "hub_strategy": "checkpoint", "load_best_model_at_end": False}
        start(
            "fsdp.yaml", "tests/training/on_ranks.py", "--fsdp",
            write_flags(folder, "sharded"),
            write_flags(folder, "continued", resume_from_checkpoint=str(middle), hub_model_id="owner/vit", **pushed),
            **hub.environment(folder / "home", "hf_owner"),
        )  # fmt: skip
    return SimpleNamespace(folder=folder, train=train, hub=hub)


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
