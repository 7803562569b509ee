"""``python -m mmm4rec`` is the command ``mmm4rec``."""

from mmm4rec.cli import app

app(prog_name="mmm4rec")
