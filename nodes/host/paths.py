"""Names of folders and files that a workflow may hold, and the places that they stand for."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from glob import escape
from pathlib import Path

import folder_paths

from ...trilora_core.calibration import SUFFIX as CALIBRATION
from ...trilora_core.errors import InputError

__all__ = [
    "NO_FOLDER",
    "NO_LORA",
    "check_dataset_folder",
    "check_lora",
    "check_mask_folder",
    "dataset_fingerprint",
    "dataset_folder",
    "dataset_folders",
    "kept_files",
    "kept_fingerprint",
    "lora_file",
    "lora_files",
    "lora_fingerprint",
    "mask_fingerprint",
    "mask_folders",
    "name_below_loras",
    "numbered_file",
    "output_folder",
    "prior_folder",
    "state_fingerprint",
    "unique_file",
]

NO_FOLDER = "(no folder yet: put pictures into a folder below ComfyUI's input)"
NO_LORA = "(no file yet: put a LoRA into ComfyUI's models/loras)"
REGISTERED = "trilora_datasets"  # the entry in the host's extra_model_paths file
SUFFIX = " [datasets]"
NO_MASK_FOLDER = ("none", "alpha")  # the other choices of the masks widget
PRIOR = "trilora_prior"  # below input/
OUTPUT = "trilora"  # below loras
LONGEST = 200  # bytes of a name: systems allow 255, and counters, steps and endings follow it
# Separators, what Windows or terminals take for more than a letter, dots and blanks at the end, and names of devices.
NO_NAME = re.compile(
    r"[\x00-\x1f\x7f-\x9f\ud800-\udfff<>:\"|?*]|[. ]$|^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE
)
KEPT = re.compile(r"(.+)_step_(\d+)\.safetensors")  # as `milestones.step_path` has it


def dataset_folders() -> list[str]:
    """Names for the folder widget: below input/ as `name`, below registered places as `name [datasets]`."""
    names = list(_below(_input_root()))
    names += [name + SUFFIX for root in _registered_roots() for name in _below(root)]
    return sorted(dict.fromkeys(names)) or [NO_FOLDER]


def dataset_folder(name: str) -> Path:
    """Resolve a name of `dataset_folders`; a name that leaves its root or is no folder raises InputError."""
    if not isinstance(name, str):  # the graph of a stranger can hold anything
        raise InputError(f"folder is {name!r:.80}; wanted a name. {_how_to_add()}")
    if name == NO_FOLDER:
        raise InputError(f"there is no folder of pictures yet. {_how_to_add()}")
    places = [(_input_root(), name)]  # whose folders may end in what marks registered ones, too
    if name.endswith(SUFFIX):
        places = [(root, name.removesuffix(SUFFIX)) for root in _registered_roots()] + places
    for root, below in places:
        folder = _inside(root, below)
        if folder is not None and os.path.isdir(folder):  # False where the name is too long, too
            return folder
    raise InputError(f'there is no folder "{name}" (links that lead elsewhere do not count). {_how_to_add()}')


def check_dataset_folder(name: str | None) -> bool | str:
    """Validate the folder widget: True, or the reason why the name cannot be used (None: it comes over a link)."""
    return _valid(dataset_folder, name)


def mask_folders() -> list[str]:
    """Choices for the masks widget: none, alpha, then the names of folders."""
    return [*NO_MASK_FOLDER, *(name for name in dataset_folders() if name not in (*NO_MASK_FOLDER, NO_FOLDER))]


def check_mask_folder(name: str | None) -> bool | str:
    """Validate the masks widget: True, or the reason why the name cannot be used (None: it comes over a link)."""
    return True if name in NO_MASK_FOLDER else _valid(dataset_folder, name)


def prior_folder(key: str) -> Path:
    """The folder of the class pictures of one kind, below input/, so that the folder widgets list it too."""
    return _input_root() / PRIOR / key


def lora_files() -> list[str]:
    """Names for the file widget: everything that the host lists below its loras folders, but calibrations."""
    names = folder_paths.get_filename_list("loras")
    return [name for name in names if not name.endswith(CALIBRATION)] or [NO_LORA]


def lora_file(name: str) -> Path:
    """Resolve a name of `lora_files`; only what the host itself lists is opened, else InputError."""
    if name not in folder_paths.get_filename_list("loras"):
        raise InputError(
            f'the LoRA file "{name}" is not in models/loras; choose one from the list (press R to refresh)'
        )
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise InputError(f'the LoRA file "{name}" is a link to a file that is not there; choose another one')
    return Path(path)


def kept_files(name: str) -> dict[int, Path]:
    """The adapters by step that Train TriLoRA kept of a run of this name, in order; those of Train's own folder first.

    Only files that the host lists below loras are looked at, whatever `name` holds.
    """
    found: dict[str, dict[int, Path]] = {}
    for listed in folder_paths.get_filename_list("loras"):
        folder, _, file = listed.replace("\\", "/").rpartition("/")
        match = KEPT.fullmatch(file)
        if match and match[1] == name:
            found.setdefault(folder, {})[int(match[2])] = lora_file(listed)
    of_train = found.get(OUTPUT) or next(iter(found.values()), {})
    return dict(sorted(of_train.items()))


def kept_fingerprint() -> str:
    """Hash the facts of all files that `kept_files` may give, as `dataset_fingerprint`."""
    names = folder_paths.get_filename_list("loras")
    kept = sorted(name for name in names if KEPT.fullmatch(name.replace("\\", "/").rpartition("/")[2]))
    return hashlib.sha256("".join(map(lora_fingerprint, kept)).encode()).hexdigest()


def check_lora(name: str | None) -> bool | str:
    """Validate the file widget: True, or the reason why the name cannot be used (None: it comes over a link)."""
    return _valid(lora_file, name)


def output_folder() -> Path:
    """The folder loras/trilora/ of the host, made if it is not there."""
    folder = _loras_root() / OUTPUT
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder} ({error.strerror}); check its permissions") from error
    return folder


def name_below_loras(path: Path) -> str:
    """What the host calls a file of `output_folder`, with slashes: trilora/my_style.safetensors."""
    return path.relative_to(_loras_root()).as_posix()


def unique_file(folder: Path, stem: str, suffix: str = ".safetensors") -> Path:
    """Give folder/stem.suffix, or with _2, _3 … behind the stem if it is taken; `stem` may not name another folder."""
    if not _is_name(stem) or "/" in stem or "\\" in stem:
        raise InputError(f'"{stem}" is not a file name; use a name without slashes, such as my_style')
    count, path = 1, folder / (stem + suffix)
    while path.exists():
        count += 1
        path = folder / f"{stem}_{count}{suffix}"
    return path


def numbered_file(prefix: str) -> Path:
    """Give the next free <prefix>_<number>_.safetensors below loras, numbered as the host's own save nodes do."""
    root = _loras_root()
    parts = re.split(r"[/\\]", prefix)
    if not all(map(_is_name, parts)) or _inside(root, prefix) is None:
        raise InputError(
            f'filename_prefix is "{prefix}"; wanted a name below models/loras, such as my_style or trilora/my_style'
        )
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, str(root))
    except OSError as error:
        raise InputError(f"cannot write below {root} ({error.strerror}); check its permissions") from error
    return Path(folder) / f"{name}_{counter:05}_.safetensors"


