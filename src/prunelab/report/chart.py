"""Small charts drawn with Pillow: axes, points, lines, bars, a legend.

They are drawn between two levels of a run, where matplotlib's 50 to 130 ms for each are a third of the time; these take
about 10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]
Shape = Literal["circle", "ring", "diamond", "triangle", "square"]

SMOOTH = 2  # all is drawn so many times as large, and made smaller at the end
FONT_SIZE = 12
BLACK, GRID, FRAME = "#000000", "#e4e4e4", "#404040"
MOST_TICKS = 9


@dataclass(frozen=True)
class Axis:
    """From `low`, at the left or the bottom, to `high`; low may be the larger one. ticks: where, and what stands there;
    None: round numbers."""

    low: float
    high: float
    label: str = ""
    log: bool = False
    ticks: Sequence[tuple[float, str]] | None = None

    def share(self, value: float) -> float:
        """0 at `low`, 1 at `high`."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def marks(self) -> Sequence[tuple[float, str]]:
        if self.ticks is not None:
            return self.ticks
        low, high = sorted((self.low, self.high))
        return [(value, f"{value:g}") for value in (_log_ticks if self.log else _linear_ticks)(low, high)]


def spanning(values: Sequence[float], label: str, log: bool = False) -> Axis:
    """An axis with all of `values` inside, and a twentieth more at both ends."""
    ends = [math.log(value) if log else value for value in (min(values, default=1), max(values, default=1))]
    more = 0.05 * (ends[1] - ends[0]) or 0.5
    low, high = ends[0] - more, ends[1] + more
    # of scores of very deep networks: what a float can hold
    return Axis(math.exp(max(low, -744)), math.exp(min(high, 709)), label, log) if log else Axis(low, high, label)


