"""What the networks of the shipped spaces share: the way from a space's weights to a timm network's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from nni.nas.nn.pytorch import ModelSpace

from .costs import check_choices
from .declaration import ShippedDeclaration


# NNI wraps the constructor of every subclass of ModelSpace, and opens a scope of labels and a context of frozen choices
# in it. Wrapped here as well, a space would open both twice.
class TimmSpace(ModelSpace, disable_init_wrapper=True):  # type: ignore[call-arg]
    """The over-parameterised network of a declaration, with the module names of its timm network.

    Args:
        declaration: What can be chosen.
        num_classes: Classes of the linear classifier.
        in_chans: Channels of the input image.

    Input `B x in_chans x H x W`, output `B x num_classes`.
    """

    def __init__(self, declaration: ShippedDeclaration, num_classes: int, in_chans: int):
        super().__init__()
        self.declaration = declaration
        self.num_classes = num_classes
        self.in_chans = in_chans

    def timm_state_dict(self, choices: Mapping[str, str]) -> dict[str, torch.Tensor]:
        """Return the weights of one choice under timm's keys, out of the plain space or the mutated supernet.

        Args:
            choices: A candidate for every edge.

        Raises:
            SubnetError: An edge or candidate is unknown or missing.
        """
        check_choices(choices, self.declaration.candidates(), space=self.declaration.name)
        chosen = {path: choices[label] for label, path in self.declaration.edge_paths().items()}
        kept: dict[str, torch.Tensor] = {}
        for key, value in self.state_dict().items():
            parts = key.split(".")
            # Where an edge's own path ends; the next part is a candidate's name, which a frozen network lacks.
            where = next((end for end in range(len(parts), 0, -1) if ".".join(parts[:end]) in chosen), None)
            if where is None:
                kept[key] = value
            elif parts[where] == chosen[".".join(parts[:where])]:
                kept[".".join(parts[:where] + parts[where + 1 :])] = value
        return self.declaration.timm_names(kept, choices)
