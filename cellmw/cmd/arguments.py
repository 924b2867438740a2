# SPDX-License-Identifier: Apache-2.0
"""Arguments that several commands take, under one name and with one meaning."""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING

from cellmw.admin import ini

if TYPE_CHECKING:
    from collections.abc import Callable

    from oslo_config import cfg

PATIENCE = 5.0
"""Seconds after which a command gives up on a server that does not answer."""

_SHORTEST, _LONGEST = 0.1, 3600.0
"""What ``--timeout`` may be: request_deadline can't be less, and servers count it in milliseconds, up to a limit."""


def take_uuid(parser: argparse.ArgumentParser, text: str = "the uuid of the cell", *, required: bool = True) -> None:
    """Let a command take a cell by its uuid, which may be typed in capitals."""
    parser.add_argument(
        "--cell_uuid", "--cell-uuid", metavar="<cell_uuid>", type=str.lower, required=required, help=text
    )


def take_transport_url(parser: argparse.ArgumentParser, text: str) -> None:
    """Let a command take the URL of a cell's message queue.

    :param text: what the help says of it, with ``{}`` for the option that has the service's own
    """
    parser.add_argument(
        "--transport-url",
        "--transport_url",
        metavar="<transport_url>",
        help=f"the URL of its message queue, {text.format('[DEFAULT] transport_url')}",
    )


def take_urls(parser: argparse.ArgumentParser, text: str) -> None:
    """Let a command take both URLs of a cell.

    :param text: what the help says of each, with ``{}`` for the option that has the service's own
    """
    take_transport_url(parser, text)
    parser.add_argument(
        "--database_connection",
        "--database-connection",
        metavar="<database_connection>",
        help=f"the URL of its database, {text.format('[database] connection')}",
    )


def take_ini(parser: argparse.ArgumentParser) -> None:
    """Let a command go by a filter's own section."""
    parser.add_argument("--ini", metavar="<file>", help="the ini of the pipeline, where the filter has options in it")
    parser.add_argument(
        "--section",
        metavar="<section>",
        default=ini.DEFAULT_SECTION,
        help=f"the section of the filter in that (default: {ini.DEFAULT_SECTION})",
    )


def configuration(conf: cfg.ConfigOpts, parsed_args: argparse.Namespace) -> cfg.ConfigOpts:
    """Return what a command goes by that has :func:`take_ini`: the filter's options, where an ini was named.

    :raises ConfigError: if there is no such section, or the filter would not take what it says
    """
    if parsed_args.ini is None:
        return conf
    return ini.configuration(conf, parsed_args.ini, parsed_args.section)


def take_patience(parser: argparse.ArgumentParser) -> None:
    """Let a command that asks servers be told how long it may wait for them."""
    parser.add_argument(
        "--timeout",
        metavar="<seconds>",
        dest="patience",
        type=_seconds,
        default=PATIENCE,
        help=f"give up after so many seconds on what does not answer (default: {PATIENCE:g})",
    )


def at_least(least: int) -> Callable[[str], int]:
    """Return what reads a number of things, which has to be this one or more."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError):
            if (number := int(text)) >= least:
                return number
        raise argparse.ArgumentTypeError(f"{text!r} is no number, or less than {least}")

    return read


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if _SHORTEST <= (seconds := float(text)) <= _LONGEST:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from {_SHORTEST:g} to {_LONGEST:g}")