def dataset_fingerprint(name: str | None) -> str:
    """Hash what lies in a folder, so that the host runs again when a file changes. Never raises.

    A name that comes over a link is not known here (None): then everything below the roots counts.
    """
    return _fingerprint(dataset_folder, name, [_input_root(), *_registered_roots()])


def mask_fingerprint(name: str | None) -> str:
    """Hash the masks of a name of `mask_folders`, as `dataset_fingerprint`."""
    return str(name) if name in NO_MASK_FOLDER else dataset_fingerprint(name)


def lora_fingerprint(name: str | None) -> str:
    """Hash the facts of one LoRA file, as `dataset_fingerprint`."""
    return _fingerprint(lora_file, name, [Path(root) for root in folder_paths.get_folder_paths("loras")])


def state_fingerprint(name: str | None) -> str:
    """Hash the facts of the states that runs of this name left, of all where it is not known (None). Never raises."""
    folder, stem = _loras_root() / OUTPUT, "" if name is None else escape(str(name))
    try:
        states = sorted((path.name, path.stat()) for path in folder.glob(f"{stem}*.state"))
    except (OSError, ValueError) as error:  # a name that no file can have: the node's own run refuses it
        return str(error)
    told = "".join(f"{file}|{facts.st_size}|{facts.st_mtime_ns}\n" for file, facts in states)
    return hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()


def _fingerprint(resolve: Callable[[str], Path], name: str | None, roots: list[Path]) -> str:
    digest = hashlib.sha256()
    try:
        # a root that is not there yet may not hide what changes below the others
        for place in [root for root in roots if root.exists()] if name is None else [resolve(name)]:
            for file, facts in [(str(place), place.stat())] if place.is_file() else _files(str(place)):
                told = f"{file}|{facts.st_size}|{facts.st_mtime_ns}|{facts.st_ctime_ns}\n"
                digest.update(told.encode(errors="surrogatepass"))
    except (InputError, OSError) as error:
        return f"{name}: {error}"  # the node's own run gives the reason
    return digest.hexdigest()


def _files(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """Every file below a folder, sorted, but hidden ones; folders that are links are not entered."""
    with os.scandir(folder) as found:
        entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(entry.path)
        elif os.path.isfile(entry.path):  # links to files count, with the file's own facts; those to themselves do not
            yield entry.path, entry.stat()


def _valid(resolve: Callable[[str], Path], name: str | None) -> bool | str:
    if name is None:
        return True
    try:
        resolve(name)
    except InputError as error:
        return str(error)
    return True


def _input_root() -> Path:
    return Path(folder_paths.get_input_directory())


def _loras_root() -> Path:
    return Path(os.path.abspath(folder_paths.get_folder_paths("loras")[0]))


def _registered_roots() -> list[Path]:
    if REGISTERED not in folder_paths.folder_names_and_paths:
        return []
    return [Path(root) for root in folder_paths.get_folder_paths(REGISTERED)]


def _below(root: Path) -> Iterator[str]:
    for current, folders, _ in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            folder = Path(current) / name
            if not folder.is_symlink():  # a link may leave the root, and `dataset_folder` would then refuse it
                yield folder.relative_to(root).as_posix()


def _inside(root: Path, name: str) -> Path | None:
    """Resolve links and dots of root/name; None if the result is the root itself or lies elsewhere."""
    try:
        base, place = Path(os.path.realpath(root)), Path(os.path.realpath(root / name))
    except ValueError:  # a null byte
        return None
    return place if base in place.parents else None


def _is_name(name: str) -> bool:
    """Whether a file or folder may be called so on every system that a workflow can be opened on."""
    return bool(name) and NO_NAME.search(name) is None and len(os.fsencode(name)) <= LONGEST


def _how_to_add() -> str:
    return (
        f"Make a folder below {_input_root()}, put pictures (and .txt captions of the same name) into it and press R "
        f'to refresh; or register another place under "{REGISTERED}" in extra_model_paths.yaml.'
    )
