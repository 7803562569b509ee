"""Tables as files: one module a kind of table."""
