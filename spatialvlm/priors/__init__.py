"""What is known of a picture beside its pixels, added to its image tokens: rays, maps, places in space.

A prior of `config.priors` is one frozen dataclass of `PRIORS`, in a file of its own here; `prior.Prior` is
the contract: what it needs of a `types.Shot`, the physical values of each token that travel with the tiles
(`Batch.extra`, axis "tile"), and the features that are made of them on the device. All else is the same for
all: `reader` (host: refuses by name what lacks something, or leaves such pictures without where the user
asked for that) and `attached` (device: a layer, a GELU, and a projection that starts at zero, so that a
model begins as it was; on disk; a model without them).

- `Vlm.priors` holds what is attached. The model's image tokens are those of the connector plus what each
  prior says of them. A batch of pixels without the arrays is refused by name.
- `reader_of(configs)` goes into a processor (`load_processor(..., priors=)`), which then reads the shots of
  examples and prompts.
- `attach`, `attach_from`, `save`, `read`, `check_start`, `claims`, `without`: see there.
"""

from spatialvlm.priors.attached import (
  Attached,
  PriorParam,
  attach,
  attach_from,
  check_start,
  claims,
  configs_of,
  read,
  save,
  without,
)
from spatialvlm.priors.prior import Prior
from spatialvlm.priors.reader import Reader, reader_of, with_missing
from spatialvlm.priors.table import PRIORS, make_priors

__all__ = [
  "PRIORS",
  "Attached",
  "Prior",
  "PriorParam",
  "Reader",
  "attach",
  "attach_from",
  "check_start",
  "claims",
  "configs_of",
  "make_priors",
  "read",
  "reader_of",
  "save",
  "with_missing",
  "without",
]
