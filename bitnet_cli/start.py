"""The entry point: `bitnet` starts here, so that Ctrl-C while modules are imported is no traceback either. Nothing is imported before."""


def main() -> None:
    """Run the command; exit code 130 on Ctrl-C, from the first import on."""
    try:
        from bitnet_cli.cli import main as command

        command()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
