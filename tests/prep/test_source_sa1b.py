"""Source sa1b on tars as they come: folders, gzip, order, broken and bad members, subset, smaller JPEGs."""

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from frisket.data.sa1b import jpeg_size
from frisket.data.shards import IndexedShards, expand
from frisket.errors import UserError
from frisket.place import Place
from frisket.prep.records import selected
from frisket.prep.run import prep
from frisket.prep.sa1b import Config


def config(inputs: Path, out: Path, **changes: object) -> Config:
    return Config(inputs=str(inputs), out=str(out), place=Place(workers=1), **changes)  # type: ignore[arg-type]


def stored(out: Path) -> dict[str, dict[str, bytes]]:
    shards = IndexedShards(expand(out))
    return {raw["__key__"]: raw for raw in (shards[i] for i in range(len(shards)))}


def test_every_form_of_tar_gives_the_same_bytes(meta: Path, photo: Callable[..., tuple[bytes, bytes]], tmp_path: Path):
    totals = prep(config(meta, tmp_path / "out"))
    assert totals == {"images": 12, "masks": 24, "rejected": 0, "shards": 3}
    found = stored(tmp_path / "out")
    assert sorted(found, key=lambda key: int(key[3:])) == [f"sa_{n}" for n in range(1, 13)]
    for n in range(1, 13):
        jpg, data = photo(n)
        assert (found[f"sa_{n}"]["jpg"], found[f"sa_{n}"]["json"]) == (jpg, data)


