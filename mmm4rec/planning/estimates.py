"""What one job takes, and the measured rates that say so."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmm4rec.errors import UserError
from mmm4rec.planning.rates import Rate

CPU, GPU = "CPU", "GPU"

Range = tuple[float, float, float]  # least, estimate, most


@dataclass(frozen=True)
class Estimate:
    """What one job takes."""

    device: str
    seconds: Range | None = None
    epochs: tuple[int, int, int] | None = None
    epochs_from: str = ""
    rate_from: str = ""
    memory: float | None = None
    gpu_memory: float | None = None


class KnownRates:
    """Rates of a CPU and of one GPU; remembers what has none on the GPU, though one is asked for.

    Raises:
        UserError: a GPU is named of which there are no rates.
    """

    def __init__(self, rates: Sequence[Rate], gpu: bool, gpu_name: str) -> None:
        self.gpu = gpu
        on_gpu = [r for r in rates if not r.device.startswith("cpu") and gpu_name.lower() in r.device.lower()]
        if gpu_name and not on_gpu:
            raise UserError(
                f"--device {gpu_name}: no GPU of such a name among the rates; write cpu or cuda, or add rates of it: "
                "`mmm4rec rates` there measures them, `--rates FILE` here reads them"
            )
        newest = max(on_gpu, key=lambda rate: rate.date, default=None)
        self.rates = {CPU: [r for r in rates if r.device.startswith("cpu")]}
        self.rates[GPU] = [r for r in on_gpu if newest and r.device == newest.device]
        self.without_gpu_rate: set[str] = set()

    def of(self, device: str, name: str, stage: str) -> list[Rate]:
        """Rates of a system in a stage, or of what is measured of a step; smallest catalogue first."""
        return sorted((r for r in self.rates[device] if r.key == (name, stage)), key=lambda rate: rate.items)

    def where_known(self, name: str, estimate: Callable[[str], Estimate]) -> Estimate:
        """An estimate on a GPU if that is asked for and any rate is known there, else on a CPU."""
        if self.gpu:
            found = estimate(GPU)
            if found.seconds:
                return found
            self.without_gpu_rate.add(name)
        return estimate(CPU)

    def notes(self) -> list[str]:
        """What a reader must know."""
        if not self.without_gpu_rate:
            return []
        names = ", ".join(sorted(self.without_gpu_rate))
        return [f"No GPU rate of {names}: hours of one CPU thread instead. `mmm4rec rates` on the GPU measures them."]
