"""Cards as the Hub's own classes read them."""

import json

import pytest
from huggingface_hub import DatasetCard, ModelCard
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils import validate_repo_id

from hf_neuracrypt.data.record import Record
from hf_neuracrypt.publish import cards
from hf_neuracrypt.publish.cards import BEGIN, SIZES
from hf_neuracrypt.schemes import SCHEMES, make_config
from tests.commands import load_script
from tests.helpers import KEY_ID, ROOT, SMALL


RECORD = Record(SMALL, "nck1-" + "00112233" * 4)
HIDDEN = Record(SMALL, "nck1-" + "44556677" * 4, "sealed names")
METADATA = {
    "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
    "dataset_info": {"features": [{"name": "image", "dtype": "image"}]},
}


def dataset_card(record=RECORD, columns=("image", "label"), **options):
    return cards.dataset_card(record, {"train": 1_200, "test": 30}, list(columns), "ward/photos", METADATA, **options)


def test_a_dataset_card_says_what_is_needed():
    text = dataset_card(license="cc-by-4.0")
    data = DatasetCard(text).data
    assert data.to_dict()["configs"] == METADATA["configs"] and data["dataset_info"] == METADATA["dataset_info"]
    assert data.license == "cc-by-4.0" and data.size_categories == "1K<n<10K"
    assert data.task_categories == ["image-classification"] and "encrypted-images" in data["tags"]
    body = DatasetCard(text).text
    assert body.index("does not protect") < body.index("What it protects")  # first what it does not
    for said in (RECORD.key_id, "color-neuracrypt/v1", "| train | 1,200 |", 'load_dataset("ward/photos")',
                 "--dataset_name ward/photos", "arxiv.org/abs/2108.07256", "| depth | `2` |"):  # fmt: skip
        assert said in body, said
    for not_said in ("secret order", "in clear", "anonymised", "irreversible", "{{", "{%"):
        assert not_said not in body, not_said


def test_hidden_labels_and_kept_columns_are_named():
    body = DatasetCard(dataset_card(HIDDEN, ("image", "label", "age"))).text
    assert "similar labelled pictures" in body and "publish `age` in clear" in body
    assert "secret" not in body.split("## How it was encrypted")[1]


def test_every_card_says_that_the_attack_needs_no_pair():
    for text in (dataset_card(), dataset_card(HIDDEN), model_card()):
        said = " ".join(text.split())
        assert "no pair is needed" in said and "*similar* pictures" in said and "*Matching.*" in said


def test_views_are_not_counted_as_images():
    body = DatasetCard(dataset_card(views={"count": 4, "flip": True})).text
    assert "is there 4 times" in body and "moved or mirrored before" in body
    assert "mirrored" not in dataset_card(views={"count": 4, "flip": False}) and "times" not in dataset_card()


def test_what_others_wrote_into_a_card_stays():
    old = dataset_card().replace("license: null\n", "")
    old = old.replace("---\n", "---\nlanguage: en\nlicense: mit\n", 1) + "\n## Acknowledgements\nThe ward.\n"
    text = dataset_card(HIDDEN, existing=old)
    data, body = DatasetCard(text).data, DatasetCard(text).text
    assert data.language == "en" and data.license == "mit" and data.to_dict()["configs"] == METADATA["configs"]
    assert body.count("The ward.") == 1 and body.count(BEGIN) == 1
    assert HIDDEN.key_id in body and RECORD.key_id not in body
    foreign = dataset_card(existing="---\ntags:\n- medical\n---\n# Photos of the ward\n")
    assert "# Photos of the ward" in foreign and DatasetCard(foreign).data["tags"][0] == "medical"


def model_card(records=(RECORD,), results=None, **options):
    return cards.model_card(records, "vit", "ward/vit", {"learning_rate": 1e-4}, results or {}, 40, 2.0, **options)


def test_a_model_card_has_a_model_index():
    text = model_card(results={"accuracy": 0.91234, "loss": 0.5}, dataset_ids=["ward/photos"], base_model="google/vit")
    data = ModelCard(text).data
    accuracy = data.eval_results[0]
    assert (accuracy.metric_type, accuracy.metric_value, accuracy.dataset_type) == ("accuracy", 0.9123, "ward/photos")
    assert data.base_model == "google/vit" and data.datasets == ["ward/photos"] and data.library_name == "transformers"
    assert data.pipeline_tag == "image-classification" and data.model_name == "vit"
    body = ModelCard(text).text
    for said in ("does not protect", RECORD.key_id, "| accuracy | 0.9123 |", "after 2.00 epochs (40 steps)",
                 "hf-neuracrypt predict --model ward/vit", "| learning_rate | 0.0001 |"):  # fmt: skip
        assert said in body, said


def test_before_the_first_evaluation_there_are_no_results():
    text = model_card([RECORD, HIDDEN])
    assert ModelCard(text).data.eval_results is None
    assert "training is at step 40" in text and RECORD.key_id in text and HIDDEN.key_id in text


def test_a_baseline_does_not_claim_to_be_encrypted():
    text = model_card([])
    assert "plain images" in text and "hf-neuracrypt predict" not in text
    assert "encrypted-images" not in ModelCard(text).data.tags


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_has_its_cards(scheme):
    record = Record(make_config(scheme, {}), KEY_ID)
    assert record.config.algorithm in dataset_card(record) and record.config.title in dataset_card(record)
    assert record.config.title in model_card([record]) and scheme in ModelCard(model_card([record])).data.tags


@pytest.mark.parametrize("rows, size", [(999, "n<1K"), (1_000, "1K<n<10K"), (10**7, "n>10M")])
def test_size_categories(rows, size):
    text = cards.dataset_card(RECORD, {"train": rows}, ["image"], "ward/photos", METADATA)
    assert DatasetCard(text).data.size_categories == size


# ------------------------------------------------------------------------------------------------------------ examples

EXAMPLES = ROOT / "model_cards" / "examples"


def test_the_examples_are_what_the_templates_make():
    script = load_script("example_cards")
    for name, text in script.render(json.loads((EXAMPLES / "demo.json").read_text())).items():
        committed = (EXAMPLES / name).read_text()
        # The last line names the versions of libraries.
        assert text.split("Made with")[0] == committed.split("Made with")[0], "run scripts/experiments/example_cards.py"


@pytest.mark.parametrize("name, card", [("dataset_card.md", DatasetCard), ("model_card.md", ModelCard)])
def test_the_metadata_of_the_examples_is_valid(name, card):
    metadata = metadata_load(EXAMPLES / name)
    assert metadata == card.load(EXAMPLES / name).data.to_dict() and None not in metadata.values()
    assert all(isinstance(tag, str) for tag in metadata["tags"])
    for repo in metadata.get("datasets", []):
        validate_repo_id(repo)
    if card is ModelCard:
        assert metadata["pipeline_tag"] == "image-classification" and metadata["library_name"] == "transformers"
        (result,) = metadata["model-index"][0]["results"]
        assert all({"type", "value"} <= set(metric) for metric in result["metrics"])
        assert {"type", "name"} <= set(result["dataset"])
    else:
        assert metadata["size_categories"] in [name for _, name in SIZES]
        assert metadata["task_categories"] == ["image-classification"]
        splits = {split["name"]: split["num_examples"] for split in metadata["dataset_info"]["splits"]}
        assert splits == {"train": 1437, "test": 360}
        assert {each["split"] for each in metadata["configs"][0]["data_files"]} == set(splits)
