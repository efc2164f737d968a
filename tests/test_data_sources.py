"""Folders of pictures: plain, kohya's, metadata.jsonl, masks, and all that is not used."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from trilora_core.data.sources import Scan, scan_folder
from trilora_core.errors import InputError

LONE = "\ud83d"
ROW = 'wanted {"file_name": "cat.png", "text": "a cat"}'

OUTSIDE = "which lies outside its folder; move the picture into it, or take the line out"


def fill(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def rows(*pairs: tuple[str, str]) -> str:
    return "".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in pairs)


def captions(scan: Scan) -> dict[str, str | None]:
    return {source.name: source.caption for source in scan.sources}


def problem(folder: Path | str, masks: str = "") -> str:
    with pytest.raises(InputError) as raised:
        scan_folder(folder, masks)
    return str(raised.value)


# --- plain folders ------------------------------------------------------------


def test_a_plain_folder_in_natural_order_with_captions_beside(tmp_path: Path) -> None:
    fill(tmp_path, {"10.png": "", "2.JPG": "", "2.txt": "two", "10.caption": "ten", "b.webp": "", ".h.png": ""})
    scan = scan_folder(tmp_path)
    assert list(captions(scan).items()) == [("2.JPG", "two"), ("10.png", "ten"), ("b.webp", None)]
    assert scan.notes == () and {(one.repeats, one.subset, one.mask) for one in scan.sources} == {(1, "", None)}
    assert all(one.path == tmp_path / one.name for one in scan.sources)


def test_what_is_not_used_is_told(tmp_path: Path) -> None:
    files = {"cat.png": "", "cat.jpg": "", "cat.txt": "a cat", "cat.caption": "-", "cat2.txt": "", "raw/x.png": ""}
    fill(tmp_path, files | dict.fromkeys(("a.md", "b.npz", "c.zip", "d.csv", "0_off/x.png", "1_none/x.md"), ""))
    scan = scan_folder(tmp_path)
    assert captions(scan) == {"cat.jpg": "a cat", "cat.png": "a cat"}
    assert set(scan.notes) == {
        "subfolder raw is not read; name it 1_raw to use it",
        "subfolder 0_off is not read: 0 repeats leave it out",
        "subfolder 1_none has no pictures",
        "1_none/x.md is no picture",
        "cat2.txt has no picture of that name",
        "cat.caption is not read: a .txt counts before it",
        "cat.jpg and cat.png share the caption cat.txt",
        "4 files are no pictures: a.md, b.npz, c.zip, …",
    }


def test_folder_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"file": "", "sub/raw/a.png": "", "empty/a.txt": ""})
    assert problem(" ") == "no picture folder was given; name the folder that holds the pictures"
    assert problem(tmp_path / "no") == f"picture folder {tmp_path / 'no'} does not exist; check the path"
    assert problem("~nobody here/x") == "picture folder ~nobody here/x does not exist; check the path"
    assert problem(tmp_path / "file") == f"{tmp_path / 'file'} is a file; wanted the folder that holds the pictures"
    assert problem(tmp_path / "empty").startswith(
        f"picture folder {tmp_path / 'empty'} has no pictures; put files that"
    )
    assert problem(tmp_path / "sub") == (
        f"picture folder {tmp_path / 'sub'} has no pictures; its subfolder raw is not read, name it 1_raw "
        "(1 is how often each picture comes in an epoch), or give that folder"
    )

    def refuse(folder: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    assert problem(tmp_path) == f"folder {tmp_path} cannot be read (Permission denied); check its permissions"


def test_a_caption_in_latin_1_is_named_with_its_folder(tmp_path: Path) -> None:
    fill(tmp_path, {"10_x/a.png": "", "10_x/a.txt": "niña".encode("latin-1")})
    wanted = "caption 10_x/a.txt is not UTF-8 text (byte 2); save it again with the encoding UTF-8"
    assert problem(tmp_path) == wanted


def test_links_that_lead_out_are_left_out_and_named(tmp_path: Path) -> None:
    fill(tmp_path, {"out/x.png": "", "out/a.txt": "secret", "set/a.png": "", "set/b.png": ""})
    folder = tmp_path / "set"
    (folder / "x.png").symlink_to(tmp_path / "out/x.png")
    (folder / "a.txt").symlink_to(tmp_path / "out/a.txt")
    (folder / "5_out").symlink_to(tmp_path / "out")
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    (folder / "same.png").symlink_to("b.png")
    (tmp_path / "alias").symlink_to(folder)
    scan = scan_folder(tmp_path / "alias")
    assert captions(scan) == {"a.png": None, "b.png": None, "same.png": None}
    gone = "gone.png is no file, or a link to nothing"
    assert scan.notes == (gone, "3 links lead out of the folder: 5_out, a.txt, x.png")
    for name in ("a.png", "b.png", "same.png", "a.txt", "gone.png", "5_out"):
        (folder / name).unlink()
    wanted = "has no pictures to use: x.png is a link that leads out of the folder; put the files themselves there"
    assert problem(folder) == f"picture folder {folder} {wanted}"


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_name_that_is_not_unicode_is_left_out(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": ""})
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/ni\xf1a.png")).touch()
    except OSError:
        pytest.skip("this file system takes no such name")
    assert scan_folder(tmp_path).notes == ("'ni\\udcf1a.png' is not used: its name is not UTF-8; rename it",)
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/ni\xf1a"))
    folder.mkdir()
    assert problem(folder) == f"picture folder {str(folder)!a} has a name that is not UTF-8; rename it"


# --- kohya's folders ----------------------------------------------------------


def test_kohya_folders_give_repeats_and_class_tokens(tmp_path: Path) -> None:
    fill(
        tmp_path, {"10_sks dog/a.png": "", "10_sks dog/a.txt": "rex", "2_b_c/a.png": "", "z.png": "", "2_b_c/in/x": ""}
    )
    scan = scan_folder(tmp_path)
    assert [(one.name, one.caption, one.repeats, one.subset) for one in scan.sources] == [
        ("z.png", None, 1, ""),
        ("2_b_c/a.png", None, 2, "b_c"),
        ("10_sks dog/a.png", "rex", 10, "sks dog"),
    ]
    assert scan.notes == ("subfolder 2_b_c/in is not read; move its pictures up",)


def test_the_folders_own_name_counts_and_a_date_does_not(tmp_path: Path) -> None:
    fill(tmp_path, {"10_cat/a.png": "", "20240131_trip/a.png": "", "2024/a.png": ""})
    (own,) = scan_folder(tmp_path / "10_cat").sources
    assert (own.name, own.repeats, own.subset) == ("a.png", 10, "cat")
    assert scan_folder(tmp_path / "10_cat").notes == ("the folder's own name counts: its pictures have 10 repeats",)
    (own,) = scan_folder(tmp_path / "20240131_trip").sources
    assert (own.repeats, own.subset) == (1, "")
    assert scan_folder(tmp_path).notes == (
        "subfolder 2024 is not read; name it 1_2024 to use it",
        "subfolder 20240131_trip is not read; name it 1_20240131_trip to use it",
    )


# --- metadata.jsonl -----------------------------------------------------------


def test_metadata_counts_first_and_reaches_into_subfolders(tmp_path: Path) -> None:
    lines = "\ufeff\n" + rows(("a.png", "from\n it"), ("./train/c.png", "c"), ("10_x/d.png", "d"), ("blank.png", " "))
    fill(tmp_path, {"metadata.jsonl": lines, "a.png": "", "a.txt": "no", "b.png": "", "b.txt": "b"})
    fill(tmp_path, {"train/c.png": "", "10_x/d.png": "", "10_x/e.png": "", "blank.png": "", "blank.txt": "beside"})
    fill(tmp_path, {"10_x/metadata.jsonl": json.dumps({"file_name": "e.png", "text": "e", "caption": "-", "n": 1})})
    scan = scan_folder(tmp_path)
    assert captions(scan) == {
        "a.png": "from it",
        "b.png": "b",
        "blank.png": "beside",
        "10_x/d.png": "d",
        "10_x/e.png": "e",
        "train/c.png": "c",
    }
    assert [one.repeats for one in scan.sources] == [1, 1, 1, 10, 10, 1]
    assert scan.notes == ("a.txt is not read: metadata.jsonl counts first",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", f"is not JSON; {ROW}"),
        ("[" * 100_000, f"is not JSON; {ROW}"),
        ("[1]", f"is not an object in braces; {ROW}"),
        ('{"text": "a"}', f'has no "file_name"; {ROW}'),
        ('{"file_name": "a.png"}', f'has no "text"; {ROW}'),
        ('{"file_name": "a.png", "text": 3}', f'has a "text" that is no text (3); {ROW}'),
        ('{"file_name": " ", "text": "a"}', f'has an empty "file_name"; {ROW}'),
        (rows(("a.png", LONE)), 'has half a character in "text" (a lone surrogate); write it again'),
        (rows(("no.png", "")), "names no.png, which is not there; add the picture, or take the line out"),
        (rows(("a\0.png", "")), "names a\\x00.png, which is not there; add the picture, or take the line out"),
        (rows(("b.png", "")), "names b.png again, as line 1 does; keep one of the two"),
        (rows(("../out.png", "")), f"names ../out.png, {OUTSIDE}"),
        (rows(("link/out.png", "")), f"names link/out.png, {OUTSIDE}"),
        (rows(("out.png", "")), f"names out.png, {OUTSIDE}"),
    ],
)
def test_metadata_errors_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    fill(tmp_path, {"out.png": "", "set/a.png": "", "set/b.png": "", "set/metadata.jsonl": rows(("b.png", "b")) + line})
    (tmp_path / "set/out.png").symlink_to(tmp_path / "out.png")
    (tmp_path / "set/link").symlink_to(tmp_path)
    assert problem(tmp_path / "set") == f"metadata.jsonl line 2 {message}"


def test_metadata_errors_of_the_file(tmp_path: Path) -> None:
    fill(tmp_path, {"1_x/a.png": "", "1_x/metadata.jsonl": b"\xf1"})
    wanted = "1_x/metadata.jsonl is not UTF-8 text (byte 0); save it again with the encoding UTF-8"
    assert problem(tmp_path) == wanted
    fill(tmp_path, {"1_x/metadata.jsonl": rows(("a.png", "a")), "metadata.jsonl": rows(("1_x/a.png", "b"))})
    assert problem(tmp_path) == "metadata.jsonl and 1_x/metadata.jsonl both name 1_x/a.png; keep one of the two"
    fill(tmp_path, {"metadata.jsonl": rows(("notes.md", "a"))})
    assert problem(tmp_path).startswith("metadata.jsonl line 1 names notes.md, which is no picture; wanted a file that")


# --- masks --------------------------------------------------------------------


def test_masks_by_name_in_the_same_subfolder_or_directly(tmp_path: Path) -> None:
    fill(tmp_path, {"a.jpg": "", "a.png": "", "b.jpg": "", "c.png": "", "5_x/d.png": "", "5_x/e.png": ""})
    masks = fill(tmp_path / "masks", {"a.jpg": "", "a.png": "", "b.PNG": "", "5_x/d.png": "", "e.bmp": "", "z.png": ""})
    scan = scan_folder(tmp_path, str(masks))
    found = {one.name: one.mask and one.mask.relative_to(masks).as_posix() for one in scan.sources}
    assert found == {
        "a.jpg": "a.jpg",
        "a.png": "a.png",
        "b.jpg": "b.PNG",
        "c.png": None,
        "5_x/d.png": "5_x/d.png",
        "5_x/e.png": "e.bmp",
    }
    assert scan.notes == ("c.png has no mask", "z.png in the mask folder belongs to no picture")


def test_missing_masks_are_one_line(tmp_path: Path) -> None:
    fill(tmp_path, {f"{index}.png": "" for index in range(6)})
    masks = fill(tmp_path / "masks", {"3.png": ""})
    assert scan_folder(tmp_path, str(masks)).notes == ("5 of 6 pictures have no mask: 0.png, 1.png, 2.png, …",)


def test_mask_folder_errors(tmp_path: Path) -> None:
    fill(tmp_path, {"set/a.png": "", "out/a.png": "", "masks/z.png": ""})
    folder, masks = tmp_path / "set", tmp_path / "masks"
    assert problem(folder, str(tmp_path / "no")) == f"mask folder {tmp_path / 'no'} does not exist; check the path"
    none = "has no mask for any of the 1 pictures; name each mask as its picture, such as cat.png for cat.jpg"
    assert problem(folder, str(masks)) == f"mask folder {masks} {none}"
    (masks / "a.png").symlink_to(tmp_path / "out/a.png")
    assert problem(folder, str(masks)) == f"mask folder {masks} {none}"
    same = f"mask folder {folder} is the picture folder too; put the masks into a folder of their own"
    assert problem(folder, str(folder)) == same


def test_a_link_to_itself_is_left_out(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": b"", "a.txt": "a"})
    (tmp_path / "b.png").symlink_to(tmp_path / "b.png")
    scan = scan_folder(tmp_path)
    assert [source.name for source in scan.sources] == ["a.png"]
    assert scan.notes == ("b.png is no file, or a link to nothing",)
