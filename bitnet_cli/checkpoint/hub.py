"""Hugging Face hub: `owner/name` -> a folder in the hub's cache that holds the files a conversion reads, and no other file.

Taken are config.json, the tokenizer's files and the safetensors weights at the top of the repository. Pickle-based weights are never
fetched, nor is code that a repository brings along. The files come through `huggingface_hub` (imported when asked for): its cache, its
environment variables (HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE). What the hub answers is checked first (hub_answers.py), and each
file has the SHA-256 that the hub announced. A file that is in the cache is not fetched again. After a dropped connection a download goes
on where it broke off; of one that was ended with its process, huggingface_hub 1.0 keeps the part and 2.4 does not: that file starts over.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnet_cli.checkpoint.config import FolderConfig, read_config
from bitnet_cli.checkpoint.digests import CONFIG, INDEX, SINGLE, check_announced
from bitnet_cli.checkpoint.hub_answers import COMMIT, METADATA_SECONDS, checked_commit, checked_revision, checked_sizes, guard
from bitnet_cli.checkpoint.hub_bar import bar_options
from bitnet_cli.checkpoint.hub_id import READY, pick
from bitnet_cli.checkpoint.pooling import POOLING_FILE
from bitnet_cli.checkpoint.shards import PICKLED, shard_names
from bitnet_cli.checkpoint.tokenizer import TOKENIZER_FILES
from bitnet_cli.errors import BadFileError, BitnetError, UnsupportedError, UsageError, printable
from bitnet_cli.gguf_file.split_names import first_of_each, model_name, parts_beside

_FULL = {errno.ENOSPC, errno.EFBIG} | ({errno.EDQUOT} if hasattr(errno, "EDQUOT") else set())


class UnreachableError(BitnetError):
    """No answer from the hub: no network, a wrong HF_ENDPOINT, a time-out."""


class BusyError(UnreachableError):
    """The hub answers that it cannot answer now, after huggingface_hub has asked several times."""


@dataclass(frozen=True)
class HubFile:
    name: str
    size: int | None  # bytes; None where the hub does not say
    cached: bool
    sha256: str | None = None  # as the hub announces it


@dataclass(frozen=True)
class Listing:
    """What a conversion needs of one commit of a repository, small files first: weights in the cache mean that all is."""

    commit: str
    files: tuple[HubFile, ...]

    @property
    def missing(self) -> tuple[HubFile, ...]:
        return tuple(file for file in self.files if not file.cached)

    @property
    def missing_bytes(self) -> int:
        return sum(file.size or 0 for file in self.missing)


class Repository:
    """One repository at one revision (branch, tag or commit; None: its main branch).

    token      None: HF_TOKEN, or what `hf auth login` stored. Never printed.
    cache_dir  None: the hub's own (HF_HUB_CACHE)
    offline    use the cache only, as HF_HUB_OFFLINE=1 does
    bars       let huggingface_hub draw its progress bars on stderr
    """

    def __init__(
        self,
        name: str,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: Path | None = None,
        offline: bool = False,
        bars: bool = False,
    ):
        # A line end in a header would be refused with the token in the message.
        if token is not None and (not token.isascii() or not token.isprintable() or " " in token):
            raise UsageError("--token: expected one word of ASCII letters, digits and signs")
        revision = checked_revision("main" if revision is None else revision)
        import huggingface_hub
        from huggingface_hub import constants, errors
        from huggingface_hub.utils.logging import set_verbosity
        from huggingface_hub.utils.tqdm import disable_progress_bars

        self._hub, self._errors, self._store = huggingface_hub, errors, str(cache_dir or constants.HF_HUB_CACHE)
        self.name, self.revision, self._token = name, revision, token
        self.endpoint = constants.ENDPOINT.rstrip("/")
        self._bars = bars
        self._digests: dict[str, str] = {}  # by name of the file, as the last listing said
        self.offline = offline or bool(constants.HF_HUB_OFFLINE)
        guard()
        set_verbosity(logging.ERROR)  # an error is one line, and that line is ours
        if not bars:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # HF_HUB_DISABLE_PROGRESS_BARS=0 wins over us, and says so
                disable_progress_bars()

    def listing(self) -> Listing:
        """Ask the hub what there is. UsageError: no such repository or revision, or nothing to convert. UnreachableError: no answer."""
        commit, files = self._ask()
        sizes = {name: size for name, (size, _) in files.items()}
        names = [name for name in (CONFIG, POOLING_FILE, *TOKENIZER_FILES) if name in sizes]
        weights = self._weights(sizes, commit)
        if CONFIG not in sizes:
            raise BadFileError(self.name, CONFIG, "is missing in this repository, so its weights cannot be understood")
        chosen = [HubFile(n, files[n][0], self._cached(n, commit) is not None, files[n][1]) for n in [*names, *weights]]
        return Listing(commit, tuple(chosen))

    def _ask(self) -> tuple[str, dict[str, tuple[int | None, str | None]]]:
        """The commit of the revision, and its files: name -> (size, SHA-256), where the hub says them."""
        with self._explained():
            info = self._hub.HfApi().model_info(
                self.name, revision=self.revision, files_metadata=True, token=self._token, timeout=METADATA_SECONDS
            )
            commit, files = checked_commit(info.sha, self.revision, self.name), checked_sizes(info.siblings, self.name)
        self._digests = {name: digest for name, (_, digest) in files.items() if digest}
        return commit, files

    def config(self, listing: Listing) -> FolderConfig:
        """config.json, downloaded if need be. Raises as `read_config` does for a model that cannot be converted."""
        return read_config(self._download(CONFIG, listing.commit).parent)

    def fetch(self, listing: Listing) -> Path:
        """Download what the cache lacks, config.json first: gigabytes of a model that does not convert are not worth fetching.

        Returns the folder of the commit. BitnetError where that fails.
        """
        self._check_space(listing)
        # By its name, which makes the cache remember what commit the name stands for: --offline needs that.
        folder = self._download(CONFIG, self.revision).parent
        read_config(folder)
        for file in listing.files:
            self._download(file.name, listing.commit)
        if folder.name == listing.commit:
            return folder
        return self._download(CONFIG, listing.commit).parent  # the branch moved between the two questions

    def ready_file(self, tag: str | None = None) -> HubFile | None:
        """The GGUF file to run: the one that `tag` names (hub_id.pick), else, where a repository has no other weights, the one with I2_S
        weights or the only one. Asks the hub. UsageError: there is none that the tag names.

        Of a split model the first part; `size` is then that of all parts.
        """
        _, found = self._ask()
        sizes = {name: size for name, (size, _) in found.items() if "/" not in name}
        files = [path.name for path in first_of_each(Path(name) for name in sizes if name.lower().endswith(".gguf"))]
        name = pick(files, tag)
        if tag is not None and name is None:
            there = ", ".join(printable(file) for file in files[:5]) or "none"
            raise UsageError(f"{self.name}: has no GGUF file {printable(tag)} at its top; there are: {there}")
        if name is None or (tag is None and any(other.endswith(".safetensors") for other in sizes)):
            return None
        parts = [part.name for part in parts_beside(Path(name))]
        if absent := [part for part in parts if part not in sizes]:
            raise BadFileError(self.name, absent[0], f"is not in the repository, which has other parts of {model_name(Path(name))}")
        known = [sizes[part] for part in parts]
        size = None if None in known else sum(size or 0 for size in known)
        return HubFile(name, size, all(self._cached(part, self.revision) is not None for part in parts))

    def fetch_ready(self, file: HubFile) -> Path:
        """Download such a file into the cache, or all parts of a split one. Returns the path of the one that is named."""
        self._check_space(Listing(self.revision, (file,)))
        parts = {part.name: self._download(part.name, self.revision) for part in parts_beside(Path(file.name))}
        return parts[file.name]

    def cached(self) -> Path | None:
        """The folder in the cache, if all files of a conversion are there; no network is used."""
        config = self._cached(CONFIG, self.revision)
        if config is None:
            return None
        folder = config.parent
        if (folder / SINGLE).exists():
            return folder
        if (folder / INDEX).exists():
            return folder if all((folder / name).exists() for name in shard_names(folder / INDEX)) else None
        return folder if any(path.suffix == ".safetensors" for path in folder.iterdir()) else None

    def offline_folder(self) -> Path:
        """`cached`, or BitnetError."""
        folder = self.cached()
        if folder is None:
            raise BitnetError(
                f"{self.name}: not, or not completely, in the cache {self._store} (revision {self.revision}), and offline mode is on; "
                "run once with a network and without --offline and HF_HUB_OFFLINE"
            )
        return folder

    def _weights(self, sizes: dict[str, int | None], commit: str) -> list[str]:
        """Names of the weight files, the index of shards before them."""
        if SINGLE in sizes:
            return [SINGLE]
        if INDEX in sizes:
            shards = shard_names(self._download(INDEX, commit))
            if absent := [name for name in shards if name not in sizes]:
                raise BadFileError(self.name, INDEX, f"lists {absent[0]}, which is not in the repository")
            return [INDEX, *shards]
        found = [name for name in sizes if name.endswith(".safetensors") and "/" not in name]
        if len(found) == 1:
            return found
        if found:
            raise BadFileError(self.name, INDEX, f"is missing, and {len(found)} safetensors files are there")
        raise self._nothing_to_convert(sorted(sizes))

    def _nothing_to_convert(self, names: list[str]) -> BitnetError:
        ready = sorted((n for n in names if n.lower().endswith(".gguf")), key=lambda n: READY not in n.lower())
        if ready:
            which = "" if pick([Path(name).name for name in ready], None) else f":{printable(ready[0])}"
            return UsageError(f"{self.name}: holds GGUF files only, which need no conversion; `bitnet pull {self.name}{which}` gets one")
        if any(n.lower().endswith(PICKLED) for n in names):
            return UnsupportedError(f"{self.name}: has weights in pickle-based files only; pickle is never loaded, use safetensors")
        return UsageError(f"{self.name}: no safetensors weights at the top of this repository ({len(names)} files)")

    def _cached(self, name: str, revision: str) -> Path | None:
        found = self._hub.try_to_load_from_cache(self.name, name, cache_dir=self._store, revision=revision)
        return Path(found) if isinstance(found, str) else None

    def _download(self, name: str, revision: str) -> Path:
        """BadFileError where the file has another SHA-256 than the listing or its own headers announce."""
        try:
            path = self._download_once(name, revision)
        except BusyError:
            raise
        except UnreachableError:
            # huggingface_hub 2 has tried six times by now, 1.0 once: there this goes on where it broke off.
            path = self._download_once(name, revision)
        check_announced(path, self._digests.get(name), f"{self.name}/{name}")
        return path

    def _download_once(self, name: str, revision: str) -> Path:
        with self._explained(f"the download of {name} broke off; run the command again, what is complete stays in the cache"):
            download = self._hub.hf_hub_download
            bars = bar_options(download, name) if self._bars else {}
            options: dict[str, Any] = {"cache_dir": self._store, "token": self._token, "etag_timeout": METADATA_SECONDS, **bars}
            path = Path(download(self.name, name, revision=revision, **options))
        if COMMIT.fullmatch(revision) and path.parts[-1 - len(Path(name).parts)] != revision:
            raise BadFileError(f"{self.name}/{name}", "commit", f"is {path.parent.name}, asked for was {revision}")
        return path

    def _check_space(self, listing: Listing) -> None:
        cache = Path(self._store).expanduser().absolute()
        place = next((path for path in (cache, *cache.parents) if path.is_dir()), None)
        free = shutil.disk_usage(place).free if place else None
        if free is not None and listing.missing_bytes > free:
            raise BitnetError(f"{self.name}: needs {listing.missing_bytes} bytes in {cache}, its disk has {free} free")

    @contextlib.contextmanager
    def _explained(self, unreachable: str = "no such folder here") -> Iterator[None]:
        """What huggingface_hub raises -> one line of ours with the right exit code. `unreachable`: said before that the hub cannot be."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except Exception as error:
            if isinstance(error, BitnetError):
                raise
            raise self._explanation(error, unreachable) from None

    def _explanation(self, error: BaseException, unreachable: str) -> BitnetError:
        """What is not foreseen comes of an answer that huggingface_hub did not foresee either."""
        known: Any = self._errors
        page = f"{self.endpoint}/{self.name}"
        if isinstance(error, BitnetError):
            return error
        if isinstance(error, known.GatedRepoError):
            return BitnetError(f"{self.name}: is gated: accept its terms at {page}, then give a token by HF_TOKEN or --token")
        if isinstance(error, known.RepositoryNotFoundError):
            private = "; if it is private, give a token by HF_TOKEN or --token"
            return UsageError(f"{self.name}: no such folder here, and no such repository at {self.endpoint}{private}")
        if isinstance(error, known.RevisionNotFoundError):
            return UsageError(f"{self.name}: has no revision {self.revision!r} (a branch, a tag or a commit)")
        if isinstance(error, known.HfHubHTTPError):
            return self._answered(error)
        if isinstance(error, known.LocalEntryNotFoundError) and error.__cause__ is not None:
            return self._explanation(error.__cause__, unreachable)
        if isinstance(error, known.HTTPError):  # of the HTTP library, whichever huggingface_hub uses
            return UnreachableError(f"{self.name}: {unreachable}; {self.endpoint} cannot be reached ({_first_line(error)})")
        if isinstance(error, OSError) and error.errno in _FULL:
            return BitnetError(f"{self.name}: the disk of the hub's cache is full ({error.strerror}); --cache-dir names another place")
        if isinstance(error, (OSError, known.HFValidationError)):
            return BitnetError(f"{self.name}: {_first_line(error)}")
        return BitnetError(f"{self.name}: {self.endpoint} answered what is no hub's answer ({type(error).__name__}: {_first_line(error)})")

    def _answered(self, error: Any) -> BitnetError:
        status = error.response.status_code
        if status in (401, 403):
            return BitnetError(f"{self.name}: {self.endpoint} refused access ({status}); is the token (HF_TOKEN or --token) right?")
        if status >= 500:
            return BusyError(f"{self.name}: {self.endpoint} answered {status}; try again later")
        if status == 429:
            return BusyError(f"{self.name}: {self.endpoint} answered 429, too many requests; wait, or give a token (HF_TOKEN or --token)")
        return BitnetError(f"{self.name}: {self.endpoint} answered {status} for {error.response.request.url}; is it a hub?")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
