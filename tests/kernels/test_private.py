"""Folders of the user alone: what others could do on the way to one, whatever umask and HOME are."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bitnet_kernels import private

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions as on POSIX")


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """A folder in two others, all of them private."""
    folder = tmp_path / "a" / "b" / "c"
    private.make(folder)
    return folder


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
def test_all_that_is_made_is_private(umask: Callable[[int], int], tmp_path: Path, mask: int) -> None:
    umask(mask)
    assert private.make(tmp_path / "a" / "b" / "c")
    assert not private.make(tmp_path / "a" / "b" / "c")
    for path in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert private.objection(tmp_path / "a" / "b" / "c") is None


@pytest.mark.parametrize("permissions", [0o777, 0o707, 0o702])
@pytest.mark.parametrize("above", [1, 2])
def test_who_can_write_above_can_swap_the_folder(nested: Path, permissions: int, above: int) -> None:
    place = nested.parents[above - 1]
    place.chmod(permissions)
    assert private.objection(nested) == f"others can rename what is in {place}"
    place.chmod(permissions | stat.S_ISVTX)  # as /tmp is
    assert private.objection(nested) is None


def test_a_group_of_one_is_nobody_else(nested: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a umask of 002, as many systems have it, every folder of the user is open to the user's own group."""
    nested.parent.chmod(0o770)
    monkeypatch.setattr(private, "_lonely", lambda group: group == nested.parent.stat().st_gid)
    assert private.objection(nested) is None
    monkeypatch.setattr(private, "_lonely", lambda group: False)
    assert private.objection(nested) == f"others can rename what is in {nested.parent}"


def test_whose_group_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    grp = pytest.importorskip("grp")
    pwd = pytest.importorskip("pwd")
    name = pwd.getpwuid(os.getuid()).pw_name
    groups = {
        7: grp.struct_group((name, "", 7, [])),
        8: grp.struct_group((name, "", 8, [name, "eve"])),
        9: grp.struct_group(("all", "", 9, [])),
    }
    monkeypatch.setattr(grp, "getgrgid", lambda group: groups[group])
    assert [private._lonely(group) for group in (7, 8, 9, 10)] == [True, False, False, False]


def test_a_folder_on_the_way_of_another_user(nested: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = os.getuid()
    lstat = Path.lstat

    def other(self: Path) -> os.stat_result:
        info = lstat(self)
        return os.stat_result((*info[:4], user + 1, *info[5:])) if self == nested.parent else info

    monkeypatch.setattr(Path, "lstat", other)
    assert private.objection(nested) == f"{nested.parent} belongs to another user"


def test_links_on_the_way(tmp_path: Path, nested: Path) -> None:
    """What a link leads to is looked at, and where the link stands, and each link in between."""
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    (open_to_all / "second").symlink_to(nested.parent)
    (tmp_path / "first").symlink_to("open/../open/second")
    assert private.objection(tmp_path / "first" / "c") is None
    open_to_all.chmod(0o777)
    assert private.objection(tmp_path / "first" / "c") == f"others can rename what is in {open_to_all}"
    open_to_all.chmod(0o700)
    nested.parents[1].chmod(0o777)
    assert private.objection(tmp_path / "first" / "c") == f"others can rename what is in {nested.parents[1]}"


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError):
        private.objection(tmp_path / "a" / "c")


@pytest.mark.parametrize("value", ["", "relative", None])
def test_home_without_a_path_is_no_home(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    """`HOME= bitnet` would otherwise write to /.cache, and a relative one wherever the process stands."""
    pwd = pytest.importorskip("pwd")
    if value is None:
        monkeypatch.delenv("HOME", raising=False)
    else:
        monkeypatch.setenv("HOME", value)
    known = Path(pwd.getpwuid(os.getuid()).pw_dir)
    assert private.home() == (known if known.is_absolute() and known != Path("/") else None)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: pwd.struct_passwd(("u", "x", 1, 1, "", "/", "")))
    assert private.home() is None
    monkeypatch.setenv("HOME", "/somewhere")
    assert private.home() == Path("/somewhere")
