"""The store of encoded pictures and captions: what comes back, what survives, what is thrown away."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trilora_core.data import database, watch
from trilora_core.data.cache import DiskStore, Facts, MemoryStore, Store, default_cache_folder
from trilora_core.data.codec import decode, encode
from trilora_core.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
PLENTY = 10**9
FACTS = Facts(b"d" * 32, 640, 480, True, "")


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def assert_same(got: Any, wanted: Any) -> None:
    assert type(got) is type(wanted)
    if isinstance(wanted, Tensor):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape and torch.equal(bits(got), bits(wanted))
    elif isinstance(wanted, dict):
        assert list(got) == list(wanted)
        for key in wanted:
            assert_same(got[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            assert_same(one, other)
    else:
        assert repr(got) == repr(wanted)  # tells -0.0 from 0.0


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "data.sqlite"


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else DiskStore(path, PLENTY)


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as old at once."""
    monkeypatch.setattr(watch, "RACY_NS", 0)
    file = tmp_path / "a.png"
    file.write_bytes(b"first")
    time.sleep(0.02)
    return file


# ---- codec


def test_nested_structures_come_back_bit_equal() -> None:
    base = normal(4, 6)
    value = {
        "cond": [normal(1, 7, 5), {"pooled": normal(5).to(torch.bfloat16), "mask": torch.tensor([True, False])}],
        "tuple": (1, 2.5, -0.0, float("inf"), None, True, "é\n\ud800", 2**70, ()),
        "empty": [torch.empty(0, 3), torch.empty(0, dtype=torch.int64), [], {}],
        "ints": [torch.arange(5, dtype=kind) for kind in (torch.uint8, torch.int8, torch.int16, torch.int32)],
        "half": normal(3).half(),
        "double": normal(3).double(),
        "eight": normal(8).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(0.1),
        "views": (base, base.t(), base[1:], base[:, ::2], base),
        "tensor": ["tensor", "0", "float32"],  # looks like the way in which tensors are written
    }
    assert_same(decode(encode(value)), value)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_float32_of_few_bits_is_stored_in_half_the_size(kind: torch.dtype) -> None:
    wide = normal(100, 100).to(kind).float()
    assert len(encode(wide)) < 0.55 * len(encode(normal(100, 100)))
    assert_same(decode(encode(wide)), wide)


SPECIAL = {
    "signs and specials": [0.0, -0.0, float("inf"), -float("inf"), float("nan")],
    "denormal in float16": [2.0**-24, -(2.0**-20)],
    "denormal in float32": [2.0**-149, -(2.0**-130)],
    "too large for float16": [65536.0, 3.0],
    "too fine for both": [1.0 + 2**-12, 65536.0],
    "not even in float16": [1.0 + 2**-11],
    "just in float16": [1.0 + 2**-10],
}


@pytest.mark.parametrize("values", SPECIAL.values(), ids=SPECIAL)
def test_narrowing_loses_nothing(values: list[float]) -> None:
    tensor = torch.tensor(values * 9)
    assert_same(decode(encode(tensor)), tensor)


def test_nan_with_a_payload_survives() -> None:
    tensor = torch.tensor([0x7FC00001, -0x3FFFFF, 0x7FE00000], dtype=torch.int32).view(torch.float32)
    assert_same(decode(encode(tensor)), tensor)


class Thing:
    pass


def looped() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


UNPLAIN: dict[str, Callable[[], Any]] = {
    "object": Thing,
    "inside": lambda: [{"a": Thing()}],
    "integer keys": lambda: {1: 2},
    "set": lambda: {1},
    "bytes": lambda: b"x",
    "complex tensor": lambda: torch.zeros(2, dtype=torch.complex64),
    "sparse tensor": lambda: torch.eye(2).to_sparse(),
    "meta tensor": lambda: torch.zeros(2, device="meta"),
    "parameter": lambda: torch.nn.Parameter(torch.zeros(2)),
    "cycle": looped,
}


@pytest.mark.parametrize("make", UNPLAIN.values(), ids=UNPLAIN)
def test_what_is_not_plain_is_refused_by_the_codec_and_kept_by_the_store(make: Callable[[], Any], path: Path) -> None:
    value = make()
    with pytest.raises(TypeError):
        encode(value)
    store = DiskStore(path, PLENTY)
    store.put("a", value)
    store.flush()
    assert store.get("a") is value and store.missing(["a"]) == set()
    assert DiskStore(path, PLENTY).missing(["a"]) == {"a"}


