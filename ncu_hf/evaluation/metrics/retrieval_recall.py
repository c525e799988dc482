"""Image-text retrieval as a metric; the rule of ties and ranks is in `ncu_hf.evaluation.retrieval`."""

from __future__ import annotations

import datasets
import evaluate
import torch

# By module, not by name: `evaluate.load` takes the first metric that it finds among the names of this file.
from ncu_hf.evaluation.metrics import base
from ncu_hf.evaluation.retrieval import evaluate_retrieval

DESCRIPTION = """\
Recall at 1, 5 and 10 of image-text retrieval, image to text and text to image, with any number of captions an image.
Scores are dot products of the embeddings. A hit is any counterpart of the query; ties count against the model.
"""
INPUTS = """\
Args:
    predictions (list of list of float): The embedding of an image or of a caption; unit vectors give cosines.
    references (list of int): Its group. An image and a caption belong together if they are of one group.
    modality (list of str): "image" or "text", for each prediction.
    bootstrap (int, optional): Resamples for the intervals, 1000 by default.
    seed (int, optional): Of the resampling, 0 by default.

Returns:
    n_images, n_captions (int).
    image_to_text, text_to_image (dict): "R@1", "R@5", "R@10" in [0, 1], "median_rank" (1 is best) and "interval", the
        interval of 95 % of each recall.
    mean_recall (float): Mean of the six recalls, in [0, 1].
    rsum (float): Their sum in percent, 0 to 600.
    interval (dict): Of mean_recall and rsum.

Example:
    >>> from ncu_hf.evaluation.metrics import RetrievalRecall
    >>> metric = RetrievalRecall()
    >>> metric.add_batch(predictions=[[1.0, 0.0], [0.0, 1.0]], references=[0, 1], modality=["image", "image"])
    >>> metric.add_batch(predictions=[[0.9, 0.1], [0.6, 0.4]], references=[0, 1], modality=["text", "text"])
    >>> metric.compute()["text_to_image"]["R@1"]
    0.5
"""
CITATION = """@article{hodosh2013framing,
  title   = {Framing image description as a ranking task: Data, models and evaluation metrics},
  author  = {Micah Hodosh and Peter Young and Julia Hockenmaier},
  journal = {Journal of Artificial Intelligence Research},
  volume  = {47},
  pages   = {853--899},
  year    = {2013}
}"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class RetrievalRecall(base.GatheredMetric):
    def _info(self) -> evaluate.MetricInfo:
        columns = {
            "predictions": base.EMBEDDING,
            "references": datasets.Value("int64"),
            "modality": datasets.Value("string"),
        }
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(columns),
            license=base.LICENSE,
            reference_urls=["https://doi.org/10.1613/jair.3994"],
        )

    def _compute(self, predictions, references, modality, bootstrap: int = 1000, seed: int = 0) -> dict:
        self._check_words("modality", modality, ("image", "text"))
        embeds, groups = self._matrix(predictions), torch.as_tensor(references)
        image = torch.tensor([kind == "image" for kind in modality])
        return evaluate_retrieval(
            embeds[image],
            embeds[~image],
            image_groups=groups[image],
            caption_groups=groups[~image],
            bootstrap=bootstrap,
            seed=seed,
        )
