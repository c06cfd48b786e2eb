"""Photometric jitter: light and sharpness of a frame."""

from dataclasses import replace

import numpy as np

from supertux.render.color_augment import PhotometricJitter

PLAIN = PhotometricJitter()


def picture() -> np.ndarray:
    """A view [100, 150, 3]: sky above, dark ground below."""
    image = np.random.default_rng(0).integers(0, 60, (100, 150, 3), dtype=np.uint8)
    image[:40] = (200, 220, 250)
    return image


def apply(jitter: PhotometricJitter) -> np.ndarray:
    return np.asarray(jitter.apply(picture())).astype(int)


def test_the_same_seed_gives_the_same_image():
    first, again, other = (apply(PhotometricJitter.sample(np.random.default_rng([7, n]))) for n in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).mean() > 0.5


def test_default_jitter_changes_nothing():
    image = picture()
    view = PLAIN.apply(image)
    assert (view.mode, view.size) == ("RGB", (150, 100))
    assert np.array_equal(np.asarray(view), image)


def test_light_is_scaled_without_overflow():
    bright, dark = apply(replace(PLAIN, exposure=1.2)), apply(replace(PLAIN, exposure=0.75))
    image = picture()
    assert np.abs(dark - 0.75 * image).max() <= 0.51
    assert (bright[:40] == (240, 255, 255)).all()  # not 264 - 256
    red = apply(replace(PLAIN, tint=(1.05, 1, 1)))
    assert (red[:40] == (210, 220, 250)).all()
    assert apply(replace(PLAIN, contrast=1.1))[40:].mean() < image[40:].mean()


def test_blur_softens_edges_only():
    blurred = apply(replace(PLAIN, blur=0.7))
    assert (blurred[:35] == (200, 220, 250)).all()
    assert 60 < blurred[39].mean() < 220


def test_samples_fill_their_ranges():
    rng = np.random.default_rng(5)
    jitters = [PhotometricJitter.sample(rng) for _ in range(400)]
    assert min(jitter.exposure for jitter in jitters) < 0.92 and max(jitter.exposure for jitter in jitters) > 1.1


def test_sharpening_steepens_edges():
    def steepest(jitter: PhotometricJitter) -> int:
        return int(np.abs(np.diff(apply(jitter).astype(int), axis=0)).max())

    assert steepest(replace(PLAIN, sharpen=25)) > steepest(PLAIN)


def test_sample_sharpness_keeps_flat_colours():
    flat = np.full((100, 150, 3), (40, 90, 200), np.uint8)
    for seed in range(5):
        jitter = PhotometricJitter.sample_sharpness(np.random.default_rng(seed))
        assert np.array_equal(np.asarray(jitter.apply(flat)), flat)
    assert len({PhotometricJitter.sample_sharpness(np.random.default_rng(seed)).blur for seed in range(5)}) == 5
