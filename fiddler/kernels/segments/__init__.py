"""Messages through shared memory: one process's end of a segment, which another process maps as well.

csrc/segment/ defines the layout, and trusts nothing that the other process writes into it.
"""
