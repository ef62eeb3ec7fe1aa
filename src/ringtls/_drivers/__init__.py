"""Who waits for a ring, and how: a trio run, or a plain thread.

The modules, by what they are about:

    a trio run        trio, trio_waiting, deadlines, busy_poll
    a plain thread    blocking
    both              end_of_run
"""
