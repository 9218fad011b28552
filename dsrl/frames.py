"""Films of episodes as files: mp4, several policies side by side, and film strips for a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dsrl.errors import DsrlError, RunFailed
from dsrl.files import replacing

_SIDE, _BAR, _GAP = 256, 24, 4
_INK, _PAPER, _GOOD, _BAD = (30, 30, 30), (255, 255, 255), (60, 140, 60), (190, 60, 50)
_LINGER = 0.8
"""seconds for which the last picture of an episode stays"""


@dataclass(frozen=True)
class Film:
    """One episode."""

    policy: str
    seed: int
    """of the initial state"""
    frames: tuple[np.ndarray, ...]
    """each ``(H, W, 3)`` uint8; the first is the initial state, the last one the end"""
    steps: tuple[int, ...]
    """env steps that each frame was seen after"""
    success: bool
    fps: float

    @property
    def outcome(self) -> str:
        """``success after 23 steps``."""
        return f"{'success' if self.success else 'no success'} after {self.steps[-1]} steps"


def write_mp4(path: Path, episodes: Sequence[Sequence[Film]]) -> None:
    """H.264 that every browser plays: the episodes one after the other, the films of each side by side.

    An episode that is over keeps its last picture until its neighbours are over too.

    Args:
        path: of the file, replaced when it is whole.
        episodes: of each, the films of the same initial state under different policies.

    Raises:
        DsrlError: when the [video] extra is missing.
        RunFailed: when the file cannot be written.
    """
    encoder = find_encoder()
    pictures = chain.from_iterable(_side_by_side(films) for films in episodes)
    first = next(pictures)
    size = (first.shape[1], first.shape[0])
    with replacing(path) as temporary:
        # of 2, not 16: the pictures keep their size
        settings = {"fps": episodes[0][0].fps, "quality": 7, "macro_block_size": 2, "ffmpeg_log_level": "error"}
        writer = encoder.write_frames(str(temporary), size, codec="libx264", **settings)
        try:
            writer.send(None)
            for picture in chain([first], pictures):
                if picture.shape != first.shape:
                    raise RunFailed(f"{path}: the pictures of the episodes differ in size, which one film cannot show")
                writer.send(np.ascontiguousarray(picture))
        except OSError as error:  # ffmpeg ended, with its own words
            raise RunFailed(f"{path} could not be encoded: {error!s:.300}") from error
        finally:
            writer.close()


def find_encoder() -> Any:
    """The package ``imageio_ffmpeg``, which brings ffmpeg with it.

    Raises:
        DsrlError: when it is not installed, or has no ffmpeg.
    """
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as missing:
        raise DsrlError(
            f"mp4 files need the extra: pip install 'dsrl-steering[video]' ({missing!s:.120}). A film strip "
            "(--video NAME.png) needs nothing"
        ) from missing
    return imageio_ffmpeg


def film_strip(path: Path, episodes: Sequence[Sequence[Film]], columns: int = 8) -> None:
    """A PNG with a row per film, ``columns`` pictures of it from the first to the last, equally far apart in time.

    The films of an episode stand below each other; those of the next episode follow after a gap.

    Raises:
        RunFailed: when the file cannot be written.
    """
    blocks = [[_strip_row(film, columns) for film in films] for films in episodes]
    rows = [row for films in blocks for row in (*films, _blank(_GAP, films[0].shape[1]))][:-1]
    width = max(row.shape[1] for row in rows)
    picture = np.concatenate([_widened(row, width) for row in rows])
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", optimize=True)


def _strip_row(film: Film, columns: int) -> np.ndarray:
    count = min(columns, len(film.frames))
    chosen = np.linspace(0, len(film.frames) - 1, count).round().astype(int)
    half = _SIDE // 2
    pictures = [np.asarray(Image.fromarray(_enlarged(film.frames[i])).resize((half, half))) for i in chosen]
    pictures += [np.full((half, half, 3), _PAPER, np.uint8)] * (columns - count)
    row = np.concatenate([part for picture in pictures for part in (picture, _blank(half, 2))][:-1], axis=1)
    colour = _GOOD if film.success else _BAD
    return np.concatenate([_bar(f"{film.policy}, seed {film.seed}: {film.outcome}", row.shape[1], colour), row])


def _side_by_side(films: Sequence[Film]) -> Iterator[np.ndarray]:
    longest = max(len(film.frames) for film in films)
    for index in range(longest + round(_LINGER * films[0].fps)):
        shown = [_captioned(film, index) for film in films]
        height = max(picture.shape[0] for picture in shown)
        shown = [np.pad(p, ((0, height - p.shape[0]), (0, 0), (0, 0)), constant_values=255) for p in shown]
        parts = [part for picture in shown for part in (picture, _blank(height, _GAP))][:-1]
        yield _even(np.concatenate(parts, axis=1))


def _captioned(film: Film, index: int) -> np.ndarray:
    over = index >= len(film.frames) - 1
    frame = _enlarged(film.frames[min(index, len(film.frames) - 1)])
    text = film.outcome if over else f"seed {film.seed}, step {film.steps[index]}"
    colour = _INK if not over else _GOOD if film.success else _BAD
    return np.concatenate([_bar(f"{film.policy}: {text}", frame.shape[1], colour), frame])


def _bar(text: str, width: int, colour: tuple[int, int, int]) -> np.ndarray:
    bar = Image.new("RGB", (width, _BAR), _PAPER)
    ImageDraw.Draw(bar).text((6, 4), text, fill=colour, font=ImageFont.load_default(13))
    return np.asarray(bar)


def _enlarged(frame: np.ndarray) -> np.ndarray:
    """Small pictures by a whole factor, so that a caption fits above them."""
    factor = max(1, -(-_SIDE // max(1, frame.shape[1])))
    return np.asarray(frame, np.uint8)[:, :, :3].repeat(factor, axis=0).repeat(factor, axis=1)


def _even(picture: np.ndarray) -> np.ndarray:
    """H.264 halves the colours in both directions."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), constant_values=255)


def _widened(row: np.ndarray, width: int) -> np.ndarray:
    return np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255)


def _blank(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)
