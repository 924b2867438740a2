# SPDX-License-Identifier: Apache-2.0
"""The Paste filter: each request for an instance is aimed at the instance's cell until its response has ended.

In the ini of a pipeline, behind the filter that makes the context and inside the one that renders faults::

    [filter:cells]
    use = egg:cellmw#cells
    context_key = nova.context

In the environ it reads PATH_INFO and the context under ``context_key``, and sets:

``cellmw.cells``
    the :class:`cellmw.cells.Cells` behind the filter, for every request: whoever creates an instance needs them
``cellmw.target``
    a :class:`cellmw.trip.Trip`, for every request whose path names an instance, as long as its trip lasts; in a
    cell-level service for every request
``cellmw.context``
    a :class:`cellmw.context.RequestContext`, only where that is the ``context_key`` and none was there, for as long

It is for WSGI servers with native threads, not for ASGI or eventlet.
"""

from __future__ import annotations

import logging
import sys
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from oslo_middleware.base import ConfigurableMiddleware

from cellmw import conf as options
from cellmw import deploy
from cellmw.body import Body
from cellmw.context import ContextLoan, RequestContext, copy_context
from cellmw.exceptions import (
    CellmwError,
    CellNotFound,
    ConfigError,
    InstanceBuilding,
    InstanceNotMapped,
    MappingDangling,
)
from cellmw.faults import fault
from cellmw.headers import DeadlineHeader, InstanceHeader
from cellmw.routes import Routes
from cellmw.trip import TARGET_KEY, Trip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from oslo_config import cfg

    from cellmw.cells import Cells
    from cellmw.mapping import Mapping

LOG = logging.getLogger(__name__)

CELLS_KEY = "cellmw.cells"
"""Environ key of the cells."""

_PASTE_KEYS = ("oslo_config_project", "oslo_config_program", "oslo_config_file")
"""What oslo.middleware's contract takes from the ini beside the filter's own options."""


