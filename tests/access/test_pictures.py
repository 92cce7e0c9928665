"""An upload is a picture by its content and leaves everything else behind."""

import io
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from decisioning.access.pictures import MAX_SIDE, PictureRefused, redrawn


def picture(kind: str, size: tuple[int, int] = (20, 10), *, mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 1 if mode == "1" else (200, 30, 30)).save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("kind", "becomes"), [("PNG", "image/png"), ("GIF", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/jpeg")]
)
def test_each_kind_is_known_by_its_content(kind: str, becomes: str) -> None:
    body, media_type = redrawn(picture(kind))
    assert media_type == becomes
    assert Image.open(io.BytesIO(body)).size == (20, 10)


def test_metadata_and_what_hangs_behind_the_picture_stay_behind() -> None:
    exif = Image.Exif()
    exif[0x010E] = "GPS: at home"
    told = PngImagePlugin.PngInfo()
    told.add_text("Comment", "<script>alert(1)</script>")
    for file in (
        picture("JPEG", exif=exif),
        picture("PNG", pnginfo=told),
        picture("GIF") + b"<script>alert(1)</script>",
    ):
        body, _ = redrawn(file)
        assert b"script" not in body
        assert b"at home" not in body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        b"\x89PNG\r\n\x1a\n<html><script>alert(1)</script>",
        b"GIF89a<script>alert(1)</script>",
        picture("JPEG")[:100],
        picture("BMP"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(PictureRefused) as refusal:
        redrawn(data)
    assert refusal.value.code == "not_a_picture"


def test_too_many_bytes_or_pixels_are_refused_before_they_are_unpacked() -> None:
    for data in (b"\x89PNG" + b"x" * 3_000_000, picture("PNG", (8000, 6000), mode="1")):
        with pytest.raises(PictureRefused) as refusal:
            redrawn(data)
        assert refusal.value.code == "too_large"


def test_a_large_picture_is_made_smaller() -> None:
    body, _ = redrawn(picture("PNG", (5000, 1000)))
    assert Image.open(io.BytesIO(body)).size == (MAX_SIDE, MAX_SIDE // 5)
