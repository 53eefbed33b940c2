"""Try-offs beside a data set's try-ons: from the person the product picture of what they wear is painted."""

import logging
from dataclasses import dataclass, replace

from tryon.data.category import Category, MaskRule
from tryon.data.sample import SampleSource, TryOnSample
from tryon.units import plural

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WithTryOffs:
    """A data set whose pairs come in one more variant, the last: their try-off, as a SampleSource. A pair whose garment
    picture does not show the garment alone has none: there its first variant comes again."""

    data: SampleSource

    @property
    def variants(self) -> int:
        return self.data.variants + 1

    @property
    def mask_rule(self) -> MaskRule | None:
        return self.data.mask_rule

    @property
    def worn_reference_share(self) -> float:
        return self.data.worn_reference_share

    def __len__(self) -> int:
        return len(self.data) // self.data.variants * self.variants

    def try_off_of(self, index: int) -> int | None:
        """The sample of the data set whose try-off sample `index` is; None where it is none."""
        first = index - len(self.data)  # of the pair's variants
        return first if first >= 0 and self.data.shows_garment_alone(first) else None

    def key(self, index: int) -> str:
        own = self.try_off_of(index)
        return self.data.key(index % len(self.data)) if own is None else f"try-off {self.data.key(own)}"

    def category(self, index: int) -> Category:
        return self.data.category(index % len(self.data))

    def name(self, index: int) -> str:
        return self.data.name(index % len(self.data))

    def shows_garment_alone(self, index: int) -> bool:
        return self.data.shows_garment_alone(index % len(self.data))

    def __getitem__(self, index: int) -> TryOnSample:
        sample = self.data[index % len(self.data)]
        if self.try_off_of(index) is None:
            return sample
        return replace(sample, key=self.key(index), mask_was_resized=False, try_off=True)


def with_try_offs(data: SampleSource) -> WithTryOffs:
    """The data set with its try-offs. Raises ValueError where no pair has one."""
    pairs = len(data) // data.variants
    count = sum(data.shows_garment_alone(index) for index in range(pairs))
    if not count:
        raise ValueError(
            "no garment picture is a product picture, and from those that are cut out of photographs no try-off can be "
            "learnt: leave --try_off_share out, or give data that has some"
        )
    logger.info("try-offs are learnt from %d of %s, those with a product picture", count, plural(pairs, "pair"))
    return WithTryOffs(data)