class Chart:
    """A frame with axes, to draw into in the units of the axes. Sizes and margins are pixels.

    top_x: another axis, above. Labels have their places, so `left` has to have room for those of the rows
    (`text_width`).
    """

    def __init__(
        self,
        x: Axis,
        y: Axis,
        *,
        size: tuple[int, int],
        title: str = "",
        top_x: Axis | None = None,
        left: float = 75,
        right: float = 20,
        top: float = 40,
        bottom: float = 60,
    ) -> None:
        self._x, self._y = x, y
        width, height = size
        left = min(left, width / 2)
        self._left, self._top, self._right, self._bottom = left, top, width - right, height - bottom
        self._image = Image.new("RGB", (SMOOTH * width, SMOOTH * height), "white")
        self._draw = ImageDraw.Draw(self._image)
        for axis, edge, away in ((x, self._bottom, 1), (top_x, self._top, -1)):
            if axis is not None:
                self._x_axis(axis, edge, away, is_grid=axis is x)
        self._y_axis(y)
        self.text(((left + self._right) / 2, top / 2 if top_x is None else 14), title, "mm", FONT_SIZE + 2)
        self._draw.rectangle(self._scaled((left, top), (self._right, self._bottom)), outline=FRAME, width=SMOOTH)

    def place(self, point: Point) -> Point:
        """Pixels, from above on the left, of a point in units of the axes."""
        x, y = self._x.share(point[0]), self._y.share(point[1])
        return self._left + x * (self._right - self._left), self._bottom - y * (self._bottom - self._top)

    def line(self, points: Sequence[Point], colour: str, dash: float | None = None) -> None:
        """dash: pixels of its pieces."""
        places = [self.place(point) for point in points]
        if dash is not None:
            (x, y), (end_x, end_y) = places[0], places[-1]
            steps = max(1, round(math.hypot(end_x - x, end_y - y) / dash / 2))
            for start in np.arange(steps) / steps:
                pieces = [(x + s * (end_x - x), y + s * (end_y - y)) for s in (start, start + 0.5 / steps)]
                self._draw.line(self._scaled(*pieces), fill=colour, width=2 * SMOOTH)
        elif len(places) > 1:
            self._draw.line(self._scaled(*places), fill=colour, width=2 * SMOOTH, joint="curve")

    def points(self, points: Sequence[Point], colour: str, shape: Shape = "circle", radius: float = 4) -> None:
        for point in points:
            self._mark(self.place(point), colour, shape, radius)

    def bar(self, corner: Point, opposite: Point, colour: str) -> None:
        (x0, y0), (x1, y1) = self.place(corner), self.place(opposite)
        box = (min(x0, x1), min(y0, y1)), (max(x0, x1), max(y0, y1))
        self._draw.rectangle(self._scaled(*box), fill=colour)

    def cells(self, colours: np.ndarray) -> None:
        """Fill the frame with cells, uint8 [rows, columns, 3]."""
        left, top, right, bottom = (
            round(place) for place in self._scaled((self._left, self._top), (self._right, self._bottom))
        )
        size = right - left - SMOOTH, bottom - top - SMOOTH  # inside the frame
        cells = Image.fromarray(np.ascontiguousarray(colours)).resize(size, Image.Resampling.NEAREST)
        self._image.paste(cells, (left + SMOOTH, top + SMOOTH))

    def legend(
        self,
        entries: Sequence[tuple[str, str, Shape | Literal["line", "dashes"]]],
        where: Literal["right", "left", "above"],
    ) -> None:
        """entries: text, colour, mark. where: at the upper right, at the lower left, or above the frame."""
        width, height = 42 + max(text_width(text) for text, *_ in entries), 18 * len(entries) + 8
        left = self._right - width - 8 if where == "right" else self._left + 8
        top = {"right": self._top + 8, "left": self._bottom - height - 8, "above": 2}[where]
        box = self._scaled((left, top), (left + width, top + height))
        self._draw.rectangle(box, fill="white", outline=GRID if where != "above" else None, width=SMOOTH)
        for row, (text, colour, mark) in enumerate(entries):
            middle = top + 13 + 18 * row
            if mark == "line" or mark == "dashes":
                for start in (0, 8, 16):
                    ends = (left + 7 + start, middle), (left + 7 + start + (8 if mark == "line" else 4), middle)
                    self._draw.line(self._scaled(*ends), fill=colour, width=2 * SMOOTH)
            else:
                self._mark((left + 19, middle), colour, mark, 4)
            self.text((left + 36, middle), text, "lm")

    def text(self, place: Point, text: str, anchor: str, size: int = FONT_SIZE) -> None:
        """At pixels; anchor: Pillow's letters for what of the text stands there."""
        self._draw.text((SMOOTH * place[0], SMOOTH * place[1]), text, BLACK, _font(size * SMOOTH), anchor)

    def picture(self) -> Image.Image:
        return self._image.reduce(SMOOTH)

    def _x_axis(self, axis: Axis, edge: float, away: int, is_grid: bool) -> None:
        for value, label in axis.marks():
            x = self._left + axis.share(value) * (self._right - self._left)
            if is_grid:
                self._draw.line(self._scaled((x, self._top), (x, self._bottom)), fill=GRID, width=SMOOTH)
            self._draw.line(self._scaled((x, edge), (x, edge + 4 * away)), fill=FRAME, width=SMOOTH)
            self.text((x, edge + 13 * away), label, "mm")
        self.text(((self._left + self._right) / 2, edge + 34 * away), axis.label, "mm")

    def _y_axis(self, axis: Axis) -> None:
        for value, label in axis.marks():
            y = self._bottom - axis.share(value) * (self._bottom - self._top)
            if axis.ticks is None:
                self._draw.line(self._scaled((self._left, y), (self._right, y)), fill=GRID, width=SMOOTH)
            self._draw.line(self._scaled((self._left - 4, y), (self._left, y)), fill=FRAME, width=SMOOTH)
            self.text((self._left - 7, y), label, "rm")
        if axis.label:
            font = _font(FONT_SIZE * SMOOTH)
            box = font.getbbox(axis.label)
            upright = Image.new("L", (int(box[2]), int(box[3]) + SMOOTH))
            ImageDraw.Draw(upright).text((0, 0), axis.label, 255, font)
            turned = upright.transpose(Image.Transpose.ROTATE_90)
            middle = SMOOTH * (self._top + self._bottom) / 2
            self._image.paste(BLACK, (4 * SMOOTH, round(middle - turned.height / 2)), turned)

    def _mark(self, place: Point, colour: str, shape: Shape, radius: float) -> None:
        x, y = (SMOOTH * coordinate for coordinate in place)
        r = SMOOTH * radius
        if shape == "circle":
            self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        elif shape == "ring":
            self._draw.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=SMOOTH)
        elif shape == "diamond":
            self._draw.polygon(((x - r, y), (x, y - r), (x + r, y), (x, y + r)), fill=colour)
        elif shape == "triangle":
            self._draw.polygon(((x - r, y - r), (x + r, y), (x - r, y + r)), fill=colour)
        else:
            self._draw.rectangle((x - r, y - r, x + r, y + r), fill=colour)

    def _scaled(self, *places: Point) -> list[float]:
        return [SMOOTH * coordinate for place in places for coordinate in place]


def below(first: Image.Image, second: Image.Image) -> Image.Image:
    """Both, of one width, in one picture."""
    picture = Image.new("RGB", (first.width, first.height + second.height))
    picture.paste(first)
    picture.paste(second, (0, first.height))
    return picture


def text_width(text: str) -> float:
    """Pixels."""
    return _font(FONT_SIZE * SMOOTH).getlength(text) / SMOOTH


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)  # which unpacks it at each call


def _linear_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / MOST_TICKS))
    step = next(power * digit for digit in (1, 2, 5, 10) if (high - low) / (power * digit) <= MOST_TICKS)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, every so many where there are too many; and multiples of them, where there is room."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = -(-(last - first) // MOST_TICKS)
    found: list[float] = []
    for digits in ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)):
        places = [float(f"{digit}e{power}") for power in range(first, last + 1, every) for digit in digits]
        finer = [place for place in places if low <= place <= high]
        if len(finer) > MOST_TICKS:
            break
        found = finer
        if len(found) > 3:
            break
    return found if len(found) > 2 else _linear_ticks(low, high)
