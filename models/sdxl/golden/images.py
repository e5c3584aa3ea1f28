"""The small images that tests read: python3 images.py (Pillow 11 or later, numpy). 48 x 32, left red, right blue."""
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent.parent / "tests" / "images"
HERE.mkdir(exist_ok=True)
WIDTH, HEIGHT = 48, 32

rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
rgb[:, : WIDTH // 2, 0] = 255
rgb[:, WIDTH // 2 :, 2] = 255
plain = Image.fromarray(rgb)
plain.save(HERE / "plain.png")
plain.save(HERE / "plain.bmp")
plain.save(HERE / "plain.jpg", quality=95, subsampling=0)
plain.save(HERE / "plain.webp", lossless=True)
plain.convert("P", palette=Image.Palette.ADAPTIVE).save(HERE / "palette.png")
alpha = np.dstack([rgb, np.full((HEIGHT, WIDTH), 100, np.uint8)])
Image.fromarray(alpha).save(HERE / "alpha.png")
green = Image.fromarray(np.broadcast_to(np.array([0, 255, 0], np.uint8), rgb.shape).copy())
plain.save(HERE / "animated.gif", save_all=True, append_images=[green], duration=50, loop=0)
plain.convert("CMYK").save(HERE / "cmyk.jpg", quality=95)
turned = plain.transpose(Image.Transpose.ROTATE_90)
exif = Image.Exif()
exif[0x0112] = 6  # turn by a quarter, clockwise, to see it
turned.save(HERE / "turned.jpg", quality=95, subsampling=0, exif=exif)
mask = np.zeros((HEIGHT, WIDTH), np.uint8)
mask[:, WIDTH // 2 :] = 255
Image.fromarray(mask).save(HERE / "mask.png")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows):
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# Pillow writes no colours of 16 bits.
wide = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in rgb.astype(np.uint16))
(HERE / "16bit.png").write_bytes(png(WIDTH, HEIGHT, 16, 2, wide))
grey = np.full((HEIGHT, WIDTH), 64 * 257, ">u2")
grey[:, WIDTH // 2 :] = 192 * 257
(HERE / "grey16.png").write_bytes(png(WIDTH, HEIGHT, 16, 0, b"".join(b"\0" + row.tobytes() for row in grey)))
# A header that promises 30,000 x 30,000 pixels of 16 bits, and next to nothing behind it.
(HERE / "bomb.png").write_bytes(png(30_000, 30_000, 16, 6, b"\0" * 64))
whole = (HERE / "plain.png").read_bytes()
(HERE / "cut.png").write_bytes(whole[: len(whole) - 30])
for path in sorted(HERE.iterdir()):
    print(path.name, path.stat().st_size)
