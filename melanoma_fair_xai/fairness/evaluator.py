"""An `evaluate` evaluator that passes group and lesion columns of a `datasets` split to the stratified metric."""

from collections.abc import Sequence
from typing import Any

import datasets
import PIL.ImageOps
import transformers
from evaluate.evaluator import ImageClassificationEvaluator

from dataset_scripts.schema import UNKNOWN
from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.base.images import image_bytes, open_image


class StratifiedEvaluator(ImageClassificationEvaluator):
    """Scores a split with an image-classification pipeline and evaluates it by group.

    Args:
        group_column: names or a ClassLabel.
        lesion_column: images with the same value depend on each other; None where every image is a lesion of its own.
        positive_labels: the pipeline's labels whose probabilities are summed to the score.
        metric_arguments: what the metric's `compute` takes, such as threshold and reference.

    `compute(model_or_pipeline, data=..., metric=..., label_column=...)` is that of `evaluate`; the model may be a
    folder or Hub id, a pipeline, or any function that maps images to lists of `{"label", "score"}` of all labels.
    """

    def __init__(
        self,
        group_column: str,
        lesion_column: str | None = "lesion_id",
        positive_labels: Sequence[str] = ("melanoma",),
        **metric_arguments: Any,
    ):
        super().__init__()
        self.group_column, self.lesion_column = group_column, lesion_column
        self.positive_labels = set(positive_labels)
        self.METRIC_KWARGS = metric_arguments

    def prepare_data(self, data: datasets.Dataset, input_column: str, label_column: str) -> tuple[dict, Any]:
        for name in (input_column, label_column, self.group_column, self.lesion_column):
            if name is not None and name not in data.column_names:
                raise UserError(f"no column {name}; the split has {', '.join(data.column_names)}")
        alone = [str(row) for row in range(len(data))]
        inputs = {
            "references": data[label_column][:],
            "groups": _names(data, self.group_column),
            "lesion_ids": _names(data, self.lesion_column) if self.lesion_column else alone,
        }
        images = data.select_columns([input_column])
        if not isinstance(data.features[input_column], datasets.Image):
            return inputs, (row[input_column] for row in images)
        stored = images.cast_column(input_column, datasets.Image(decode=False))
        return inputs, (PIL.ImageOps.exif_transpose(open_image(image_bytes(row[input_column]))) for row in stored)

    def prepare_pipeline(self, model_or_pipeline: Any, *_, device: int | None = None, **__) -> Any:
        # evaluate's own asks transformers for TensorFlow classes, which version 5 no longer has.
        if callable(model_or_pipeline) and not isinstance(model_or_pipeline, transformers.PreTrainedModel):
            return model_or_pipeline
        return transformers.pipeline(self.task, model=model_or_pipeline, device=device)

    def call_pipeline(self, pipe: Any, images: Any) -> tuple[list, dict]:
        return super().call_pipeline(lambda inputs: list(pipe(inputs, top_k=None)), images)

    def predictions_processor(self, predictions: list[list[dict]], label_mapping: Any) -> dict[str, list[float]]:
        scores = []
        for answer in predictions:
            found = [item["score"] for item in answer if item["label"] in self.positive_labels]
            if not found:
                labels = ", ".join(str(item["label"]) for item in answer)
                raise UserError(f"the model's labels are {labels}; say with positive_labels which are positive")
            scores.append(min(sum(found), 1.0))
        return {"predictions": scores}


def _names(data: datasets.Dataset, column: str) -> list[str]:
    feature = data.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return [UNKNOWN if value is None or value < 0 else feature.names[value] for value in data[column]]
    return [UNKNOWN if value is None else str(value) for value in data[column]]
