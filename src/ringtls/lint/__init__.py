"""A static check for streams and operations that get lost.

Through flake8, which finds it by itself, or as ``python -m ringtls.lint PATH...``. The codes are in
RULES (_tables.py). It reads one module at a time and runs nothing.

Rules:

1. In doubt it says nothing. Whatever is not understood here counts as taken care of.
2. A name means ringtls' (or trio's) thing if all that is bound to it in its scope is an import of
   that, or an alias of one. A relative import or ``import *`` is not understood.
3. A stream is what a call in MAKERS makes, or ``accept()`` of a listener that was made by one. Only
   who makes a stream has to close it: a parameter is known by its annotation, but is not ours.
4. Within a function the order of statements does not count. A stream in a variable is taken care
   of if there is any use of the variable, also in a nested function, that is not in HARMLESS:
   entering or returning it, storing it, passing it to a call... Closing it is enough in a
   ``finally`` or ``except``, or right after it was made; elsewhere it may not be reached (RTL105).
5. What is expected to raise (``with pytest.raises``) makes no stream.
"""

from ._checks import Checker

__all__ = ["Checker"]
