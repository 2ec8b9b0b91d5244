"""Files are written whole or not at all, and sealed JSON says when it was changed."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from pursuhint_lib.files import (
    HERE,
    SEAL,
    draft_beside,
    read_checked,
    replacing,
    sealed,
    unsealed,
    write_checked,
    write_json,
)


def test_replacing_takes_the_place_of_a_file_and_makes_its_folder(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    for text in ("one", "two"):
        with replacing(path) as draft:
            assert draft.parent == path.parent
            assert draft != path
            draft.write_text(text)
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_no_draft(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def interrupted():
        with replacing(path) as draft:
            draft.write_text("half of the n")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_draft_that_was_never_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text() == "old"


def test_drafts_of_processes_that_are_gone_are_removed_and_no_others(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    left = tmp_path / f"file.txt.{HERE}-{gone.pid}.tmp"
    others = [
        tmp_path / name
        for name in (
            f"file.txt.{HERE}-{os.getppid()}.tmp",
            f"file.txt.00000000-{gone.pid}.tmp",
            f"{left.name}.tmp",
        )
    ]
    for draft in (left, *others):
        draft.touch()
    with replacing(tmp_path / "file.txt") as draft:
        draft.write_text("new")
    assert {*tmp_path.iterdir()} == {tmp_path / "file.txt", *others}
    # A draft of a tree is a folder.
    (left / "train").mkdir(parents=True)
    assert not draft_beside(tmp_path / "file.txt").exists()
    assert {*tmp_path.iterdir()} == {tmp_path / "file.txt", *others}


CONTENT = {
    "name": "Größe – 8×8",
    "empty": {},
    "nested": {"a": [1, 2.5, None], "b": True},
    'a "key"': [],
    "number": 1e-12,
}


@pytest.mark.parametrize("content", [CONTENT, {}])
def test_json_is_read_back_as_it_was_written(tmp_path, content):
    write_json(tmp_path / "deep" / "x.json", content)
    assert json.loads((tmp_path / "deep" / "x.json").read_text(encoding="utf-8")) == content


def test_json_has_one_line_per_entry(tmp_path):
    write_json(tmp_path / "x.json", CONTENT)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert (lines[0], lines[-1], text[-1]) == ("{", "}", "\n")
    assert [json.loads(f"{{{line.removesuffix(',')}}}") for line in lines[1:-1]] == [
        {key: value} for key, value in CONTENT.items()
    ]
    assert "Größe" in text


# ---- files with a checksum


@pytest.mark.parametrize("data", [b"", b"\n", b"any\nbytes\x00\xff", memoryview(bytes(1_000))])
def test_checked_bytes_come_back(tmp_path, data):
    write_checked(tmp_path / "deep" / "file", data)
    assert read_checked(tmp_path / "deep" / "file") == data


def test_a_checked_file_is_refused_with_any_byte_changed_lost_or_added(tmp_path):
    path = tmp_path / "file"
    write_checked(path, b"two\nlines")
    whole = path.read_bytes()
    assert whole.startswith(hashlib.sha256(b"two\nlines").hexdigest().encode())
    changed = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole))]
    for damaged in (
        *changed,
        *(whole[:i] for i in range(len(whole))),
        whole + b"\n",
        whole[1:],
        b"two\nlines",
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not what was written"):
            read_checked(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_checked(path)


def test_sealed_content_comes_back_and_changed_content_does_not():
    content = CONTENT
    seal = sealed(content)
    assert list(seal) == [*content, SEAL]
    assert unsealed(json.loads(json.dumps(seal))) == content
    assert unsealed(content) == content
    for key in seal:
        with pytest.raises(ValueError, match="it is not what was written: its sha256 is of something else"):
            unsealed({**seal, key: "other"})
        if key != SEAL:
            with pytest.raises(ValueError, match="not what was written"):
                unsealed({name: value for name, value in seal.items() if name != key})


@pytest.mark.parametrize("content", [None, [], "text", 1])
def test_what_is_no_object_is_not_unsealed(content):
    with pytest.raises(ValueError, match="no JSON object"):
        unsealed(content)
