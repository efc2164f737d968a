"""What a folder holds for training: its pictures with captions, repeats, class tokens and masks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from ..checks import is_unicode
from ..errors import InputError
from ..home import expanded
from .captions import CAPTION_ENDINGS, caption_file, read_text
from .imagefolder import METADATA, inside, read_metadata
from .pictures import ENDINGS

__all__ = ["Scan", "Source", "scan_folder"]

MOST_REPEATS = 9999  # above it the number is a date or a count, as in 20240131_holiday
_REPEATS = re.compile(r"([0-9]+)_(.*)", re.DOTALL)


@dataclass(frozen=True)
class Source:
    """A picture file and what belongs to it."""

    name: str  # relative to the folder, with "/"
    path: Path
    caption: str | None  # one line; None: none was written
    repeats: int = 1
    subset: str = ""  # class tokens of its kohya folder: "sks dog" of "10_sks dog"
    mask: Path | None = None


@dataclass(frozen=True)
class Scan:
    """The pictures in their order, and one line for each thing that was not used or may surprise."""

    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()


@dataclass
class _Listing:
    """One folder: its usable files by name, its subfolders, what was left out."""

    prefix: str  # "" or "10_cat/"
    files: dict[str, Path] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def pictures(self) -> list[str]:
        return sorted((name for name in self.files if _is_picture(name)), key=_natural)


def scan_folder(folder: str | Path, mask_folder: str = "") -> Scan:
    """Find the pictures directly in `folder` and in its subfolders named as kohya's trainers want them (10_sks dog).

    Captions come from metadata.jsonl (Hugging Face's image folders), else from the .txt or .caption file beside.
    Nothing outside the real path of the folder is read. Raises InputError for a folder, caption, metadata line or
    mask folder that cannot be used; what else is not used is told in `notes`.
    """
    root = _root(folder, "picture folder")
    masks = _root(mask_folder, "mask folder") if mask_folder.strip() else None
    if masks == root:
        raise InputError(
            f"mask folder {mask_folder} is the picture folder too; put the masks into a folder of their own"
        )
    listings = _listings(root, masks)
    texts, named = _metadata(listings, root)
    notes = _unread(listings, named)
    repeats, subset = _parse(Path(os.path.abspath(expanded(folder))).name)
    if repeats > 1:
        notes.append(f"the folder's own name counts: its pictures have {repeats} repeats")
    sources = []
    for listing in listings:
        kind = _parse(listing.prefix[:-1]) if listing.prefix else (max(repeats, 1), subset if repeats else "")
        found, more = _sources(listing, *kind, texts)
        sources += found
        notes += more
    sources += [Source(name, root / name, texts[name] or None) for name in named]
    if not sources:
        raise _no_pictures(folder, listings[0])
    if masks is not None:
        sources, more = _with_masks(sources, masks, mask_folder)
        notes += more
    return Scan(tuple(sources), tuple(notes))


# --- folders ------------------------------------------------------------------


def _root(folder: str | Path, what: str) -> Path:
    """The real path of a folder that the user named."""
    if not str(folder).strip():
        raise InputError(f"no {what} was given; name the folder that holds the pictures")
    path = expanded(folder)
    if not path.exists():
        raise InputError(f"{what} {path} does not exist; check the path")
    if not path.is_dir():
        raise InputError(f"{path} is a file; wanted the folder that holds the pictures")
    real = os.path.realpath(path)
    if not is_unicode(real):
        raise InputError(f"{what} {real!a} has a name that is not UTF-8; rename it")
    return Path(real)


def _list(folder: Path, prefix: str, root: Path) -> _Listing:
    """List a folder without its hidden files, and without what links lead out of `root` to."""
    listing, outside = _Listing(prefix), list[str]()
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        what = f"subfolder {prefix[:-1]}" if prefix else f"folder {folder}"
        raise InputError(f"{what} cannot be read ({error.strerror}); check its permissions") from error
    for entry in entries:
        name = prefix + entry.name
        if not is_unicode(entry.name):
            listing.notes.append(f"{name!a} is not used: its name is not UTF-8; rename it")
        elif entry.is_symlink() and not inside(entry.path, root):
            outside.append(entry.name)
        elif os.path.isdir(entry.path):  # a link to itself is no folder here, and an error to `entry`
            listing.folders.append(entry.name)
        elif os.path.isfile(entry.path):
            listing.files[entry.name] = folder / entry.name
        else:
            listing.notes.append(f"{name} is no file, or a link to nothing")
    listing.folders.sort(key=_natural)
    listing.notes += _note(prefix, outside, "is a link that leads out of the folder", "links lead out of the folder")
    return listing


def _listings(root: Path, masks: Path | None) -> list[_Listing]:
    """The folder, then its subfolders with repeats; the masks, where they lie inside, are no part of it."""
    top = _list(root, "", root)
    if masks is not None:
        top.folders = [name for name in top.folders if Path(os.path.realpath(root / name)) != masks]
    return [top, *(_list(root / name, f"{name}/", root) for name in top.folders if _parse(name)[0])]


def _unread(listings: Sequence[_Listing], named: Sequence[str]) -> list[str]:
    """Notes on the subfolders that nothing was read from: not those of the pictures `named` in metadata.jsonl."""
    used = {str(parent) for name in named for parent in PurePosixPath(name).parents}
    used |= {listing.prefix[:-1] for listing in listings}
    notes = [note for listing in listings for note in listing.notes]
    notes += [f"subfolder {one.prefix[:-1]} has no pictures" for one in listings[1:] if not one.pictures()]
    for name in (listing.prefix + folder for listing in listings for folder in listing.folders):
        match = _REPEATS.fullmatch(name)
        if name in used:
            continue
        if "/" in name:
            notes.append(f"subfolder {name} is not read; move its pictures up")
        elif match and not match[1].strip("0"):
            notes.append(f"subfolder {name} is not read: 0 repeats leave it out")
        else:
            notes.append(f"subfolder {name} is not read; name it 1_{name} to use it")
    return notes


def _parse(name: str) -> tuple[int, str]:
    """Repeats and class tokens in the name of a folder; 0 repeats when it has none."""
    match = _REPEATS.fullmatch(name)
    if not match or len(match[1]) > len(str(MOST_REPEATS)):
        return 0, ""
    return int(match[1]), match[2].strip()


def _no_pictures(folder: str | Path, top: _Listing) -> InputError:
    path = expanded(folder)
    others = [name for name in top.folders if not _parse(name)[0]]
    if top.notes:
        return InputError(
            f"picture folder {path} has no pictures to use: {top.notes[0]}; put the files themselves there"
        )
    if others:
        return InputError(
            f"picture folder {path} has no pictures; its subfolder {others[0]} is not read, "
            f"name it 1_{others[0]} (1 is how often each picture comes in an epoch), or give that folder"
        )
    return InputError(
        f"picture folder {path} has no pictures; put files that end in {' '.join(ENDINGS)} directly into it"
    )


# --- captions -----------------------------------------------------------------


def _metadata(listings: Sequence[_Listing], root: Path) -> tuple[dict[str, str], list[str]]:
    """Captions by picture from every metadata.jsonl, and the pictures that only it names."""
    texts: dict[str, str] = {}
    for listing in listings:
        if METADATA not in listing.files:
            continue
        rows = read_metadata(root / listing.prefix, listing.prefix + METADATA, listing.files)
        for picture, text in rows.items():
            name = listing.prefix + picture
            if name in texts:
                raise InputError(f"{METADATA} and {listing.prefix}{METADATA} both name {name}; keep one of the two")
            texts[name] = text
    known = {listing.prefix + name for listing in listings for name in listing.files}
    return texts, sorted(texts.keys() - known, key=_natural)


def _sources(listing: _Listing, repeats: int, subset: str, texts: dict[str, str]) -> tuple[list[Source], list[str]]:
    """The pictures of one folder with their captions, and notes on its other files."""
    sources: list[Source] = []
    readers: dict[str, list[str]] = {}  # caption file -> pictures that it serves
    replaced: set[str] = set()
    captions: dict[str, str | None] = {}
    for picture in listing.pictures():
        name = listing.prefix + picture
        file, caption = caption_file(picture, listing.files), texts.get(name) or None
        if caption is None and file is not None:
            readers.setdefault(file, []).append(picture)
            if file not in captions:
                captions[file] = read_text(listing.files[file], listing.prefix + file)
            caption = captions[file]
        elif file is not None:
            replaced.add(file)
        sources.append(Source(name, listing.files[picture], caption, repeats, subset))
    return sources, _file_notes(listing, readers, replaced - readers.keys())


def _file_notes(listing: _Listing, readers: dict[str, list[str]], replaced: set[str]) -> list[str]:
    stems = {PurePosixPath(name).stem for name in listing.files if _is_picture(name)}
    beside = {name for name in listing.files if name.endswith(CAPTION_ENDINGS)}
    spare = [name for name in beside if name not in readers and name not in replaced]
    lonely = [name for name in spare if PurePosixPath(name).stem not in stems]
    second = [name for name in spare if PurePosixPath(name).stem in stems]
    strange = [name for name in listing.files if not _is_picture(name) and name not in beside and name != METADATA]
    shared = [f"{' and '.join(names)} share the caption {file}" for file, names in readers.items() if len(names) > 1]
    prefix = listing.prefix
    return [
        *_note(prefix, lonely, "has no picture of that name", "captions have no picture of that name"),
        *_note(prefix, second, "is not read: a .txt counts before it", "captions are not read: a .txt counts first"),
        *_note(prefix, replaced, f"is not read: {METADATA} counts first", f"captions are not read: {METADATA} counts"),
        *_note(prefix, shared, "", "captions are shared"),
        *_note(prefix, strange, "is no picture", "files are no pictures"),
    ]


def _note(prefix: str, names: Iterable[str], one: str, many: str) -> list[str]:
    """No line for no name, "a.txt <one>" for one, "7 <many>: a.txt, b.txt, c.txt, …" for more."""
    names = [prefix + name for name in sorted(names, key=_natural)]
    if len(names) < 2:
        return [f"{name} {one}".rstrip() for name in names]
    return [f"{len(names)} {many}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"]


# --- masks --------------------------------------------------------------------


def _with_masks(sources: list[Source], root: Path, given: str) -> tuple[list[Source], list[str]]:
    """Each picture with the mask of its name, from the same subfolder of `root` or directly from it."""
    parents = {str(PurePosixPath(source.name).parent) for source in sources} | {"."}
    there = [parent for parent in sorted(parents) if (root / parent).is_dir() and inside(root / parent, root)]
    listings = {parent: _list(root / parent, "" if parent == "." else f"{parent}/", root) for parent in there}
    by_stem = {parent: _by_stem(listing) for parent, listing in listings.items()}
    masked = [replace(source, mask=_mask_of(source.name, by_stem)) for source in sources]
    bare = [source.name for source in masked if source.mask is None]
    if len(bare) == len(masked):
        raise InputError(
            f"mask folder {given} has no mask for any of the {len(masked)} pictures; "
            "name each mask as its picture, such as cat.png for cat.jpg"
        )
    used = {source.mask for source in masked}
    lonely = [
        listing.prefix + name
        for listing in listings.values()
        for name in listing.pictures()
        if listing.files[name] not in used
    ]
    links = [f"mask folder: {note}" for listing in listings.values() for note in listing.notes]
    return masked, [
        *links,
        *_note("", bare, "has no mask", f"of {len(masked)} pictures have no mask"),
        *_note("", lonely, "in the mask folder belongs to no picture", "masks belong to no picture"),
    ]


def _by_stem(listing: _Listing) -> dict[str, list[Path]]:
    stems: dict[str, list[Path]] = {}
    for name in listing.pictures():
        stems.setdefault(PurePosixPath(name).stem, []).append(listing.files[name])
    return stems


def _mask_of(name: str, by_stem: dict[str, dict[str, list[Path]]]) -> Path | None:
    picture = PurePosixPath(name)
    for parent in (str(picture.parent), "."):
        found = by_stem.get(parent, {}).get(picture.stem)
        if found:  # the very name first, then the order of ENDINGS, which begins with what has no loss
            return min(found, key=lambda path: (path.name != picture.name, ENDINGS.index(path.suffix.lower())))
    return None


# --- names --------------------------------------------------------------------


def _is_picture(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def _natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that puts 2.png before 10.png, the same on every machine."""
    parts = re.split(r"([0-9]+)", name.casefold())
    # Numbers and words never meet in a comparison: odd positions are numbers, even ones are words.
    return [(1, int(part), "") if index % 2 else (0, 0, part) for index, part in enumerate(parts)], name
