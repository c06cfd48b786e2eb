"""The course's zip is downloaded (from a local server), resumed, and unpacked below `data/` only."""

import re
import shutil
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from homework.utils.errors import InputError
from supertux import download as module
from supertux.download import download, fetch, unpack
from supertux.sample import MARKER, use_sample
from tests.conftest import assert_one_line_error, write_frame

FILES = {
    "data/train/00000_info.json": b"{}",
    "data/train/00000_00_im.jpg": b"image" * 5000,
    "data/train/00000_01_im.jpg": b"",
    "data/valid/00001_info.json": b"{}",
    "data/valid_grader/balanced_qa_pairs.json": b"[]",
    "data/valid_grader/all_mc_qas.json": b"[]",
}


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {f"data/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Server(ThreadingHTTPServer):
    """Serve `content`; disconnect after `limit` bytes; honour Range if `ranges`."""

    content, limit, ranges, status = b"", None, True, None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []
        self.url = f"http://127.0.0.1:{self.server_port}/data.zip"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, start = self.server, 0
        server.requests.append(self.headers.get("Range"))
        content = server.content
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if server.status:
            self.send_response(server.status)
        elif wanted and server.ranges:
            start = int(wanted[1])
            self.send_response(206 if start < len(content) else 416)
            span = f"{start}-{len(content) - 1}" if start < len(content) else "*"
            self.send_header("Content-Range", f"bytes {span}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.limit])

    def log_message(self, *_):
        """Keep the tests' output clean."""


@pytest.fixture
def server(tmp_path: Path):
    server = Server()
    server.content = make_zip(tmp_path / "source.zip", FILES).read_bytes()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_unpacks_and_logs_each_split(server, tmp_path: Path, call, monkeypatch):
    monkeypatch.setattr(module, "URL", server.url)
    data = tmp_path / "data"
    status, out, _ = call((download,), "download", "--data", data)
    assert status == 0
    assert "train: 1 frames, 2 views, 0 annotation files" in out.splitlines()
    assert "valid_grader: 0 frames, 0 views, 2 annotation files" in out.splitlines()
    assert (data / "data.zip").read_bytes() == server.content
    (data / "data.zip").rename(tmp_path / "kept.zip")
    assert tree(data) == FILES

    (tmp_path / "kept.zip").rename(data / "data.zip")
    (data / "valid" / "00001_info.json").unlink()
    assert "1 files unpacked, 5 already present" in call((download,), "download", "--data", data)[1]
    assert len(server.requests) == 1  # the second run mends what is missing without the net


def test_an_interrupted_transfer_is_resumed(server, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 1000)
    target = tmp_path / "new" / "data.zip"
    server.limit = 10_000
    with pytest.raises(InputError, match=r"data.zip.part: .*failed after 10,000 bytes.*; run again to resume") as error:
        fetch(server.url, target)
    assert "\n" not in str(error.value) and not target.exists()
    server.limit = None
    assert fetch(server.url, target).read_bytes() == server.content
    assert server.requests == [None, "bytes=10000-"]
    assert list(target.parent.iterdir()) == [target]


def test_a_server_without_ranges_sends_the_whole_file_again(server, tmp_path: Path):
    (tmp_path / "data.zip.part").write_bytes(b"old")
    server.ranges = False
    assert fetch(server.url, tmp_path / "data.zip").read_bytes() == server.content


def test_a_complete_part_file_needs_no_transfer(server, tmp_path: Path):
    (tmp_path / "data.zip.part").write_bytes(server.content)
    assert fetch(server.url, tmp_path / "data.zip").read_bytes() == server.content


def test_a_part_file_longer_than_the_original_is_deleted(server, tmp_path: Path):
    (tmp_path / "data.zip.part").write_bytes(server.content + b"more")
    with pytest.raises(InputError, match="run again to start over"):
        fetch(server.url, tmp_path / "data.zip")
    assert fetch(server.url, tmp_path / "data.zip").read_bytes() == server.content


def test_a_page_instead_of_the_zip_is_not_kept(server, tmp_path: Path):
    server.content = b"<html>sign in</html>"
    with pytest.raises(InputError, match="not a zip"):
        fetch(server.url, tmp_path / "data.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["source.zip"]


def test_http_errors_and_unreachable_servers_are_one_line(server, tmp_path: Path, call, monkeypatch):
    server.status = 404
    monkeypatch.setattr(module, "URL", server.url)
    assert_one_line_error(call((download,), "download", "--data", tmp_path / "data"), "HTTP 404")
    refused = call((download,), "download", "--data", tmp_path / "data")
    assert_one_line_error(refused, f"{server.url}: nothing could be downloaded (HTTP 404); ")
    monkeypatch.setattr(module, "URL", "http://127.0.0.1:9/data.zip")
    assert_one_line_error(call((download,), "download", "--data", tmp_path / "data"), "--from FILE")
    assert not any((tmp_path / "data").iterdir())


def test_only_files_under_data_are_unpacked(tmp_path: Path, call):
    evil = ["../evil", "data/../../evil", "/evil", "/data/evil", "evil", "homework/evil.py", "data\\..\\evil", "C:/x"]
    file = make_zip(tmp_path / "evil.zip", FILES | dict.fromkeys(evil, b"evil"))
    with zipfile.ZipFile(file, "a") as archive:
        link = zipfile.ZipInfo("data/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
        archive.writestr("data/link/evil/../evil", "evil")
    data = tmp_path / "there" / "data"
    status, out, _ = call((download,), "download", "--from", file, "--data", data)
    assert status == 0 and "6 files unpacked" in out and f"{len(evil) + 2} skipped" in out
    assert tree(data) == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.zip", "there"]


def test_files_of_the_same_size_stay_and_others_are_replaced(tmp_path: Path):
    file, data = make_zip(tmp_path / "data.zip", FILES), tmp_path / "data"
    unpack((file,), data)
    same, other = data / "train" / "00000_info.json", data / "valid" / "00001_info.json"
    same.write_bytes(b"[]")
    other.write_bytes(b"half a fi")
    assert unpack((file,), data) == {"new": 1, "present": 5, "skipped": 0}
    assert same.read_bytes() == b"[]" and other.read_bytes() == b"{}"


def test_a_split_that_links_outside_is_refused(tmp_path: Path, call):
    file, data = make_zip(tmp_path / "data.zip", FILES), tmp_path / "data"
    data.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (data / "train").symlink_to(tmp_path / "elsewhere")
    assert_one_line_error(call((download,), "download", "--from", file, "--data", data), "train")
    assert not any((tmp_path / "elsewhere").iterdir())


def test_a_corrupt_zip_leaves_no_frames(tmp_path: Path, call):
    file = make_zip(tmp_path / "data.zip", FILES)
    content = bytearray(file.read_bytes())
    content[content.index(b"imageimage") + 7000] ^= 1
    file.write_bytes(content)
    assert_one_line_error(call((download,), "download", "--from", file, "--data", tmp_path / "data"), "data.zip")
    assert set(tree(tmp_path / "data")) <= {name.replace("data", "data/.unpacking", 1) for name in FILES}


@pytest.mark.parametrize("cut", [0, 10, -30])
def test_a_truncated_zip(tmp_path: Path, call, cut: int):
    file = make_zip(tmp_path / "data.zip", FILES)
    file.write_bytes(file.read_bytes()[:cut])
    assert_one_line_error(call((download,), "download", "--from", file, "--data", tmp_path / "data"), "data.zip")
    assert not (tmp_path / "data").exists()


def test_no_zip_and_a_zip_without_data(tmp_path: Path, call):
    missing = call((download,), "download", "--from", tmp_path / "missing.zip", "--data", tmp_path / "data")
    assert_one_line_error(missing, "missing.zip: no such file")
    file = make_zip(tmp_path / "other.zip", {"other/file": b""})
    other = call((download,), "download", "--from", file, "--data", tmp_path / "data")
    assert_one_line_error(other, "other.zip: nothing in it belongs under data/")


def test_too_little_space_is_noticed_before_writing(tmp_path: Path, call, monkeypatch):
    usage = module.shutil.disk_usage(tmp_path)._replace(free=6 * 4096)  # the image alone takes 7 blocks
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    file = make_zip(tmp_path / "data.zip", FILES)
    result = call((download,), "download", "--from", file, "--data", tmp_path / "data")
    assert_one_line_error(result, f"{tmp_path / 'data'}: 0 MB needed")
    assert tree(tmp_path / "data") == {}


def test_hidden_files_are_not_unpacked(tmp_path: Path):
    hidden = ("data/train/._00000_info.json", "data/train/.DS_Store", "data/.cache/x", "__MACOSX/data/train/._x")
    file = make_zip(tmp_path / "data.zip", FILES | dict.fromkeys(hidden, b"x"))
    assert unpack((file,), tmp_path / "data") == {"new": 6, "present": 0, "skipped": 4}
    assert tree(tmp_path / "data") == FILES


def test_several_zips(tmp_path: Path, call):
    names = list(FILES)
    files = [make_zip(tmp_path / f"{i}.zip", {name: FILES[name] for name in names[3 * i : 3 * i + 3]}) for i in (0, 1)]
    missing = call((download,), "download", "--from", *files, tmp_path / "2.zip", "--data", tmp_path / "data")
    assert_one_line_error(missing, "2.zip: no such file")
    assert not (tmp_path / "data").exists()
    assert call((download,), "download", "--from", *files, "--data", tmp_path / "data")[0] == 0
    assert tree(tmp_path / "data") == FILES


@pytest.fixture
def with_sample(small_sample: Path, tmp_path: Path) -> Path:
    """Make a data folder with the sample, and frames, annotations and changes of the user's own."""
    data = tmp_path / "data"
    use_sample(data=data)
    write_frame(data / "own", "00002", "scotland")
    (data / "train/notes.txt").write_text("mine")
    (data / "train/generated_qa_pairs.json").write_text("[1]")
    (data / "valid/00000_info.json").write_text("changed")
    return data


def test_a_failed_download_loses_nothing(with_sample: Path, tmp_path: Path, call):
    before = tree(with_sample)
    broken = make_zip(tmp_path / "broken.zip", FILES)
    content = bytearray(broken.read_bytes())
    content[content.index(b"imageimage") + 7000] ^= 1
    broken.write_bytes(content)
    for file in ("missing.zip", "broken.zip"):
        assert_one_line_error(call((download,), "download", "--from", tmp_path / file, "--data", with_sample), file)
        assert {name: text for name, text in tree(with_sample).items() if "/.unpacking/" not in name} == before
    good = make_zip(tmp_path / "good.zip", FILES)
    assert call((download,), "download", "--from", good, "--data", with_sample)[0] == 0
    assert not (with_sample / ".unpacking").exists()


def test_the_sample_is_replaced_and_other_files_stay(with_sample: Path, tmp_path: Path, call):
    """Annotations of the sample's frames are renamed, since the new frames have the same names."""
    own = {name: text for name, text in tree(with_sample).items() if name.startswith("data/own/")}
    out = call((download,), "download", "--from", make_zip(tmp_path / "data.zip", FILES), "--data", with_sample)[1]
    assert "6 files unpacked" in out and "generated_qa_pairs.json.sample" in out
    others = {
        "train/notes.txt": b"mine",
        "train/generated_qa_pairs.json.sample": b"[1]",
        "valid/00000_info.json": b"changed",
    }
    assert tree(with_sample) == FILES | own | {f"data/{name}": text for name, text in others.items()}
    assert not (with_sample / MARKER).exists()


def test_frames_that_are_not_the_samples_stay(tmp_path: Path):
    data = tmp_path / "data"
    write_frame(data / "train", "00001", "hacienda")
    before = tree(data)
    unpack((make_zip(tmp_path / "data.zip", FILES),), data)
    assert tree(data) == FILES | before


@pytest.mark.parametrize("step", range(0, 24, 2))
def test_an_interrupted_swap_is_finished_by_the_next_run(with_sample: Path, tmp_path, monkeypatch, step: int):
    file, calls = make_zip(tmp_path / "data.zip", FILES), []
    replace, unlink = Path.replace, Path.unlink

    def counted(method):
        def call(path, *arguments, **options):
            calls.append(path)
            if len(calls) == 1 + step:
                raise KeyboardInterrupt
            return method(path, *arguments, **options)

        return call

    monkeypatch.setattr(Path, "replace", counted(replace))
    monkeypatch.setattr(Path, "unlink", counted(unlink))
    with pytest.raises(KeyboardInterrupt):
        unpack((file,), with_sample)
    unpack((file,), with_sample)
    assert FILES.items() <= tree(with_sample).items() and not (with_sample / MARKER).exists()
    assert (with_sample / "train/generated_qa_pairs.json.sample").read_bytes() == b"[1]"
    assert len(tree(with_sample)) == len(FILES) + 4 + 3


@pytest.mark.parametrize("blocked", ["", "data/valid", "data/train/00001_info.json"])
def test_what_is_in_the_way_is_noticed_before_anything_is_removed(with_sample: Path, tmp_path: Path, call, blocked):
    """A file in the place of a folder, and the reverse; the sample's frames stay."""
    if blocked == "":
        data, named = tmp_path / "file", "file: is a file, expected a folder"
        data.touch()
    elif blocked == "data/valid":
        data, named = with_sample, "valid: is a file, expected a folder"
        shutil.rmtree(data / "valid")
        (data / "valid").touch()
    else:
        data, named = with_sample, "00001_info.json: is a folder, expected a file"
        (data / "train/00001_info.json").mkdir()
    before = tree(data)
    names = ("data/train/00001_info.json", "data/valid/00001_info.json")
    file = make_zip(tmp_path / "data.zip", dict.fromkeys(names, b"{}"))
    assert_one_line_error(call((download,), "download", "--from", file, "--data", data), named)
    assert tree(data) == before
    folder = call((download,), "download", "--from", with_sample, "--data", tmp_path / "new")
    assert_one_line_error(folder, f"{with_sample}: is a folder, expected a file")
