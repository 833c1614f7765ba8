"""Looks at the machine (`doctor`) and measures a model on it (`bench`). It starts services, and none imports it."""
