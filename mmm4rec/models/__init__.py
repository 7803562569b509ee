"""The systems: one file each, found through ``mmm4rec.models.base``."""
