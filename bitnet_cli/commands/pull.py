"""`bitnet pull`: a repository of the hub -> a model in the user's folder. Weights that are ready are fetched, others converted.

What is fetched goes to owner/name/ in the folder, whole or not at all; until then it is in .downloads there, where a download that broke
off goes on.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from bitnet_cli.checkpoint.hub import HubFile, Repository
from bitnet_cli.checkpoint.hub_id import Wanted, wanted
from bitnet_cli.commands.reporting import Reporter, byte_size, put
from bitnet_cli.embedded import EMBEDDED
from bitnet_cli.errors import UsageError, printable
from bitnet_cli.gguf_file.split_names import parts_beside
from bitnet_cli.model.names import NotHereError, find, output_folder

DOWNLOADS = ".downloads"


def pull(reference: str, *, again: bool = False, quiet: bool = False) -> None:
    """Get a model and print its path. again: also one that is here. UsageError: it is none of the hub's."""
    what = wanted(reference)
    if what is None or reference in EMBEDDED:
        raise UsageError(f"{reference}: expected a repository of the hub: OWNER/NAME, OWNER/NAME:QUANT, or its address")
    try:
        if again:
            raise NotHereError(what, downloaded=False)
        path = find(str(what))
        Reporter(quiet).note(f"{printable(str(what))} is here already; --force gets it again")
    except NotHereError as missing:
        path = get(missing, None, quiet)
    put(str(path))


def get(missing: NotHereError, ask: Callable[[str], None] | None, quiet: bool = False) -> Path:
    """Download or convert, whatever a repository needs to run. ask: is told what, and raises if the user does not want it."""
    what, report = missing.wanted, Reporter(quiet)
    name, into = printable(str(what)), printable(str(output_folder()))
    question = f"{name} is downloaded but not converted. Convert it into {into}?"
    if not missing.downloaded:
        store = output_folder() / DOWNLOADS
        repository = Repository(what.name, cache_dir=store, bars=report.on_terminal)
        if ready := repository.ready_file(what.tag):
            size = byte_size(ready.size)
            if ask:
                ask(f"{name} is not on this computer. Download {printable(ready.name)}, {size}?")
            else:
                report.note(f"downloading {printable(ready.name)}, {size}, from {repository.endpoint}/{what.name}")
            return _fetched(repository, ready, what, store)
        size = byte_size(Repository(what.name).listing().missing_bytes)
        question = f"{name} is not on this computer. Download {size} and convert it into {into}?"
    if ask:
        ask(question)
    from bitnet_cli.commands.convert import convert

    convert(what.name, quiet=quiet)
    return find(what.name)


def _fetched(repository: Repository, ready: HubFile, what: Wanted, store: Path) -> Path:
    """The file at its place in the folder; of a split model the first part comes last, so that no half model is found before."""
    path = repository.fetch_ready(ready)
    place = store.parent / what.name
    place.mkdir(parents=True, exist_ok=True)
    for part in reversed(parts_beside(path)):
        part.resolve().replace(place / part.name)
    shutil.rmtree(store / f"models--{what.name.replace('/', '--')}", ignore_errors=True)
    if not any(store.glob("models--*")):
        shutil.rmtree(store, ignore_errors=True)
    return place / path.name
