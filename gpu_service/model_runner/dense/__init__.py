"""The linear layers of the dense part: which are kept in codes, and how they are multiplied on each device."""
