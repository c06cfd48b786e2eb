"""The grader on small bundles of fake models that answer by rule."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grader import runner as grader_run
from grader.redact import read_truth, write_asked
from grader.score import Part, extra_points, match, points, score
from grader.unpack import unpacked
from grader.worker import clip_pixels
from homework.utils.errors import InputError
from tests.fake_bundle import write_data, write_package, write_tokenizer, write_zip

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The data, a tokenizer, a bundle."""
    root = tmp_path_factory.mktemp("grader")
    write_data(root)
    write_tokenizer(root / "tokenizer")
    write_zip(root / "good.zip", write_package(root / "good"))
    return root


def grade(place, bundle, *flags):
    command = [sys.executable, "-m", "grader", bundle, "--data", place / "data", "--tokenizer", place / "tokenizer"]
    flags = ("--timeout", 600, *flags)  # a busy machine is no reason to fail
    return subprocess.run([*map(str, command), *map(str, flags)], cwd=ROOT, capture_output=True, text=True)


def run_vlm(place, tmp_path, models, timeout=60.0):
    """The VLM part alone, in its child process: the reason why it has no answers, else its answers."""
    with unpacked(write_package(tmp_path / "bad", models)) as root:
        write_asked(read_truth(place / "data"), root / "data")
        return grader_run.run_part("vlm", root, timeout, place / "tokenizer")


def test_grades_a_zip(place):
    """The bundle's own prints are dropped, and run from the repository it is still the bundle that is graded."""
    done = grade(place, place / "good.zip", "--json", place / "report.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "printed" not in done.stdout
    assert "VLM   50.0 of 50 points, extra credit 0.0 of 5" in done.stdout
    assert "accuracy     70.0% (7 of 10), strict 0.0%" in done.stdout
    assert "CLIP  50.0 of 50 points, extra credit 0.0 of 5" in done.stdout
    assert "accuracy     80.0% (8 of 10), strict 80.0%" in done.stdout
    assert done.stdout.endswith("total 100.0 of 100 points (extra credit counted)\n")
    report = json.loads((place / "report.json").read_text())
    assert report["total"] == 100 and report["parts"]["vlm"]["accuracy_by_type"] == {"ego": 1.0, "track": 0.0}
    clip = report["parts"]["clip"]
    assert clip["parameters"] == 1_000_000
    assert 0 < clip["load_seconds"] < clip["load_seconds"] + clip["answer_seconds"] < clip["seconds"]
    assert report["parts"]["vlm"]["samples"][9]["model_answer"] == "Tux, I think"


def test_one_part_that_fails_leaves_the_other_its_points(place, tmp_path):
    """The package's folder instead of a zip; a part without a score is exit status 1."""
    package = write_package(tmp_path / "mine", "def load_clip(): raise OSError('no weights\\nanywhere')")
    done = grade(place, package)
    assert (done.returncode, done.stderr) == (1, "")
    assert "CLIP  0.0 of 50 points: homework.load_clip(): OSError: no weights anywhere" in done.stdout
    assert done.stdout.endswith("total 50.0 of 100 points (extra credit counted)\n")
    assert sorted(path.name for path in package.iterdir()) == ["__init__.py", "data.py", "models.py"]


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        ("def load_vlm(): raise ValueError('broken')", "homework.load_vlm(): ValueError: broken"),
        ("def load_vlm(): raise SystemExit(0)", "homework.load_vlm(): SystemExit: 0"),
        ("raise ImportError('no such thing')", "import homework: ImportError: no such thing"),
        ("def load_vlm(): os._exit(3)", "exit status 3"),
        ("def load_vlm(): os._exit(0)", "ended before it had answered"),
        ("def load_vlm(): os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("Weight.numel = lambda self: 300_000_001", "300,000,001 parameters, more than 300,000,000"),
        ("VLM.answer = lambda self, paths, questions: []", "0 answers to 1 questions"),
        ("VLM.answer = lambda self, paths, questions: [1]", "an answer that is no string"),
        ("VLM.answer = lambda self, paths, questions: 1 / 0", "homework.data.benchmark: ZeroDivisionError"),
    ],
)
def test_failures_give_one_line(place, tmp_path, models, reason):
    with pytest.raises(grader_run.PartError) as error:
        run_vlm(place, tmp_path, models)
    assert reason in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "tries",
    [
        "import ctypes.util; assert ctypes.util.find_library('nowhere') is None",  # else it writes a file for a compiler
        """
import errno
try: os.mkdir("cache")
except OSError as error: assert error.errno == errno.EACCES and str(error)
""",
    ],
)
def test_a_library_may_try_what_is_refused(place, tmp_path, tries):
    """Python 3.12 and 3.13: torch's CUDA build searches for libraries, shutil changes the errors that it gets."""
    assert len(run_vlm(place, tmp_path, tries).records) == 10


def test_a_thread_left_running_does_not_hold_the_grader(place, tmp_path):
    threads = "import threading, time; threading.Thread(target=time.sleep, args=(1000,)).start()"
    assert len(run_vlm(place, tmp_path, threads, timeout=20).records) == 10


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["other/a.py"], "expected one top-level folder, homework, found homework, other"),
        (["README.md"], "expected one top-level folder"),
        (["homework/../../a.py"], "leads out of the bundle"),
        (["/etc/a.py"], "leads out of the bundle"),
        (["homework\\..\\a.py"], "leads out of the bundle"),
        (["./a.py"], "expected one top-level folder"),
    ],
)
def test_refuses_names(place, tmp_path, names, reason):
    bundle = write_zip(tmp_path / "a.zip", place / "good", names)
    with pytest.raises(InputError, match=reason.replace("\\", ".")), unpacked(bundle):
        pass


