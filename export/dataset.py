"""Define the command `dataset`: parquet and WebDataset shards that other trainers read, with a card."""

import io
import json
import logging
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from homework.labels.rows import DATA_DIR, info_files, split_folder
from homework.utils.errors import UsageError, check_min
from homework.utils.io import read_json
from homework.utils.progress import progress_bar

from .common import check_replaceable, new_folder, require, tool_version, write_card
from .rows import SETTINGS_FILE, SUBSETS, View, caption_rows, features, read_views, types_in

logger = logging.getLogger(__name__)

BATCH_SIZE = 1000  # rows that are written at a time
SAMPLE_MARKER = ".sample"  # in a data folder that `use-sample` filled


@dataclass
class Statistics:
    """Counts over a subset of a split."""

    num_rows: int = 0
    num_views: int = 0
    types: Counter = field(default_factory=Counter)
    tracks: set[str] = field(default_factory=set)
    num_karts: Counter = field(default_factory=Counter)  # of a view -> views

    def add(self, view: View, rows: Sequence[dict]) -> None:
        """Count a view and its rows."""
        self.num_rows += len(rows)
        self.num_views += 1
        self.types.update(name for row in rows for name in types_in(row))
        self.tracks.add(view.scene.track)
        self.num_karts[len(view.scene.karts)] += 1


@dataclass(frozen=True)
class Split:
    """The frames of a split, in shards, and the seed that they were rendered with."""

    name: str
    shards: list[list[Path]]
    seed: int | None

    @classmethod
    def read(cls, data: Path, name: str, frames_per_shard: int) -> "Split":
        """List a split's frames; raises an `InputError` if there are none."""
        folder = split_folder(data, name)
        frames, settings = info_files(folder), folder / SETTINGS_FILE
        shards = [frames[i : i + frames_per_shard] for i in range(0, len(frames), frames_per_shard)]
        return cls(name, shards, read_json(settings).get("seed") if settings.exists() else None)

    def views(self, frames: Sequence[Path]) -> Iterator[View]:
        """Yield all views of some frames."""
        for frame in frames:
            yield from read_views(frame, tool_version(), self.seed)


def dataset(
    *,
    split: tuple[str, ...] = ("train",),
    output: Path,
    data: Path = DATA_DIR,
    frames_per_shard: int = 500,
) -> None:
    """Write splits as parquet shards for TRL, ms-swift, nanoVLM and `datasets`, and captions as WebDataset shards.

    Example: python -m export dataset --split train valid --output runs/dataset

    Args:
        split: folders of the data, each with its frames
        output: folder of the data set; an earlier export in it is replaced
        data: the folder of the splits
        frames_per_shard: frames of a shard; one of the course's gives about 90 rows
    """
    require("datasets")
    check_min(1, frames_per_shard=frames_per_shard)
    if len(set(split)) < len(split):
        raise UsageError("--split", f"{' '.join(split)} names a split twice", "name each once")
    check_replaceable(output)
    splits = [Split.read(data, name, frames_per_shard) for name in split]
    with new_folder(output, kind="dataset", splits=list(split)) as folder:
        statistics = {(one.name, subset): _write_parquet(one, subset, folder) for one in splits for subset in SUBSETS}
        for one in splits:
            _write_webdataset(one, folder)
        _write_card(folder, statistics, is_ours=_is_rendered(data, splits))
    for (name, subset), counts in statistics.items():
        logger.info(f"{output / subset}: {counts.num_rows:,} rows for {counts.num_views:,} views of {name}")


def _write_parquet(split: Split, subset: str, folder: Path) -> Statistics:
    """Write a split's shards of a subset; only a batch of rows is in memory at a time."""
    import pyarrow
    from pyarrow import parquet

    statistics, schema = Statistics(), features(subset).arrow_schema
    (folder / subset).mkdir(exist_ok=True)
    for number, frames in enumerate(_progress(split.shards, f"{split.name}, {subset}")):
        file = folder / subset / f"{split.name}-{number:05d}-of-{len(split.shards):05d}.parquet"
        # zstd finds an image again in the rows of its other questions: a tenth of the default's size
        with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            rows = _counted_rows(split, subset, frames, statistics)
            while batch := list(islice(rows, BATCH_SIZE)):
                writer.write_table(pyarrow.Table.from_pylist(batch, schema))
    return statistics


