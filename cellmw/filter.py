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
    a :class:`cellmw.trip.Trip`, for every request whose path names an instance, as long as its trip lasts
``cellmw.context``
    a :class:`cellmw.context.RequestContext`, only where that is the ``context_key`` and none was there

It is for WSGI servers with native threads, not for ASGI or eventlet.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from oslo_middleware.base import ConfigurableMiddleware

from cellmw import conf as options
from cellmw import deploy
from cellmw.body import Body
from cellmw.context import RequestContext, copy_context
from cellmw.exceptions import (
    CellmwError,
    CellNotFound,
    ConfigError,
    InstanceBuilding,
    InstanceNotMapped,
    MappingDangling,
)
from cellmw.faults import fault
from cellmw.routes import Routes
from cellmw.trip import TARGET_KEY, Trip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from oslo_config import cfg

    from cellmw.cells import Cells
    from cellmw.mapping import Mapping

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
        self.application: WSGIApplication = application
        overrides = {key: value for key, value in self.conf.items() if key not in _PASTE_KEYS}
        settings = deploy.settings(self.oslo_conf, overrides)
        self._enabled = settings.enabled
        self._match = Routes(settings.routes).match
        self._context_key = settings.context_key
        self._request_timeout = settings.request_timeout
        self._project_check = settings.project_check
        self._admin_roles = settings.admin_roles
        self._pass_unmapped = settings.unmapped == "pass"
        self._pass_building = settings.building == "pass"
        if settings.enabled:
            self.cells = deploy.cells(self.oslo_conf, settings)

    @classmethod
    def factory(cls, global_conf: dict[str, Any] | None, **local_conf: Any) -> Callable[[WSGIApplication], CellFilter]:
        """Make filters for PasteDeploy. Of the ini's ``[DEFAULT]`` section only oslo.middleware's keys are taken."""
        inherited = {key: value for key, value in (global_conf or {}).items() if key in _PASTE_KEYS}
        return lambda application: cls(application, inherited | local_conf)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Take one request to its cell, or let it through where its path names no instance."""
        if not self._enabled:
            return self.application(environ, start_response)
        environ[CELLS_KEY] = self.cells
        instance_uuid = self._match(environ.get("PATH_INFO", ""))
        if instance_uuid is None:
            return self.application(environ, start_response)
        if TARGET_KEY in environ:
            if environ[TARGET_KEY].instance_uuid == instance_uuid:
                return self.application(environ, start_response)
            environ = self._set_apart(environ)
        try:
            trip = self._depart(instance_uuid, environ, start_response)
        except CellmwError as error:
            return self.answer(error, environ)(environ, start_response)
        try:
            body = self.application(environ, trip.start_response)
            if type(body) is not list and type(body) is not tuple:
                return Body.around(body, trip)
        except BaseException as error:
            trip.end()
            answer = trip.rescue(error)
            if answer is None:
                raise
            return answer
        # complete already: nothing in it can reach for the cell any more, and the server gets to see its length
        trip.end()
        return body

    def answer(self, error: Exception, environ: WSGIEnvironment) -> WSGIApplication:
        """Return the answer to an error of ours, as the caller may see it."""
        context = environ.get(self._context_key)
        answer: WSGIApplication = fault(error, environ, admin=context is not None and self._is_admin(context))
        return answer

    def close(self) -> None:
        """Close every handle and the connections to the API database."""
        if self._enabled:
            self.cells.close()

    def _depart(self, instance_uuid: str, environ: WSGIEnvironment, start_response: StartResponse) -> Trip:
        deadline = monotonic() + self._request_timeout
        context = environ.get(self._context_key) or self._make_context(environ)
        mapping = self.cells.mappings.find(instance_uuid, deadline)
        if mapping.project_id != context.project_id:
            self._check_project(mapping, context)
        if mapping.cell_id is None:
            self._check_state(mapping)
        try:
            lease = None if mapping.cell_id is None else self.cells.lease(mapping.cell_id, deadline)
        except CellNotFound as missing:
            raise MappingDangling(instance_uuid, mapping.cell_id) from missing
        return Trip(mapping, lease, deadline, environ, context, start_response, self)

    def _make_context(self, environ: WSGIEnvironment) -> RequestContext:
        if self._context_key != options.DEFAULT_CONTEXT_KEY:
            raise ConfigError(
                f"no {self._context_key} in the environ: put cells behind the filter that makes the context"
            )
        context = environ[self._context_key] = RequestContext.from_environ(environ)
        return context

    def _set_apart(self, environ: WSGIEnvironment) -> WSGIEnvironment:
        """Give a request for one instance that is made within one for another an environ and a context of its own."""
        apart = environ.copy()
        if self._context_key in apart:
            apart[self._context_key] = copy_context(apart[self._context_key])
        return apart

    def _check_project(self, mapping: Mapping, context: Any) -> None:
        """Raise what there is to raise where the instance is not the caller's."""
        if self._project_check and mapping.exists and not self._is_admin(context):
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
