"""Speed and memory, each row against a limit or a plain rival measured in the same run; see docs/performance.md."""