def _counted_rows(split: Split, subset: str, frames: Sequence[Path], statistics: Statistics) -> Iterator[dict]:
    """Yield a subset's rows for some frames, and count them."""
    for view in split.views(frames):
        rows = list(SUBSETS[subset](view))
        statistics.add(view, rows)
        yield from rows


def _write_webdataset(split: Split, folder: Path) -> None:
    """Write the captions' rows as `webdataset/SPLIT-NNNNN.tar`: an image, its caption and the other columns each."""
    (folder / "webdataset").mkdir(exist_ok=True)
    for number, frames in enumerate(_progress(split.shards, f"{split.name}, webdataset")):
        file = folder / "webdataset" / f"{split.name}-{number:05d}.tar"
        with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as shard:
            for view in split.views(frames):
                for caption_number, row in enumerate(caption_rows(view)):
                    key = f"{row['frame']}_{row['view']:02d}_{caption_number:02d}"
                    columns = {name: value for name, value in row.items() if name not in ("image", "text")}
                    _add_file(shard, f"{key}.jpg", row["image"]["bytes"])
                    _add_file(shard, f"{key}.txt", row["text"].encode())
                    _add_file(shard, f"{key}.json", json.dumps(columns).encode())


def _add_file(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # sets owner and time to 0, so that the same rows give the same bytes
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))
    shard.members.clear()  # tarfile keeps every member in memory


def _progress(shards: list, desc: str):
    return progress_bar(shards, desc=desc, unit="shard")


def _is_rendered(data: Path, splits: Sequence[Split]) -> bool:
    """Return whether all frames were rendered by this repository, whose licence is known, or are of its sample."""
    return (data / SAMPLE_MARKER).exists() or all((data / one.name / SETTINGS_FILE).exists() for one in splits)


def _write_card(folder: Path, statistics: dict[tuple[str, str], Statistics], is_ours: bool) -> None:
    """Write README.md: the hub's metadata, features, splits, statistics and licence."""
    from datasets import DatasetInfo, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    names, infos = list(dict.fromkeys(name for name, _ in statistics)), {}
    for subset in SUBSETS:
        sizes = {name: sum(f.stat().st_size for f in (folder / subset).glob(f"{name}-*")) for name in names}
        splits = SplitDict({n: SplitInfo(n, sizes[n], statistics[n, subset].num_rows) for n in names})
        total = sum(sizes.values())
        columns = features(subset)
        infos[subset] = DatasetInfo(features=columns, splits=splits, download_size=total, dataset_size=total)
    metadata = DatasetCardData(
        license=["cc-by-sa-4.0", "gpl-3.0"] if is_ours else "unknown",
        task_categories=["visual-question-answering", "image-text-to-text"],
        language=["en"],
        pretty_name="SuperTuxKart questions and captions",
        configs=[
            {"config_name": subset, "data_files": [{"split": n, "path": f"{subset}/{n}-*.parquet"} for n in names]}
            | ({"default": True} if subset == "messages" else {})
            for subset in SUBSETS
        ],
    )
    DatasetInfosDict(infos).to_dataset_card_data(metadata)
    columns = {subset: {name: _describe(value) for name, value in features(subset).items()} for subset in SUBSETS}
    values = {"metadata": metadata.to_yaml(), "statistics": statistics, "columns": columns, "is_ours": is_ours}
    write_card(folder, "dataset.md.jinja", splits=names, subsets=list(SUBSETS), **values)


def _describe(feature) -> str:
    """Return a column's type in a few words."""
    if isinstance(feature, dict):
        return "{" + ", ".join(f"{name}: {_describe(value)}" for name, value in feature.items()) + "}"
    inner = getattr(feature, "feature", None)
    if inner is not None:
        return f"list of {_describe(inner)}"
    return "image" if type(feature).__name__ == "Image" else feature.dtype
