"""The owner's command, `hf-neuracrypt`: its commands put together, in the order of its help.

Heavy imports stay inside the commands, so that `--help` answers at once.
"""

import sys
from typing import Annotated

import typer

from hf_neuracrypt import __version__
from hf_neuracrypt.cli import audit, encrypt, keys, predict, push
from hf_neuracrypt.errors import fail, one_line_errors


app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"max_content_width": 100},
    epilog="First steps: keygen, encrypt, audit, push. Each command's --help has an example.",
)  # fmt: skip


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Encrypt image datasets with a secret key, so that a cloud can train a stock Vision Transformer on them.

    It hides pictures from people; it is not confidentiality against a capable attacker (see SECURITY.md).
    """


for command in (
    keys.keygen, keys.key_id, encrypt.encrypt, encrypt.verify, audit.audit, push.push, predict.predict, predict.adapt
):  # fmt: skip
    app.command()(command)

RENAMED = {
    "rotate": "`encrypt --like FOLDER`, then `push --replace-key`",
    "--on-error": "--max-bad-fraction SHARE (0, the default, stops at the first bad row)",
    "--depth": "--scheme-option depth=N",
    "--width": "--scheme-option width=N",
    "--background": "--scheme-option background=#rrggbb",
}


def main() -> None:
    """Run the command; every error is one line on stderr and a status that is not 0."""
    with one_line_errors():
        try:
            status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
            if status == 130:  # what Typer makes of Ctrl-C
                raise KeyboardInterrupt
        except typer.Abort:
            raise KeyboardInterrupt from None
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            # The option parser's errors, whose classes Typer keeps to itself: an unknown option, a missing argument.
            words = [word.partition("=")[0] for word in sys.argv[1:]]
            if old := next((old for old in RENAMED if old in words), None):
                fail(f"{old} is now {RENAMED[old]}", 2)
            command = getattr(getattr(error, "ctx", None), "command_path", "hf-neuracrypt")
            fail(f"{error.format_message()} (see {command} --help)", 2)
    sys.exit(status or 0)
