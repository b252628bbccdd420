"""Accuracy as an `evaluate.Metric` that needs no network: `evaluate.load("accuracy")` fetches its code at run time."""

import datasets
import evaluate


class Accuracy(evaluate.Metric):
    """The share of predictions that equal their reference; `compute()` gives {"accuracy": float}."""

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(description=self.__doc__, citation="", features=datasets.Features(features))

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        equal = sum(guess == truth for guess, truth in zip(predictions, references))
        return {"accuracy": equal / len(references)}
