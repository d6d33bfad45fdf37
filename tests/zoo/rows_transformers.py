"""Small models of the package transformers."""

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tests.zoo.nets import CLASSES, HELD_OUT, TRAIN, case_of, integers
from tests.zoo.row import Case, Kind

MODELS = Kind("Models of transformers")
N, WORDS = TRAIN + HELD_OUT, 11
SETTINGS: dict[str, Any] = {"needs": "transformers", "fast": False, "quiet": (".*",)}


def _gpt() -> Case:
    """GPT-2, whose loss comes out of the model: labels are an input."""
    transformers: Any = importlib.import_module("transformers")
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=8, n_embd=8, n_layer=2, n_head=2, resid_pdrop=0.1
    )

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = transformers.GPT2LMHeadModel(config)

        def forward(self, ids: Tensor) -> Any:
            return self.net(input_ids=ids, labels=ids)

    x = integers(WORDS, N, 5)
    return case_of(Model(), x, x, loss=lambda out, y: out.loss)


def _classifier(kind: str, **given: Any) -> Case:
    """An encoder with a head for classes, with a mask in a dict of inputs."""
    transformers: Any = importlib.import_module("transformers")
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=WORDS, max_position_embeddings=16, num_labels=CLASSES, **given
    )

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = getattr(transformers, f"{kind}ForSequenceClassification")(config)

        def forward(self, ids: Tensor, mask: Tensor) -> Any:
            return self.net(input_ids=ids, attention_mask=mask)

    x = integers(WORDS, N, 5, low=2)
    mask = torch.ones_like(x)
    mask[::3, -2:] = 0
    y = integers(CLASSES, N, seed=1)
    return case_of(Model(), (x, mask), y, loss=lambda out, y: F.cross_entropy(out.logits, y))


MODELS.exact(  # which computes its loss in float32: of that there are no difference quotients
    "GPT-2, its loss from the model", _gpt, quotients=False, tolerance=1e-4, **SETTINGS
)
MODELS.exact(
    "BERT for classes",
    lambda: _classifier(
        "Bert",
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
    ),
    **SETTINGS,
)
MODELS.exact(
    "DistilBERT for classes",
    lambda: _classifier("DistilBert", dim=8, n_layers=1, n_heads=2, hidden_dim=12),
    **SETTINGS,
)
ROWS = MODELS.rows
