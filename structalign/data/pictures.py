"""Turn a decoded frame into a picture as CLIP saw them: square pixels, one moment, BT.709 colours, upright.

swscale can map HDR to BT.709 too, but it spends ten seconds on a table for each clip, and it moves colours that
BT.709 has. The formulas here are those of ITU-R BT.2100, and take milliseconds at the size of the stored frames.
"""

from __future__ import annotations

from fractions import Fraction
from functools import partial

import av
import numpy as np
from av.filter import Graph

PIXEL_SHAPE = "pixels that are not square, scaled"
INTERLACED = "interlaced, deinterlaced"
HDR = "HDR, tone-mapped"
WIDE_GAMUT = "wide gamut, converted to BT.709"
ODD_PIXEL_SHAPE = "pixels of an impossible shape, taken for square"

MAX_PIXEL_SHAPE = 4
"""Width to height of a pixel, or height to width, beyond which the file must be wrong: anamorphic film has 2."""

WHITE = 203.0
"""Luminance in cd/m^2 of white text in HDR video, which BT.709 shows as its brightest (ITU-R BT.2408)."""

KNEE = 0.8
"""Share of white from which on brighter parts are compressed, so that highlights keep their structure."""

BT709, BT2020 = 1, 9
PQ, HLG = 16, 18

TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
"""Linear RGB of BT.2020 to that of BT.709 (ITU-R BT.2087)."""

BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593])


class Pictures:
    """Makes pictures of the frames of one video stream.

    Parameters
    ----------
    stream : VideoStream
    short_side : int
        Pictures are scaled down to this shorter side; smaller ones stay as they are.
    notes : set of str
        Gets what was changed or is doubtful about the frames.
    """

    def __init__(self, stream: av.VideoStream, short_side: int, notes: set[str]) -> None:
        self.tick = stream.time_base or Fraction(1, av.time_base)
        self.short_side, self.notes = short_side, notes
        self.shape = stream.sample_aspect_ratio or Fraction(1)  # width to height of a pixel
        if not Fraction(1, MAX_PIXEL_SHAPE) <= self.shape <= MAX_PIXEL_SHAPE:
            notes.add(ODD_PIXEL_SHAPE)
            self.shape = Fraction(1)
        elif self.shape != 1:
            notes.add(PIXEL_SHAPE)

    def picture(self, frame: av.VideoFrame) -> np.ndarray:
        """Scale a frame down while it is converted to RGB, and turn it upright: uint8 (H, W, 3)."""
        turns = round(frame.rotation / 90)  # counter-clockwise, as rot90 counts
        if frame.interlaced_frame:
            self.notes.add(INTERLACED)
            frame = deinterlaced(frame, self.tick)
        width, height = scaled(*self._square(frame.width, frame.height), self.short_side)
        convert = partial(frame.to_ndarray, width=width, height=height, interpolation="BICUBIC")
        if frame.color_trc in (PQ, HLG) or frame.color_primaries == BT2020:
            self.notes.add(HDR if frame.color_trc in (PQ, HLG) else WIDE_GAMUT)
            picture = to_bt709(convert(format="rgb48le") / 65535, frame.color_trc, frame.color_primaries)
        else:
            picture = convert(format="rgb24")
        return np.ascontiguousarray(np.rot90(picture, turns))

    def _square(self, width: int, height: int) -> tuple[int, int]:
        """Size of a frame whose pixels are square, with as many of them as the longer side of a pixel needs."""
        if self.shape > 1:
            return round(width * self.shape), height
        return width, round(height / self.shape)


def deinterlaced(frame: av.VideoFrame, tick: Fraction) -> av.VideoFrame:
    """Rebuild a frame from one of its two fields, which were taken at different moments.

    FFmpeg's `estdif` looks at this frame alone. Filters that look at the frames around it need them decoded too.
    """
    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=tick)
    filters = [source, graph.add("estdif", "mode=frame:deint=interlaced"), graph.add("buffersink")]
    graph.link_nodes(*filters).configure()
    graph.push(frame)
    graph.push(None)
    return graph.pull()  # type: ignore[return-value]


def scaled(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Size with the given shorter side, or the size as it is if that is smaller."""
    scale = min(1.0, short_side / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def to_bt709(signal: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """Convert an HDR or wide-gamut picture to BT.709 colours as sRGB codes them.

    Parameters
    ----------
    signal : ndarray, shape (H, W, 3)
        R'G'B' from 0 to 1.
    transfer, primaries : int
        What the signal means, in the numbers of ITU-T H.273; any transfer but PQ and HLG is taken for that of SDR.

    Returns
    -------
    ndarray, shape (H, W, 3), uint8
    """
    if transfer == PQ:
        light = pq_light(signal) / WHITE
    elif transfer == HLG:
        light = hlg_light(signal) / WHITE
    else:
        light = signal**2.4
    if primaries != BT709:
        light = np.maximum(light @ TO_BT709.T, 0)
    if transfer in (PQ, HLG):
        light = _compressed(light)
    light = np.minimum(light, 1)
    coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * coded).astype(np.uint8)


def pq_light(signal: np.ndarray) -> np.ndarray:
    """Light in cd/m^2 that a PQ signal stands for (ITU-R BT.2100, table 4)."""
    root = signal ** (32 / 2523)
    return 10_000 * (np.maximum(root - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * root)) ** (8192 / 1305)


def hlg_light(signal: np.ndarray) -> np.ndarray:
    """Light in cd/m^2 that an HLG signal gives on a display of 1,000 cd/m^2 (ITU-R BT.2100, table 5)."""
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    luminance = (scene @ BT2020_LUMINANCE)[..., None]
    return 1_000 * luminance**0.2 * scene


def _compressed(light: np.ndarray) -> np.ndarray:
    """Bring highlights (1: white) below white without a change of hue; what is darker than the knee stays."""
    brightest = light.max(axis=-1, keepdims=True)
    excess = np.maximum(brightest - KNEE, 0) / (1 - KNEE)
    target = np.minimum(brightest, KNEE) + (1 - KNEE) * excess / (1 + excess)
    return light * (target / np.maximum(brightest, 1e-9))
