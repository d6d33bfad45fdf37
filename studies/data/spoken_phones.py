"""Frames of synthetic speech and the phone of each: speakers, words, features, cache.

Each speaker is a variant of espeak-ng's American English with a pitch and a rate of its own, and
says random words. Speakers and words of training, validation and test are apart; variants that
share a name stem are in one part. White noise is added, because espeak-ng's speech is cleaner
than any.

Letters: F frames, M = 40 mel bands.
"""

import math
import random
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from studies.data import espeak

VARIANTS = {
    "train": (
        "Alex Alicia Andrea Andy Annie Denis Diogo Gene Henrique Hugo Jacky Lee Marco Mario "
        "f1 f2 f3 m1 m2 m3 m4 klatt klatt2 klatt3 klatt4 anika antonio belinda"
    ),
    "validation": "Michael Mike f4 m5 m6 boris linda edward",
    "test": "Nguyen f5 m7 m8 steph steph2 steph3 victor zac pablo marcelo grandma",
}
WORDS = {
    "train": (
        "about above across after again against almost among animal answer arrive autumn balance "
        "basket beauty because before begin behind believe between bottle bridge brother bubble "
        "butter camera castle change cheese choice church circle clothes cloud coffee corner "
        "cotton country couple dancing danger daughter decide desert dinner doctor double dream "
        "early earth easy eighteen engine enjoy evening every example father feather fifty figure "
        "finger finish flower follow forest forgive foxes friend garden gather gentle ghost giant "
        "glory golden gravel group growth guitar happy harbour heavy height honey hotel hundred "
        "hungry island jacket jealous journey judge juice jumping kettle kitchen knife language "
        "laughter lemon letter library little loud machine manage market measure meadow mirror "
        "moment money morning mother mountain mouth music narrow nation nothing number ocean "
        "offer orange oyster package paper patient pencil people picture pleasure pocket powder "
        "pretty promise purple puzzle question quiet rabbit rather reason ribbon river rubber"
    ),
    "validation": (
        "sailor sandwich school scissors season seven shadow shoulder silver singing smooth sorry "
        "square station stomach strange sugar sunshine table teacher thirty thousand thunder "
        "ticket together toward treasure trouble under usual value vision voyage warm beige"
    ),
    "test": (
        "water weather welcome whether window winter without woman wonder yellow yesterday young "
        "zebra zero joyful vanish tongue thief shallow rhythm pushing oilcloth murmur leisure "
        "jigsaw hawthorn fountain elbow dusty chimney boyhood azure apple mouthful broth"
    ),
}
SILENCE = "_"
BANDS, WINDOW, HOP = 40, 0.025, 0.010  # mel bands; seconds
NOISE = 0.02  # of the loudest sample, standard deviation


class Frames(NamedTuple):
    """Speech of several speakers, one after the other.

    Attributes:
        x: Log-mel energies with the mean of the speaker taken away, `F x M`.
        y: The phone, `F`, a number into the list of names.
        before: The phone before this one, `F`.
        after: The phone after this one, `F`.
    """

    x: Tensor
    y: Tensor
    before: Tensor
    after: Tensor


class Speech(NamedTuple):
    """All frames, and the names of the phones; one that is not in training is silence's number."""

    train: Frames
    validation: Frames
    test: Frames
    phones: list[str]


def read(cache: Path, *, speakers: int = 100, sentences: int = 12) -> Speech:
    """Return the speech, from the cache if it is there, else synthesized and kept.

    Args:
        cache: A file, made with its folder if need be.
        speakers: At most so many in each part.
        sentences: Of six words, for each speaker.

    Raises:
        FileNotFoundError: There is no cache, and espeak-ng is missing.
    """
    if not cache.is_file():
        kept = synthesized(speakers, sentences)
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save([*(tuple(part) for part in kept[:3]), kept.phones], cache)
    train, validation, test, phones = torch.load(cache)
    return Speech(Frames(*train), Frames(*validation), Frames(*test), phones)


