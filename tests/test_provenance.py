import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from xrouter.provenance import (
    command_line,
    content_hash,
    file_hash,
    git_commit,
    portable_path,
    provenance,
    repo_root,
    write_atomic,
    write_json,
)


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_root_is_found_from_any_folder(tmp_path):
    code = "from xrouter.provenance import repo_root; print(repo_root())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == repo_root()
    assert (repo_root() / "configs" / "models.yaml").is_file()


def test_the_root_can_be_set_for_an_installed_package(tmp_path):
    code = "from xrouter.provenance import repo_root; print(repo_root())"
    env = os.environ | {"XROUTER_ROOT": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == tmp_path.resolve()


def test_writing_replaces_the_whole_file_and_makes_its_folder(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_atomic(path, "a longer first text")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert leftovers(path.parent) == ["b.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "b.txt"
    write_atomic(path, "old")

    def full(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == ["b.txt"]


def test_a_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    path = tmp_path / "b.txt"
    write_atomic(path, "old")
    seen = []
    replace = os.replace

    def look_first(source: str, target: str | Path) -> None:
        seen.append((path.read_text(), Path(source).read_text()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look_first)
    write_atomic(path, "new")
    assert seen == [("old", "new")]


def test_json_is_readable_and_keeps_greek_letters(tmp_path):
    write_json(tmp_path / "x.json", {"λ": 1})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "λ": 1\n}\n'


def test_written_files_are_readable_by_others(tmp_path):
    write_atomic(tmp_path / "x", "x")
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


def test_equal_content_has_equal_hashes_whatever_the_order_of_keys():
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})
    assert re.fullmatch(r"[0-9a-f]{12}", content_hash(None))


def test_a_file_hash_follows_the_bytes(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"1")
    before = file_hash([path])
    path.write_bytes(b"2")
    assert file_hash([path]) != before


def test_paths_in_results_are_relative_to_the_repository_or_a_bare_name(tmp_path):
    assert portable_path(repo_root() / "configs" / "models.yaml") == "configs/models.yaml"
    assert portable_path(tmp_path / "secret-folder" / "run1") == "run1"


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["/opt/env/bin/xrouter", "models"], "xrouter models"),
        (["xrouter", "eval", "/data/recorded"], "xrouter eval recorded"),
        (["xrouter", "--set", "recorded=/data/x/zeroeval"], "xrouter --set recorded=zeroeval"),
        (["xrouter", "--json=/tmp/out.json"], "xrouter --json=out.json"),
        (["/x/ipykernel_launcher.py", "-f", "/run/kernel-9.json"], "notebook"),
    ],
)
def test_the_recorded_command_holds_no_absolute_path(monkeypatch, argv, shown):
    monkeypatch.setattr(sys, "argv", argv)
    assert command_line() == shown


def test_the_stamp_names_commit_config_data_and_seed_and_no_place(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["xrouter", "train", str(tmp_path / "c.yaml")])
    stamp = provenance(config={"a": 1}, data="abc", seed=3)
    assert stamp["config_hash"] == content_hash({"a": 1})
    assert (stamp["data_hash"], stamp["seed"]) == ("abc", 3)
    text = json.dumps(stamp)
    assert str(tmp_path) not in text
    assert str(repo_root()) not in text
    assert str(Path.home()) not in text


def test_the_commit_is_a_short_sha_marked_when_sources_differ():
    assert re.fullmatch(r"[0-9a-f]{12}(\+dirty)?|unknown", git_commit())


def test_outside_git_the_commit_is_unknown(tmp_path):
    env = os.environ | {"XROUTER_ROOT": str(tmp_path), "GIT_CEILING_DIRECTORIES": str(tmp_path)}
    code = "from xrouter.provenance import git_commit; print(git_commit())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "unknown"
