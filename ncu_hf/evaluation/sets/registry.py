"""The sets of the paper by name: where they are on the Hub, and what a copy must hold to be comparable.

Names are those of the columns of the paper's Tables 1 and 2, in the order of Table 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from ncu_hf.evaluation.sets.base import EvaluationSet, LabelledSet


@dataclass(frozen=True, kw_only=True)
class BenchmarkSet:
    """A set that can be named instead of described.

    Args:
        name (`str`): Its name here.
        hub_id (`str`): Data set on the Hub, in the layout of `clip-benchmark`.
        images (`int`): Of its split `test`.
        classes, templates (`int`, *optional*): Of a labelled set.
        primary (`str`, *optional*): Metric that papers report: `accuracy` or `mean_per_class`.
        captions (`int`, *optional*): Of a captioned set.
        captions_per_image (`int`, *optional*): So many captions of each image are kept, by default all.
        caution (`str`, *optional*): What a reader of its number must know.
    """

    name: str
    hub_id: str
    images: int
    classes: int | None = None
    templates: int | None = None
    primary: str = "accuracy"
    captions: int | None = None
    captions_per_image: int | None = None
    caution: str | None = None

    def differences(self, found: EvaluationSet) -> list[str]:
        """In what an opened copy is not the set that papers report on."""
        pairs = [("images", len(found.images), self.images)]
        if isinstance(found, LabelledSet):
            pairs.append(("classes", len(found.classes), self.classes))
            pairs.append(("templates", len(found.templates), self.templates))
        else:
            pairs.append(("captions", len(found.captions), self.captions))
        return [f"{count:,} {what} instead of {expected}" for what, count, expected in pairs if count != expected]


def _labelled(name: str, hub_id: str, images: int, classes: int, templates: int, **more: str) -> BenchmarkSet:
    place = f"clip-benchmark/wds_{hub_id}"
    return BenchmarkSet(name=name, hub_id=place, images=images, classes=classes, templates=templates, **more)


_MEAN = "mean_per_class"
_ALL = (
    _labelled("caltech101", "vtab-caltech101", 6_085, 102, 34, primary=_MEAN, caution="other copies have 101 classes"),
    _labelled("cifar10", "vtab-cifar10", 10_000, 10, 18),
    _labelled("cifar100", "vtab-cifar100", 10_000, 100, 18),
    _labelled("dtd", "vtab-dtd", 1_880, 47, 8),
    _labelled("fgvc_aircraft", "fgvc_aircraft", 3_333, 100, 2, primary=_MEAN),
    _labelled("sst2", "renderedsst2", 1_821, 2, 1, caution="chance is 50 %"),
    _labelled("flowers102", "vtab-flowers", 6_149, 102, 1, primary=_MEAN),
    _labelled("food101", "food101", 25_250, 101, 1),
    _labelled("gtsrb", "gtsrb", 12_630, 43, 3),
    _labelled("oxford_pets", "vtab-pets", 3_669, 37, 1, primary=_MEAN, caution="copies differ in the order of classes"),
    _labelled("resisc45", "vtab-resisc45", 6_300, 45, 4, caution="CLIP's own has 25,200 images, 18 templates"),
    _labelled("sun397", "sun397", 108_754, 397, 2, caution="all images; CLIP's own split has 19,850"),
    _labelled("eurosat", "vtab-eurosat", 5_400, 10, 3, caution="other copies have 27,000 images"),
    _labelled("stanford_cars", "cars", 8_041, 196, 8),
    _labelled("stl10", "stl10", 8_000, 10, 2),
    _labelled("imagenet1k", "imagenet1k", 50_000, 1_000, 80),
    BenchmarkSet(name="flickr30k_1k", hub_id="clip-benchmark/wds_flickr30k", images=1_000, captions=5_000),
    BenchmarkSet(
        name="mscoco_5k",
        hub_id="clip-benchmark/wds_mscoco_captions",
        images=5_000,
        captions=25_000,
        captions_per_image=5,
    ),
    BenchmarkSet(
        name="mscoco_5k_all_captions",
        hub_id="clip-benchmark/wds_mscoco_captions",
        images=5_000,
        captions=25_010,
    ),
)
BENCHMARK_SETS = {known.name: known for known in _ALL}

SUITES = {
    "paper": [known.name for known in _ALL if known.classes is not None],
    "retrieval": [known.name for known in _ALL if known.captions is not None],
    # Table 3 of the paper. Its column names are not legible in the source that this list was made from: that its four
    # columns are these sets, in this order, is inferred from the garbled header and from the values.
    "probe": ["sun397", "oxford_pets", "food101", "imagenet1k"],
}


def benchmark_of_repo(repo: str) -> BenchmarkSet | None:
    """The set whose copy a repository `owner/name`, or a folder `name`, is.

    Of several sets of one repository it is the one that leaves nothing out.
    """
    name = repo if "/" in repo else f"clip-benchmark/{repo}"
    return next((known for known in _ALL if known.hub_id == name and known.captions_per_image is None), None)
