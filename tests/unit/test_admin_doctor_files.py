# SPDX-License-Identifier: Apache-2.0
"""Configuration files of services -> the cell that each is in, and options that don't go with several cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from oslo_config import cfg

from cellmw.admin.doctor.files import UNREADABLE, Service, of_configuration, read, unreadable
from cellmw.cell import CELL0_UUID, Cell, Unresolved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from cellmw.admin.doctor import Finding

SECRET = "open-sesame"

QUEUE, DATABASE = f"rabbit://me:{SECRET}@bus{{}}/", f"mysql+pymysql://me:{SECRET}@db{{}}/nova"

CELL1, CELL2 = (
    Cell(number, f"uuid{number}", f"cell{number}", False, QUEUE.format(number), DATABASE.format(number))
    for number in (1, 2)
)

CELL0 = Cell(9, CELL0_UUID, "cell0", False, "none:///", DATABASE.format(0))

CELLS = [CELL0, CELL1, CELL2, Cell(3, "uuid3", "cell3", True, Unresolved("no key"), None)]

SEVERAL = """
[filter_scheduler]
track_instance_changes = false
[workarounds]
disable_group_policy_check_upcall = true
[scheduler]
max_attempts = 1
"""
"""What a service in one of several cells has to have."""


@pytest.fixture
def service(tmp_path: Path) -> Callable[[str], Service]:
    """Read a configuration file with this in it."""

    def service(text: str) -> Service:
        (tmp_path / "nova.conf").write_text(text)
        return read(str(tmp_path / "nova.conf"))

    return service


def told(service: Service, findings: Iterable[Finding]) -> list[tuple[str, str, str]]:
    """Return what is said, without the name of the file and what to do."""
    found = [(str(each.severity), each.cell, each.what.replace(service.name, "FILE")) for each in findings]
    assert SECRET not in repr(found)
    return found


def of_urls(transport_url: str | None, connection: str | None = None, more: str = "") -> str:
    """Return a configuration file with these URLs."""
    lines = ["[DEFAULT]", f"transport_url = {transport_url}"] if transport_url else []
    return "\n".join([*lines, *(["[database]", f"connection = {connection}"] if connection else []), more])


@pytest.mark.parametrize("database", [DATABASE.format(1), None], ids=["a conductor", "a compute service"])
def test_its_cell(service: Callable[[str], Service], database: str | None) -> None:
    """A service whose URLs lead where a record's do belongs to that cell, whoever it logs in as."""
    one = service(of_urls("rabbit://other:pw@BUS1:5672,other:pw@bus8/?ssl=true", database))
    assert told(one, one.find_cell(CELLS)) == [("info", "cell1", "FILE belongs to it")]


def test_no_cell(service: Callable[[str], Service]) -> None:
    """A service whose URLs lead to no recorded cell is told of, each by its option."""
    one = service(of_urls(QUEUE.format(8), DATABASE.format(8)))
    assert told(one, one.find_cell(CELLS)) == [
        ("error", "-", "FILE: its [DEFAULT] transport_url leads to none of the recorded cells"),
        ("error", "-", "FILE: its [database] connection leads to none of the recorded cells"),
    ]
    one = service(of_urls(QUEUE.format(2), DATABASE.format(8)))
    assert told(one, one.find_cell(CELLS)) == [
        ("error", "-", "FILE: its [database] connection leads to none of the recorded cells"),
        ("info", "cell2", "FILE belongs to it"),
    ]


def test_two_cells(service: Callable[[str], Service]) -> None:
    """A service with the queue of one cell and the database of another is in neither."""
    one = service(of_urls(QUEUE.format(2), DATABASE.format(1)))
    assert told(one, one.find_cell(CELLS)) == [
        ("error", "-", "FILE has the message queue of cell cell2 and the database of cell cell1")
    ]


def test_no_transport_url(service: Callable[[str], Service]) -> None:
    """Without a transport URL a service uses its own machine's broker, which is told."""
    one = service(of_urls(None, DATABASE.format(1)))
    assert told(one, one.find_cell(CELLS)) == [
        ("warning", "-", "FILE sets no [DEFAULT] transport_url, so it uses whatever runs on its own machine"),
        ("info", "cell1", "FILE belongs to it"),
    ]


def test_malformed_urls(service: Callable[[str], Service]) -> None:
    """A URL that can't be read is told of without showing it."""
    one = service(of_urls(f"rabbit://me:{SECRET}@bus:port/", f"me:{SECRET}@db"))
    assert [(severity, text.partition(": ")[2]) for severity, _, text in told(one, one.find_cell(CELLS))] == [
        ("error", "its [DEFAULT] transport_url can't be read: its port is not a number"),
        ("error", "its [database] connection can't be read: it is not one that SQLAlchemy can read"),
    ]


def test_api_level(service: Callable[[str], Service]) -> None:
    """A service with the API database is in no cell; with role = cell it is, whatever else is set."""
    api = f"[api_database]\nconnection = {DATABASE.format(5)}\n"
    one = service(of_urls(QUEUE.format(8), more=api))
    assert one.is_api_level
    assert told(one, one.find_cell(CELLS)) == []
    one = service(of_urls(QUEUE.format(8), more=f"{api}[cellmw]\nrole = cell\n"))
    assert not one.is_api_level
    assert len(told(one, one.find_cell(CELLS))) == 1


