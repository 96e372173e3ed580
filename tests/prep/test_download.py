"""Tars from a list of links, from a server that does what servers do: equal bytes, or a sentence that says why."""

import email.utils
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from toyrun import ROOT, environment

from frisket.data.shards import expand
from frisket.errors import UserError
from frisket.place import Place
from frisket.prep import download
from frisket.prep.download import Link, fetch, links
from frisket.prep.run import prep
from frisket.prep.sa1b import Config

Trick = Callable[["Handler", bytes, int], None]


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`, with Range; the next of `server.tricks` answers instead, while there is one."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        data, asked = self.server.files.get(self.path.partition("?")[0]), self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        self.server.asked.append(start)
        if data is None:
            self.refuse(404)
        elif self.server.tricks:
            self.server.tricks.pop(0)(self, data, start)
        elif asked and start >= len(data):
            self.refuse(416, {"Content-Range": f"bytes */{len(data)}"})
        else:
            self.answer(data, start)

    def answer(
        self, data: bytes, start: int = 0, *, sent: int | None = None, range_: str = "", ask: bool = True
    ) -> None:
        """206 where a start was asked for; `sent` bytes of what is told, then the connection ends."""
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", range_ or f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:] if sent is None else data[start : start + sent])
        self.close_connection = sent is not None

    def refuse(self, code: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": "0", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """What it has, what it does instead, and where each request began."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.tricks: list[Trick] = []
        self.asked: list[int] = []

    def link(self, name: str) -> Link:
        return Link(name, f"http://127.0.0.1:{self.server_port}/{name}?signed", "links.txt")


def cut(at: int) -> Trick:
    return lambda handler, data, start: handler.answer(data, start, sent=at)


def whole(handler: Handler, data: bytes, start: int) -> None:
    """As if no Range had been asked for."""
    handler.answer(data)


def whole_but_cut(at: int) -> Trick:
    return lambda handler, data, start: handler.answer(data, sent=at)


def wrong_range(handler: Handler, data: bytes, start: int) -> None:
    handler.answer(data, start, range_=f"bytes {start - 7}-{len(data) - 1}/{len(data)}")


def refuse(code: int, **headers: str) -> Trick:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, data, start: handler.refuse(code, given)


def endless(handler: Handler, data: bytes, start: int) -> None:
    """No length is told: the end of the connection is the end."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(data)
    handler.close_connection = True


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for; none is made."""
    made: list[float] = []
    monkeypatch.setattr(download, "sleep", made.append)
    monkeypatch.setenv("no_proxy", "*")
    return made


@pytest.fixture
def server(meta: Path, waits: list[float]) -> Iterator[Server]:
    """Three tars: flat, in a folder, gzip-wrapped."""
    served = Server()
    served.files = {f"/{tar.name}": tar.read_bytes() for tar in sorted(meta.glob("*.tar"))}
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


TAR = "sa_000000.tar"


def loaded(server: Server, folder: Path, name: str = TAR) -> None:
    """The tar is what the server has, and nothing else is there."""
    tar = fetch(server.link(name), folder)
    assert tar == folder / name and tar.read_bytes() == server.files[f"/{name}"]
    assert [path.name for path in folder.iterdir()] == [name]


@pytest.mark.parametrize("name", ["sa_000000.tar", "sa_000001.tar", "sa_000002.tar"])
def test_a_tar_comes_once(server: Server, tmp_path: Path, name: str) -> None:
    for _ in range(2):
        loaded(server, tmp_path / "tars", name)
    assert server.asked == [0]


@pytest.mark.parametrize(
    ("tricks", "asked"),
    [
        ([cut(5000)], [0, 5000]),
        ([cut(5000), cut(0), cut(1), cut(3000)], [0, 5000, 5000, 5001, 8001]),
        ([cut(5000), whole], [0, 5000]),
        ([cut(5000), whole_but_cut(4000), whole_but_cut(6000)], [0, 5000, 4000, 6000]),
        ([cut(5000), wrong_range], [0, 5000, 0]),
        ([cut(5000), refuse(206), refuse(503)], [0, 5000, 0, 0]),
        ([endless], [0]),
        ([cut(5000), refuse(416, Content_Range="bytes */4")], [0, 5000, 0]),
        ([refuse(500), refuse(502), refuse(408), refuse(429)], [0, 0, 0, 0, 0]),
    ],
)
def test_a_break_is_gone_on_from(server: Server, tmp_path: Path, tricks: list[Trick], asked: list[int]) -> None:
    server.tricks = tricks
    loaded(server, tmp_path / "tars")
    assert server.asked == asked


def test_retry_after_is_heeded_within_reason(server: Server, tmp_path: Path, waits: list[float]) -> None:
    date = email.utils.formatdate(time.time() + 300, usegmt=True)
    texts = ("40", date, "1" * 30, "-5", "soon", "")
    server.tricks = [refuse(503, Retry_After=text) for text in texts]
    loaded(server, tmp_path / "tars")
    assert waits[0] == 40 and 290 < waits[1] <= 300 and waits[2] == download.LONGEST
    assert all(0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(waits[3:], 3))  # our own: doubled each time


@pytest.mark.parametrize("code", [401, 403, 410])
def test_an_expired_link_is_one_sentence_and_a_new_list_goes_on(server: Server, tmp_path: Path, code: int) -> None:
    server.tricks = [cut(5000), refuse(code)]
    with pytest.raises(UserError, match=rf"the link of {TAR} in links.txt is refused \(HTTP {code}\).*get a new list"):
        fetch(server.link(TAR), tmp_path / "tars")
    loaded(server, tmp_path / "tars")
    assert server.asked == [0, 5000, 5000]


def test_what_is_not_there_and_who_never_answers(server: Server, tmp_path: Path, waits: list[float]) -> None:
    with pytest.raises(UserError, match=r"sa_9\.tar is not there \(HTTP 404\): look into links\.txt"):
        fetch(server.link("sa_9.tar"), tmp_path / "tars")
    server.tricks = [cut(5000), *[refuse(503)] * 20]
    with pytest.raises(UserError, match=rf"{TAR} cannot be downloaded \(HTTP 503, 8 times in a row; 5000 bytes"):
        fetch(server.link(TAR), tmp_path / "tars")
    assert len(waits) == 7 and max(waits) <= 60
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"refused.*8 times in a row; 5000 bytes"):
        fetch(server.link(TAR), tmp_path / "tars")


def test_a_server_that_falls_silent_is_asked_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SILENCE", 0.2)
    over = threading.Event()

    def silent(handler: Handler, data: bytes, start: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:4000])
        over.wait(60)
        handler.close_connection = True

    server.tricks = [silent]
    loaded(server, tmp_path / "tars")
    over.set()
    assert server.asked[0] == 0 and len(server.asked) == 2


def test_a_server_that_always_cuts_at_one_place_does_not_go_on_for_ever(server: Server, tmp_path: Path) -> None:
    server.tricks = [whole_but_cut(4000)] * 20
    with pytest.raises(UserError, match=r"the connection ended early, 8 times in a row; 4000 bytes"):
        fetch(server.link(TAR), tmp_path / "tars")
    assert len(server.asked) == 8


@pytest.mark.parametrize("name", [TAR, "sa_000002.tar"])
def test_a_tar_that_is_not_whole_is_loaded_again(
    server: Server, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its length told wrongly; and one that another program left half done."""
    server.tricks = [lambda handler, data, start: handler.answer(data[:-4000])]
    loaded(server, tmp_path / "tars", name)
    assert "though all of it came: loading it again" in capsys.readouterr().err and server.asked == [0, 0]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / name).write_bytes(server.files[f"/{name}"][:-4000])
    loaded(server, tmp_path / "other", name)
    assert server.asked[2:] == [len(server.files[f"/{name}"]) - 4000]


def test_a_tar_that_is_broken_where_it_comes_from_is_kept(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files[f"/{TAR}"] = server.files[f"/{TAR}"][:-4000]
    loaded(server, tmp_path / "tars")
    assert server.asked == [0, 0] and "it is kept as it is" in capsys.readouterr().err


def test_a_full_disk_keeps_what_came(server: Server, small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(16)
    with pytest.raises(UserError, match="the disk is full while writing"):
        fetch(server.link("sa_000001.tar"), disk / "tars")
    subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
    loaded(server, disk / "tars", "sa_000001.tar")
    assert len(server.asked) == 2 and server.asked[1] > 0


FETCH = """
import sys
from pathlib import Path
from frisket.prep.download import Link, fetch
print(1, flush=True)
fetch(Link(*sys.argv[1:4]), Path(sys.argv[4]))
"""


def other(server: Server, folder: Path) -> "subprocess.Popen[str]":
    """Another process that fetches TAR."""
    link = server.link(TAR)
    words = [sys.executable, "-c", FETCH, link.name, link.url, link.listed, str(folder)]
    return subprocess.Popen(words, env=os.environ | {"no_proxy": "*"}, stdout=subprocess.PIPE, text=True)


def test_killed_in_the_middle_and_a_second_task_beside_it(server: Server, tmp_path: Path) -> None:
    """The server sends a part and waits; a task that comes meanwhile waits for the first, and loads nothing twice."""
    sent, go = threading.Event(), threading.Event()

    def slowly(handler: Handler, data: bytes, start: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: 2 * download.CHUNK])
        sent.set()
        go.wait(60)
        handler.close_connection = True

    folder, big = tmp_path / "tars", server.files[f"/{TAR}"]
    server.files[f"/{TAR}"] = big + bytes(3 * download.CHUNK)  # zeros after a tar's end are part of it
    server.tricks = [slowly]
    first = other(server, folder)
    assert sent.wait(60)
    part = folder / f".{TAR}.part"
    while part.stat().st_size < download.CHUNK:  # what the kernel has, a kill does not take
        assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    go.set()
    had = part.stat().st_size
    assert 0 < had < len(server.files[f"/{TAR}"]) and not (folder / TAR).exists()

    held, free = threading.Event(), threading.Event()

    def once(handler: Handler, data: bytes, start: int) -> None:
        held.set()
        free.wait(60)
        handler.answer(data, start)

    server.tricks = [once]
    second, third = other(server, folder), None
    assert held.wait(60)
    try:
        third = other(server, folder)
        assert third.stdout and third.stdout.readline() == "1\n"
    finally:
        free.set()
    assert second.wait(60) == 0 and third.wait(60) == 0
    assert server.asked == [0, had]
    loaded(server, folder)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("file_name\tcdn_link\nsa_000002.tar\tURL2\nsa_000000.tar\tURL0\n", ["sa_000000.tar", "sa_000002.tar"]),
        ("\ufeffsa_000000.tar\tURL0\r\n\r\nsa_000000.tar\tURL0", ["sa_000000.tar"]),
        ("sa_images_ids.txt\tURL\nsa_1.tar\t URL1 ", ["sa_1.tar"]),
        ("a\tb\nsa_000000.tar\tURL0\nother.tar\tURL1", ["other.tar", "sa_000000.tar"]),
    ],
)
def test_a_list_is_read_in_any_order(text: str, names: list[str], tmp_path: Path) -> None:
    (tmp_path / "links.txt").write_text(text.replace("URL", "https://cdn.example/x?e=1&s="), encoding="utf-8")
    assert [link.name for link in links(tmp_path / "links.txt")] == names


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no tar"),
        ("file_name\tcdn_link\n", "names no tar"),
        ("h\tl\nsa_0.tar file:///etc/passwd", "line 2 is no name"),
        ("sa_0.tar\tfile:///etc/passwd", "line 1 is no name"),
        ("h\tl\n../sa_0.tar\thttp://x/", "line 2 is no name"),
        ("h\tl\n/etc/sa_0.tar\thttp://x/", "line 2 is no name"),
        ("h\tl\n.sa_0.tar\thttp://x/", "line 2 is no name"),
        ("h\tl\nsa_0.tar\thttp:// x/", "line 2 is no name"),
        ("sa_0.tar\thttp://x/1\nsa_0.tar\thttp://x/2", "line 2 has another link of sa_0.tar"),
        ("\0\1\2\nbinary", "line 2 is no name"),
    ],
)
def test_a_list_that_is_none_is_one_sentence(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "links.txt").write_text(text)
    with pytest.raises(UserError, match=says):
        links(tmp_path / "links.txt")


def test_a_list_becomes_shards_by_an_array_of_tasks(server: Server, meta: Path, tmp_path: Path) -> None:
    """Byte for byte those of the tars; a new list, its links changed, finds all done."""
    listed = tmp_path / "links.txt"

    def write(more: str) -> None:
        rows = [f"{name}\t{server.link(name).url}{more}" for name in ("sa_000002.tar", TAR, "sa_000001.tar")]
        listed.write_text("\n".join(["file_name\tcdn_link", *rows]))

    def made(task: str = "0/1") -> dict[str, int]:
        return prep(Config(inputs=str(listed), out=str(tmp_path / "out"), place=Place(workers=1), task=task))

    write("")
    server.tricks = [cut(3000)]
    made("0/2")
    assert sorted(path.name for path in (tmp_path / "tars").iterdir()) == [TAR, "sa_000002.tar"]
    write("&later")
    assert made("1/2")["images"] == 12
    prep(Config(inputs=str(meta), out=str(tmp_path / "straight"), place=Place(workers=1)))
    shards = expand(tmp_path / "straight")
    assert len(shards) == 3
    for shard in shards:
        assert (tmp_path / "out" / Path(shard).name).read_bytes() == Path(shard).read_bytes()
    requests = len(server.asked)
    made()
    assert len(server.asked) == requests == 4
    part = Config(inputs=str(listed), out=str(tmp_path / "val"), only="sa_00000{1..1}.tar", tars=str(tmp_path / "tars"))
    assert prep(part)["images"] == 4 and len(server.asked) == requests


def test_the_shell_downloads_and_prepares_in_several_processes(server: Server, tmp_path: Path) -> None:
    listed = tmp_path / "links.txt"
    listed.write_text("".join(f"{path[1:]}\t{server.link(path[1:]).url}\n" for path in server.files))
    words = ["bash", "data_prep/sa1b.sh", str(listed), f"out={tmp_path / 'out'}", "place.workers=2"]
    env = environment(no_proxy="*", PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "12 images, 24 masks, 3 shards, 0 rejected" in done.stdout and len(server.asked) == 3
    server.tricks = [refuse(403)] * 3
    done = subprocess.run([*words, "split=val", f"tars={tmp_path / 'new'}", f"out={tmp_path / 'val'}"], cwd=ROOT,
                          env=env, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2 and "get a new list" in done.stderr and done.stderr.count("\n") == 1, done.stderr
