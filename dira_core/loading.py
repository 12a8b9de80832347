"""Import plugins one by one, note what each offers, and let none of them take the engine down."""

from __future__ import annotations

import contextlib
import inspect
import io
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import pluggy

from dira_core import hookspecs
from dira_core.components import (
    API_LEVEL,
    OLDEST_API_LEVEL,
    Command,
    Component,
    DistortionOptions,
    Options,
    Preset,
)
from dira_core.errors import did_you_mean

OFFERS: Mapping[str, tuple[str, type]] = {
    "dira_discriminators": ("discriminator", Component),
    "dira_restorers": ("restorer", Component),
    "dira_adversaries": ("adversary", Component),
    "dira_distortions": ("distortion", Component),
    "dira_backbones": ("backbone", Component),
    "dira_sources": ("source", Component),
    "dira_targets": ("target", Component),
    "dira_trackers": ("tracker", Component),
    "dira_exports": ("export", Component),
    "dira_presets": ("preset", Preset),
    "dira_commands": ("command", Command),
}
"""Hooks that offer something: the kind of what they return, and its type."""

SLOW_SECONDS = 1.0
"""A plugin that takes longer to load than this is reported: every command waits for it."""

_NAME = re.compile(r"[a-z0-9-]+")
_PRESET_NAME = re.compile(r"[a-z0-9-]+(/[a-z0-9-]+)?")

_TYPES: Mapping[str, type[Any]] = {
    "name": str,
    "summary": str,
    "paper": str,
    "dims": tuple,
    "defaults": Mapping,
    "recipe": Mapping,
}


@dataclass(frozen=True)
class Problem:
    """What is wrong with a plugin, and what to do about it.

    Attributes:
        plugin: Name of its entry point.
        distribution: Name and version of what was installed, "" where nothing was.
        reason: What happened, as a clause that follows the plugin's name.
        way_out: What to do.
        warning: Whether everything the plugin offers works all the same.
        kind: Kind of what is missing because of it; "" is all the plugin offers.
        component: Name of what is missing because of it, where it is known.
        cause: What the plugin raised, if it did.
    """

    plugin: str
    distribution: str
    reason: str
    way_out: str
    warning: bool = False
    kind: str = ""
    component: str = ""
    cause: BaseException | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        whose = f" ({self.distribution})" if self.distribution else ""
        return f"plugin {self.plugin!r}{whose} {self.reason}; {self.way_out}"


@dataclass(frozen=True)
class Offer:
    """A component, preset or command, and who offers it."""

    kind: str
    item: Component | Preset | Command
    plugin: str
    distribution: str


def plugin_manager() -> pluggy.PluginManager:
    """Return an empty plugin manager that knows every hook."""
    manager = pluggy.PluginManager("dira")
    manager.add_hookspecs(hookspecs)
    return manager


