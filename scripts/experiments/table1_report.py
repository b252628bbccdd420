"""The rebuilt table for a reader: Markdown, a chart, and whether the published order came out."""

from itertools import combinations
from pathlib import Path
from statistics import mean, stdev

import charts
from table1_rows import GIVEN, ROWS, Row


COLUMNS = {
    "accuracy": "accuracy %",
    "best_on_test": "best step on test % (biased)",
    "wrong_key": "wrong key %",
    "neighbours": "neighbours",
}


def report(path: Path, table: dict) -> str:
    """Write `path` with the endings .md and .png; returns the Markdown."""
    settings, names = table["settings"], [name for name in ROWS if name in table["rows"]]
    results = {name: list(table["rows"][name].values()) for name in names}
    lines = [
        heading(table),
        "",
        f"| system | model | {' | '.join(COLUMNS.values())} | published % | source | seconds |",
    ]
    lines.append("|" + "---|" * (len(COLUMNS) + 5))
    for name in names:
        row, digits = ROWS[name], {"neighbours": 3}
        cells = [figure([run[column] for run in results[name]], digits.get(column, 1)) for column in COLUMNS]
        published = row.published.get(settings["dataset"])
        cells += [f"{published:.2f}" if published else "", row.source if published else ""]
        cells.append(f"{mean(run['seconds'] for run in results[name]):.0f}")
        lines.append(f"| {name} | {model_of(row, settings)} | {' | '.join(cells)} |")
    lines += ["", *order(settings["dataset"], results), ""]
    text = "\n".join(lines)
    path.with_suffix(".md").write_text(text)
    draw(path.with_suffix(".png"), settings["dataset"], results)
    return text


def heading(table: dict) -> str:
    settings, environment = table["settings"], table["environment"]
    train, test = (f"the first {settings[s]:,}" if settings[s] else "all" for s in ("train", "test"))
    vit = f"fine-tuned from {settings['vit']}" if settings["vit"] else "from random weights"
    versions = ", ".join(f"{name} {version}" for name, version in environment.items())
    processors = dict.fromkeys(run["processor"] for runs in table["rows"].values() for run in runs.values())
    return (
        f"{settings['dataset']}, budget `{settings['budget']}`: {train} training and {test} test images; ViT rows at "
        f"{settings['image_size']} px, {vit}, {steps(settings['vit_recipe'])}; ShakeDrop rows at 32 px, from random "
        f"weights, depth {settings['pyramid']['depth']}, widening {settings['pyramid']['widening']}, "
        f"{steps(settings['shakedrop_recipe'])}. {versions}; {' and '.join(processors)}."
    )


def steps(recipe: dict) -> str:
    return f"{recipe['steps']:,} steps of {recipe['batch_size']} images with {recipe['optimizer']}"


def model_of(row: Row, settings: dict) -> str:
    """What the row trains, as a reader calls it."""
    shakedrop = f"ShakeDrop-{settings['pyramid']['depth']}"
    adapted = f"adapted with {GIVEN} known pairs" if row.scheme == "color-neuracrypt" else "adapted with the key"
    kinds = {adapted: row.adapted, "aligned start": row.aligned, "soft labels": row.soft, "frozen": row.frozen}
    vit = ", ".join(["ViT", *(kind for kind, given in kinds.items() if given)])
    return {"vit": vit, "shakedrop": shakedrop}.get(row.model, f"{row.model.upper()}-AdaptNet, {shakedrop}")


def figure(values: list[float | None], digits: int) -> str:
    """The mean, and the deviation where there are several seeds; nothing if a seed has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return ""
    deviation = f" ± {stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{mean(known):.{digits}f}{deviation}"


def order(dataset: str, results: dict[str, list[dict]]) -> list[str]:
    """Sentences: which pairs of rows stand in another order than the published figures."""
    published = {name: ROWS[name].published[dataset] for name in results if dataset in ROWS[name].published}
    pairs = [sorted(pair, key=published.__getitem__) for pair in combinations(published, 2)]
    pairs = [[low, high] for low, high in pairs if published[low] < published[high]]
    here = {name: mean(run["accuracy"] for run in results[name]) for name in published}
    turned = [
        f"{low} {here[low]:.1f} is above {high} {here[high]:.1f}" for low, high in pairs if here[low] >= here[high]
    ]
    if not pairs:
        return []
    count = f"{len(pairs)} pair{'s' * (len(pairs) > 1)}"
    sentence = f"Rows that the publications order: {count}; in that order here: {len(pairs) - len(turned)}."
    return [sentence + (f" Not so: {'; '.join(turned)}." if turned else "")]


def draw(path: Path, dataset: str, results: dict[str, list[dict]]) -> None:
    """A bar a row, a dot a seed, a diamond where a figure was published; transparent."""
    figure, axes = charts.pyplot().subplots(figsize=(8, 0.42 * len(results) + 1.1), layout="constrained")
    for place, runs in enumerate(results.values()):
        values = [run["accuracy"] for run in runs]
        axes.barh(place, mean(values), 0.6, color=charts.BLUE, label="here" if place == 0 else None)
        seed = "a seed" if place == 0 else None
        axes.plot(values, [place] * len(values), "o", color=charts.ORANGE, markersize=4, label=seed)
        axes.text(2, place, f"{mean(values):.1f}", va="center", color="white", fontsize=9)
    published = {place: ROWS[name].published.get(dataset) for place, name in enumerate(results)}
    places = [place for place, value in published.items() if value]
    axes.plot([published[place] for place in places], places, "D", color=charts.INK, markersize=6, label="published")
    axes.set_yticks(range(len(results)), list(results))
    axes.set(xlim=(0, 101))
    axes.invert_yaxis()
    axes.set_xlabel(f"accuracy on {dataset}, %")
    figure.legend(loc="outside upper center", ncols=3, labelcolor=charts.INK, frameon=False)
    charts.save(figure, path)
