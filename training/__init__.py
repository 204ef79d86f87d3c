"""Training stages. They import rea2seg, never the reverse."""

import rea2seg as rea2seg  # First: it makes torchvision importable, which lightning needs.
