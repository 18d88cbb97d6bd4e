"""Clips that are generated: drawn by ffmpeg's filters, or here.

What is drawn here are textured or flat shapes, text and clouds that move over each other, with grain, blur, darkness
or a cut.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from training.quality.sources import Source

DRAWN: Final = 26
"""Generated scenes beside those that have a name."""

Ground = Literal["leaves", "clouds", "flat", "text"]
Picture = NDArray[np.float32]
_GROUNDS: Final[tuple[Ground, ...]] = ("leaves", "clouds", "flat", "text")

_ZOOM: Final = (
    "mandelbrot=s=1920x1080:r={r}:start_scale=0.02:end_scale=0.018:start_x=-0.7436438870:start_y=0.1318259042:"
    "maxiter=400"
)
_LIFE: Final = "life=s=160x90:r={r}:seed={seed}:mold=12:ratio=0.2:death_color=#a03020:life_color=#f0f080"
_PERLIN: Final = "perlin=s={w}x{h}:r={r}:octaves=5:persistence=0.6:random_mode=seed:random_seed={seed}"
_LAVFI: Final = (  # name, lines, frames/s, filters
    ("testsrc2", 540, 25, "testsrc2=s={w}x{h}:r={r}"),
    ("mandelbrot", 480, 25, "mandelbrot=s={w}x{h}:r={r}:start_scale=0.3:end_scale=0.05:end_pts=60:maxiter=600"),
    ("life", 360, 25, _LIFE + ",scale={w}:{h}:flags=bicubic"),
    ("cellauto", 360, 25, "cellauto=s=320x180:r={r}:seed={seed}:rule=110:scroll=1,scale={w}:{h}:flags=bicubic"),
    ("gradients", 720, 25, "gradients=s={w}x{h}:r={r}:seed={seed}:nb_colors=5:speed=0.02"),
    ("perlin", 480, 25, _PERLIN + ",noise=alls=5:allf=t:all_seed={seed}"),
    ("fractal-grain", 540, 24, _ZOOM + ",crop={w}:{h}:x='200+3*n':y='100+n',noise=alls=10:allf=t:all_seed={seed}"),
)


def generated_sources(seed: int = 0, *, duration_s: float = 2.0, most: int | None = None) -> list[Source]:
    """Clips that are drawn, each a content group of its own, the same for the same seed.

    Args:
        seed: of all that is drawn.
        duration_s: length of each.
        most: take that many, evenly of all kinds; None: all.
    """
    clips = []
    for name, height, fps, filters in _LAVFI:
        width = height * 16 // 9 // 2 * 2
        graph = filters.format(w=width, h=height, r=fps, seed=seed + 1)
        clips.append(
            Source(
                name=name, group=name, kind="generated", identity=f"lavfi/{graph}/{duration_s}", width=width,
                height=height, fps=fps, duration_s=duration_s, arguments=("-f", "lavfi", "-i", graph),
            )
        )  # fmt: skip
    clips += [scene.source(seed, duration_s) for scene in (*SCENES, *drawn_scenes(seed))]
    if most is None or most >= len(clips):
        return clips
    return [clips[place] for place in np.linspace(0, len(clips) - 1, most).round().astype(int)]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """How a drawn clip looks.

    Attributes:
        name: also its content group.
        height: lines; 16:9.
        fps: frames a second.
        ground: the background: leaves, clouds, flat or text.
        speed: of the camera, pixels a frame.
        objects: that move before the background.
        grain: standard deviation of noise that is new in each frame, steps of 8-bit video.
        light: factor of all brightness.
        blur: standard deviation of the background's blur, pixels.
        soft: of a blur of everything, pixels.
        cut: whether the background changes half way.
    """

    name: str
    height: int
    fps: float = 25.0
    ground: Ground = "leaves"
    speed: tuple[float, float] = (0.0, 0.0)
    objects: int = 0
    grain: float = 0.0
    light: float = 1.0
    blur: float = 0.0
    soft: float = 0.0
    cut: bool = False

    def source(self, seed: int, duration_s: float) -> Source:
        """The clip of this scene."""
        width = self.height * 16 // 9 // 2 * 2
        return Source(
            name=self.name, group=self.name, kind="generated", identity=f"scene 3/{self}/{seed}/{duration_s}",
            width=width, height=self.height, fps=self.fps, duration_s=duration_s,
            arguments=("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{self.height}", "-r", f"{self.fps}",
                       "-i", "pipe:0"),
            frames=lambda: self.draw(width, round(duration_s * self.fps), seed),
        )  # fmt: skip

    def draw(self, width: int, frames: int, seed: int) -> Iterator[bytes]:
        """The frames, raw rgb24."""
        digest = hashlib.sha256(f"{self.name}/{seed}".encode()).digest()
        random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        height = self.height
        room = [int(abs(step) * frames) + 8 for step in self.speed]
        shape = (height + room[1], width + room[0])
        grounds = [self._ground(random, shape) for _ in range(1 + self.cut)]
        things = [self._thing(random, height // 3) for _ in range(self.objects)]
        for frame in range(frames):
            ground = grounds[-1 if 2 * frame >= frames else 0]
            offsets = [
                (room[axis] - 8 if self.speed[axis] < 0 else 0) + self.speed[axis] * frame + 2 for axis in (0, 1)
            ]
            picture = _window(ground, offsets[1], offsets[0], height, width)
            for place, (thing, mask, phase) in enumerate(things):
                _lay(picture, thing, mask, _path(phase, place, frame / self.fps, height, width))
            picture = picture * self.light
            if self.grain:
                picture += random.normal(0, self.grain, (height, width, 1)).astype(np.float32)
            yield picture.clip(0, 255).astype(np.uint8).tobytes()

    def _ground(self, random: np.random.Generator, shape: tuple[int, int]) -> Picture:
        draw = {"leaves": _leaves, "clouds": _clouds, "flat": _flat, "text": _text}[self.ground]
        picture = draw(random, shape)
        blur = max(self.blur, self.soft)
        return gaussian_filter(picture, (blur, blur, 0)) if blur else picture

    def _thing(self, random: np.random.Generator, size: int) -> tuple[Picture, Picture, NDArray[np.float64]]:
        side = max(24, int(size * random.uniform(0.5, 1.2)))
        y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
        shape = np.abs(x) ** random.uniform(1.5, 4) + np.abs(y) ** random.uniform(1.5, 4)
        mask = (((1 - shape) * side / 4).clip(0, 1)[..., None]).astype(np.float32)
        picture = _flat(random, (side, side)) if self.ground in {"flat", "text"} else _leaves(random, (side, side))
        if self.soft:
            picture = gaussian_filter(picture, (self.soft, self.soft, 0))
        return picture, mask, random.uniform(0, 2 * np.pi, 4)


def drawn_scenes(seed: int, count: int = DRAWN) -> list[Scene]:
    """Scenes whose looks are drawn too: soft and sharp, clean and grainy, dark and light, still and fast."""
    random = np.random.default_rng(seed)
    scenes = []
    for place in range(count):
        angle, pace = random.uniform(0, 2 * np.pi), float(np.exp(random.uniform(np.log(0.1), np.log(12))))
        grain, soft, blur, cut = (random.random() < share for share in (0.6, 0.5, 0.3, 0.15))
        scenes.append(
            Scene(
                name=f"scene-{place:02}", height=int(random.choice([270, 360, 360, 432, 480, 540])),
                fps=float(random.choice([24, 25, 30])),
                ground=_GROUNDS[int(random.choice(len(_GROUNDS), p=[0.55, 0.2, 0.15, 0.1]))],
                speed=(round(pace * np.cos(angle), 2), round(pace * np.sin(angle), 2)),
                objects=int(random.integers(6)), light=round(random.uniform(0.25, 1.1), 2), cut=cut,
                grain=round(float(np.exp(random.uniform(-0.7, 2.1))), 2) if grain else 0.0,
                soft=round(random.uniform(0.5, 2.2), 2) if soft else 0.0,
                blur=round(random.uniform(2, 8), 2) if blur else 0.0,
            )
        )  # fmt: skip
    return scenes


def _leaves(random: np.random.Generator, shape: tuple[int, int]) -> Picture:
    """Overlapping textured discs with sizes of a power law, the statistics of natural pictures (Lee et al. 2001)."""
    height, width = shape
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = random.uniform(60, 180) + random.normal(0, 22, 3)
    texture = _noise(random, shape, 1.1)
    count = max(40, height * width // 350)
    radii = np.sort((random.uniform(0, 1, count) * (4.0**-2 - (height / 3) ** -2) + (height / 3) ** -2) ** -0.5)[::-1]
    for radius in radii:
        cy, cx = random.uniform(0, height), random.uniform(0, width)
        top, left = max(0, int(cy - radius)), max(0, int(cx - radius))
        y, x = np.ogrid[top : min(height, int(cy + radius) + 1), left : min(width, int(cx + radius) + 1)]
        away = ((y - cy) ** 2 + (x - cx) ** 2) / radius**2
        box = picture[top : top + y.shape[0], left : left + x.shape[1]]
        shade = (random.uniform(20, 230) + random.normal(0, 22, 3)) * (1 - 0.4 * away[..., None])
        rough = random.uniform(0, 45) * texture[top : top + y.shape[0], left : left + x.shape[1], None]
        cover = ((1 - away) * radius / 2).clip(0, 1)[..., None]
        box += cover.astype(np.float32) * ((shade + rough).astype(np.float32) - box)
    return gaussian_filter(picture, (0.5, 0.5, 0))


def _noise(random: np.random.Generator, shape: tuple[int, int], fall: float) -> Picture:
    """Noise with an amplitude of 1/f^fall, of mean 0 and standard deviation 1 (H, W)."""
    spectrum = np.fft.rfft2(random.normal(size=shape))
    y, x = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    noise = np.fft.irfft2(spectrum / np.maximum(np.hypot(y, x), 1 / max(shape)) ** fall, shape)
    result: Picture = ((noise - noise.mean()) / noise.std()).astype(np.float32)
    return result


def _clouds(random: np.random.Generator, shape: tuple[int, int]) -> Picture:
    light = _noise(random, shape, random.uniform(1.4, 1.8))
    tint = _noise(random, shape, 2.0)
    return np.stack([128 + 45 * light + amount * tint for amount in random.uniform(-25, 25, 3)], axis=2)


def _flat(random: np.random.Generator, shape: tuple[int, int]) -> Picture:
    """Rectangles and ellipses of one colour each with dark outlines, as in cartoons."""
    height, width = shape
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = random.uniform(60, 240, 3)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for _ in range(28):
        cy, cx = random.uniform(0, [height, width])
        ry, rx = 6 + random.uniform(0, [height / 4, height / 3])
        ellipse = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2
        box = np.maximum(np.abs(y - cy) / ry, np.abs(x - cx) / rx) ** 2
        inside = (1 - (ellipse if random.random() < 0.6 else box)) * min(ry, rx) / 2
        for level, colour in ((inside, np.full(3, 20.0)), (inside - 2.5, random.uniform(30, 250, 3))):
            picture += level.clip(0, 1)[..., None] * (colour.astype(np.float32) - picture)
    return picture


def _text(random: np.random.Generator, shape: tuple[int, int]) -> Picture:
    """Lines of letter-like marks, dark on light."""
    height, width = shape
    rows, columns = height // 22 + 1, width // 14 + 1
    letters = random.random((40, 7, 5)) < 0.5
    page = np.zeros((rows * 11, columns * 7), np.float32)
    for row in range(rows):
        for column in range(columns):
            if random.random() < 0.82:
                page[row * 11 + 2 : row * 11 + 9, column * 7 + 1 : column * 7 + 6] = letters[random.integers(40)]
    ink = zoom(page, 2, order=1)[:height, :width]
    ink = np.pad(ink, ((0, height - ink.shape[0]), (0, width - ink.shape[1])))
    paper, colour = random.uniform(170, 250, 3), random.uniform(0, 90, 3)
    return (paper + ink[..., None] * (colour - paper)).astype(np.float32)


def _window(picture: Picture, top: float, left: float, height: int, width: int) -> Picture:
    """A part of a picture, at a place between pixels (bilinear)."""
    y, x = int(top), int(left)
    fy, fx = top - y, left - x
    part = picture[y : y + height + 1, x : x + width + 1]
    rows = part[:-1] * np.float32(1 - fy) + part[1:] * np.float32(fy)
    between = rows[:, :-1] * np.float32(1 - fx) + rows[:, 1:] * np.float32(fx)
    return between.astype(np.float32)


def _path(phase: NDArray[np.float64], place: int, time_s: float, height: int, width: int) -> tuple[int, int]:
    """Where a thing is at a time: line and column of its corner."""
    down = 0.5 + 0.45 * np.sin(phase[0] + time_s * (0.3 + place % 3) + phase[1])
    right = 0.5 + 0.5 * np.sin(phase[2] + time_s * (0.5 + place % 2))
    return int(down * height * 0.7), int(right * width * 0.8)


def _lay(picture: Picture, thing: Picture, mask: Picture, place: tuple[int, int]) -> None:
    """Lay a thing over a picture in place."""
    y, x = place
    under = picture[y : y + thing.shape[0], x : x + thing.shape[1]]
    lines, columns = under.shape[:2]
    under += mask[:lines, :columns] * (thing[:lines, :columns] - under)


SCENES: Final = (
    Scene(name="forest-pan", height=540, speed=(2.5, 0.5)),
    Scene(name="forest-still", height=720, objects=2, grain=1.5),
    Scene(name="forest-fast", height=480, speed=(11.0, 3.0), objects=1),
    Scene(name="forest-hd", height=1080, fps=24.0, speed=(3.3, 0.0), objects=2, grain=2.0),
    Scene(name="portrait", height=540, blur=6.0, objects=3, grain=1.0, speed=(0.4, 0.2)),
    Scene(name="portrait-hd", height=1080, fps=24.0, blur=9.0, objects=2, speed=(0.3, 0.1)),
    Scene(name="film", height=480, fps=24.0, speed=(1.3, -0.7), grain=7.0, objects=1),
    Scene(name="sport", height=480, fps=50.0, speed=(-6.0, 0.5), objects=6),
    Scene(name="night", height=540, light=0.22, grain=2.5, speed=(1.2, 0.0), objects=2),
    Scene(name="dusk", height=360, ground="clouds", light=0.35, grain=1.0, speed=(0.7, 0.3)),
    Scene(name="sky", height=720, ground="clouds", speed=(0.8, 0.0)),
    Scene(name="fog", height=360, ground="clouds", objects=4, grain=3.0, speed=(2.0, 1.0)),
    Scene(name="cartoon", height=540, ground="flat", objects=4, speed=(1.5, 0.0)),
    Scene(name="cartoon-fast", height=360, ground="flat", objects=8, speed=(9.0, 2.0), cut=True),
    Scene(name="titles", height=480, ground="text", speed=(0.0, 2.0)),
    Scene(name="ticker", height=360, ground="text", speed=(5.0, 0.0), objects=2),
    Scene(name="cuts", height=480, cut=True, speed=(1.7, 0.9), objects=3, grain=1.0),
)
