"""A static check for streams, destructors and operations that get lost.

Through flake8, which finds it by itself, or as ``python -m ringtls.lint PATH...``. The codes are in
RULES (_tables.py). It reads one module at a time and runs nothing.

Rules:

1. In doubt it says nothing. Whatever is not understood here counts as taken care of.
2. A name means ringtls' (or trio's) thing if all that is bound to it in its scope is an import of
   that, or an alias of one. A relative import or ``import *`` is not understood.
3. A stream is what a call in MAKERS makes, or ``accept()`` of a listener that was made by one. A
   value of a class that the module derives from AsyncDestructor is to be closed like a stream, if
   none of the class' methods, as far as they are called, hands it on. Only who makes a stream has
   to close it: a parameter is known by its annotation, but is not ours; nor is one of an async
   function that is annotated as a blocking stream known, as ``blocking.call`` passes its face.
4. Within a function the order of statements does not count. A stream in a variable is taken care
   of if there is any use of the variable, also in a nested function, that is not in HARMLESS:
   entering or returning it, storing it, passing it to a call... Closing it is enough in a
   ``finally`` or ``except``, or right after it was made; elsewhere it may not be reached (RTL105).
   ``relay`` and ``aclose_all`` close what they are passed. A statement that calls one of these, or
   ``aclose()``, and does not await it, closes nothing.
5. A function of the module that is passed a stream, also by ``nursery.start_soon(function,
   stream)`` or ``blocking.call(function, stream)``, is looked into. It takes care of the stream if
   one of its uses there does.
6. The order of statements counts where it is certain: a stream is lost (RTL106) if its variable is
   bound to something else, or deleted, later in the same block, or by the next round of a loop that
   nothing leaves, and no use in between takes care of it.
7. A farewell is late (RTL110) if it is the first one of a stream that its function enters, and what
   that does last in any case, after it has sent something.
8. What is expected to raise (``with pytest.raises``) makes no stream.
"""

from ._checks import Checker

__all__ = ["Checker"]
