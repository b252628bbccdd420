"""Trackers: what they store has no path in it, and what trackio would put on the Hub is private."""

import pytest
import torch
import transformers
from datasets import DatasetDict

from hf_neuracrypt.errors import HubError, NeuraCryptError
from hf_neuracrypt.training.tracking import RunArguments, settle_trackers
from tests.commands import command, process, started_with
from tests.helpers import ROOT, TINY_VIT, make_dataset
from tests.loopback_hub import Repo


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    """Where this machine keeps a dataset, a model and what is made of them."""
    folder = tmp_path_factory.mktemp("private")
    DatasetDict({"train": make_dataset(16), "test": make_dataset(8, seed=1)}).save_to_disk(str(folder / "plain"))
    transformers.ViTForImageClassification(transformers.ViTConfig(**TINY_VIT)).save_pretrained(folder / "base")
    return folder


STORES = {  # files that would leave this machine, or may
    "tensorboard": ({"TENSORBOARD_LOGGING_DIR": "{}"}, "events*"),
    "trackio": ({"TRACKIO_DIR": "{}"}, "*.db"),
    "mlflow": ({"MLFLOW_TRACKING_URI": "sqlite:///{}/mlflow.db"}, "*.db"),
    "wandb": ({"WANDB_MODE": "offline", "WANDB_DIR": "{}"}, "run-*.wandb"),
}


@pytest.mark.parametrize("tracker", STORES)
def test_a_tracker_learns_how_a_run_goes_and_no_place(tracker, private, tmp_path, monkeypatch):
    pytest.importorskip(tracker)
    monkeypatch.chdir(tmp_path)  # MLflow and W&B write there
    environment, files = STORES[tracker]
    words = ("--plain", "--dataset_name", private / "plain", "--model_name_or_path", private / "base", "--use_cpu")
    words += ("--output_dir", private / f"out-{tracker}", "--num_train_epochs", 1, "--report_to", tracker)
    settings = {name: value.format(tmp_path) for name, value in environment.items()}
    run = command if tracker == "tensorboard" else process  # the others write when they begin, and when they end
    result = run("scripts/train.py", *words, **settings)
    assert result.returncode == 0, result.stderr
    stored = b"".join(file.read_bytes() for file in tmp_path.rglob(files))
    assert b"output_dir" in stored and f"out-{tracker}".encode() in stored  # by its last name
    assert b"eval/accuracy" in stored or b"eval_accuracy" in stored
    assert str(private).encode() not in stored and str(ROOT).encode() not in stored


def test_arguments_are_told_by_their_last_names_and_saved_as_the_stock_ones(tmp_path):
    args = RunArguments(str(tmp_path / "out"), report_to="none", use_cpu=True, hub_model_id="owner/model")
    (tmp_path / "out").mkdir()
    assert args.to_dict()["output_dir"] == "out" and str(tmp_path) not in args.to_json_string()
    assert args.to_dict()["hub_model_id"] == "owner/model"
    torch.save(args, tmp_path / "training_args.bin")
    saved = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert type(saved) is transformers.TrainingArguments and saved.output_dir == str(tmp_path / "out")
    assert saved.learning_rate == args.learning_rate


@pytest.mark.parametrize(
    "options, public, reason",
    [
        ({"hub_private_repo": False}, (), "show the run to everybody: leave --hub_private_repo False out"),
        ({"trackio_static_space_id": "owner/page"}, (), "everybody: leave --trackio_static_space_id out"),
        ({"trackio_space_id": "owner/runs"}, [("space", "owner/runs")], "the Space owner/runs is public"),
        ({"trackio_space_id": "runs"}, [("space", "owner/runs")], "the Space owner/runs is public"),
        ({"trackio_space_id": "owner/runs"}, [("bucket", "owner/runs-bucket")], "the bucket owner/runs-bucket is"),
        ({"trackio_space_id": "owner/runs", "trackio_bucket_id": "owner/b"}, [("bucket", "owner/b")], "owner/b is pub"),
    ],
)
def test_what_trackio_shows_is_private_or_the_run_stops(options, public, reason, hub, tmp_path):
    args = RunArguments(str(tmp_path), report_to="trackio", use_cpu=True, **{"hub_private_repo": True} | options)
    with started_with(hub.environment(tmp_path / "home")):
        for name in public:
            hub.repos[name] = Repo(private=False)
            hub.repos[name].add("first", {})
        with pytest.raises((HubError, NeuraCryptError), match=reason):
            settle_trackers(args)


@pytest.mark.parametrize("there", [(), [("space", "owner/runs"), ("bucket", "owner/runs-bucket")]])
def test_a_space_that_is_private_or_not_there_is_taken(there, hub, tmp_path, monkeypatch):
    args = RunArguments(str(tmp_path), report_to="trackio", use_cpu=True, hub_private_repo=True)
    monkeypatch.setattr("hf_neuracrypt.training.tracking.get_reporting_integration_callbacks", lambda _: [])
    with started_with(hub.environment(tmp_path / "home") | {"TRACKIO_SPACE_ID": "owner/runs"}):
        for name in there:
            hub.repos[name] = Repo(private=True)
            hub.repos[name].add("first", {})
        settle_trackers(args)
    assert args.trackio_static_space_id is False  # a static one is public
    assert any("/api/spaces/owner/runs" in path for _, path, _ in hub.log)
