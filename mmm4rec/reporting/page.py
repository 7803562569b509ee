"""A table as a page of `snakemake --report`, which shows HTML but offers CSV and Markdown for download only."""

from pathlib import Path

from markdown_it import MarkdownIt

from mmm4rec.io import write_text

STYLE = """\
body { font: 14px/1.5 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }
h1 { font-size: 1.4em } h2 { font-size: 1.1em; margin-top: 2em } p { max-width: 60em }
table { border-collapse: collapse; margin: 1.5em 0; font-variant-numeric: tabular-nums }
th, td { padding: 0.25em 0.6em; white-space: nowrap }
th { border-bottom: 2px solid #999 } td { border-bottom: 1px solid #ddd }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; text-align: left }
"""


def write_page(table: Path, out: Path) -> None:
    """Write a Markdown file as HTML that needs no other file."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(table.read_text(encoding="utf-8"))
    write_text(
        out,
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{table.stem}</title>\n'
        f"<style>\n{STYLE}</style></head>\n<body>\n{body}</body>\n</html>\n",
    )
