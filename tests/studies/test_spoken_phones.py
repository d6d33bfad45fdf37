"""The features and labels against tones and marks that are made here; espeak-ng where it is."""

import itertools
import math
from pathlib import Path

import pytest
import torch

from studies.data import espeak, spoken_phones
from studies.data.spoken_phones import Frames

HERTZ = 16_000
needs_espeak = pytest.mark.skipif(not espeak.is_here(), reason="needs libespeak-ng1")


@pytest.mark.parametrize("frequency", [300.0, 1000.0, 3000.0])
def test_a_tone_is_loudest_in_the_band_whose_centre_in_mel_is_nearest(frequency: float) -> None:
    tone = torch.sin(2 * math.pi * frequency * torch.arange(HERTZ) / HERTZ)
    found = spoken_phones.log_mel(tone, HERTZ)
    assert found.shape == (101, spoken_phones.BANDS)  # a row every 10 ms, both ends included
    mel = 2595 * math.log10(1 + frequency / 700)
    top = 2595 * math.log10(1 + 8000 / 700)
    nearest = round(mel / top * (spoken_phones.BANDS + 1)) - 1
    assert set(found[10:-10].argmax(dim=1).tolist()) == {nearest}


def test_twice_the_amplitude_is_four_times_the_energy() -> None:
    wave = torch.randn(HERTZ, generator=torch.Generator().manual_seed(0))
    difference = spoken_phones.log_mel(2 * wave, HERTZ) - spoken_phones.log_mel(wave, HERTZ)
    torch.testing.assert_close(difference, torch.full_like(difference, math.log(4)))


def test_a_frame_has_the_phone_that_sounds_at_its_centre() -> None:
    marks = [(0, "_:"), (160, "k"), (479, "a"), (480, "t"), (800, "")]
    names = spoken_phones.names_of_frames(marks, 7, HERTZ)  # centres at 0, 160, 320 ...
    assert names == ["_", "k", "k", "t", "t", "_", "_"]
    assert spoken_phones.names_of_frames([(200, "k")], 3, HERTZ) == ["_", "_", "k"]


def test_neighbours_are_the_phones_of_the_runs_before_and_after() -> None:
    before, after = spoken_phones.neighbours(torch.tensor([3, 3, 1, 3, 2, 2]))
    assert before.tolist() == [0, 0, 3, 1, 3, 3]
    assert after.tolist() == [1, 1, 3, 2, 0, 0]


@pytest.mark.parametrize("table", [spoken_phones.VARIANTS, spoken_phones.WORDS])
def test_no_speaker_and_no_word_is_in_two_parts(table: dict[str, str]) -> None:
    for one, other in itertools.combinations(table.values(), 2):
        assert not set(one.split()) & set(other.split())


def test_a_missing_library_is_named_with_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(espeak, "LIBRARY", "libno-such-thing.so.7")
    espeak.loaded.cache_clear()
    assert not espeak.is_here()
    with pytest.raises(FileNotFoundError, match=r"libno-such.*libespeak-ng1 and espeak-ng-data"):
        espeak.say("a", voice="en-us", rate=170, pitch=50)


def test_what_is_cached_is_read_again_without_synthesis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    y = torch.arange(4)
    one, two, three = (Frames(torch.full((4, 2), float(i)), y, y + 1, y + 2) for i in range(3))
    made = iter([spoken_phones.Speech(one, two, three, ["_", "a"])])  # once, and no more
    monkeypatch.setattr(spoken_phones, "synthesized", lambda *_: next(made))
    first, again = (spoken_phones.read(tmp_path / "new" / "speech.pt") for _ in range(2))
    for part, other in zip(first[:3], again[:3], strict=True):
        assert all(map(torch.equal, part, other))
    assert again.test.x[0, 0] == 2.0
    assert again.phones == ["_", "a"]


@needs_espeak
def test_a_word_is_spoken_with_its_phones_at_their_times() -> None:
    said = espeak.say("see", voice="en-us+f2", rate=150, pitch=50)
    begins = [begin for begin, _ in said.phones]
    assert [name for _, name in said.phones if not name.startswith("_")] == ["s", "i:"]
    assert begins == sorted(begins)
    assert begins[-1] <= len(said.wave)
    s, i = begins[:2]
    middle = (s + i) // 2  # of the hiss; the vowel is the same time after its beginning
    hiss, vowel = said.wave[middle - 200 : middle + 200], said.wave[i + 1000 : i + 1400]
    crossings = [int((part[1:] * part[:-1] < 0).sum()) for part in (hiss, vowel)]
    assert crossings[0] > 2 * crossings[1]


@needs_espeak
def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(ValueError, match="must know the voice, got 'no-such'"):
        espeak.say("a", voice="no-such", rate=170, pitch=50)


@needs_espeak
def test_synthesized_speech_has_its_parts_and_no_unknown_numbers() -> None:
    made = spoken_phones.synthesized(speakers=2, sentences=1)
    for part in made[:3]:
        assert part.x.shape == (len(part.y), spoken_phones.BANDS)
        assert bool(part.x.isfinite().all())
        assert 0 <= int(part.y.min()) <= int(part.y.max()) < len(made.phones)
    assert made.phones[0] == spoken_phones.SILENCE
    assert len(made.phones) > 15
    torch.testing.assert_close(made.train.x.std(dim=0), torch.ones(spoken_phones.BANDS))
