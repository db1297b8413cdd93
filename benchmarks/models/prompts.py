"""Real speech for the audio models: the English prompts of an answering machine.

Debian's package asterisk-core-sounds-en-wav (CC-BY-SA-3.0) holds 568 prompts, 25 minutes of one
woman's voice at 8 kHz. What is no speech (tones, monkeys, files of silence) is left out.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tempfile
import wave
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from scipy.signal import resample_poly

Floats = NDArray[np.float64]
Column = NDArray[np.generic]
Samples = NDArray[np.int16]
PACKAGE = "asterisk-core-sounds-en-wav"
VERSION = "1.6.1-1"
SHA256 = "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d"
SOUNDS = "usr/share/asterisk/sounds/en_US_f_Allison"
NO_SPEECH = ("ascending-2tone", "beep", "beeperr", "descending-2tone", "silence/", "tt-monkeys")
RATE = 8_000
PAUSE = 1.0  # seconds of silence before and behind a prompt, as between two in a call
SEED = 20
SHARES = {"train": 0.2, "search": 0.3, "holdout": 0.5}  # of the prompts, not of their pieces


def fetch(path: Path) -> None:
    """Download the package into a temporary folder and keep its sounds as int16 arrays."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise SystemExit(f"the speech is Debian's package {PACKAGE}; there is no apt-get here")
    with tempfile.TemporaryDirectory() as name:
        command = ["apt-get", "download", "--quiet", f"{PACKAGE}={VERSION}"]
        subprocess.run(command, cwd=name, check=True)
        (package,) = Path(name).glob("*.deb")
        if hashlib.sha256(package.read_bytes()).hexdigest() != SHA256:
            raise SystemExit(f"{package.name} is not the expected file")
        subprocess.run(["dpkg", "--extract", package, name], check=True)
        folder = Path(name) / SOUNDS
        sounds = {
            str(file.relative_to(folder).with_suffix("")): read(file.read_bytes())
            for file in sorted(folder.rglob("*.wav"))
        }
    np.savez_compressed(path, allow_pickle=False, **sounds)


def read(content: bytes) -> Samples:
    with wave.open(io.BytesIO(content)) as sound:
        if (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) != (RATE, 1, 2):
            raise SystemExit("a prompt is not 16 bits, mono, at 8 kHz")
        return np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.int16)


def load(folder: Path) -> dict[str, Floats]:
    """Prompts by name, as samples within -1 and 1."""
    path = folder / "prompts.npz"
    if not path.is_file():
        fetch(path)
    with np.load(path) as sounds:
        names = [name for name in sounds.files if not name.startswith(NO_SPEECH)]
        return {name: sounds[name] / 32768 for name in names}


def parts(names: list[str]) -> dict[str, str]:
    """Prompt -> train, search or holdout."""
    order = np.random.default_rng(SEED).permutation(len(names))
    cuts = np.cumsum([round(share * len(names)) for share in SHARES.values()])[:-1]
    pieces = zip(SHARES, np.split(order, cuts), strict=True)
    return {names[index]: part for part, piece in pieces for index in piece}


def with_pauses(samples: Floats, rate: int) -> Floats:
    silence = np.zeros(round(PAUSE * rate))
    return np.concatenate([silence, samples, silence])


def levels(samples: Floats, length: int) -> Floats:
    """Decibels of each whole frame of so many samples; 0 is a full square wave."""
    frames = samples[: len(samples) // length * length].reshape(-1, length)
    return np.asarray(10 * np.log10(np.square(frames).mean(1) + 1e-10))


def loudness(samples: Floats, length: int) -> float:
    """The level of the loud frames: the 90th percentile of those that are not silence."""
    found = levels(samples, length)
    return float(np.percentile(found[found > -60], 90))


def with_noise(samples: Floats, rate: int, below: float, rng: np.random.Generator) -> Floats:
    """The samples with pink noise so many decibels below their loud frames."""
    length = next_fast_len(len(samples), real=True)
    waves = np.fft.rfft(rng.normal(size=length))
    frequencies = np.fft.rfftfreq(length, 1 / rate)
    noise = np.fft.irfft(waves / np.sqrt(np.maximum(frequencies, 20)), length)[: len(samples)]
    gain = 10 ** ((loudness(samples, rate // 32) - below) / 20)
    return np.asarray(np.clip(samples + noise / noise.std() * gain, -1, 1))


@dataclass(frozen=True)
class Windows:
    """Pieces of the prompts, with their pauses and with noise: so many seconds long and so many
    apart, at so many samples a second, once with the noise so many decibels below the speech."""

    rate: int
    length: float
    step: float
    noises: Sequence[int]

    def sound(self, samples: Floats) -> Floats:
        """A prompt at this rate, with its pauses."""
        return with_pauses(resample_poly(samples, self.rate, RATE), self.rate)

    def cut(self, sound: Floats, starts: Sequence[float] | Floats) -> list[Samples]:
        """The pieces that begin at those seconds."""
        whole = np.round(np.clip(sound, -1, 1) * 32767).astype(np.int16)
        firsts, length = (
            [round(each * self.rate) for each in starts],
            round(self.length * self.rate),
        )
        return [whole[first : first + length] for first in firsts]

    def draw(
        self, folder: Path, rows: Mapping[str, int], spectrogram: Callable[[Samples], Column]
    ) -> dict[str, Column]:
        """Columns `spectrogram` [N, 1, frames, channels], `noise` and `split`, so many rows of
        each split."""
        speech = load(folder)
        split = parts(list(speech))
        rng = np.random.default_rng(SEED)
        found: list[dict[str, Column]] = []
        for name, samples in speech.items():
            clean = self.sound(samples)
            starts = np.arange(0, len(clean) / self.rate - self.length, self.step)
            for below in self.noises:
                noisy = with_noise(clean, self.rate, below, rng)
                images = np.array([spectrogram(each) for each in self.cut(noisy, starts)])[:, None]
                names = {"noise": f"{below} dB", "split": split[name]}
                found.append(
                    {
                        "spectrogram": images,
                        **{key: np.full(len(starts), value) for key, value in names.items()},
                    }
                )
        return draw(found, rows, rng)


def draw(
    found: Sequence[Mapping[str, Column]], rows: Mapping[str, int], rng: np.random.Generator
) -> dict[str, Column]:
    """So many rows of each split, drawn from tables with the same columns, `split` among them."""
    table = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    order = rng.permutation(len(table["split"]))
    chosen = []
    for part, count in rows.items():
        chosen.append(order[table["split"][order] == part][:count])
        if len(chosen[-1]) < count:
            raise SystemExit(f"{part} has {len(chosen[-1])} rows and not {count}")
    return {name: values[np.concatenate(chosen)] for name, values in table.items()}
