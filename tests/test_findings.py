"""From X-ray-like images with several findings to answers, with the commands; then numbers and probabilities."""

import csv
import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, List, Value, load_from_disk
from datasets import Image as ImageFeature
from PIL import Image
from transformers import pipeline

from hf_neuracrypt import Classifier, SecretKey, load_encoder
from hf_neuracrypt.data.record import Record
from hf_neuracrypt.training.tasks import auroc
from tests.commands import assert_one_line_error, command, encrypt
from tests.helpers import SMALL, TINY_VIT, encoded, save_model


FINDINGS = ["Effusion", "Mass", "Nodule"]
RECIPE = (
    "--num_train_epochs", 8, "--per_device_train_batch_size", 8, "--learning_rate", "3e-3", "--report_to", "none",
    "--disable_tqdm", "true", "--seed", 1, "--use_cpu",
)  # fmt: skip


def chest(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey images uint8 (count, 32, 32), and which of three findings are painted into each, bool (count, 3)."""
    generator = np.random.default_rng(seed)
    images = generator.integers(40, 60, (count, 32, 32)).astype(np.uint8)
    present = generator.random((count, 3)) < 0.4
    for image, (effusion, mass, nodule) in zip(images, present):
        image[16:] += np.uint8(150 * effusion)
        image[:16, :16] += np.uint8(150 * mass)
        image[:16, 16:] += np.uint8(150 * nodule)
    return images, present


def write_split(folder, count: int, seed: int, labelled: bool = True) -> np.ndarray:
    """As hospitals have it: files, and a table of 1, 0, -1 (uncertain) and empty (unknown)."""
    images, present = chest(count, seed)
    folder.mkdir(parents=True)
    known = np.random.default_rng(seed + 1).random(present.shape) < 0.8
    with open(folder / "metadata.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "patient", *FINDINGS])
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{number:03d}.png")
            cells = [float(yes) if sure else ("", -1)[number % 2] for yes, sure in zip(present[number], known[number])]
            rows.writerow([f"{number:03d}.png", f"Doe {number}", *(cells if labelled else [""] * 3)])
    return present


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """keygen, encrypt, train: the validation split is labelled, the test split is not."""
    folder = tmp_path_factory.mktemp("findings")
    write_split(folder / "xrays" / "train", 160, 0)
    write_split(folder / "xrays" / "validation", 48, 7)
    write_split(folder / "xrays" / "test", 6, 9, labelled=False)
    (folder / "vit").mkdir()
    (folder / "vit" / "config.json").write_text(json.dumps(TINY_VIT))
    assert command("keygen", folder / "a.key").returncode == 0
    flags = [word for name in FINDINGS for word in ("--label-column", name)]
    made = encrypt(folder / "xrays", folder / "a.key", folder / "encrypted", *flags, "--hide-labels")
    assert made.returncode == 0, made.stderr
    assert (
        "train 160 images, validation 48 images, test 6 images without labels; 3 labels, several an image"
        in made.stderr
    )
    trained = command(
        "scripts/train.py", "--dataset_name", folder / "encrypted", "--config_name", folder / "vit",
        "--output_dir", folder / "model", *RECIPE, "--early_stopping", 30, "--num_train_epochs", 24,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert "158 encrypted images of 3 labels, several an image; a vit" in trained.stdout
    assert "Auroc 0." in trained.stdout or "Auroc 1." in trained.stdout
    return folder


def test_what_is_stored_and_learned(walk):
    stored = load_from_disk(str(walk / "encrypted"))
    assert stored["train"].column_names == ["image", "label"]
    assert set(stored["train"][0]["label"]) == {"class_0", "class_1", "class_2"}
    assert {None, True, False} == {cell for label in stored["train"]["label"] for cell in label.values()}
    assert all(cell is None for label in stored["test"]["label"] for cell in label.values())
    results = json.loads((walk / "model" / "eval_results.json").read_text())
    assert results["eval_auroc"] > 0.8 and results["eval_average_precision"] > 0.6 and "eval_accuracy" not in results
    config = json.loads((walk / "model" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    card = (walk / "model" / "README.md").read_text()
    assert "| auroc |" in card and "type: auroc" in card and "may have several labels" in card
    assert json.loads((walk / "model" / "trainer_state.json").read_text())["best_metric"] == results["eval_auroc"]


def test_evaluate_measures_each_finding(walk):
    words = ("scripts/evaluate.py", "--model", walk / "model", "--dataset", walk / "encrypted")
    result = command(*words)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["split"] == "validation" and figures["samples"] == 48 and "worst_classes" not in figures
    trained = json.loads((walk / "model" / "eval_results.json").read_text())
    assert figures["auroc"] == pytest.approx(trained["eval_auroc"], abs=0.02)
    assert np.mean([row["auroc"] for row in figures["each"]]) == pytest.approx(figures["auroc"])
    assert all(0 < row["images"] < 48 and f"images: {row['label']}" in result.stderr for row in figures["each"])
    unlabelled = command(
        "scripts/evaluate.py", "--model", walk / "model", "--dataset", walk / "encrypted", "--split", "test"
    )
    assert_one_line_error(unlabelled, "no row of the split test has a label")


def test_predict_says_each_finding_by_its_name(walk):
    images, present = chest(40, 3)
    files = [walk / f"patient{number}.png" for number in range(40)]
    for file, image in zip(files, images):
        Image.fromarray(image).save(file)
    given = ("--model", walk / "model", "--encrypted", walk / "encrypted", "--key-file", walk / "a.key")
    answers = command("predict", *given, "--json", *files)
    assert answers.returncode == 0, answers.stderr
    lines = [json.loads(line)["predictions"] for line in answers.stdout.splitlines()]
    scores = [{entry["label"]: entry["score"] for entry in line} for line in lines]
    for finding, truths in zip(FINDINGS, present.T):
        assert auroc(np.array([each[finding] for each in scores]), truths) > 0.65


def test_the_stock_pipeline_says_the_same(walk):
    image = load_from_disk(str(walk / "encrypted"))["test"][0]["image"]
    same_answers(walk / "model", walk / "a.key", image)


def same_answers(model, key, image: Image.Image) -> Classifier:
    """Ours are those of the stock pipeline, up to rounding."""
    stock = pipeline("image-classification", model=str(model))(image)
    classifier = Classifier.from_pretrained(str(model), load_encoder(SMALL, SecretKey.load(key)))
    (ours,) = classifier.answer([{"bytes": encoded(image, "PNG"), "path": None}], 5)
    assert [entry["score"] for entry in ours] == pytest.approx([entry["score"] for entry in stock], abs=1e-5)
    true = classifier.true_names
    assert [entry["label"] for entry in ours] == [true.get(entry["label"], entry["label"]) for entry in stock]
    return classifier


# ------------------------------------------------------------------------------------------- numbers and probabilities


def brightness(kind: str, count: int, seed: int) -> Dataset:
    """How bright an image is: a number, two (one often unknown), or by the probabilities of dark and bright."""
    generator = np.random.default_rng(seed)
    share = generator.random(count)
    images = [np.full((32, 32, 3), 40 + 200 * each, np.uint8) for each in share]
    labels = {
        "number": share.tolist(),
        "numbers": [{"light": each, "dark": None if each > 0.7 else 1 - each} for each in share.tolist()],
        "probabilities": np.stack([1 - share, share], 1).tolist(),
    }[kind]
    each = Value("float32")
    feature = {"number": each, "numbers": {"light": each, "dark": each}, "probabilities": List(each, length=2)}[kind]
    features = Features({"image": ImageFeature(), "label": feature})
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


@pytest.mark.parametrize(
    ("kind", "figure", "problem_type"),
    [
        ("number", "r2", "regression"),
        ("numbers", "mae", "regression"),
        ("probabilities", "accuracy", "single_label_classification"),
    ],
)
def test_other_kinds_are_trained_evaluated_and_asked(kind, figure, problem_type, walk, tmp_path):
    splits = {"train": brightness(kind, 64, 0), "test": brightness(kind, 32, 1)}
    DatasetDict(splits).save_to_disk(str(tmp_path / "plain"))
    assert encrypt(tmp_path / "plain", walk / "a.key", tmp_path / "encrypted").returncode == 0
    trained = command(
        "scripts/train.py", "--dataset_name", tmp_path / "encrypted", "--config_name", walk / "vit", "--output_dir",
        tmp_path / "model", *RECIPE, "--max_train_samples", 48, "--gradient_accumulation_steps", 2,
        "--per_device_train_batch_size", 4, "--save_strategy", "no", "--eval_strategy", "no",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert json.loads((tmp_path / "model" / "config.json").read_text())["problem_type"] == problem_type
    result = command("scripts/evaluate.py", "--model", tmp_path / "model", "--dataset", tmp_path / "encrypted")
    figures = json.loads(result.stdout)
    assert figures[figure] < 0.25 if figure == "mae" else figures[figure] > 0.5, figures
    image = load_from_disk(str(tmp_path / "encrypted"))["test"][0]["image"]
    classifier = same_answers(tmp_path / "model", walk / "a.key", image)
    assert classifier.gives_numbers is (problem_type == "regression")


def test_a_model_of_other_names_is_not_measured(walk, tmp_path):
    encoder = load_encoder(SMALL, SecretKey.load(walk / "a.key"))
    save_model(tmp_path / "model", ["x", "y", "z"], Record(SMALL, encoder.key.id))
    words = ("--model", tmp_path / "model", "--dataset", walk / "encrypted", "--any_key")
    assert_one_line_error(command("scripts/evaluate.py", *words), "answers nothing named class_0")
