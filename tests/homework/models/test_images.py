"""Images as the models see them, and the caches of views."""

import os

import numpy as np
from PIL import Image

from homework.models import images as preprocess


def test_sixteen_bits_of_grey_are_as_bright_as_eight(tmp_path):
    """Pillow's own conversion clips them to white."""
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    of_8, of_16 = (np.asarray(preprocess.open_image(tmp_path / name)) for name in ("8.png", "16.png"))
    assert of_16.shape == (16, 16, 3) and (of_8 == of_16).all()


def test_caches_that_were_not_used_for_long_go(tmp_path, monkeypatch):
    """The newest are kept, and one that is read counts as new."""
    monkeypatch.setattr(preprocess, "MAX_CACHE_FILES", 2)
    cache, files = tmp_path / "cache", []
    for number in range(3):
        file = tmp_path / f"{number}.png"
        Image.new("RGB", (150, 100), (number, 0, 0)).save(file)
        preprocess.load_views([file], cache)
        (made,) = set(cache.iterdir()) - set(files)
        os.utime(made, (number, number))
        files = [*(file for file in files if file.exists()), made]
        if number == 1:
            preprocess.load_views([tmp_path / "0.png"], cache)
            first = files[0]
    assert set(cache.iterdir()) == {first, made}


def test_a_view_by_another_path_has_the_same_cache(tmp_path, monkeypatch):
    Image.new("RGB", (150, 100)).save(tmp_path / "a.png")
    preprocess.load_views([tmp_path / "a.png"], tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    preprocess.load_views(["a.png"], tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
