"""Which images of a step each process takes, also where a run goes on with another number of processes."""

from dataclasses import dataclass

from .launch import common_error


@dataclass(frozen=True)
class Shares:
    """So many processes, which each take `images` in a forward pass, and so many `passes` an optimiser step."""

    processes: int
    images: int
    passes: int

    @property
    def images_per_pass(self) -> int:
        """Of all processes."""
        return self.processes * self.images

    def among(self, processes: int, *, whole: bool = False) -> "Shares":
        """The same images in every step and in the same order, shared among another number of processes.

        None takes more images in a pass than before, as its memory might not do; a pass is made in several parts
        instead, unless it must stay `whole`. UserError if not every process can have as many images as the others.
        """
        each, left = divmod(self.images_per_pass, processes)
        if left:
            fitting = _divisors(self.images_per_pass)
            nearest = [max(n for n in fitting if n < processes), *(n for n in fitting if n > processes)][:2]
            raise common_error(
                f"--allow_elastic: {self.images_per_pass} images at a time cannot be shared equally by {processes} "
                f"processes; start {' or '.join(map(str, nearest))}"
            )
        images = each if whole else max(n for n in _divisors(each) if n <= self.images)
        return Shares(processes, images, self.passes * (each // images))


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
