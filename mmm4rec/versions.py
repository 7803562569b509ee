"""The version of every step, raised by hand when a step's results change.

Workflow rules carry these numbers as parameters: raising one reruns that step and what follows it, while an edit that
changes no result reruns nothing. A system's own version stands in its settings file (``config/systems``).
"""

VERSIONS: dict[str, int] = {
    "demo": 2,
    "download": 1,
    "prepare": 1,
    "images": 1,
    "encoder": 1,
    "embed": 1,
    "import_features": 2,
    "with_image": 1,
    "pretrain": 1,
    "finetune": 1,
    "tables": 8,
}
