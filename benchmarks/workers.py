"""Memory of data-loading workers over a million images, and whether an epoch makes it grow (Linux).

    python benchmarks/workers.py                    # every format, a table
    python benchmarks/workers.py folders boxes      # some
    python benchmarks/workers.py --start spawn      # workers as macOS and Windows start them

Lists of images are made without the images, except for LMDB. Workers look up what a list holds on each image,
in the order of an epoch, and open none. The proportional set size (PSS) of /proc counts a page that n
processes share as 1/n in each, so that the sum over processes is what they really take.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from torch.utils.data import DataLoader, Dataset

from atconv.data.arrays import SharedIntegers, SharedItems
from atconv.data.boxes.split import Box, BoxImage, BoxSplit
from atconv.data.listing import Listing
from atconv.data.loaders import EpochBatches, SampleKey
from atconv.data.masks.classes import MaskClasses
from atconv.data.masks.split import MaskSplit
from atconv.data.sources import folders as folder_source
from atconv.data.sources.lmdb import LmdbSource
from atconv.data.sources.lmdb_file import build_lmdb
from atconv.data.sources.shards import Shard, ShardSource
from atconv.data.splits import Split
from atconv.data.tables.files import read_table
from atconv.data.tables.image_finder import Place
from atconv.data.tables.source import TableSource
from atconv.engine.batch_plan import BatchPlan

CLASSES = [f"class{i:03d}" for i in range(1000)]
BATCH = 500


def folders(count: int, folder: Path) -> Any:
    names = [f"{CLASSES[i % 1000]}/image_{i:08d}.jpg" for i in range(count)]
    with (
        mock.patch.object(folder_source, "list_images", return_value=Listing(names)),
        mock.patch.object(folder_source, "subfolders", return_value=[folder / name for name in CLASSES]),
    ):
        return Split(folder_source.FolderSource(folder), range(count))


def table(count: int, folder: Path) -> Any:
    path = folder / "labels.csv"
    path.write_text("image,label\n0.jpg,a\n")
    places = [Place(folder, f"part{i % 1000}/image_{i:08d}.jpg") for i in range(count)]
    labels = np.arange(count) % 1000
    return Split(TableSource(read_table(path), range(count), places, CLASSES, labels), range(count))


def shards(count: int, folder: Path) -> Any:
    each = 10_000
    listed = [
        Shard(
            f"train-{start // each:05d}.tar",
            [f"image_{start + i:08d}.jpg" for i in range(each)],
            [(i << 17, 1 << 17) for i in range(each)],
            [], 0, [],
        )
        for start in range(0, count, each)
    ]  # fmt: skip
    return Split(ShardSource(folder, listed, CLASSES, np.arange(count) % 1000), range(count))


def lmdb(count: int, folder: Path) -> Any:
    build_lmdb(folder / "a.lmdb", ((bytes(8), i % 1000) for i in range(count)), count, CLASSES)
    return Split(LmdbSource(folder / "a.lmdb"), range(count))


def boxes(count: int, folder: Path) -> Any:
    two = tuple(Box(i, 1 + i, (1.0, 2.0, 30.0, 40.0), 1102.0) for i in range(2))
    items = SharedItems(BoxImage(i, f"image_{i:08d}.jpg", 640, 480, two) for i in range(count))
    geometry = SharedIntegers(np.tile([1, 480, 640], (count, 1)))
    return BoxSplit(where=folder, folder=folder, classes=CLASSES, items=items, geometry=geometry)


def masks(count: int, folder: Path) -> Any:
    items = SharedItems((f"image_{i:08d}.jpg", f"image_{i:08d}.png") for i in range(count))
    codes = MaskClasses(folder, CLASSES, tuple(range(1000)), (255,), colored=False)
    return MaskSplit(where=folder, folder=folder, classes=CLASSES, items=items, codes=codes)


def objects(count: int, folder: Path) -> Any:
    return [(f"{CLASSES[i % 1000]}/image_{i:08d}.jpg", i % 1000) for i in range(count)]


FORMATS: dict[str, tuple[str, Callable[[int, Path], Any]]] = {
    "folders": ("class folders", folders),
    "table": ("a table of labels", table),
    "lmdb": ("LMDB", lmdb),
    "shards": ("WebDataset shards", shards),
    "boxes": ("boxes, two an image", boxes),
    "masks": ("masks", masks),
    "objects": ("*for comparison: a Python list*", objects),
}


class Lookups(Dataset[int]):
    """What a list holds on an image, without opening it."""

    def __init__(self, listed: Any) -> None:
        self.listed = listed

    def __getitem__(self, key: SampleKey) -> int:
        listed, i = self.listed, key.position
        if isinstance(listed, list):
            return listed[i][1]
        if isinstance(listed, BoxSplit):
            return len(listed.boxes(i))
        if isinstance(listed, MaskSplit):
            return len(str(listed.mask_path(i)))
        if isinstance(listed.source, LmdbSource):
            return len(listed.source.encoded(int(listed.indices[i])))
        return len(listed.name(i)) + listed.source.target(i)


def pss(pid: int | str) -> int:
    """Bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def measure(name: str, count: int, workers: int, start: str) -> tuple[float, float, float]:
    """MB of all workers together, when each has given its first batch and after an epoch; of this process."""
    with tempfile.TemporaryDirectory() as folder:
        listed = FORMATS[name][1](count, Path(folder))
        plan = BatchPlan(BATCH, 1, 1, count // BATCH, 0.1, "")
        loader = DataLoader(
            Lookups(listed), batch_sampler=EpochBatches(count, plan, 0, 0), num_workers=workers,
            multiprocessing_context=start, persistent_workers=True,
        )  # fmt: skip
        batches = iter(loader)
        pids = [worker.pid for worker in batches._workers]  # type: ignore[attr-defined]
        for _ in range(workers):
            next(batches)
        before = sum(map(pss, pids))
        for _ in batches:
            pass
        after = sum(map(pss, pids))
        return before / 1e6, after / 1e6, pss("self") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--start", default="fork", choices=["fork", "spawn", "forkserver"])
    arguments = parser.parse_args()
    print(f"{arguments.images:,} images, {arguments.workers} workers started by {arguments.start}; MB of PSS")
    print("| | all workers, at first | after an epoch | main process |")
    print("| --- | ---: | ---: | ---: |")
    for name in arguments.formats or FORMATS:
        # A process for each: what one has freed is in the way of the next.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            call = pool.submit(measure, name, arguments.images, arguments.workers, arguments.start)
            cells = [FORMATS[name][0], *(f"{megabytes:,.0f}" for megabytes in call.result())]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
