"""Speech with the times of its phones, from the library espeak-ng, called through ctypes.

The library is Debian's package libespeak-ng1 (with espeak-ng-data). It is one state machine for the
whole process, so nothing here may be called from two threads.
"""

import ctypes
import functools
from typing import NamedTuple

import torch
from torch import Tensor

LIBRARY = "libespeak-ng.so.1"
SYNCHRONOUS, UTF8, FROM_CHARACTER = 2, 1, 1
PHONEME_EVENTS, DO_NOT_EXIT = 0x0001, 0x8000
RATE, PITCH = 1, 3
END_OF_LIST, PHONEME = 0, 7


class Utterance(NamedTuple):
    """What was said.

    Attributes:
        wave: Samples from -1 to 1, `n`.
        hertz: Samples in a second.
        phones: In the order of time, the sample where a phone begins, and its name in espeak-ng.
    """

    wave: Tensor
    hertz: int
    phones: list[tuple[int, str]]


class _Name(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_void_p), ("phone", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("message", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Name),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


def is_here() -> bool:
    """Return whether the library can be loaded."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


def say(text: str, *, voice: str, rate: int, pitch: int) -> Utterance:
    """Return the text as speech.

    Args:
        text: Words.
        voice: A language and a variant, ``"en-us+f2"``. An unknown variant is taken for none.
        rate: Words in a minute, 80 to 450.
        pitch: From 0 to 99.

    Raises:
        FileNotFoundError: The library or its data are not there.
        ValueError: There is no such voice.
    """
    library, hertz = loaded()
    samples, phones = bytearray(), []

    def hear(
        wave: "ctypes._Pointer[ctypes.c_short]", n: int, events: "ctypes._Pointer[_Event]"
    ) -> int:
        if wave and n > 0:
            samples.extend(ctypes.string_at(wave, 2 * n))
        i = 0
        while events[i].type != END_OF_LIST:
            if events[i].type == PHONEME:
                phones.append((events[i].sample, events[i].id.phone.decode()))
            i += 1
        return 0

    callback = _Callback(hear)  # held here for as long as the library may call it
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise ValueError(f"espeak-ng must know the voice, got {voice!r}. Write 'en-us+f2'.")
    library.espeak_SetParameter(RATE, rate, 0)
    library.espeak_SetParameter(PITCH, pitch, 0)
    content = text.encode() + b"\0"
    library.espeak_Synth(
        content, ctypes.c_size_t(len(content)), 0, FROM_CHARACTER, 0, UTF8, None, None
    )
    wave = torch.frombuffer(samples, dtype=torch.int16).float() / 2**15
    return Utterance(wave, hertz, phones)


@functools.cache
def loaded() -> tuple[ctypes.CDLL, int]:
    """Return the library, ready to speak, and its samples in a second; see `say` for the errors."""
    missing = "Install Debian's packages libespeak-ng1 and espeak-ng-data."
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise FileNotFoundError(
            f"Speech needs the library {LIBRARY}: {error}. {missing}"
        ) from error
    hertz = library.espeak_Initialize(SYNCHRONOUS, 0, None, PHONEME_EVENTS | DO_NOT_EXIT)
    if hertz <= 0:
        raise FileNotFoundError(f"espeak-ng must find its data, it did not. {missing}")
    return library, hertz