def test_a_changed_byte_is_noticed() -> None:
    blob = encode([normal(8), "text"])
    for place in (0, 5, 9, len(blob) // 2, len(blob) - 1):
        with pytest.raises(ValueError):
            decode(blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :])
    for short in (b"", blob[:5], blob[:-1]):
        with pytest.raises(ValueError):
            decode(short)


# ---- both stores


def test_put_get_missing(store: Store) -> None:
    assert store.missing(["a", "b"]) == {"a", "b"}
    store.put("a", (normal(2, 3), {"k": 1}))
    assert store.missing(iter(["a", "b"])) == {"b"}
    assert_same(store.get("a"), (normal(2, 3), {"k": 1}))
    store.flush()
    assert_same(store.get("a"), (normal(2, 3), {"k": 1}))
    store.put("a", normal(2, seed=1))
    assert_same(store.get("a"), normal(2, seed=1))
    store.flush()
    assert_same(store.get("a"), normal(2, seed=1))
    with pytest.raises(KeyError, match="b"):
        store.get("b")


def test_facts_hold_until_the_file_changes(store: Store, picture: Path) -> None:
    assert store.facts(picture) is None
    store.remember(picture, FACTS)
    assert store.facts(picture) == FACTS
    store.flush()
    assert store.facts(picture) == FACTS
    picture.write_bytes(b"longer than the first")
    assert store.facts(picture) is None


def test_an_edit_that_keeps_size_and_time_is_noticed(store: Store, picture: Path) -> None:
    store.facts(picture)
    store.remember(picture, FACTS)
    before = picture.stat()
    picture.write_bytes(b"other")
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = picture.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert store.facts(picture) is None


def test_another_file_in_its_place_is_noticed(store: Store, picture: Path) -> None:
    store.facts(picture)
    store.remember(picture, FACTS)
    other = picture.with_name("b.png")
    other.write_bytes(b"other")
    os.utime(other, ns=(picture.stat().st_atime_ns, picture.stat().st_mtime_ns))
    other.replace(picture)
    assert store.facts(picture) is None
    picture.unlink()
    assert store.facts(picture) is None


def test_an_edit_between_reading_and_remembering_is_noticed(store: Store, picture: Path) -> None:
    assert store.facts(picture) is None  # then the caller reads the file
    picture.write_bytes(b"other")
    time.sleep(0.02)
    store.remember(picture, FACTS)
    assert store.facts(picture) is None
    store.remember(picture.with_name("gone.png"), FACTS)
    assert store.facts(picture.with_name("gone.png")) is None


