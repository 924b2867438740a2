# SPDX-License-Identifier: Apache-2.0
"""The options, and the values that a filter goes by."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from oslo_config import cfg
from oslo_context.context import RequestContext
from oslo_db import options as oslo_db_options

from cellmw import conf as options
from cellmw.engines import make_engine
from cellmw.exceptions import ConfigError
from cellmw.routes import Routes

if TYPE_CHECKING:
    from pathlib import Path

EVERY_OPTION = [
    pytest.param(group, opt, id=f"{group}.{opt.name}") for group, opts in options.list_opts() for opt in opts
]
OUR_OPTIONS = [case for case in EVERY_OPTION if case.values[0] == options.GROUP]


def read(tmp_path: Path, text: str) -> cfg.ConfigOpts:
    """Return a configuration that has read this file."""
    file = tmp_path / "cellmw.conf"
    file.write_text(text)
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[str(file)], default_config_dirs=[])
    options.register_opts(conf)
    return conf


def test_defaults(conf: cfg.ConfigOpts) -> None:
    """Without any configuration these values hold."""
    assert options.settings(conf) == options.Settings(
        enabled=True,
        role="api",
        local_cell_name="local",
        local_cell_uuid="local",
        context_key="cellmw.context",
        routes=options.DEFAULT_ROUTES,
        instance_header=None,
        instance_header_secret=None,
        trust_header=False,
        unmapped="404",
        building="pass",
        project_check=True,
        admin_roles=frozenset({"admin"}),
        mapping_ttl=60.0,
        stale_ttl=3600.0,
        mapping_cache_size=100_000,
        shared_cache=False,
        shared_cache_protection="sign",
        shared_cache_secret=None,
        cells_config=None,
        credential_keys=None,
        allowed_remote_exmods=(),
        context_attributes=frozenset(RequestContext(overwrite=False).to_dict()),
        refresh_interval=10.0,
        max_open_cells=0,
        idle_timeout=0.0,
        max_leases_per_cell=0,
        drain_timeout=5.0,
        request_deadline=60.0,
        deadline_header=None,
        down_cell="503",
        probe_interval=2.0,
        max_connections_per_cell=15,
    )


def test_secrets_are_not_shown(conf: cfg.ConfigOpts) -> None:
    """Settings show no secret."""
    assert "s3cret" not in repr(options.settings(conf, {"instance_header_secret": "s3cret"}))


def test_default_routes_are_good() -> None:
    """The templates that are the default can be understood."""
    Routes(options.DEFAULT_ROUTES)


def test_every_option_has_a_field() -> None:
    """The settings are the options of [cellmw], all of them and nothing else."""
    fields = {field.name for field in dataclasses.fields(options.Settings)}
    assert fields == {opt.name for opt in dict(options.list_opts())[options.GROUP]}


@pytest.mark.parametrize(("group", "opt"), EVERY_OPTION)
def test_help(group: str, opt: cfg.Opt) -> None:
    """Each option says what it does."""
    assert len(opt.help.split()) > 5


@pytest.mark.parametrize(("group", "opt"), OUR_OPTIONS)
def test_help_is_a_paragraph(group: str, opt: cfg.Opt) -> None:
    """Each option of ours has a paragraph of full sentences, which says when to change it."""
    assert opt.help.count(". ") + opt.help.count(".\n") >= 2
    assert "TODO" not in opt.help


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("enabled", "false", False),
        ("enabled", "0", False),
        ("context_key", "nova.context", "nova.context"),
        ("routes", "/a/{instance_uuid}, /b/{instance_uuid}", ("/a/{instance_uuid}", "/b/{instance_uuid}")),
        ("unmapped", "pass", "pass"),
        ("building", "409", "409"),
        ("project_check", "off", False),
        ("admin_roles", "admin,reader", frozenset({"admin", "reader"})),
        ("admin_roles", "", frozenset()),
        ("mapping_ttl", "0", 0.0),
        ("mapping_ttl", "2.5", 2.5),
        ("mapping_cache_size", "1", 1),
        ("request_deadline", "0.5", 0.5),
    ],
)
def test_ini_and_file_agree(conf: cfg.ConfigOpts, tmp_path: Path, name: str, text: str, value: object) -> None:
    """A value means the same in the filter's ini section and in the configuration file."""
    from_ini = options.settings(conf, {name: text})
    from_file = options.settings(read(tmp_path, f"[cellmw]\n{name} = {text}\n"))
    assert getattr(from_ini, name) == getattr(from_file, name) == value
    assert from_ini == from_file