def test_refuses_links(place, tmp_path):
    with zipfile.ZipFile(write_zip(tmp_path / "a.zip", place / "good"), "a") as archive:
        link = zipfile.ZipInfo("homework/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="link or a device"), unpacked(tmp_path / "a.zip"):
        pass


def test_refuses_what_is_no_bundle(place, tmp_path):
    cut = tmp_path / "cut.zip"
    cut.write_bytes((place / "good.zip").read_bytes()[:-30])
    broken = bytearray((place / "good.zip").read_bytes())
    broken[60] ^= 0xFF  # in the first file's bytes: its checksum fails
    (tmp_path / "broken.zip").write_bytes(broken)
    (tmp_path / "large.zip").write_bytes(bytes(50_000_001))
    write_zip(tmp_path / "bare.zip", tmp_path, ["homework/"])
    (tmp_path / "folder").mkdir()
    for name, reason in {
        **{"cut.zip": "not a readable zip", "broken.zip": "not a readable zip", "large.zip": "more than 50 MB"},
        **{"bare.zip": "no __init__.py", "folder": "no __init__.py", "nowhere.zip": "no such file"},
    }.items():
        with pytest.raises(InputError, match=reason), unpacked(tmp_path / name):
            pass


def test_refusal_on_the_command_line(place, tmp_path):
    bundle = write_zip(tmp_path / "a.zip", place / "good", ["other/a.py"])
    done = grade(place, bundle)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"error: {bundle}: expected one top-level folder")


@pytest.mark.parametrize("flags", [[], ["--timeout", "0"], ["--timeout", "soon"], ["--nope"]])
def test_usage_errors(place, flags):
    command = [sys.executable, "-m", "grader", *([place / "good.zip"] if flags else []), *flags]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 2


def test_the_place_is_gone_afterwards(place):
    with unpacked(place / "good.zip") as root:
        assert (root / "homework" / "models.py").is_file()
    assert not root.exists()


def test_the_bundle_sees_questions_but_no_answers(place, tmp_path):
    """Rows and candidates come in another order, and each image that is asked about is there."""
    truth = read_truth(place / "data")
    write_asked(truth, tmp_path)
    pairs, choices = (
        json.loads((tmp_path / "valid_grader" / name).read_text())
        for name in ("balanced_qa_pairs.json", "all_mc_qas.json")
    )
    assert {pair["answer"] for pair in pairs} == {""} and {row["correct_index"] for row in choices} == {0}
    assert {pair["question"] for pair in pairs} == {row["question"] for row in truth["vlm"]}
    assert [pair["image_file"] for pair in pairs] != [row["image_file"] for row in truth["vlm"]]
    whole = {row["image_file"]: row["candidates"] for row in truth["clip"]}
    assert all(sorted(row["candidates"]) == sorted(whole[row["image_file"]]) for row in choices)
    assert any(row["candidates"] != whole[row["image_file"]] for row in choices)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == sorted([*whole, "valid_grader/all_mc_qas.json", "valid_grader/balanced_qa_pairs.json"])


@pytest.mark.parametrize(
    ("part", "accuracy", "expected"),
    [
        *(("vlm", 0.0, 0), ("vlm", 0.35, 25), ("vlm", 0.7, 50), ("vlm", 1.0, 50)),
        *(("clip", 0.0, 0), ("clip", 0.2, 0), ("clip", 0.45, 25), ("clip", 0.7, 50), ("clip", 1.0, 50)),
    ],
)
def test_points(part, accuracy, expected):
    assert points(part, accuracy) == pytest.approx(expected)


def test_extra_points():
    values = {0.0: 0, 0.7999: 0, 0.8: 0, 0.825: 2.5, 0.85: 5, 1.0: 5}
    assert [extra_points(accuracy) for accuracy in values] == pytest.approx(list(values.values()))


def test_answers_are_matched_by_image_and_question():
    rows = [
        {"image_path": "data/valid/a.jpg", "question": "What track is this?", "answer": "abyss"},
        {"image_path": "data/valid/b.jpg", "question": "What track is this?", "answer": ""},
    ]
    records = [{"image": "valid/a.jpg", "asked": "What track is this?", "answer": "Abyss!"}]
    assert match(rows, "question", records) == ["Abyss!", None]
    result, unanswered = score("vlm", rows, records)
    assert (result.accuracy, result.exact_accuracy, unanswered) == (0.5, 0.0, 1)


def test_candidates_may_come_in_any_order():
    rows = [{"image_path": "data/valid/a.jpg", "candidates": ["x", "y"], "correct_index": 1}]
    records = [{"image": "valid/a.jpg", "asked": ["y", "x"], "answer": "y"}]
    assert score("clip", rows, records)[0].accuracy == 1


def test_the_course_asks_the_first_128():
    rows = [{"image_path": f"v/{n}.jpg", "candidates": ["a", "b"], "correct_index": 0} for n in range(200)]
    records = [{"image": f"v/{n}.jpg", "asked": ["a", "b"], "answer": "ab"[n >= 64]} for n in range(200)]
    part = Part("clip", score("clip", rows, records)[0])
    assert (part.result.accuracy, part.course.accuracy) == (0.32, 0.5)
    assert part.points == pytest.approx(12)


@pytest.mark.parametrize("size", [(150, 100), (192, 192), (100, 151), (601, 400), (37, 91)])
def test_the_grader_sees_what_training_saw(size):
    preprocess = pytest.importorskip("homework.models.images")
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    assert clip_pixels(image).shape == (1, 3, 192, 192)
    np.testing.assert_allclose(clip_pixels(image), preprocess.clip_pixels([image]), atol=1e-6)
