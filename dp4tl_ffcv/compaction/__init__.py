"""Compact: copy the retained samples of a beton into a new one."""
