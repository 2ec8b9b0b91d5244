"""Downloads of public teachers. A server on this machine plays the internet."""

import io
import json
import socket
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import HTTPSHandler, ProxyHandler, build_opener

import pytest
import torch

from pursuhint_lib import teachers
from pursuhint_lib.models import build_model, load_checkpoint
from pursuhint_lib.paths import manifest_entry, teacher_download, teacher_file
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.teachers import TEACHERS, Teacher, fetch, find, read_entry, write_entry

CONTENT = bytes(range(256)) * 4096  # 1 MiB
ADDRESS = "https://teachers.test/small.pth"
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


SMALL = Teacher("small", "resnet8", "cifar100", 100, 60.0, MEAN, STD, digest(CONTENT), (ADDRESS,))


@dataclass
class Site:
    """What the server has, and what it was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    # Bytes after which answers break off.
    breaks: int | None = None
    asked: list[str] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        site, content = self.server.site, self.server.site.files.get(self.path)
        site.asked.append(self.path)
        if self.path in site.moved:
            self.send_response(302)
            self.send_header("Location", site.moved[self.path])
            self.end_headers()
        elif content is None:
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: site.breaks])

    def log_message(self, *_):
        pass


@pytest.fixture
def site(monkeypatch) -> Iterator[Site]:
    """The server behind every https address; nothing but the encryption is left out."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.site = Site({"/small.pth": CONTENT})

    class Here(HTTPSHandler):
        def https_open(self, request):
            return self.do_open(
                lambda _, timeout: HTTPConnection(*server.server_address, timeout=timeout), request
            )

    monkeypatch.setattr(torch.hub, "urlopen", build_opener(Here, ProxyHandler({})).open)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.site
    server.shutdown()
    server.server_close()
    thread.join()


def refused(teacher: Teacher) -> str:
    """The one line with which a fetch is refused; nothing may have taken the final name."""
    with pytest.raises(SettingsError) as caught:
        fetch(teacher)
    assert not teacher_file(teacher.name).exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left_over() -> list[str]:
    """Files in the teachers' folder that are neither checkpoints nor the lock."""
    folder = teacher_file("any").parent
    return sorted(
        path.name
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pth" and path.name != "lock"
    )


