"""Downloads of public teachers. A server on this machine plays the internet."""

import io
import json
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import HTTPRedirectHandler, HTTPSHandler, ProxyHandler, build_opener

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
    """What the server has, how it behaves, and what it was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    # Bytes after which an answer breaks off, one a request; whole answers once they are used up.
    breaks: list[int] = field(default_factory=list)
    ranges: bool = True
    etag: str = '"first"'
    moved: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)

    def served(self, path: str) -> list[str | None]:
        return [asked_range for asked, asked_range, _ in self.asked if asked == path]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        site, wanted = self.server.site, self.headers.get("Range")
        site.asked.append((self.path, wanted, self.headers.get("If-Range")))
        if self.path in site.moved:
            self.send_response(302)
            self.send_header("Location", site.moved[self.path])
            self.end_headers()
            return
        content = site.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and site.ranges else 0
        if self.headers.get("If-Range", site.etag) != site.etag:
            start = 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        if site.etag:
            self.send_header("ETag", site.etag)
        self.end_headers()
        self.wfile.write(content[start:][: site.breaks.pop(0) if site.breaks else None])

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *_):
        """Clients that hang up early are part of the tests."""


@pytest.fixture
def site(monkeypatch) -> Iterator[Site]:
    """The server behind every https address; nothing but the encryption is left out."""
    server = Server(("127.0.0.1", 0), Handler)
    server.site = Site({"/small.pth": CONTENT})

    class Here(HTTPSHandler):
        def https_open(self, request):
            return self.do_open(
                lambda _, timeout: HTTPConnection(*server.server_address, timeout=timeout), request
            )

    monkeypatch.setattr(
        teachers, "_opener", lambda: build_opener(teachers._HttpsRedirects, Here, ProxyHandler({}))
    )
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
    assert site.asked == [("/small.pth", None, None)]
    assert left_over() == []


def test_progress_is_told(site, tmp_path, monkeypatch):
    monkeypatch.setenv("PURSUHINT_PROGRESS", str(tmp_path / "progress.json"))
    fetch(SMALL)
    state = json.loads((tmp_path / "progress.json").read_text())
    assert (state["label"], state["done"], state["total"]) == ("download of teacher small", 1, 1)


def test_a_broken_connection_is_taken_up_where_it_broke(site):
    site.breaks = [300_000, 500_000]
    assert fetch(SMALL).read_bytes() == CONTENT
    assert site.asked == [
        ("/small.pth", None, None),
        ("/small.pth", "bytes=300000-", '"first"'),
        ("/small.pth", "bytes=800000-", '"first"'),
    ]


def test_a_later_run_goes_on_with_what_an_earlier_one_left(site):
    site.breaks = [300_000, 0]
    assert "the connection broke after 300000 of 1048576 bytes" in refused(SMALL)
    assert fetch(SMALL).read_bytes() == CONTENT
    assert site.served("/small.pth") == [None, "bytes=300000-", "bytes=300000-"]
    assert left_over() == []


@pytest.mark.parametrize("etag", ['"first"', 'W/"first"', ""])
def test_a_file_that_changed_in_between_is_begun_again(site, etag):
    site.etag, site.breaks = etag, [300_000, 0]
    refused(SMALL)
    other = CONTENT[::-1]
    site.files["/small.pth"], site.etag = other, '"second"' if etag else ""
    teacher = replace(SMALL, sha256=digest(other))
    if etag == '"first"':
        assert fetch(teacher).read_bytes() == other
        assert site.asked[-1] == ("/small.pth", "bytes=300000-", '"first"')
    else:
        # Nothing vouches for the first part, so the two do not fit; the checksum says so and the next attempt
        # is afresh.
        assert site.asked[-1][2] is None
        assert "not " + digest(other) in refused(teacher)
        assert fetch(teacher).read_bytes() == other


def test_a_server_without_ranges_sends_all_of_it_again(site):
    site.ranges, site.breaks = False, [300_000]
    assert fetch(SMALL).read_bytes() == CONTENT
    assert site.served("/small.pth") == [None, "bytes=300000-"]


def test_a_server_that_always_breaks_is_given_up(site):
    site.ranges, site.breaks = False, [300_000] * 10
    assert "broke after 300000" in refused(SMALL)
    assert len(site.asked) == 2


def test_a_part_longer_than_the_file_is_thrown_away(site):
    part = teacher_download(ADDRESS).with_name(f"{teacher_download(ADDRESS).name}.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT + b"more")
    assert fetch(SMALL).read_bytes() == CONTENT
    assert site.served("/small.pth") == [f"bytes={len(CONTENT) + 4}-", None]


def test_a_wrong_range_is_not_written(site, monkeypatch):
    site.breaks = [300_000, 0]
    refused(SMALL)
    monkeypatch.setattr(
        Handler,
        "send_header",
        lambda self, name, value: BaseHTTPRequestHandler.send_header(
            self, name, value.replace("300000", "0")
        ),
    )
    assert "where the bytes from 300000 on were asked for" in refused(SMALL)


def test_addresses_are_tried_in_order(site):
    site.files["/wrong.pth"] = b"something else"
    addresses = tuple(f"https://teachers.test/{name}.pth" for name in ("missing", "wrong", "small"))
    assert fetch(replace(SMALL, addresses=addresses)).read_bytes() == CONTENT
    assert [path for path, *_ in site.asked] == ["/missing.pth", "/wrong.pth", "/small.pth"]
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
    assert f"{address} is not an https address" in refused(replace(SMALL, addresses=(address,)))
    assert site.asked == []


def test_the_way_out_checks_redirects():
    assert [
        type(handler) for handler in teachers._opener().handlers if isinstance(handler, HTTPRedirectHandler)
    ] == [teachers._HttpsRedirects]


def test_redirects_are_followed_to_https_only(site):
    site.moved = {"/old.pth": ADDRESS, "/plain.pth": "http://teachers.test/small.pth"}
    assert "http://teachers.test/small.pth is not an https address" in refused(
        replace(SMALL, addresses=("https://teachers.test/plain.pth",))
    )
    site.breaks = [300_000]
    assert fetch(replace(SMALL, addresses=("https://teachers.test/old.pth",))).read_bytes() == CONTENT
    assert site.served("/small.pth") == [None, "bytes=300000-"]


def test_a_file_beyond_all_measure_is_not_downloaded(site, monkeypatch):
    monkeypatch.setattr(teachers, "MAX_BYTES", 1000)
    assert "more than" in refused(SMALL)


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
        (archive({"all/small/last.pth": b""}, tarfile.SYMTYPE), "is no plain file"),
        (archive({"all/small/last.pth": b""}, tarfile.LNKTYPE), "is no plain file"),
        (archive({"all/small/last.pth": b""}, tarfile.DIRTYPE), "is no plain file"),
        (archive({"all/small": CONTENT}), "the archive has no all/small/last.pth"),
        (archive({"all/small/last.pth": b"something else"}), f"not {digest(CONTENT)} as the manifest says"),
        (archive({"all/small/last.pth": CONTENT})[:5000], "no whole tar archive: unexpected end of data"),
        (b"<html>" * 100, "what came is no whole tar archive"),
    ],
    ids=["symbolic link", "hard link", "folder", "missing", "other content", "cut off", "no archive"],
)
def test_an_archive_without_the_right_file_is_refused_and_thrown_away(site, content, reason):
    site.files["/all.tar"] = content
    message = refused(in_archive())
    assert reason in message
    assert f"put its all/small/last.pth at {teacher_file('small')} by hand" in message
    assert left_over() == []


def test_a_member_beyond_all_measure_is_refused(site, monkeypatch):
    monkeypatch.setattr(teachers, "MAX_BYTES", len(CONTENT) - 1)
    download = teacher_download("https://teachers.test/all.tar")
    download.parent.mkdir(parents=True)
    download.write_bytes(archive({"all/small/last.pth": CONTENT}))
    assert "is no plain file of at most" in refused(in_archive())


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