def said(error: BaseException) -> str:
    """Return type and first line of an error, without control characters."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}".encode("unicode_escape").decode()


class Loading:
    """Plugins seen so far: what they offer, and their problems."""

    def __init__(self) -> None:
        self.manager = plugin_manager()
        self.offers: list[Offer] = []
        self.problems: list[Problem] = []

    def entry_point(self, plugin: str, distribution: str, entry: EntryPoint) -> None:
        """Import one plugin and take what it offers."""
        blame = Blame(plugin, distribution, self.problems)
        with blame.side_effects():
            module: Any = None
            with blame.whatever_it_raises(lambda error: _why_not_imported(error, entry)):
                module = entry.load()
            if module is not None and _speaks_our_level(module, blame):
                self.module(module, blame)

    def module(self, module: Any, blame: Blame) -> None:
        """Register the hooks of a plugin, and take what they offer."""
        hooks = ModuleType(blame.plugin)
        offering = []
        with blame.whatever_it_raises(lambda error: f"cannot be read: {said(error)}"):
            for attribute in dir(module):
                opts = self.manager.parse_hookimpl_opts(module, attribute)
                function = getattr(module, attribute)
                if opts is None:
                    _forgotten_marker(attribute, function, module, blame)
                elif _fits_a_hook(attribute, function, blame):
                    setattr(hooks, attribute, function)
                    offering.append((opts.get("specname") or attribute, function))
            self.manager.register(hooks, blame.plugin)
        for hook, function in offering:
            if hook in OFFERS:
                self._take(hook, function, blame)

    def _take(self, hook: str, function: Callable[[], Any], blame: Blame) -> None:
        kind, wanted = OFFERS[hook]
        with blame.whatever_it_raises(lambda error: f"raised in {hook}: {said(error)}", kind):
            for item in function():
                flaw = _flaw(kind, item, wanted)
                if flaw is None:
                    self.offers.append(Offer(kind, item, blame.plugin, blame.distribution))
                else:
                    name = str(getattr(item, "name", ""))
                    blame(f"offers a {kind} that is broken: {flaw}", kind=kind, component=name)


@dataclass(frozen=True)
class Blame:
    """Note problems of one plugin."""

    plugin: str
    distribution: str
    problems: list[Problem]

    def __call__(
        self,
        reason: str,
        way_out: str = "",
        *,
        warning: bool = False,
        kind: str = "",
        component: str = "",
        cause: BaseException | None = None,
    ) -> None:
        way_out = way_out or f"update or uninstall {self.distribution or self.plugin}"
        who = (self.plugin, self.distribution)
        self.problems.append(Problem(*who, reason, way_out, warning, kind, component, cause))

    @contextlib.contextmanager
    def whatever_it_raises(
        self, reason: Callable[[BaseException], str], kind: str = ""
    ) -> Iterator[None]:
        """Turn whatever is raised inside, SystemExit too, into a problem."""
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self(reason(error), _way_out(error), kind=kind, cause=error)

    @contextlib.contextmanager
    def side_effects(self) -> Iterator[None]:
        """Note what loading a plugin should not do; put the state of `random` back."""
        printed = io.StringIO()
        had_torch, state, started = "torch" in sys.modules, random.getstate(), time.perf_counter()
        with contextlib.redirect_stdout(printed):
            yield
        seconds = time.perf_counter() - started
        if printed.getvalue():
            self("prints when it is loaded", "ask its author to remove that", warning=True)
        if seconds > SLOW_SECONDS:
            way_out = "ask its author to import inside `build`"
            self(
                f"takes {seconds:.1f} s to load, more than {SLOW_SECONDS} s", way_out, warning=True
            )
        if not had_torch and "torch" in sys.modules:
            way_out = "ask its author to import torch inside `build`"
            self("imports torch when it is loaded", way_out, warning=True)
        if random.getstate() != state:
            random.setstate(state)
            way_out = "ask its author to use `draws`; the state was put back"
            self("changes the state of `random` when it is loaded", way_out, warning=True)


def _why_not_imported(error: BaseException, entry: EntryPoint) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        if f"{entry.module}.".startswith(f"{error.name}."):
            return f"has an entry point to nothing: no module is called {error.name!r}"
        return f"needs the module {error.name!r}, which is not installed"
    return f"cannot be imported: {said(error)}"


def _way_out(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"install what provides {error.name!r}, or uninstall the plugin"
    return ""


def _speaks_our_level(module: Any, blame: Blame) -> bool:
    level = getattr(module, "DIRA_API", API_LEVEL)
    if type(level) is int and OLDEST_API_LEVEL <= level <= API_LEVEL:
        return True
    ours = f"{OLDEST_API_LEVEL} to {API_LEVEL}"
    newer = type(level) is int and level > API_LEVEL
    way_out = "update dira-ssl" if newer else ""
    blame(f"was written for API level {level!r}, this engine speaks {ours}", way_out)
    return False


def _forgotten_marker(attribute: str, function: Any, module: Any, blame: Blame) -> None:
    own = inspect.isfunction(function) and function.__module__ == getattr(module, "__name__", "")
    if own and attribute in _hook_names():
        way_out = "ask its author to mark it"
        blame(f"defines {attribute} without @hookimpl, so it is never called", way_out)


def _fits_a_hook(attribute: str, function: Any, blame: Blame) -> bool:
    """Check one hook against its specification, apart from the plugin's others."""
    alone, vetting = ModuleType(blame.plugin), plugin_manager()
    setattr(alone, attribute, function)
    try:
        vetting.register(alone)
        vetting.check_pending()
    except pluggy.PluginValidationError as error:
        kind = OFFERS[attribute][0] if attribute in OFFERS else ""
        if attribute in _hook_names():
            reason = f"has arguments in {attribute} that the hook does not have"
        else:
            hint = did_you_mean(attribute, _hook_names())
            reason = f"implements {attribute}, which is no hook{hint}"
        blame(reason, "ask its author to correct it", kind=kind, cause=error)
        return False
    return True


def _hook_names() -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("dira_")]


def _flaw(kind: str, item: Any, wanted: type[Any]) -> str | None:
    """Say what is wrong with something a hook returned, or None."""
    if not isinstance(item, wanted):
        return f"{item!r:.60} is no {wanted.__name__}"
    for attribute, value in vars(item).items():
        if not isinstance(value, _TYPES.get(attribute, object)):
            return f"its {attribute} is no {_TYPES[attribute].__name__}: {value!r:.60}"
    name = _PRESET_NAME if isinstance(item, Preset) else _NAME  # "paper/mocov2"
    if not name.fullmatch(item.name):
        return f"its name may have a-z, 0-9 and - only, got {item.name!r:.60}"
    if isinstance(item, Command):
        return None if callable(item.function) else "its function cannot be called"
    return _component_flaw(kind, item) if isinstance(item, Component) else None


def _component_flaw(kind: str, component: Component) -> str | None:
    base = DistortionOptions if kind == "distortion" else Options
    options = component.options
    if not (isinstance(options, type) and issubclass(options, base)):
        return f"{component.name!r} needs a subclass of {base.__name__}, got {options!r:.60}"
    if "name" in options.model_fields:
        return f"{component.name!r} has an option 'name', which is what recipes call the component"
    if not callable(component.build):
        return f"{component.name!r} has a build that cannot be called"
    return None
