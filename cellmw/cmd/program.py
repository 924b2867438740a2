# SPDX-License-Identifier: Apache-2.0
"""The arguments of a program -> its configuration and its log, as both programs have them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from oslo_config import cfg, iniparser
from oslo_log import log

from cellmw.log import install, masked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def prepare_streams() -> None:
    """See to it that what is printed never fails for where it goes to, whether it is shown there or not."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # as after >&-; what is opened next, a database, would be taken for it
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """Drop what is still to be printed, which the interpreter would complain of at its end."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def set_up(
    name: str, argv: Sequence[str] | None, quieter: Sequence[str], register: Callable[[cfg.ConfigOpts], object]
) -> cfg.ConfigOpts:
    """Read the arguments and the files, and begin to log.

    :param name: of the program
    :param quieter: loggers with the level below which they are not heard
    :param register: registers what the program takes on its command line besides
    :raises cfg.Error: if something can't be read, or it can't be logged as was asked for; the message is one line
    """
    conf = cfg.ConfigOpts()
    log.register_options(conf)
    conf.set_default("default_log_levels", [*log.get_default_log_levels(), *quieter])
    register(conf)
    _read(conf, name, argv)
    # where no log is configured oslo.log would write it between the lines that a script reads
    conf.set_default("use_stderr", not (conf.log_file or conf.log_dir))
    try:
        log.setup(conf, "cellmw")
    except (log.LogConfigError, OSError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise cfg.Error(f"it can't be logged as the options for logging have it: {reason}") from None
    install()
    return conf


def _read(conf: cfg.ConfigOpts, name: str, argv: Sequence[str] | None) -> None:
    """Read them; what can't be read is quoted without the passwords in it."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            conf(argv, project="cellmw", prog=name, version=version("cellmw"))
    except cfg.ConfigFileParseError as error:
        # its own message has the line, with whatever is secret in it
        at = error.__context__
        where = f"line {at.lineno}: {at.msg}" if isinstance(at, iniparser.ParseError) else "it is none"
        raise cfg.Error(f"the configuration file {error.config_file} can't be read: {where}") from None
    except UnicodeDecodeError:
        raise cfg.Error("a configuration file is not UTF-8") from None
    except OSError as error:
        raise cfg.Error(f"a configuration file can't be read: {error}") from None
    finally:
        sys.stderr.write(masked(errors.getvalue()))