def synthesized(speakers: int, sentences: int) -> Speech:
    """Return the speech, of the same words each time; espeak-ng draws its own noise as it likes."""
    said = {
        part: [_said(part, variant, sentences) for variant in variants.split()[:speakers]]
        for part, variants in VARIANTS.items()
    }
    heard = {name for _, names in said["train"] for name in names}
    phones = [SILENCE, *sorted(heard - {SILENCE})]
    number = {name: i for i, name in enumerate(phones)}
    made = []
    for part in said.values():
        ys = [torch.tensor([number.get(name, 0) for name in names]) for _, names in part]
        around = [neighbours(y) for y in ys]
        x, y = torch.cat([x for x, _ in part]), torch.cat(ys)
        made.append(Frames(x, y, *(torch.cat(side) for side in zip(*around, strict=True))))
    spread = made[0].x.std(dim=0)
    train, validation, test = (part._replace(x=part.x / spread) for part in made)
    return Speech(train, validation, test, phones)


def log_mel(wave: Tensor, hertz: int) -> Tensor:
    """Return the logarithms of the energies in mel bands, `F x M`, a row every `HOP` seconds.

    Frame i is centred at i hops. The bands are triangles in frequency whose centres lie at equal
    distances in mel, 2595 log10(1 + f / 700), from 0 to 8000 Hz.
    """
    size = 2 ** math.ceil(math.log2(WINDOW * hertz))
    spectrum = torch.stft(
        wave,
        size,
        hop_length=_hop(hertz),
        win_length=int(WINDOW * hertz),
        window=torch.hann_window(int(WINDOW * hertz)),
        pad_mode="constant",
        return_complex=True,
    )
    top = 2595 * math.log10(1 + 8000 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, BANDS + 2) / 2595) - 1)
    frequencies = torch.linspace(0, hertz / 2, size // 2 + 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - low) / (centre - low), (high - frequencies) / (high - centre)
    bands = torch.minimum(rising, falling).clamp(min=0)
    return torch.log(bands @ spectrum.abs().square() + 1e-6).mT


def names_of_frames(phones: list[tuple[int, str]], frames: int, hertz: int) -> list[str]:
    """Return the phone at the centre of each frame; pauses of all kinds are silence."""
    names, upcoming = [], iter([*phones, (math.inf, "")])
    current, (begin, name) = SILENCE, next(upcoming)
    for i in range(frames):
        while begin <= i * _hop(hertz):
            current = SILENCE if name.startswith("_") or not name else name
            begin, name = next(upcoming)
        names.append(current)
    return names


def neighbours(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the phones before and after each frame's, 0 at the ends."""
    runs, which = torch.unique_consecutive(y, return_inverse=True)
    ends = torch.zeros(1, dtype=runs.dtype)
    return torch.cat([ends, runs])[which], torch.cat([runs[1:], ends])[which]


def _said(part: str, variant: str, sentences: int) -> tuple[Tensor, list[str]]:
    """Return the features and the phones of all that a speaker says."""
    draw = random.Random(variant)
    pitch, rate = draw.randint(30, 70), draw.randint(130, 200)
    noise = torch.Generator().manual_seed(draw.randrange(2**31))
    rows, names = [], []
    for _ in range(sentences):
        text = " ".join(draw.choices(WORDS[part].split(), k=6))
        wave, hertz, phones = espeak.say(text, voice=f"en-us+{variant}", rate=rate, pitch=pitch)
        wave = wave / wave.abs().max()
        rows.append(log_mel(wave + NOISE * torch.randn(len(wave), generator=noise), hertz))
        names += names_of_frames(phones, len(rows[-1]), hertz)
    x = torch.cat(rows)
    return x - x.mean(dim=0), names


def _hop(hertz: int) -> int:
    return round(HOP * hertz)
