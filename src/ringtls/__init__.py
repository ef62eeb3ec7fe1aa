"""TLS streams for trio, on io_uring or epoll, that always end with close_notify."""

from typing import TYPE_CHECKING

# pytest and flake8 load the plugins in this package wherever it is installed. So trio and the
# engine are not imported before a public name is used.
if TYPE_CHECKING:
    from ._api import *  # noqa: F403
    from ._api import __all__ as __all__

    __version__: str
else:

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            return version("ringtls")
        if name == "__all__" or not name.startswith("_"):  # "from . import _module" asks here, too
            from . import _api

            if name == "__all__" or name in _api.__all__:
                return getattr(_api, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        from . import _api

        return sorted({*globals(), *_api.__all__, "__version__"})
