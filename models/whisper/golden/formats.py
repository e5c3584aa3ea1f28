"""Makes formats/: half a second of a tone in every container and codec that people send, small enough to keep.

    python formats.py

Needs PyAV (made with 18.1.0). The tone is 440 Hz at 0.5 of full scale, stereo at 44.1 kHz, 48 kHz where the codec has no
other. tests/audio.rs reads those that can be read, and what the errors say of the others.
"""

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy

FILES = {
    "mp3.mp3": ("mp3", "libmp3lame", 44_100),
    "flac.flac": ("flac", "flac", 44_100),
    "vorbis.ogg": ("ogg", "vorbis", 44_100),
    "flac.ogg": ("ogg", "flac", 44_100),
    "aac.m4a": ("ipod", "aac", 44_100),
    "alac.m4a": ("ipod", "alac", 44_100),
    "aac.mp4": ("mp4", "aac", 48_000),
    "vorbis.webm": ("webm", "vorbis", 44_100),
    "aac.mkv": ("matroska", "aac", 44_100),
    "pcm.aiff": ("aiff", "pcm_s16be", 44_100),
    "pcm.caf": ("caf", "pcm_s16be", 44_100),
    "opus.ogg": ("ogg", "libopus", 48_000),
    "opus.webm": ("webm", "libopus", 48_000),
    "ac3.mkv": ("matroska", "ac3", 48_000),
}

target = Path(__file__).parent / "formats"
target.mkdir(exist_ok=True)
for name, (container, codec, rate) in FILES.items():
    # Those that pack nothing are shorter still: their size is their length.
    seconds = 0.05 if codec.startswith(("pcm", "alac")) else 0.5
    times = numpy.arange(int(rate * seconds)) / rate
    tone = (0.5 * numpy.sin(2 * math.pi * 440 * times)).astype(numpy.float32)
    with av.open(str(target / name), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout="stereo")
        if codec == "vorbis":
            stream.codec_context.options = {"strict": "experimental"}
        if codec in ("libmp3lame", "libopus", "aac", "ac3"):
            stream.bit_rate = 64_000
        frame = av.AudioFrame.from_ndarray(numpy.stack([tone, tone]), format="fltp", layout="stereo")
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.codec_context.format, "stereo", rate, stream.codec_context.frame_size or None)
        position = 0
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            piece.pts, piece.time_base = position, Fraction(1, rate)
            position += piece.samples
            file.mux(stream.encode(piece))
        # FLAC's last packet is empty: what it told is in the header already.
        file.mux([packet for packet in stream.encode(None) if packet.size])