def test_ini_overrides_the_file(tmp_path: Path) -> None:
    """What the ini section says goes before what the file says, and only for what it says."""
    conf = read(tmp_path, "[cellmw]\nmapping_ttl = 5\nbuilding = 409\n")
    settings = options.settings(conf, {"mapping_ttl": "7"})
    assert (settings.mapping_ttl, settings.building) == (7.0, "409")


def test_ini_leaves_the_configuration_alone(conf: cfg.ConfigOpts) -> None:
    """Two filters on one configuration can have different ini sections."""
    options.settings(conf, {"mapping_ttl": "7"})
    assert conf.cellmw.mapping_ttl == 60.0


WRONG = [
    ("enabled", "perhaps"),
    ("unmapped", "500"),
    ("building", "404"),
    ("project_check", "2"),
    ("mapping_ttl", "-1"),
    ("mapping_ttl", "a minute"),
    ("mapping_cache_size", "0"),
    ("mapping_cache_size", "1.5"),
    ("request_deadline", "0"),
]


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_wrong_value_in_the_ini(conf: cfg.ConfigOpts, name: str, text: str) -> None:
    """A value in the ini section that an option does not take is an error which names the option."""
    with pytest.raises(ConfigError, match=rf"^\[filter\] section: {name}: "):
        options.settings(conf, {name: text})


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_wrong_value_in_the_file(tmp_path: Path, name: str, text: str) -> None:
    """A value in the configuration file that an option does not take is an error which names group and option."""
    conf = read(tmp_path, f"[cellmw]\n{name} = {text}\n")
    with pytest.raises(ConfigError, match=rf"^\[cellmw\]: {name}: "):
        options.settings(conf)


@pytest.mark.parametrize("name", ["mapping_ttl", "request_deadline"])
@pytest.mark.parametrize("text", ["nan", "inf"])
def test_seconds_are_numbers(conf: cfg.ConfigOpts, name: str, text: str) -> None:
    """Not a number, and infinity, are no numbers of seconds."""
    with pytest.raises(ConfigError):
        options.settings(conf, {name: text})


def test_unknown_key(conf: cfg.ConfigOpts) -> None:
    """A key that is not an option is an error which names it and those there are."""
    with pytest.raises(ConfigError) as caught:
        options.settings(conf, {"mapping_tll": "5", "building": "409", "zone": "x"})
    assert "unknown option 'mapping_tll', 'zone'; the filter takes 'admin_roles', 'allowed_" in str(caught.value)


def test_context_attributes_are_not_for_the_ini(conf: cfg.ConfigOpts) -> None:
    """What goes along with a message can't be set for a filter, by which no client goes."""
    with pytest.raises(ConfigError, match="context_attributes: it is for the clients and servers of the service"):
        options.settings(conf, {"context_attributes": "user"})


@pytest.mark.parametrize("module", ["cellmw.exceptions", "cellmw"])
def test_our_errors_stay_where_they_are_raised(conf: cfg.ConfigOpts, module: str) -> None:
    """cellmw's own errors are never made anew on the other side, where they would say what is not so."""
    with pytest.raises(ConfigError, match=f"'{module}' can't be among them"):
        options.settings(conf, {"allowed_remote_exmods": f"nova.exception, {module}"})
    assert options.settings(conf, {"allowed_remote_exmods": "cellmwx"}).allowed_remote_exmods == ("cellmwx",)