def archive(members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def in_archive(content: bytes = CONTENT) -> Teacher:
    return replace(
        SMALL,
        sha256=digest(content),
        addresses=("https://teachers.test/all.tar",),
        member="all/small/last.pth",
    )


# Single files


def test_a_teacher_is_downloaded_once(site):
    path = fetch(SMALL)
    assert path == teacher_file("small")
    assert path.read_bytes() == CONTENT
    assert fetch(SMALL) == path
    assert site.asked == ["/small.pth"]
    assert left_over() == []


def test_progress_is_told(site, tmp_path, monkeypatch):
    monkeypatch.setenv("PURSUHINT_PROGRESS", str(tmp_path / "progress.json"))
    fetch(SMALL)
    state = json.loads((tmp_path / "progress.json").read_text())
    assert (state["label"], state["done"], state["total"]) == ("download of teacher small", 1, 1)


def test_a_download_that_broke_off_is_refused_and_begun_anew(site):
    site.breaks = 300_000
    assert f"not {digest(CONTENT)} as the manifest says" in refused(SMALL)
    assert left_over() == []
    site.breaks = None
    assert fetch(SMALL).read_bytes() == CONTENT


def test_a_server_that_no_longer_answers_is_given_up(site, monkeypatch):
    before, hold = socket.getdefaulttimeout(), threading.Event()
    monkeypatch.setattr(teachers, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(Handler, "do_GET", lambda self: hold.wait(20))
    try:
        assert "timed out" in refused(SMALL)
    finally:
        hold.set()
    assert socket.getdefaulttimeout() == before


def test_addresses_are_tried_in_order(site):
    site.files["/wrong.pth"] = b"something else"
    addresses = tuple(f"https://teachers.test/{name}.pth" for name in ("missing", "wrong", "small"))
    assert fetch(replace(SMALL, addresses=addresses)).read_bytes() == CONTENT
    assert site.asked == ["/missing.pth", "/wrong.pth", "/small.pth"]
    assert left_over() == []


def test_what_failed_is_said_in_one_line(site):
    site.files["/small.pth"] = b"something else"
    message = refused(replace(SMALL, addresses=("https://teachers.test/missing.pth", ADDRESS)))
    assert "https://teachers.test/missing.pth (HTTP Error 404: Not Found)" in message
    assert (
        f"{ADDRESS} (sha256 is {digest(b'something else')}, not {digest(CONTENT)} as the manifest says)"
        in message
    )
    assert f"put the file at {teacher_file('small')} by hand" in message
    assert list(teacher_download(ADDRESS).parent.iterdir()) == []


@pytest.mark.parametrize(
    "address", ["http://teachers.test/small.pth", "file:///etc/passwd", "ftp://teachers.test/small.pth"]
)
def test_only_https_addresses_are_used(site, address):
    assert f"{address} (it is not an https address)" in refused(replace(SMALL, addresses=(address,)))
    assert site.asked == []


def test_redirects_are_followed(site):
    site.moved = {"/old.pth": ADDRESS}
    assert fetch(replace(SMALL, addresses=("https://teachers.test/old.pth",))).read_bytes() == CONTENT


def test_the_first_digits_of_a_checksum_decide_too(site):
    assert fetch(replace(SMALL, sha256=digest(CONTENT)[:8])).read_bytes() == CONTENT
    other = replace(SMALL, name="other", sha256="0" * 8)
    assert f"not {'0' * 8} as the manifest says" in refused(other)


def test_a_file_put_there_by_hand_is_used_after_the_same_check(site):
    path = teacher_file("small")
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert fetch(SMALL) == path
    path.write_bytes(b"something else")
    with pytest.raises(
        SettingsError,
        match=f"{path} is not the checkpoint of small: sha256 is .*; remove it to download it again",
    ):
        fetch(SMALL)
    assert path.read_bytes() == b"something else"
    assert site.asked == []


def test_two_processes_do_not_download_at_the_same_time(site):
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetch(SMALL))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [teacher_file("small")] * 3
    assert len(site.asked) == 1


# Archives


@pytest.mark.parametrize("prefix", ["", "./"])
def test_one_member_of_an_archive_is_taken(site, prefix):
    site.files["/all.tar"] = archive(
        {
            f"{prefix}all/other/last.pth": b"another",
            f"{prefix}all/small/last.pth": CONTENT,
            "../../escape": b"x",
        }
    )
    assert fetch(in_archive()).read_bytes() == CONTENT
    folder = teacher_file("small").parent
    assert sorted(path.name for path in folder.iterdir()) == ["downloads", "lock", "small.pth"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (archive({"all/small/last.pth": b""}, tarfile.SYMTYPE), "the archive has no file all/small/last.pth"),
        (archive({"all/small/last.pth": b""}, tarfile.LNKTYPE), "the archive has no file all/small/last.pth"),
        (archive({"all/small/last.pth": b""}, tarfile.DIRTYPE), "the archive has no file all/small/last.pth"),
        (archive({"all/small": CONTENT}), "the archive has no file all/small/last.pth"),
        (archive({"all/small/last.pth": b"something else"}), f"not {digest(CONTENT)} as the manifest says"),
        (archive({"all/small/last.pth": CONTENT})[:5000], "unexpected end of data"),
        (b"<html>" * 100, "could not be opened"),
    ],
    ids=["symbolic link", "hard link", "folder", "missing", "other content", "cut off", "no archive"],
)
def test_an_archive_without_the_right_file_is_refused_and_thrown_away(site, content, reason):
    site.files["/all.tar"] = content
    message = refused(in_archive())
    assert reason in message
    assert f"put its all/small/last.pth at {teacher_file('small')} by hand" in message
    assert left_over() == []


def test_a_public_checkpoint_loads_into_its_network_and_its_archive_serves_the_next(site):
    def saved(network: str) -> bytes:
        torch.manual_seed(1)
        file = io.BytesIO()
        torch.save(
            {"epoch": 240, "model": build_model(network, 100).state_dict(), "accuracy": torch.tensor(72.34)},
            file,
        )
        return file.getvalue()

    names = ("resnet56", "wrn_40_2")
    path = TEACHERS["resnet56"].addresses[0].removeprefix("https://github.com")
    site.files[path] = archive({TEACHERS[name].member: saved(name) for name in names})
    for name in names:
        file, entry = find(name)
        assert (file, entry) == (teacher_file(name), TEACHERS[name])
        model = build_model(entry.network, entry.classes)
        before = next(model.parameters()).clone()
        load_checkpoint(model, file)
        torch.manual_seed(1)
        assert all(
            torch.equal(a, b)
            for a, b in zip(model.parameters(), build_model(name, 100).parameters(), strict=True)
        )
        assert not torch.equal(before, next(model.parameters()))
    assert len(site.asked) == 1


def test_a_file_without_a_published_checksum_is_pinned_by_its_entry(site):
    teacher = replace(SMALL, sha256="")
    path = fetch(teacher)
    write_entry(path, teacher)
    assert read_entry(path) == replace(SMALL, addresses=())
    assert fetch(teacher) == path
    path.write_bytes(b"something else")
    with pytest.raises(
        SettingsError,
        match=f"not {digest(CONTENT)} as {manifest_entry(path)} says; remove it to download it again",
    ):
        fetch(teacher)
    path.unlink()
    site.files["/small.pth"] = b"something else"
    assert f"not {digest(CONTENT)} as {manifest_entry(path)} says" in refused(teacher)
    site.files["/small.pth"] = CONTENT
    assert fetch(teacher).read_bytes() == CONTENT
