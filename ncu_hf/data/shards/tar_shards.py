"""A WebDataset tar, here or on a server, read forwards from any of its samples."""

from __future__ import annotations

from collections.abc import Iterator

from ncu_hf.data.decoding import MAX_CAPTION_BYTES, MAX_IMAGE_BYTES
from ncu_hf.data.files import Location
from ncu_hf.data.records import Record, Skipped
from ncu_hf.data.shards.base import BEGINNING, Entry, FileShard, StoredRow
from ncu_hf.data.shards.tar_headers import scan_tar
from ncu_hf.data.shards.tar_samples import Sample, TarLayout, json_fields
from ncu_hf.data.sources.tables import MISMATCHED_COLUMN, parse_truth

_SAMPLES_OF_ESTIMATE = 64


class TarShard(FileShard):
    """One tar. Its rows are its samples, usable or not; an `Entry` holds the offset of a sample's first header.

    Args:
        location (`Location`): An uncompressed tar.
        layout (`TarLayout`): Which members are image and caption. The field `mismatched` of a sample's `.json` is its
            ground truth.
        rows (`int`, *optional*): Number of samples, if it is known.
    """

    def __init__(self, location: Location, layout: TarLayout, rows: int | None = None):
        super().__init__(location, rows)
        self.layout = layout

    def read(self, start: Entry, first: int, problems: list[Skipped]) -> Iterator[StoredRow]:
        number = start.row
        for sample in self._samples(start, problems, max(0, first - start.row)):
            if number >= first:
                yield StoredRow(number, self._record(sample), Entry(number + 1, sample.end))
            number += 1

    def count(self, start: Entry, problems: list[Skipped]) -> int:
        return self.rows if self.rows is not None else start.row + sum(1 for _ in self._samples(start, problems))

    def estimate_rows(self) -> float | None:
        if self.rows is not None or self.size is None:
            return self.rows
        samples = end = 0
        for sample in self._samples(BEGINNING, []):
            samples, end = samples + 1, sample.end
            if samples == _SAMPLES_OF_ESTIMATE:
                break
        return samples * self.size / end if samples == _SAMPLES_OF_ESTIMATE else float(samples)

    def first_sample(self) -> Sample | None:
        """The first sample with its contents, to check the layout against; `None` if there is none."""
        return next(self._samples(BEGINNING, [], 0), None)

    def _samples(self, start: Entry, problems: list[Skipped], skip: int | None = None) -> Iterator[Sample]:
        with self.location.open() as handle:
            handle.seek(start.offset)
            yield from scan_tar(handle, self.name, self.size, self.layout, problems, skip)

    def _record(self, sample: Sample) -> Record:
        image, text = self.layout.image_in(sample.members), self.layout.caption_in(sample.members)
        fields = json_fields(sample.contents.get("json"))
        caption = fields.get(self.layout.caption_column) if text is None else sample.contents.get(text)
        return Record(
            key=sample.printable_key,
            image=sample.contents.get(image),
            caption=caption[: MAX_CAPTION_BYTES + 1] if isinstance(caption, bytes) else caption,
            mismatched=parse_truth(fields.get(MISMATCHED_COLUMN)),
            fault="too_large" if image is not None and sample.members[image].size > MAX_IMAGE_BYTES else None,
        )