def test_a_file_written_just_now_is_not_trusted(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit in the same tick of the clock would give it the same times."""
    file = tmp_path / "a.png"
    file.write_bytes(b"first")
    old = time.time() - 3600
    os.utime(file, (old, old))  # the change time still is now
    store.facts(file)
    now = time.time_ns()
    monkeypatch.setattr(watch.time, "time_ns", lambda: now + 10 * 10**9)  # reading took ten seconds
    store.remember(file, FACTS)
    assert store.facts(file) is None
    store.remember(file, FACTS)
    assert store.facts(file) == FACTS


# ---- the file


def test_values_and_facts_outlive_the_store(path: Path, picture: Path) -> None:
    unreadable = Facts(b"", 0, 0, False, "unknown format")
    name = os.fsencode(picture.parent) + b"/\xff.png"
    odd = Path(os.fsdecode(name))
    try:
        odd.write_bytes(b"x")
    except OSError:  # a file system that wants valid text
        odd = picture.with_name("odd.png")
        odd.write_bytes(b"x")
    time.sleep(0.02)
    store = DiskStore(path, PLENTY)
    store.put("a", [normal(3, 4), 1])
    for file, facts in ((picture, FACTS), (odd, unreadable)):
        store.facts(file)
        store.remember(file, facts)
    store.close()
    again = DiskStore(path, PLENTY)
    assert again.missing(["a", "b"]) == {"b"}
    assert_same(again.get("a"), [normal(3, 4), 1])
    assert again.facts(picture) == FACTS and again.facts(odd) == unreadable


def test_autograd_may_use_what_comes_back_in_inference_mode(path: Path) -> None:
    store = DiskStore(path, PLENTY)
    with torch.inference_mode():
        value = torch.ones(3) * 2
        assert value.is_inference()
        store.put("a", value)
        waiting = store.get("a")
        store.flush()
        read = store.get("a")
    store.put("b", value)  # an inference tensor outside inference mode
    for got in (waiting, read, store.get("b")):
        weight = torch.ones(3, requires_grad=True)
        (weight * got).sum().backward()
        assert weight.grad is not None and weight.grad.tolist() == [2, 2, 2]
        got.add_(1)  # its own memory


def test_threads_share_a_store(path: Path) -> None:
    store = DiskStore(path, PLENTY)
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for index in range(20):
                store.put(f"{number} {index}", normal(50, seed=100 * number + index))
                assert_same(store.get(f"{number} {index // 2}"), normal(50, seed=100 * number + index // 2))
                if index % 7 == 0:
                    store.flush()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert store.missing(f"{number} {index}" for number in range(4) for index in range(20)) == set()


PUT = """
import sys, time
from pathlib import Path
import torch
from trilora_core.data.cache import DiskStore
path, name, count, wait = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
print("ready", flush=True)
store = DiskStore(path, 10**9)
for index in range(count):
    store.put(f"{name} {index}", torch.full((5000,), index + 0.1))
    print(index, flush=True)
    time.sleep(wait)
store.flush()
"""


def test_processes_share_a_file(path: Path) -> None:
    """All begin a new file at about the same time, and write to it at the same time."""
    others = [python(PUT, path, name, 30, 0) for name in ("x", "y")]
    for other in others:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
    store = DiskStore(path, PLENTY)
    for index in range(30):
        store.put(f"z {index}", torch.full((5000,), index + 0.1))
        store.flush()
    assert [other.wait(60) for other in others] == [0, 0]
    assert store.missing(f"{name} {index}" for name in "xyz" for index in range(30)) == set()
    assert_same(store.get("x 29"), torch.full((5000,), 29.1))
    for other in others:
        other.communicate()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_killed_writer_loses_the_last_second_at_most(path: Path) -> None:
    with python(PUT, path, "k", 10_000, 0.01) as writer:
        assert writer.stdout is not None
        written: list[float] = []
        writer.stdout.readline()
        while not written or time.monotonic() - written[0] < 2.3:
            writer.stdout.readline()
            written.append(time.monotonic())
        writer.kill()
        killed = time.monotonic()
    store = DiskStore(path, PLENTY)
    keys = [f"k {index}" for index in range(len(written))]
    missing = store.missing(keys)
    safe = sum(killed - moment > 1.5 for moment in written)
    assert safe > 10 and not missing & set(keys[:safe])
    for index, key in enumerate(keys):
        if key not in missing:
            assert_same(store.get(key), torch.full((5000,), index + 0.1))
    store.put("on", 1)
    store.close()


def fill(path: Path, count: int = 40) -> None:
    store = DiskStore(path, PLENTY)
    for index in range(count):
        store.put(str(index), normal(5000, seed=index))
    store.close()


def no_database(path: Path) -> None:
    path.write_bytes(b"this is a text, not a database\n" * 1000)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50_000])


def scribbled(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100:] = b"\x5a" * (len(data) - 100)
    path.write_bytes(bytes(data))


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (a)")
    db.close()


@pytest.mark.parametrize("spoil", [no_database, cut_short, scribbled, foreign])
def test_a_broken_file_is_moved_aside(
    spoil: Callable[[Path], None], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(path)
    spoil(path)
    spoilt = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        store = DiskStore(path, PLENTY)
        for index in range(40):
            if str(index) not in store.missing([str(index)]):
                with pytest.raises(KeyError):  # found out at the first value that is not there any more
                    store.get(str(index))
                break
        store.put("a", 1)
        store.flush()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "data.sqlite.broken" in caplog.text
    assert (path.parent / "data.sqlite.broken").read_bytes()[:100] == spoilt[:100]
    store.close()
    again = DiskStore(path, PLENTY)
    assert again.get("a") == 1 and again.missing(["1"]) == {"1"}


def test_a_broken_entry_counts_as_missing_and_goes(path: Path) -> None:
    fill(path, 3)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE blobs SET data = zeroblob(100) WHERE id = (SELECT id FROM entries WHERE key = '1')")
    db.close()
    store = DiskStore(path, PLENTY)
    with pytest.raises(KeyError):
        store.get("1")
    assert store.missing(["0", "1", "2"]) == {"1"}
    store.put("1", 5)
    store.flush()
    assert store.get("1") == 5


def test_another_version_is_begun_anew(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(path)
    large = path.stat().st_size
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {database.VERSION + 1}")
    db.close()
    store = DiskStore(path, PLENTY)
    assert store.missing(["0"]) == {"0"} and not caplog.records
    store.put("0", 1)
    store.close()
    assert DiskStore(path, PLENTY).get("0") == 1
    assert path.stat().st_size < large / 3


def test_the_longest_unused_go_first_and_give_back_their_space(path: Path) -> None:
    fill(path, 30)  # about 20 KB each
    again = DiskStore(path, PLENTY)
    assert not again.missing(str(index) for index in range(10))  # used once more
    again.put("new", normal(5000))
    again.close()
    large = path.stat().st_size
    store = DiskStore(path, 9 * 20_200)
    assert not store.missing(["5"])
    assert_same(store.get("25"), normal(5000, seed=25))
    store.flush()
    left = {str(index) for index in range(30)} - store.missing(str(index) for index in range(30))
    assert left == {"3", "4", "5", "6", "7", "8", "9", "25"}  # and "new", nine in all
    assert not store.missing(["new"])
    assert path.stat().st_size < large / 2
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM blobs").fetchone() == (9,)
    db.close()


def test_what_this_run_uses_stays_whatever_the_limit(path: Path) -> None:
    fill(path, 3)
    store = DiskStore(path, 1)
    assert not store.missing(["0"])
    store.get("1")
    store.put("new", normal(5000))
    store.flush()
    assert store.missing(["0", "1", "2", "new"]) == {"2"}


def test_an_entry_that_is_replaced_leaves_nothing_behind(path: Path) -> None:
    store = DiskStore(path, PLENTY)
    for index in range(3):
        store.put("a", normal(5000, seed=index))
        store.flush()
    store.close()
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM blobs").fetchone() == (1,)
    db.close()


def test_ten_thousand_keys_are_looked_up_at_once(path: Path) -> None:
    store = DiskStore(path, PLENTY)
    keys = [f"{index:064x}" for index in range(10_000)]
    for key in keys[::2]:
        store.put(key, None)
    store.flush()
    statements: list[str] = []
    store._db.set_trace_callback(statements.append)
    begin = time.perf_counter()
    assert store.missing(keys) == set(keys[1::2])
    assert time.perf_counter() - begin < 2
    assert len(statements) < 20


# ---- a cache that cannot be used

WHAT_TO_DO = r"choose another cache folder, or keep the cache in memory$"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cannot use the cache .*data\.sqlite: (Not a directory|File exists).*; "):
        DiskStore(tmp_path / "file" / "sub" / "data.sqlite", PLENTY)
    (tmp_path / "data.sqlite").mkdir()
    with pytest.raises(InputError, match=r"unable to open database file; " + WHAT_TO_DO):
        DiskStore(tmp_path / "data.sqlite", PLENTY)


def test_a_full_disk_is_refused(path: Path) -> None:
    store = DiskStore(path, PLENTY)
    store._db.execute("PRAGMA max_page_count = 20")  # SQLite then fails as it does on a full disk
    with pytest.raises(InputError, match=r"the disk is full; " + WHAT_TO_DO):
        store.put("a", normal(200_000))  # on a slow machine a second has passed, and it is written at once
        store.flush()
    assert_same(store.get("a"), normal(200_000))
    store._db.execute("PRAGMA max_page_count = 100000")
    store.flush()
    assert_same(store.get("a"), normal(200_000))


def test_a_lock_that_stays_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.1)
    store = DiskStore(path, PLENTY)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    store.put("a", 1)
    with pytest.raises(InputError, match=r"another program has kept it locked for 0\.1 seconds; " + WHAT_TO_DO):
        store.flush()
    other.close()
    store.flush()
    assert DiskStore(path, PLENTY).get("a") == 1


def test_the_folder_follows_the_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRILORA_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    assert default_cache_folder() == tmp_path / ".cache" / "trilora"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_folder() == tmp_path / "xdg" / "trilora"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert default_cache_folder() == tmp_path / "Library" / "Caches" / "trilora"
    monkeypatch.setattr(sys, "platform", "win32")
    assert default_cache_folder() == tmp_path / "AppData" / "Local" / "trilora"
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert default_cache_folder() == tmp_path / "local" / "trilora"
    monkeypatch.setenv("TRILORA_CACHE", str(tmp_path / "mine"))
    assert default_cache_folder() == tmp_path / "mine"