@pytest.mark.parametrize("name", ["connection", "max_pool_size"])
def test_database_options_are_not_for_the_ini(conf: cfg.ConfigOpts, name: str) -> None:
    """Options of other groups can't be set in the ini section."""
    with pytest.raises(ConfigError, match=f"unknown option '{name}'"):
        options.settings(conf, {name: "1"})


def test_registered_twice(conf: cfg.ConfigOpts) -> None:
    """Registering the options again changes nothing."""
    conf.set_override("mapping_ttl", 5.0, group="cellmw")
    options.register_opts(conf)
    assert conf.cellmw.mapping_ttl == 5.0


@pytest.mark.parametrize("group", ["api_database", "database"])
def test_beside_oslo_db(group: str) -> None:
    """A service that has registered oslo.db's options in these groups keeps them."""
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[], default_config_dirs=[])
    conf.register_opts(oslo_db_options.database_opts, group=group)
    conf.set_override("connection", "sqlite://", group=group)
    options.register_opts(conf)
    assert conf[group].connection == "sqlite://"


def test_beside_other_definitions() -> None:
    """A service that has registered [api_database] with definitions of its own, as Nova has, is heard as it is."""
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[], default_config_dirs=[])
    theirs = [
        cfg.StrOpt("connection", secret=True, help="theirs"),
        cfg.IntOpt("max_pool_size", default=3, help="theirs"),
        cfg.StrOpt("mysql_sql_mode", default="ANSI", help="theirs"),
    ]
    conf.register_opts(theirs, group="api_database")
    options.register_opts(conf)
    arguments = options.engine_options(conf, "api_database")
    assert (arguments["max_pool_size"], arguments["mysql_sql_mode"]) == (3, "ANSI")
    assert conf.api_database._group._opts["connection"]["opt"].help == "theirs"


def test_service_that_comes_later(conf: cfg.ConfigOpts) -> None:
    """A service that registers oslo.db's own options after us finds no conflict."""
    conf.register_opts(oslo_db_options.database_opts, group="api_database")
    conf.register_opts(oslo_db_options.database_opts, group="database")


def test_database_of_the_service_is_its_own(conf: cfg.ConfigOpts) -> None:
    """Of [database], which belongs to the service, nothing is registered."""
    with pytest.raises(cfg.NoSuchOptError):
        _ = conf.database


def test_cell_database_names_no_database(conf: cfg.ConfigOpts) -> None:
    """The options of the cells' pools are about pools: which database it is stands in the cell's record."""
    with pytest.raises(cfg.NoSuchOptError):
        _ = conf.cellmw_database.connection


def test_cells_have_small_pools(conf: cfg.ConfigOpts) -> None:
    """A worker has a pool for each cell, so each is smaller than oslo.db's; the API database's is not."""
    cell = options.engine_options(conf, options.CELL_DATABASE)
    api = options.engine_options(conf, options.API_DATABASE)
    assert (cell["max_pool_size"], cell["max_overflow"], cell["pool_timeout"]) == (5, 10, 30)
    assert api["max_overflow"] == 50


def test_defaults_of_oslo_db_stay() -> None:
    """Smaller defaults for the cells change nothing in oslo.db's own options."""
    defaults = {opt.name: opt.default for opt in oslo_db_options.database_opts}
    assert (defaults["max_overflow"], defaults["pool_timeout"]) == (50, None)


@pytest.mark.parametrize("group", [options.API_DATABASE, options.CELL_DATABASE])
def test_engine_options_make_an_engine(conf: cfg.ConfigOpts, group: str) -> None:
    """What a database group says are arguments that an engine takes."""
    conf.set_override("max_pool_size", 4, group=group)
    engine = make_engine("sqlite:///file", options.engine_options(conf, group), pre_ping=False)
    assert engine.pool.size() == 4


def test_no_option_waits_without_a_deadline(conf: cfg.ConfigOpts) -> None:
    """oslo.db's own retrying, ten times ten seconds, is never asked for."""
    for group in (options.API_DATABASE, options.CELL_DATABASE):
        assert not {name for name in options.engine_options(conf, group) if "retr" in name}
