"""Products are opened without trusting them: nothing leads out of an archive, and what is cut off is refused by name."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sereno.pipeline import archives
from sereno.pipeline.archives import is_archive, lay_out, read_contents, split_href, strip_suffix
from sereno.pipeline.errors import DataError, MissingError

FILES = {"P/a.xml": b"<a/>", "P/sub/image.tiff": bytes(range(256)) * 400}


def make_tar(path: Path, files: dict[str, bytes], *extra: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for entry in extra:
            archive.addfile(entry)
    return path


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def is_xml(name: str) -> bool:
    return name.endswith(".xml")


MAKERS: list[tuple[str, Callable[[Path, dict[str, bytes]], Path]]] = [
    ("P.tar.gz", make_tar), ("P.tgz", make_tar), ("P.tar", make_tar), ("P.zip", make_zip), ("P", make_folder),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make"), MAKERS)
def test_archives_and_folders_hold_the_same(tmp_path: Path, name: str, make: Callable[[Path, dict[str, bytes]], Path]) -> None:
    path = make(tmp_path / name, FILES)
    contents = read_contents(path, is_xml)
    assert contents.sizes == {key: len(value) for key, value in FILES.items()}
    assert contents.texts == {"P/a.xml": b"<a/>"}
    with lay_out(path, tuple(FILES)) as laid:
        assert {key: laid[key].read_bytes() for key in FILES} == FILES
        assert laid["P/sub/image.tiff"].suffix == ".tiff"
    assert is_archive(path) == (name != "P")
    assert strip_suffix(name) == "P"


def test_what_was_unpacked_is_gone_afterwards(tmp_path: Path) -> None:
    with lay_out(make_tar(tmp_path / "P.tar.gz", FILES), ("P/a.xml",)) as laid:
        place = laid["P/a.xml"]
        assert place.is_file()
    assert not place.parent.exists()


def make_link(kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo("P/b.xml")
    entry.type, entry.linkname = kind, "/etc/passwd"
    return entry


@pytest.mark.parametrize("name", ["../evil", "P/../../evil", "/etc/evil", "P\\..\\..\\evil", "C:/evil"])
@pytest.mark.parametrize(("suffix", "make"), [(".tar.gz", make_tar), (".zip", make_zip)])
def test_members_that_lead_out_are_refused(tmp_path: Path, name: str, suffix: str, make: Callable[[Path, dict[str, bytes]], Path]) -> None:
    path = make(tmp_path / f"P{suffix}", {**FILES, name: b"x"})
    with pytest.raises(DataError, match="leads out of the archive") as caught:
        read_contents(path, is_xml)
    assert path.name in str(caught.value)
    with pytest.raises(DataError, match="leads out"), lay_out(path, ("P/a.xml",)):
        pass
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = make_tar(tmp_path / "P.tar.gz", FILES, make_link(kind))
    with pytest.raises(DataError, match="is a link"):
        read_contents(path, is_xml)


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "P.zip", FILES)
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo("P/b.xml")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(DataError, match="is a link"):
        read_contents(path, is_xml)


def test_devices_are_refused(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "P.tar", FILES, make_link(tarfile.FIFOTYPE))
    with pytest.raises(DataError, match="neither a plain file nor a folder"):
        read_contents(path, is_xml)


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    double = tarfile.TarInfo("P/a.xml")
    with pytest.raises(DataError, match="twice"):
        read_contents(make_tar(tmp_path / "P.tar.gz", FILES, double), is_xml)


@pytest.mark.parametrize(("name", "make"), MAKERS[:-1])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.8])
def test_an_archive_that_is_cut_off_is_refused(
    tmp_path: Path, name: str, make: Callable[[Path, dict[str, bytes]], Path], share: float
) -> None:
    path = make(tmp_path / name, FILES)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataError, match=r"fetch it again") as caught:
        read_contents(path, is_xml)
    assert name in str(caught.value)


@pytest.mark.parametrize("lacking", [1, 4, 8, 12])
def test_a_gzip_without_its_checksum_is_refused(tmp_path: Path, lacking: int) -> None:
    path = make_tar(tmp_path / "P.tar.gz", FILES)
    path.write_bytes(path.read_bytes()[:-lacking])
    with pytest.raises(DataError, match=r"P\.tar\.gz: the archive is cut off or damaged"):
        read_contents(path, is_xml)


def test_a_tar_that_ends_after_a_member_is_refused(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "P.tar", FILES)
    path.write_bytes(path.read_bytes()[:1024])  # the header and the one block of the first member
    with pytest.raises(DataError, match="mark at its end is missing"):
        read_contents(path, is_xml)


def test_a_tar_that_ends_in_its_last_member_is_refused(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "P.tar", FILES)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(DataError, match="cut off"), lay_out(path, ("P/sub/image.tiff",)):
        pass


@pytest.mark.parametrize(("name", "make"), [("P.tar.gz", make_tar), ("P.zip", make_zip)])
def test_a_wrong_checksum_is_refused_whatever_is_read(tmp_path: Path, name: str, make: Callable[[Path, dict[str, bytes]], Path]) -> None:
    path = make(tmp_path / name, {**FILES, "P/noise.tiff": np.random.default_rng(0).bytes(100_000)})  # noise is stored as it is
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="cut off or damaged"), lay_out(path, ("P/noise.tiff",)):
        pass


@pytest.mark.parametrize("content", [b"<html>log in</html>" * 90, b"", gzip.compress(b"no archive" * 90), b"II*\0" + bytes(9000)])
@pytest.mark.parametrize("name", ["P.tar.gz", "P.tar", "P.zip"])
def test_what_is_no_archive_at_all_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: the archive is cut off or damaged"):
        read_contents(tmp_path / name, is_xml)


@pytest.mark.parametrize(("name", "make"), MAKERS[:-1:3])
def test_an_archive_that_swells_beyond_measure_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, make: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    path = make(tmp_path / name, {**FILES, "P/zeros.tiff": bytes(10**6)})
    assert len(read_contents(path, is_xml).sizes) == 3  # small, so it does not matter
    monkeypatch.setattr(archives, "MIN_EXPANDED_BYTES", 1000)
    with pytest.raises(DataError, match=r"P/zeros\.tiff.*100 times the archive's size"):
        read_contents(path, is_xml)


def test_a_missing_member_and_a_missing_product_are_named(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "P.tar.gz", FILES)
    with pytest.raises(MissingError, match=r"P.tar.gz holds no P/b.tiff"), lay_out(path, ("P/b.tiff",)):
        pass
    with pytest.raises(MissingError, match="does not exist"):
        read_contents(tmp_path / "Q.tar.gz", is_xml)


def test_an_address_leads_into_an_archive_or_not(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "P.tar.gz", FILES)
    assert split_href(f"{path}/P/a.xml") == (str(path), "P/a.xml")
    assert split_href(str(path)) == (str(path), "")
    assert split_href(f"{tmp_path}/P/a.xml") == (f"{tmp_path}/P/a.xml", "")