class CellFilter(ConfigurableMiddleware):
    """The filter. Lives as long as the pipeline; ``close()`` ends it.

    :ivar cells: the cells behind it, for the service's own use
    """

    cells: Cells

    def __init__(self, application: WSGIApplication, conf: dict[str, Any] | cfg.ConfigOpts | None = None) -> None:
        """Put the filter in front of an application; nothing is connected to yet.

        :param conf: the filter's ini section, or the ConfigOpts to go by; ``cfg.CONF`` where it names no project
        :raises ConfigError: if an option is unknown or has a value that it does not take
        """
        super().__init__(application, conf)
        _warn_of_eventlet()
        self.application: WSGIApplication = application
        overrides = {key: value for key, value in self.conf.items() if key not in _PASTE_KEYS}
        settings = deploy.settings(self.oslo_conf, overrides)
        self._enabled = settings.enabled
        self._header = _instance_header(settings)
        self._instance_uuid: Callable[[WSGIEnvironment], str | None]
        self._instance_uuid = (self._header or Routes(settings.routes)).instance_uuid
        if settings.role == "cell":
            self._instance_uuid = partial(_in_any_case, self._instance_uuid)
        self._context_key = settings.context_key
        self._request_deadline = settings.request_deadline
        self._deadline_header = DeadlineHeader(settings.deadline_header) if settings.deadline_header else None
        # a cell-level service has no mapping to go by
        self._project_check = settings.project_check and settings.role == "api"
        self._admin_roles = settings.admin_roles
        self._pass_unmapped = settings.unmapped == "pass"
        self._pass_building = settings.building == "pass"
        if settings.enabled:
            self.use(deploy.cells(self.oslo_conf, settings))

    @classmethod
    def factory(cls, global_conf: dict[str, Any] | None, **local_conf: Any) -> Callable[[WSGIApplication], CellFilter]:
        """Make filters for PasteDeploy. Of the ini's ``[DEFAULT]`` section only oslo.middleware's keys are taken.

        :raises ConfigError: if that section has an option of ours
        """
        if hidden := sorted(options.names() & (global_conf or {}).keys()):
            raise ConfigError(
                f"[DEFAULT] of the ini has {', '.join(hidden)}: PasteDeploy then hides what the filter's own section "
                "says of that, so put it into the sections that it is meant for"
            )
        inherited = {key: value for key, value in (global_conf or {}).items() if key in _PASTE_KEYS}
        return lambda application: cls(application, inherited | local_conf)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Take one request to its cell, or let it through where its path names no instance."""
        if not self._enabled:
            return self.application(environ, start_response)
        if CELLS_KEY not in environ:
            environ[CELLS_KEY] = self.cells
        try:
            instance_uuid = self._instance_uuid(environ)
        except CellmwError as error:
            return self.answer(error, environ)(environ, start_response)
        if instance_uuid is None:
            return self.application(environ, start_response)
        if TARGET_KEY in environ:
            if environ[TARGET_KEY].instance_uuid == instance_uuid:
                return self.application(environ, start_response)
            environ = self._set_apart(environ)
        context = environ.get(self._context_key)
        if context is None:
            return self._lend_context(environ, start_response)
        try:
            trip = self._depart(instance_uuid, context, environ, start_response)
        except CellmwError as error:
            return self.answer(error, environ)(environ, start_response)
        try:
            body = self.application(environ, trip.start_response)
            if type(body) is not list and type(body) is not tuple and not trip.detached:
                return Body.around(body, trip)
        except BaseException as error:
            trip.end()
            answer = trip.rescue(error)
            if answer is None:
                raise
            return answer
        # nothing in it reaches for the cell any more: the server gets to see its length, or that it is a file
        trip.end()
        return body

    def answer(self, error: Exception, environ: WSGIEnvironment) -> WSGIApplication:
        """Return the answer to an error of ours, as the caller may see it."""
        context = environ.get(self._context_key)
        answer: WSGIApplication = fault(error, environ, admin=context is not None and self._is_admin(context))
        return answer

    def use(self, cells: Cells) -> None:
        """Go by these cells from now on, as in a test; those before them are left as they are."""
        self.cells = cells
        self._find = cells.mappings.find

    def close(self) -> None:
        """Close every handle and the connections to the API database."""
        if self._enabled:
            self.cells.close()

    def _depart(
        self, instance_uuid: str, context: Any, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Trip:
        now = monotonic()
        deadline = now + self._request_deadline
        if self._deadline_header is not None:
            deadline = min(deadline, now + self._deadline_header.seconds(environ))
        mapping = self._find(instance_uuid, deadline, now)
        if self._header is not None or mapping.project_id != context.project_id:
            self._check_project(mapping, context, environ)
        if mapping.cell_id is None:
            self._check_state(mapping)
        try:
            lease = None if mapping.cell_id is None else self.cells.lease(mapping.cell_id, deadline, instance_uuid)
        except CellNotFound as missing:
            self.cells.mappings.forget(instance_uuid)
            raise MappingDangling(instance_uuid, mapping.cell_id) from missing
        return Trip(mapping, lease, deadline, context, environ, start_response, self)

    def _set_apart(self, environ: WSGIEnvironment) -> WSGIEnvironment:
        """Give a request for one instance that is made within one for another an environ and a context of its own."""
        apart = environ.copy()
        if self._context_key in apart:
            apart[self._context_key] = copy_context(apart[self._context_key])
        return apart

    def _lend_context(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve a request that has no context with one that is made for it, and taken back at its end."""
        try:
            loan = ContextLoan(environ, self._context_key, self._make_context)
        except CellmwError as error:
            return self.answer(error, environ)(environ, start_response)
        try:
            body = self(environ, start_response)
            if isinstance(body, Body):
                return Body.around(body, loan)
        except BaseException:
            loan.end()
            raise
        loan.end()
        return body

    def _make_context(self, environ: WSGIEnvironment) -> RequestContext:
        if self._context_key != options.DEFAULT_CONTEXT_KEY:
            raise ConfigError(
                f"no {self._context_key} in the environ: put cells behind the filter that makes the context"
            )
        if self._header is None:
            return RequestContext.from_environ(environ)
        # all other headers come from inside the instance
        return RequestContext(
            project_id=self._header.project_id(environ) if self._project_check else None,
            request_id=environ.get("openstack.request_id"),
            global_request_id=environ.get("openstack.global_request_id"),
        )

    def _check_project(self, mapping: Mapping, context: Any, environ: WSGIEnvironment) -> None:
        """Raise what there is to raise where the instance is not the caller's."""
        if not self._project_check or not mapping.exists:
            return
        if self._header is None:
            allowed = self._is_admin(context)
        else:
            allowed = self._header.project_id(environ) == mapping.project_id
        if not allowed:
            raise InstanceNotMapped(mapping.instance_uuid)

    def _check_state(self, mapping: Mapping) -> None:
        """Raise what there is to raise where the instance has no cell."""
        if not mapping.exists:
            if not self._pass_unmapped:
                raise InstanceNotMapped(mapping.instance_uuid)
        elif not self._pass_building:
            raise InstanceBuilding(mapping.instance_uuid)

    def _is_admin(self, context: Any) -> bool:
        return bool(context.is_admin) or not self._admin_roles.isdisjoint(context.roles)


def _in_any_case(instance_uuid: Callable[[WSGIEnvironment], str | None], environ: WSGIEnvironment) -> str:
    """A cell-level service has one cell, whatever a request is for."""
    return instance_uuid(environ) or ""


def _instance_header(settings: options.Settings) -> InstanceHeader | None:
    if settings.instance_header is None:
        return None
    return InstanceHeader(settings.instance_header, settings.instance_header_secret, trusted=settings.trust_header)


def _warn_of_eventlet() -> None:
    """Warn where eventlet has replaced the threads that leases and deadlines are made for."""
    patcher = sys.modules.get("eventlet.patcher")
    if patcher is not None and patcher.is_monkey_patched("thread"):
        LOG.warning(
            "eventlet has patched this process, where cellmw needs native threads: run the service under a WSGI server "
            "with threads, without eventlet.monkey_patch() (for Nova: OS_NOVA_DISABLE_EVENTLET_PATCHING=true)"
        )