def test_bad_records_are_listed_with_shard_key_and_reason(
    photo: Callable[..., tuple[bytes, bytes]],
    make_tar: Callable[..., Path],
    rejections: Callable[[Path], list[dict[str, str]]],
    tmp_path: Path,
) -> None:
    jpg, data = photo(1)
    record = json.loads(data)
    wrong = json.loads(data)
    wrong["annotations"][1]["segmentation"]["size"] = [61, 80]
    damaged = json.loads(data)
    damaged["annotations"][0]["segmentation"]["counts"] += "1"
    bad = {
        "sa_2": (jpg[: len(jpg) // 2], data),
        "sa_3": (jpg, json.dumps({"image": record["image"]}).encode()),
        "sa_4": (jpg, json.dumps(wrong).encode()),
        "sa_5": (jpg, b"{"),
        "sa_6": (photo(6, (40, 80))[0], data),
        "sa_7": (jpg, json.dumps(damaged).encode()),
        "sa_8": (b"", data),
    }
    members = [
        (f"{key}.{ext}", d)
        for key, both in {"sa_1": (jpg, data), **bad}.items()
        for ext, d in zip(("jpg", "json"), both)
    ]
    tar = make_tar(tmp_path / "meta" / "sa_000000.tar", [*members, ("sa_9.jpg", jpg)])
    totals = prep(config(tar.parent, tmp_path / "out"))
    assert (totals["images"], totals["rejected"]) == (1, 8)
    rows = {row["key"]: row for row in rejections(tmp_path / "out")}
    assert {row["shard"] for row in rows.values()} == {str(tar)}
    for key, word in {
        "sa_2": "truncated", "sa_3": "annotations", "sa_4": "size", "sa_5": "not readable", "sa_6": "80x40",
        "sa_7": "mask 0", "sa_8": ".jpg", "sa_9": "no .json",
    }.items():  # fmt: skip
        assert word in rows[key]["reason"], rows[key]


@pytest.mark.parametrize("what", ["truncated jpg", "lone half"])
def test_strict_stops_with_one_sentence_and_leaves_nothing_half_done(
    what: str, photo: Callable[..., tuple[bytes, bytes]], make_tar: Callable[..., Path], tmp_path: Path
) -> None:
    jpg, data = photo(1)
    members = [("sa_1.jpg", jpg), ("sa_1.json", data), ("sa_2.jpg", jpg[:200])]
    tar = make_tar(
        tmp_path / "meta" / "sa_000000.tar", members if what == "lone half" else [*members, ("sa_2.json", data)]
    )
    with pytest.raises(UserError, match=r"sa_000000\.tar, sample sa_2: .*strict=false") as caught:
        prep(config(tar.parent, tmp_path / "out", strict=True))
    assert "\n" not in str(caught.value)
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["settings.json"]


def test_a_tar_that_breaks_off_gives_its_whole_part(
    meta: Path, rejections: Callable[[Path], list[dict[str, str]]], tmp_path: Path
) -> None:
    tar = meta / "sa_000000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    totals = prep(config(meta, tmp_path / "out"))
    assert 8 < totals["images"] < 12
    assert any(row["key"] == "*" and "cut off" in row["reason"] for row in rejections(tmp_path / "out"))

    tar.write_bytes(whole)  # downloaded again: its size differs, so this unit alone is done again
    assert prep(config(meta, tmp_path / "out"))["images"] == 12
    assert rejections(tmp_path / "out") == []


@pytest.mark.parametrize("gz", [False, True])
def test_a_tar_cut_between_two_members_is_noticed(
    gz: bool,
    photo: Callable[..., tuple[bytes, bytes]],
    make_tar: Callable[..., Path],
    rejections: Callable[[Path], list[dict[str, str]]],
    tmp_path: Path,
) -> None:
    pairs = {n: photo(n) for n in (1, 2)}
    tar = make_tar(
        tmp_path / "meta/sa_000000.tar",
        [(f"sa_{n}.{e}", d) for n, both in pairs.items() for e, d in zip(("jpg", "json"), both)],
    )
    first = sum(512 + -(-len(data) // 512) * 512 for data in pairs[1])
    cut = tar.read_bytes()[:first]
    tar.write_bytes(gzip.compress(cut) if gz else cut)
    assert prep(config(tar.parent, tmp_path / "out"))["images"] == 1
    (row,) = rejections(tmp_path / "out")
    assert (row["shard"], row["key"]) == (str(tar), "*")
    assert row["reason"] == "is cut off after member sa_1.json: the mark that ends a tar is missing"
    with pytest.raises(UserError, match=rf"^{tar} is cut off after member sa_1\.json: .* is missing; mend it, or"):
        prep(config(tar.parent, tmp_path / "strict", strict=True))


def test_a_web_page_instead_of_a_tar_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "sa_000000.tar").write_text("<html>link expired</html>" * 100)
    with pytest.raises(UserError, match=r"sa_000000\.tar is not a tar"):
        prep(config(tmp_path, tmp_path / "out"))


def test_subset_takes_the_same_images_from_any_tar(
    photo: Callable[..., tuple[bytes, bytes]], make_tar: Callable[..., Path], tmp_path: Path
) -> None:
    jpg, data = photo(1)
    members = [(f"sa_{n}.{ext}", d) for n in range(1, 41) for ext, d in (("jpg", jpg), ("json", data))]
    make_tar(tmp_path / "meta" / "sa_000000.tar", [*members, ("sa_999.jpg", jpg)])
    totals = prep(config(tmp_path / "meta", tmp_path / "out", subset="20pct"))
    assert sorted(stored(tmp_path / "out")) == sorted(f"sa_{n}" for n in range(1, 41) if selected(n, 20))
    assert totals["rejected"] == int(selected(999, 20))  # what is not in the subset cannot be wrong
    assert json.loads((tmp_path / "out/index.json").read_text())["subset"] == "20pct"


def test_image_size_shrinks_the_jpeg_and_only_the_jpeg(
    meta: Path, photo: Callable[..., tuple[bytes, bytes]], tmp_path: Path
) -> None:
    prep(config(meta, tmp_path / "out", image_size=40))
    for key, raw in stored(tmp_path / "out").items():
        assert jpeg_size(raw["jpg"]) == (30, 40)
        assert raw["json"] == photo(int(key[3:]))[1]


def test_input_hash_is_noted_on_request(meta: Path, tmp_path: Path) -> None:
    prep(config(meta, tmp_path / "out", input_sha256=True))
    units = json.loads((tmp_path / "out/index.json").read_text())["units"]
    assert len({unit["input_sha256"] for unit in units}) == 3
    assert all(len(unit["input_sha256"]) == 64 for unit in units)


def test_remote_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="download it first"):
        prep(dataclasses.replace(config(Path(), tmp_path / "out"), inputs="pipe:cat x.tar"))
