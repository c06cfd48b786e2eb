"""The label rule holds on hand-made views, and broken frames are refused."""

import json
import math
from pathlib import Path

import pytest

from homework.labels.frame_info import read_frame_info
from homework.labels.rows import image_file, info_files, parse_image_file
from homework.labels.scene import build_scene
from homework.utils.errors import InputError

KARTS = ["tux", "gnu", "nolok"]


def make(*detections) -> dict:
    return {"track": "abyss", "karts": KARTS, "detections": [list(detections)]}


def view(*detections):
    return build_scene(make(*detections), 0)


def test_karts_need_five_truncated_pixels_both_ways():
    five = [1, 0, 40, 40, 60, 60]  # 10..15 both ways
    narrow = [1, 1, 40, 40, 59.9, 60]  # 10..14, though 4.98 wide
    flat = [1, 2, 43.9, 43.9, 60, 59]  # 10..15 wide, 10..14 high
    assert [kart.name for kart in view(five, narrow, flat).karts] == ["tux"]
    assert view(five).karts[0].box == (10, 10, 15, 15)


def test_a_box_below_five_pixels_can_reach_them_by_truncation():
    # from 9.99 to 14.95, 4.96 wide, becomes 9..14
    assert view([1, 0, 39.96, 40, 59.8, 60]).karts[0].box == (9, 10, 14, 15)


def test_only_class_1_is_a_kart():
    assert view([2, 0, 0, 0, 599, 399], [3, 97, 0, 0, 218, 150], [4, 1, 0, 0, 99, 99]).karts == ()


def test_the_ego_kart_is_nearest_to_the_image_center():
    large = [1, 0, 0, 0, 500, 300]
    middle = [1, 1, 290, 190, 312, 212]
    assert view(large, middle).ego.name == "gnu"
    assert [kart.name for kart in view(large, middle).others] == ["tux"]
    assert view().ego is None


def test_distance_is_measured_in_both_directions():
    beside = [1, 0, 360, 190, 400, 210]  # center (95, 50): 20 off
    below = [1, 1, 290, 240, 310, 260]  # center (75, 62.5): 12.5 off
    assert view(beside, below).ego.name == "gnu"


def test_relations_compare_the_centers_of_truncated_boxes():
    ego = [1, 0, 280, 180, 320, 220]  # center (75, 50)
    # as floats its center is (75.1, 55.1), right of the ego kart; truncated it is 70..79, so (74.5, 54.5)
    other = [1, 1, 283, 203, 318, 238]
    seen = view(ego, other)
    assert seen.ego.name == "tux"
    assert seen.others[0].center == (74.5, 54.5)
    assert seen.is_left(seen.others[0]) and not seen.is_front(seen.others[0])


def test_equal_centers_are_right_and_behind():
    seen = view([1, 0, 280, 180, 320, 220], [1, 1, 260, 160, 340, 240])
    assert not seen.is_left(seen.others[0]) and not seen.is_front(seen.others[0])


def test_image_file_and_its_inverse():
    assert image_file("data/train/00a00_info.json", 3) == "train/00a00_03_im.jpg"
    assert parse_image_file("train/00a00_03_im.jpg") == ("train/00a00", 3)


@pytest.mark.parametrize("name", ["train/00a00_info.json", "train/00a00_3_im.jpg", "im.jpg", "train/00a00_xx_im.jpg"])
def test_a_name_that_is_not_an_image_file(name: str):
    with pytest.raises(InputError, match="not an image name"):
        parse_image_file(name)


# a detection, and how the error continues after the file name; the first two are not JSON, so no view is known
BAD_DETECTIONS = {
    "not a number": ([1, 0, math.nan, 0, 40, 40], "not readable as JSON"),
    "infinite": ([1, 0, 0, 0, math.inf, 40], "not readable as JSON"),
    "an integer too large for a float": ([1, 0, 0.5, 0, 10**400, 40], "view 0: "),
    "off the right edge": ([1, 0, 0, 0, 601, 40], "view 0: "),
    "off the top edge": ([3, 97, 0, -1, 40, 40], "view 0: "),
    "ends before it begins": ([1, 0, 40, 0, 20, 40], "view 0: "),
    "kart not in the list": ([1, 3, 0, 0, 40, 40], "view 0: "),
    "negative kart": ([1, -1, 0, 0, 40, 40], "view 0: "),
    "text": ([1, 0, "0", 0, 40, 40], "view 0: "),
    "true": ([1, 0, True, 0, 40, 40], "view 0: "),
    "too short": ([1, 0, 0, 0, 40], "view 0: "),
    "not a list": (7, "view 0: "),
}


@pytest.mark.parametrize(("detection", "start"), BAD_DETECTIONS.values(), ids=BAD_DETECTIONS)
def test_a_bad_detection_is_one_line_that_names_file_and_view(tmp_path: Path, detection, start: str):
    path = tmp_path / "0000b_info.json"
    path.write_text(json.dumps(make([1, 0, 0, 0, 40, 40], detection)))
    with pytest.raises(InputError) as error:
        read_frame_info(path)
    message = str(error.value)
    assert message.startswith(f"{path}: {start}") and "\n" not in message


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"track": "abyss", "karts": ["tux"]}', '{"track": 1, "karts": [], "detections": []}'],
)
def test_a_broken_frame_is_one_line_that_names_it(tmp_path: Path, text: str):
    path = tmp_path / "0000b_info.json"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_frame_info(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_more_keys_and_any_identifier_are_fine(tmp_path: Path):
    path = tmp_path / "0000b_info.json"
    info = make([1, 0, 280, 180, 320, 220]) | {"karts": ["new_kart"], "track": "new_track", "weather": "rain"}
    path.write_text(json.dumps(info))
    seen = build_scene(read_frame_info(path), 0)
    assert (seen.track, seen.ego.name) == ("new_track", "new_kart")


def test_a_missing_or_empty_split_names_the_folder(tmp_path: Path):
    with pytest.raises(InputError, match="train: no such split"):
        info_files(tmp_path / "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match=r"train: no \*_info.json"):
        info_files(tmp_path / "train")
