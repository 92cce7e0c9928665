"""Uploaded pictures: known by their content, not their name, and drawn anew, so that nothing else travels in the file.

They are decoded in a child of bounded memory and time: what a file of two megabytes unfolds to, or does to a decoder, ends nobody else.
"""

import io
import json
import resource
import subprocess
import sys
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from decisioning.refusals import Refused

MAX_BYTES = 2 * 1024 * 1024
MAX_PIXELS = 12_000_000
CHILD_BYTES, CHILD_S = 512 * 1024 * 1024, 20
"""What the child may take of memory and of the processor; of the clock a few times that."""
MAX_SIDE = 2400
SMALL = (192, 120)
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")


class PictureRefused(Refused):
    """The file is not taken."""


def redrawn(data: bytes) -> tuple[bytes, str]:
    """The picture as a new file and its media type: no metadata, no frames but the first, at most MAX_SIDE wide or high.

    Raises PictureRefused: too_large, not_a_picture.
    """
    check_size(len(data))
    command = [sys.executable, "-m", "decisioning.access.pictures"]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=3 * CHILD_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise PictureRefused("too_large", "The picture takes too long to draw anew.") from error
    head, _, body = done.stdout.partition(b"\n")
    told = json.loads(head) if head else {}
    if done.returncode or "code" in told:
        raise PictureRefused(
            told.get("code", "not_a_picture"), told.get("message", "The picture is broken, or needs too much memory.")
        )
    return body, str(told["media_type"])


def main() -> int:
    """In the child: a picture on stdin, the new one on stdout behind a line that says what it is."""
    resource.setrlimit(resource.RLIMIT_AS, (CHILD_BYTES, CHILD_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CHILD_S, CHILD_S))
    out = sys.stdout.buffer
    try:
        body, media_type = _redrawn(sys.stdin.buffer.read(MAX_BYTES + 1))
    except PictureRefused as refusal:
        out.write(json.dumps({"code": refusal.code, "message": str(refusal)}).encode() + b"\n")
    except MemoryError:
        out.write(json.dumps({"code": "too_large", "message": "The picture needs too much memory."}).encode() + b"\n")
    else:
        out.write(json.dumps({"media_type": media_type}).encode() + b"\n" + body)
    return 0


def _redrawn(data: bytes) -> tuple[bytes, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise PictureRefused(
                        "too_large", f"The picture has {opened.width} x {opened.height} pixels; that is too many."
                    )
                return _written(ImageOps.exif_transpose(opened), opened.format)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureRefused("too_large", "The picture has too many pixels.") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError) as error:
        raise PictureRefused("not_a_picture", "This is no PNG, JPEG, WebP or GIF picture, or a broken one.") from error


def check_size(size: int) -> None:
    """Raises PictureRefused `too_large` when a file of so many bytes is not taken, whatever is in it."""
    if size > MAX_BYTES:
        raise PictureRefused("too_large", f"The picture has {size:,} bytes; at most {MAX_BYTES:,} are taken.")


def small(data: bytes) -> tuple[bytes, str]:
    """A picture that `redrawn` gave, cut to SMALL pixels for a list, and its media type; a few kilobytes."""
    with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
        opened.draft("RGB", (SMALL[0] * 2, SMALL[1] * 2))  # a photo is not decoded larger than that
        cut = ImageOps.fit(opened.convert("RGBA" if opened.mode == "RGBA" else "RGB"), SMALL, Image.Resampling.LANCZOS)
    out = io.BytesIO()
    cut.save(out, "WEBP", quality=82)
    return out.getvalue(), "image/webp"


def _written(picture: Image.Image, kind: str | None) -> tuple[bytes, str]:
    photo = kind == "JPEG" or (picture.mode == "RGB" and kind == "WEBP")
    plain = picture.convert("RGB" if photo else "RGBA")
    plain.thumbnail((MAX_SIDE, MAX_SIDE))
    fresh = Image.new(plain.mode, plain.size)  # pixels alone: what hangs on the old object stays there
    fresh.paste(plain)
    out = io.BytesIO()
    if photo:
        fresh.save(out, "JPEG", quality=88, optimize=True)
        return out.getvalue(), "image/jpeg"
    fresh.save(out, "PNG")
    return out.getvalue(), "image/png"


if __name__ == "__main__":
    sys.exit(main())