def test_not_a_file(tmp_path: Path) -> None:
    """What can't be read is named, and no line of it is quoted."""
    (tmp_path / "bad").write_text(f"transport_url = rabbit://me:{SECRET}@bus/\n")
    for name in ("bad", "none"):
        with pytest.raises(cfg.Error) as raised:
            read(f"{tmp_path}/{name}")
        found = unreadable(f"{tmp_path}/{name}", raised.value)
        assert str(found.severity) == "error"
        assert found.what.startswith(f"{tmp_path}/{name} can't be read as a configuration file")
        assert SECRET not in repr(found)


def test_no_text(tmp_path: Path) -> None:
    """What is no file, or no text, can't be read either."""
    (tmp_path / "odd").write_bytes(b"\xff\xfe[DEFAULT]\n")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (f"{tmp_path}/odd", f"{tmp_path}/loop", str(tmp_path)):
        with pytest.raises(UNREADABLE) as raised:
            read(path)
        assert unreadable(path, raised.value).what.startswith(f"{path} can't be read as a configuration file")


@pytest.mark.parametrize("name", ["nobody_knows", "transport_url"], ids=["another program's", "itself"])
def test_value_that_names_another(service: Callable[[str], Service], name: str) -> None:
    """What a URL names that only the service knows, or itself, leaves the cell unknown, and the rest is looked at."""
    one = service(of_urls(f"rabbit://me:{SECRET}@${name}/", DATABASE.format(1)))
    assert told(one, one.find_cell(CELLS)) == [
        (
            "warning",
            "-",
            "FILE: what its [DEFAULT] transport_url names with a $ is not known here, so neither is its cell",
        ),
        ("info", "cell1", "FILE belongs to it"),
    ]


def test_option_that_names_another(service: Callable[[str], Service]) -> None:
    """So it is with an option."""
    one = service(f"{SEVERAL}[cinder]\ncross_az_attach = $nobody_knows")
    assert _all_told(one, CELLS) == [("error", "-", "FILE: [cinder] cross_az_attach has a value that it does not take")]


# -- options -----------------------------------------------------------------------------------------------------------


def options_told(service: Service, cells: list[Cell]) -> list[tuple[str, str]]:
    """Return the severity and the option of what is said."""
    return [(severity, text.split(": ")[1].partition(" is ")[0]) for severity, _, text in _all_told(service, cells)]


def _all_told(service: Service, cells: list[Cell]) -> list[tuple[str, str, str]]:
    found = list(service.examine_options(cells))
    assert {each.check for each in found} <= {"options"}
    return told(service, found)


def test_options_of_several_cells(service: Callable[[str], Service]) -> None:
    """With several cells each option has the value that goes with them, and with one cell any."""
    assert options_told(service(SEVERAL), CELLS) == []
    untold = service("")
    assert options_told(untold, [CELL0, CELL1]) == []
    assert options_told(untold, CELLS) == [
        ("warning", "[filter_scheduler] track_instance_changes"),
        ("warning", "[workarounds] disable_group_policy_check_upcall"),
        ("info", "[scheduler] max_attempts"),
    ]
    assert [found.todo for found in untold.examine_options(CELLS)] == [
        "set [filter_scheduler] track_instance_changes = false",
        "set [workarounds] disable_group_policy_check_upcall = true",
        "set [scheduler] max_attempts = 1",
    ]


def test_volumes_across_zones(service: Callable[[str], Service]) -> None:
    """Only where somebody has changed it do volumes have to be in the instance's zone."""
    assert options_told(service(f"{SEVERAL}[cinder]\ncross_az_attach = false"), CELLS) == [
        ("warning", "[cinder] cross_az_attach")
    ]


def test_options_of_the_api_level(service: Callable[[str], Service]) -> None:
    """What is for the cells alone is not asked of a service with the API database."""
    text = "[api_database]\nconnection = sqlite://\n[filter_scheduler]\ntrack_instance_changes = no\n"
    assert options_told(service(text), CELLS) == [("info", "[scheduler] max_attempts")]


def test_value_of_another_type(service: Callable[[str], Service]) -> None:
    """A value that the option does not take is an error, and is not quoted."""
    one = service(f"{SEVERAL}[cinder]\ncross_az_attach = {SECRET}")
    assert _all_told(one, CELLS) == [("error", "-", "FILE: [cinder] cross_az_attach has a value that it does not take")]


def test_our_own_configuration(tmp_path: Path) -> None:
    """In the configuration of the command, which need not be a service's, only what is there is looked at."""
    folder = tmp_path / "conf.d"
    folder.mkdir()
    (tmp_path / "cellmw.conf").write_text("[scheduler]\nmax_attempts = 2\n")
    (folder / "more.conf").write_text("[cinder]\ncross_az_attach = false\n")
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[f"{tmp_path}/cellmw.conf"], default_config_dirs=[str(folder)])
    assert options_told(of_configuration(conf), CELLS) == [
        ("warning", "[cinder] cross_az_attach"),
        ("info", "[scheduler] max_attempts"),
    ]
    conf([], default_config_files=[], default_config_dirs=[])
    assert options_told(of_configuration(conf), CELLS) == []
