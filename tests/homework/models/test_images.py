"""Test models.images: image files as pixels, and the cache of views."""

import os

import numpy as np
from PIL import Image

from homework.models import images
from homework.utils.images import open_image


def test_16_bit_images_keep_their_brightness(tmp_path):
    """Pillow's own conversion would clip them to white."""
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    from_8_bit, from_16_bit = (np.asarray(open_image(tmp_path / name)) for name in ("8.png", "16.png"))
    assert from_16_bit.shape == (16, 16, 3) and (from_8_bit == from_16_bit).all()


def test_arrays_are_resized_as_images_are():
    """Cached views are arrays, and images of other sizes become views of 150x100 pixels."""
    rng = np.random.default_rng(0)
    for size in ((150, 100), (300, 200), (192, 192)):
        pixels = rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        view = images.to_view_size(pixels)
        assert view.shape == (100, 150, 3) and (view == images.to_view_size(Image.fromarray(pixels))).all()
        assert size != (150, 100) or (view == pixels).all()


def test_the_least_recently_used_caches_are_deleted(tmp_path, monkeypatch):
    """The newest caches are kept, and reading one makes it new."""
    monkeypatch.setattr(images, "MAX_CACHE_FILES", 2)
    cache, files = tmp_path / "cache", []
    for number in range(3):
        file = tmp_path / f"{number}.png"
        Image.new("RGB", (150, 100), (number, 0, 0)).save(file)
        images.load_views([file], cache)
        (new,) = set(cache.iterdir()) - set(files)
        os.utime(new, (number, number))
        files = [*(file for file in files if file.exists()), new]
        if number == 1:
            images.load_views([tmp_path / "0.png"], cache)
            first = files[0]
    assert set(cache.iterdir()) == {first, new}


def test_a_relative_path_has_the_same_cache(tmp_path, monkeypatch):
    Image.new("RGB", (150, 100)).save(tmp_path / "a.png")
    images.load_views([tmp_path / "a.png"], tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    images.load_views(["a.png"], tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
