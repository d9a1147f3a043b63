"""Image folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcache.arrays import Array
from kdcache.errors import SourceError, TrustError, UsageError
from kdcache.sources.folder import open_folder


def picture(path: Path, width: int, height: int, seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    picture(root / "dog" / "b.png", 6, 4, seed=1)
    picture(root / "dog" / "a.png", 6, 4, seed=2)
    picture(root / "cat" / "deep" / "c.PNG", 6, 4, seed=3)
    (root / "cat" / ".hidden.png").write_bytes(b"no image")
    (root / "cat" / "notes.txt").write_text("no image")
    (root / ".git").mkdir()
    return root


def test_classes_and_images_are_sorted_and_pixels_exact(root: Path) -> None:
    source = open_folder(root, None, name="pets")
    assert source.class_names == ("cat", "dog")
    assert (len(source), source.classes) == (3, 2)
    assert source.arrays == {"input": Array("uint8", (3, 4, 6)), "label": Array("int64")}
    rows = source.read(np.array([2, 0]))
    np.testing.assert_array_equal(rows["label"], [1, 0])
    expected = picture(root / "dog" / "b.png", 6, 4, seed=1)
    np.testing.assert_array_equal(rows["input"][0], expected.transpose(2, 0, 1))
    with pytest.raises(UsageError, match="no sample with id 3"):
        source.read(np.array([3]))


def test_size_takes_the_centre(tmp_path: Path) -> None:
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 200
    (tmp_path / "all" / "one").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "all" / "one" / "wide.png")
    picture(tmp_path / "all" / "one" / "tall.png", 3, 9)
    source = open_folder(tmp_path / "all", 4, name="toy")
    images = source.read(source.ids())["input"]
    assert images.shape == (2, 3, 4, 4)
    np.testing.assert_array_equal(images[1], 200)
    # Half the size: a grey column beside a white one blends only where they meet.
    half = open_folder(tmp_path / "all", 2, name="toy").read(np.array([1]))["input"]
    assert half.shape == (1, 3, 2, 2)
    assert half.min() > 150


def test_grey_palette_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    folder = tmp_path / "all" / "one"
    folder.mkdir(parents=True)
    Image.new("L", (2, 2), 7).save(folder / "grey.png")
    Image.new("RGBA", (2, 2), (1, 2, 3, 4)).save(folder / "rgba.png")
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([9, 8, 7] * 256)
    palette.save(folder / "palette.png", transparency=b"\x80\x80")
    source = open_folder(tmp_path / "all", None, name="toy")
    corners = source.read(source.ids())["input"][:, :, 0, 0]
    np.testing.assert_array_equal(corners, [[7, 7, 7], [9, 8, 7], [1, 2, 3]])


def test_unequal_sizes_need_size(root: Path) -> None:
    picture(root / "dog" / "z.png", 5, 4)
    source = open_folder(root, None, name="pets")
    with pytest.raises(SourceError, match=r"z\.png: 5×4 pixels, but cat/deep/c.PNG has 6×4; give `size`"):
        source.read(source.ids())
    assert open_folder(root, 4, name="pets").read(source.ids())["input"].shape == (4, 3, 4, 4)


def test_fingerprint_is_of_contents_names_and_size_not_of_the_place(root: Path, tmp_path: Path) -> None:
    before = open_folder(root, 4, name="pets").fingerprint()
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    assert open_folder(moved, 4, name="other").fingerprint() == before
    assert open_folder(moved, 2, name="other").fingerprint() != before
    (moved / "dog" / "a.png").rename(moved / "dog" / "c.png")
    assert open_folder(moved, 4, name="other").fingerprint() != before


def test_damaged_image_is_named(root: Path) -> None:
    path = root / "dog" / "a.png"
    path.write_bytes(path.read_bytes()[:60])
    source = open_folder(root, None, name="pets")
    with pytest.raises(SourceError, match=r"a\.png: cannot be read as an image"):
        source.read(source.ids())


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_followed(root: Path, tmp_path: Path) -> None:
    (root / "dog" / "again.png").symlink_to(root / "dog" / "a.png")
    assert len(open_folder(root, None, name="pets")) == 4
    picture(tmp_path / "secret.png", 6, 4)
    (root / "dog" / "out.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(TrustError, match="outside of the folder"):
        open_folder(root, None, name="pets")
    (root / "dog" / "out.png").unlink()
    picture(tmp_path / "elsewhere" / "x.png", 6, 4)
    (root / "bird").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TrustError, match="bird: a link to"):
        open_folder(root, None, name="pets")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        open_folder(tmp_path / "nowhere", None, name="toy")
    with pytest.raises(SourceError, match="has no subfolders"):
        open_folder(tmp_path, None, name="toy")
    (tmp_path / "cat").mkdir()
    with pytest.raises(SourceError, match="cat: holds no images"):
        open_folder(tmp_path, None, name="toy")
