"""The servers that are measured, each run as a process of its own.

Each of them listens on a port of 127.0.0.1 and answers in the same way (see ``http``).
"""
