"""The command `bitnet`: its commands, errors and exit codes.

Options are in options/, one file a command. What they call is imported when it is called, so `--help` stays quick.
"""

import errno
import gc
import os
import signal
import sys
import threading
import warnings
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from bitnet_cli.errors import COMMAND_LINE, BitnetError, WrongKernelsError, printable
from bitnet_cli.options import batch, bench, convert, embed, inspect, models, perplexity, quantize, run, serve
from bitnet_cli.options.compile import compile_kernels
from bitnet_cli.options.eval import evaluate
from bitnet_cli.options.pages import Command, Group

GRACE = 3.0  # seconds after SIGTERM in which files and the terminal are put in order
COMPLETING = "_BITNET_COMPLETE"  # set by a shell that asks what Tab may offer


class Commands(Group):
    """The command with its subcommands. All errors are one line, Typer's own as well."""

    def main(self, *arguments: Any, **options: Any) -> NoReturn:
        """Run the command line, and exit. OSError where nobody reads stdout any more."""
        asking = COMMAND_LINE.set(True)
        try:
            code = super().main(*arguments, **options | {"standalone_mode": False})
        except BitnetError as error:
            if isinstance(error, WrongKernelsError):
                from bitnet_cli.commands.again import start_again

                start_again(error)
            _fail(error, error.exit_code)
        except OSError as error:
            if reader_left(error):
                raise
            _fail(error, 1)
        except typer.Abort:
            raise SystemExit(1) from None
        except ImportError as error:  # no memory for its code, or a damaged installation; NumPy's reason is the last of 20 lines
            reason = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            _fail(f"a library cannot be loaded: {reason[-1].removeprefix('Original error was: ')}", 1)
        except MemoryError as error:
            what = f" ({error})" if str(error) else ""  # NumPy says how much it wanted
            _fail(f"not enough memory{what}; a smaller -c needs less", 1)
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            _fail(_explained(error), getattr(error, "exit_code", 2))
        finally:
            COMMAND_LINE.reset(asking)
        raise SystemExit(code if isinstance(code, int) else 0)


def _explained(error: Any) -> str:
    """An error of Typer's (the command line cannot be read) in one line, with the page that helps."""
    message, context = " ".join(error.format_message().split()).rstrip("."), getattr(error, "ctx", None)
    return message[:1].lower() + message[1:] + (f"; see `{context.command_path} -h`" if context else "")


app = typer.Typer(
    name="bitnet",
    cls=Commands,
    help="Run 1-bit large language models (ternary weights) on this computer's CPU.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Try: bitnet run -p 'Once upon a time'   (a small model ships inside; nothing is downloaded)",
)


def _version(wanted: bool) -> None:
    if wanted:
        from bitnet_cli.commands.version import lines

        typer.echo(printable("\n".join(lines()), "\n"))
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, the CPU and its instruction set.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


for _command in (
    run.run,
    serve.serve,
    batch.batch,
    perplexity.perplexity,
    embed.embed,
    convert.convert,
    quantize.quantize,
    inspect.inspect,
):
    app.command(cls=Command)(_command)
app.command("list", cls=Command)(models.list_models)
for _command in (models.pull, models.show, models.rm):
    app.command(cls=Command)(_command)
app.command("eval", cls=Command)(evaluate)
app.command("compile", cls=Command)(compile_kernels)
app.add_typer(bench.app, name=bench.NAME)


def _fail(error: BaseException | str, code: int) -> NoReturn:
    sys.stdout.flush()
    print(f"bitnet: error: {printable(str(error))}", file=sys.stderr)  # noqa: T201
    raise SystemExit(code)


def _open_closed_streams() -> None:
    """Started with a stream closed (`bitnet run >&-`), Python has None in its place, and print(file=None) would write to stdout."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def _unknown_terminal() -> None:
    """Without TERM nothing is known of the terminal, so all that draws on one may only write lines. Windows' terminals have no TERM."""
    if os.name == "posix" and not os.environ.get("TERM"):
        os.environ["TERM"] = "dumb"


def _home_that_is_none() -> None:
    """`HOME=` would make every `~` of ours and of libraries the root of the file system: without the variable the system is asked."""
    if os.name == "posix" and not os.environ.get("HOME", "/").startswith("/"):
        del os.environ["HOME"]


def _terminated(number: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM ends the command as Ctrl-C does, so that the terminal is left as it was and no half file stays; a second one at once.

    While kernels compile it waits, as Ctrl-C does, for a moment that bears it: some seconds (bitnet_kernels.interrupts).
    """
    signal.signal(number, signal.SIG_DFL)
    # Whatever is still being closed may take long, or hang.
    later = threading.Timer(GRACE, os.kill, (os.getpid(), number))
    later.daemon = True
    later.start()
    raise SystemExit(128 + number)


def reader_left(error: OSError, system: str = os.name) -> bool:
    """Whether nobody reads the pipe any more that was written to. Windows calls that an invalid argument, and names no file."""
    return isinstance(error, BrokenPipeError) or (system == "nt" and error.errno == errno.EINVAL and error.filename is None)


def _run() -> None:
    """The command. Afterwards the interpreter need not look for garbage while it ends, which takes a quarter of a second with Numba."""
    try:
        app(prog_name="bitnet")
    finally:
        gc.disable()
        gc.freeze()


def main() -> None:
    """Entry point. Exit codes: see bitnet_cli.errors; 130 on Ctrl-C."""
    _open_closed_streams()
    _unknown_terminal()
    _home_that_is_none()
    signal.signal(signal.SIGTERM, _terminated)
    if not sys.warnoptions:  # an error is one line; -W and PYTHONWARNINGS show what libraries warn of
        warnings.simplefilter("ignore")
    if COMPLETING in os.environ:
        os.environ["TERMINAL_WIDTH"] = "10000"  # Typer would break the help beside a candidate, and each line of it would be another one
    try:
        _run()
    except KeyboardInterrupt:  # Typer makes its own of most of them
        raise SystemExit(130) from None
    except OSError:
        # `| head`: say nothing. Point stdout at nowhere so that interpreter exit does not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
