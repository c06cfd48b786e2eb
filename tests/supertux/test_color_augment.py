"""Light, haze and blur of a frame."""

from dataclasses import replace

import numpy as np

from supertux.render.color_augment import Look

PLAIN = Look(exposure=1, contrast=1, tint=(1, 1, 1), haze=0, haze_depth=100, blur=0, sharpen=0)


def picture() -> tuple[np.ndarray, np.ndarray]:
    """A view [100, 150, 3] and its distances: sky above, dark hills 150 m off, a dark road 1 m off below."""
    image = np.random.default_rng(0).integers(0, 60, (100, 150, 3), dtype=np.uint8)
    image[:40] = (200, 220, 250)
    distance = np.full((100, 150), 150.0)
    distance[:40], distance[70:] = np.inf, 1.0
    return image, distance


def apply(look: Look) -> np.ndarray:
    return np.asarray(look.apply(*picture())).astype(int)


def test_the_same_numbers_give_the_same_picture():
    first, again, other = (apply(Look.random(np.random.default_rng([7, n]))) for n in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).mean() > 0.5


def test_a_plain_look_changes_nothing_and_keeps_the_form():
    image, distance = picture()
    view = PLAIN.apply(image, distance)
    assert (view.mode, view.size) == ("RGB", (150, 100))
    assert np.array_equal(np.asarray(view), image)


def test_haze_hides_what_is_far_and_not_what_is_near():
    image, distance = picture()
    change = np.abs(apply(replace(PLAIN, haze=0.5, haze_depth=40)) - image)
    hills, road = change[40:70], change[70:]
    assert hills.min() > 20 and road.max() <= 3


def test_haze_without_anything_far():
    image, _ = picture()
    view = np.asarray(replace(PLAIN, haze=0.5).apply(image, np.full(image.shape[:2], 5.0)))
    assert np.abs(view - image.astype(int)).max() <= 8


def test_light_is_scaled_and_does_not_overflow():
    bright, dark = apply(replace(PLAIN, exposure=1.2)), apply(replace(PLAIN, exposure=0.75))
    image, _ = picture()
    assert np.abs(dark - 0.75 * image).max() <= 0.51
    assert (bright[:40] == (240, 255, 255)).all()  # not 264 - 256
    red = apply(replace(PLAIN, tint=(1.05, 1, 1)))
    assert (red[:40] == (210, 220, 250)).all()
    assert apply(replace(PLAIN, contrast=1.1))[40:].mean() < image[40:].mean()


def test_blur_softens_edges_alone():
    blurred = apply(replace(PLAIN, blur=0.7))
    assert (blurred[:35] == (200, 220, 250)).all()
    assert 60 < blurred[39].mean() < 220


def test_random_looks_leave_half_of_the_frames_without_haze():
    rng = np.random.default_rng(5)
    looks = [Look.random(rng) for _ in range(400)]
    assert 150 < sum(look.haze == 0 for look in looks) < 250
    assert min(look.exposure for look in looks) < 0.92 and max(look.exposure for look in looks) > 1.1


def test_a_sharpened_view_has_steeper_edges():
    def steepest(look: Look) -> int:
        return int(np.abs(np.diff(apply(look).astype(int), axis=0)).max())

    assert steepest(replace(PLAIN, sharpen=25)) > steepest(PLAIN)


def test_as_drawn_changes_the_sharpness_alone():
    flat = np.full((100, 150, 3), (40, 90, 200), np.uint8)
    for seed in range(5):
        look = Look.as_drawn(np.random.default_rng(seed))
        assert np.array_equal(np.asarray(look.apply(flat, None)), flat)
    assert len({Look.as_drawn(np.random.default_rng(seed)).blur for seed in range(5)}) == 5
