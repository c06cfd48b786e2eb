"""Packed frames: a split's JPEG files and labels in a few memory-mapped files, which move to another machine easily.

A pack is a safetensors file with `jpeg` (the images' bytes, one after another), `ends` (where each image ends) and
`frames` (JSON: each frame's name and info). The images of a frame are in the order of its views.
"""

import hashlib
import io
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from homework.labels.frame_info import FrameInfo, read_frame_info
from homework.labels.rows import image_file, info_files
from homework.models.images import to_view_size
from homework.utils.errors import InputError, first_line
from homework.utils.io import atomic_write, fingerprint
from homework.utils.progress import progress_bar

logger = logging.getLogger(__name__)

PACK_FOLDER = "packs"  # in the data folder
MAX_PACK_BYTES = 60_000_000


class PackedFrame(msgspec.Struct):
    """A frame's name, e.g. `train/00a00`, and its info."""

    name: str
    info: FrameInfo


class PackedViews(Sequence):
    """The images of some frames, decoded when they are read: [100, 150, 3] uint8 each.

    Args:
        jpegs: the bytes of each image, as slices of memory-mapped files.
    """

    def __init__(self, jpegs: list[np.ndarray]):
        self.jpegs = jpegs

    def __len__(self) -> int:
        return len(self.jpegs)

    def __getitem__(self, index: int) -> np.ndarray:
        with Image.open(io.BytesIO(self.jpegs[index])) as image:
            return to_view_size(image.convert("RGB"))


def pack_split(data_dir: Path, split: str, max_bytes: int = MAX_PACK_BYTES) -> list[Path]:
    """Write the packs of a split, unless there are some of these files already; return them.

    Raises:
        InputError: there are neither packs nor frames, or a frame is broken.
    """
    folder, found = data_dir / PACK_FOLDER, find_packs(data_dir, split)
    if not (data_dir / split).is_dir() and found:
        return found  # they came from another machine
    infos = info_files(data_dir / split)
    sizes = {file.name: file.stat().st_size for file in (data_dir / split).iterdir() if not file.name.startswith(".")}
    source = fingerprint(
        f"{name} {size}" for name, size in sorted(sizes.items()) if name.endswith((".jpg", "_info.json"))
    )
    if found and all(read_metadata(file)["source"] == source for file in found):
        return found
    for number, frames in enumerate(_shards(infos, sizes, max_bytes)):
        _write_pack(folder / f"{split}-{number:03d}.safetensors", frames, source)
    for file in found[number + 1 :]:
        file.unlink()
    files = find_packs(data_dir, split)
    logger.info(f"packed {len(infos):,} frames of {split} into {len(files)} files in {folder}")
    return files


def find_packs(data_dir: Path, split: str) -> list[Path]:
    """List the packs of a split, in order."""
    return sorted((data_dir / PACK_FOLDER).glob(f"{split}-[0-9][0-9][0-9].safetensors"))


def read_metadata(file: Path) -> dict[str, str]:
    """Read a pack's `source`, a digest of the files it was made of, and `digest`, one of its content."""
    try:
        with safe_open(file, "pt") as pack:
            return pack.metadata() or {"source": "", "digest": ""}
    except (OSError, SafetensorError) as error:
        raise InputError(file, f"not a pack of frames ({first_line(error)})", "delete it, or copy it again") from None


def read_pack(file: Path) -> tuple[list[PackedFrame], list[np.ndarray]]:
    """Read a pack: its frames, and the bytes of all their images, which stay on the disk until they are used."""
    read_metadata(file)
    with safe_open(file, "pt") as pack:
        jpeg, ends, frames = (pack.get_tensor(name).numpy() for name in ("jpeg", "ends", "frames"))
    return msgspec.json.decode(frames.tobytes(), type=list[PackedFrame]), np.split(jpeg, ends[:-1])


def data_fingerprint(files: list[Path]) -> str:
    """Return a digest of the contents of packs."""
    return fingerprint(f"{file.name} {read_metadata(file)['digest']}" for file in files)


def _shards(infos: list[Path], sizes: dict[str, int], max_bytes: int) -> Iterator[list[tuple[Path, FrameInfo]]]:
    """Yield lists of frames whose files have at most `max_bytes` together."""
    shard, total = [], 0
    for path in progress_bar(infos, desc=f"packing {infos[0].parent.name}", unit="frame"):
        info = read_frame_info(path)
        images = [Path(image_file(path, view)).name for view in range(len(info["detections"]))]
        if missing := [name for name in images if name not in sizes]:
            raise InputError(path.with_name(missing[0]), "no such image", "restore it or delete its frame")
        # an image's end takes 8 bytes, and a file's header less than 1,000
        size = len(json.dumps(info)) + sum(sizes[name] + 8 for name in images)
        if shard and total + size + 1000 > max_bytes:
            yield shard
            shard, total = [], 0
        shard.append((path, info))
        total += size
    yield shard


def _write_pack(file: Path, frames: list[tuple[Path, FrameInfo]], source: str) -> None:
    jpegs = [
        (path.parent.parent / image_file(path, view)).read_bytes()
        for path, info in frames
        for view in range(len(info["detections"]))
    ]
    packed = [PackedFrame(f"{path.parent.name}/{path.name.removesuffix('_info.json')}", info) for path, info in frames]
    content, index = b"".join(jpegs), msgspec.json.encode(packed)
    ends = torch.tensor([len(one) for one in jpegs], dtype=torch.int64).cumsum(0)
    tensors = {"jpeg": _as_tensor(content), "ends": ends, "frames": _as_tensor(index)}
    metadata = {"source": source, "digest": hashlib.sha256(content + index).hexdigest()[:16]}
    with atomic_write(file) as temporary:
        save_file(tensors, temporary, metadata)


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
