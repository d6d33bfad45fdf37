"""Attention, recurrence and embeddings."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.zoo.nets import (
    CLASSES,
    HELD_OUT,
    TRAIN,
    Net,
    case_of,
    classify,
    integers,
    normal,
    tokens,
)
from tests.zoo.row import Case, Kind

ATTENTION = Kind("Attention")
RECURRENCE = Kind("Recurrence")
EMBEDDINGS = Kind("Embeddings")
WORDS = 7


class Attending(nn.Module):
    """Embedding, self-attention with a mask made of the padding, and a head."""

    def __init__(self, masked: str = "", causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 4)
        self.attention = nn.MultiheadAttention(4, 2, dropout=dropout, batch_first=True)
        self.head = nn.Linear(4, CLASSES)
        self.masked, self.causal = masked, causal

    def forward(self, x: Tensor) -> Any:
        given: dict[str, Any] = {"need_weights": False}
        if self.masked == "bool":
            given["key_padding_mask"] = x == 0
        if self.masked == "float":
            h = self.words.weight
            given["key_padding_mask"] = torch.zeros(x.shape, dtype=h.dtype).masked_fill(
                x == 0, -math.inf
            )
        if self.causal:
            given["attn_mask"] = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        h = self.words(x)
        return self.head((h + self.attention(h, h, h, **given)[0]).mean(1))


def _heads(x: Tensor) -> Any:
    return x.unflatten(-1, (2, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]


def _sdpa(**given: Any) -> nn.Module:
    """Scaled dot-product attention, called as a function."""

    def run(m: Any, x: Tensor) -> Any:
        q, k, v = (_heads(part) for part in m.qkv(m.words(x)).chunk(3, -1))
        dropout = given.get("dropout", 0.0) if m.training else 0.0
        mask = (x != 0)[:, None, None] if given.get("mask") else None
        out = F.scaled_dot_product_attention(
            q, k, v, mask, dropout, is_causal=given.get("causal", False)
        )
        return m.head(out.transpose(1, 2).flatten(2).mean(1))

    return Net(run, words=nn.Embedding(WORDS, 4), qkv=nn.Linear(4, 12), head=nn.Linear(4, CLASSES))


def _flash(m: Any, x: Tensor) -> Any:
    q, k, v = (_heads(part) for part in m.qkv(m.words(x)).chunk(3, -1))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = F.scaled_dot_product_attention(q, k, v)
    return m.head(out.transpose(1, 2).flatten(2).mean(1))


def _encoder(**given: Any) -> nn.Module:
    settings: dict[str, Any] = {"dropout": 0.0, "batch_first": True, **given}
    layer = nn.TransformerEncoderLayer(4, 2, 6, **settings)
    return Net(
        lambda m, x: m.head(m.body(m.words(x), src_key_padding_mask=x == 0).mean(1)),
        words=nn.Embedding(WORDS, 4),
        body=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        head=nn.Linear(4, CLASSES),
    )


def _decoder() -> nn.Module:
    layer = nn.TransformerDecoderLayer(4, 2, 6, dropout=0.1, batch_first=True)

    def run(m: Any, x: Tensor) -> Any:
        memory = m.words(x)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=memory.dtype)
        return m.head(m.body(memory, memory, tgt_mask=mask, tgt_is_causal=True)[:, -1])

    return Net(run, words=nn.Embedding(WORDS, 4), body=layer, head=nn.Linear(4, CLASSES))


def _language_model() -> nn.Module:
    """A small GPT: causal attention, learned positions, output tied to the embedding."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(4), nn.LayerNorm(4)])
            self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)
            self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4), nn.Dropout(0.1))

        def forward(self, x: Tensor) -> Any:
            q, k, v = (_heads(part) for part in self.qkv(self.norms[0](x)).chunk(3, -1))
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(a.transpose(1, 2).flatten(2))
            return x + self.mlp(self.norms[1](x))

    def run(m: Any, x: Tensor) -> Any:
        h = m.words(x) + m.places.weight[: x.shape[1]]
        return m.unembed(m.norm(m.blocks(h)))

    words, unembed = nn.Embedding(WORDS, 4), nn.Linear(4, WORDS, bias=False)
    unembed.weight = words.weight
    return Net(
        run,
        words=words,
        places=nn.Embedding(5, 4),
        blocks=nn.Sequential(Block(), Block()),
        norm=nn.LayerNorm(4),
        unembed=unembed,
    )


def _next_word(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten(), ignore_index=-100)


def _texts(model: nn.Module) -> Case:
    x = integers(WORDS, TRAIN + HELD_OUT, 6)
    y = x[:, 1:].clone()
    y[::4, -1] = -100
    return case_of(model, x[:, :-1], y, loss=_next_word)


ATTENTION.exact("MultiheadAttention", lambda: tokens(Attending()))
ATTENTION.exact("key_padding_mask of bools", lambda: tokens(Attending("bool")))
ATTENTION.exact("key_padding_mask of floats", lambda: tokens(Attending("float")))
ATTENTION.exact("a causal mask", lambda: tokens(Attending(causal=True)))
ATTENTION.exact("attention with dropout", lambda: tokens(Attending("bool", dropout=0.2)))
ATTENTION.exact("scaled_dot_product_attention", lambda: tokens(_sdpa()))
ATTENTION.exact("the same, causal", lambda: tokens(_sdpa(causal=True)))
ATTENTION.exact("the same, with a mask", lambda: tokens(_sdpa(mask=True)))
ATTENTION.exact("the same, with dropout", lambda: tokens(_sdpa(dropout=0.2)))
ATTENTION.runs(
    "an attention kernel of one's choice",
    lambda: tokens(
        Net(_flash, words=nn.Embedding(WORDS, 4), qkv=nn.Linear(4, 12), head=nn.Linear(4, CLASSES))
    ),
    match="sdpa_kernel",
    says="take away the sdpa_kernel() around it, so that the MATH kernel is used",
)
ATTENTION.exact("TransformerEncoder", lambda: tokens(_encoder()))
ATTENTION.exact(
    "TransformerEncoder, norm_first, GELU, dropout",
    lambda: tokens(_encoder(norm_first=True, activation="gelu", dropout=0.1)),
)
ATTENTION.exact("TransformerDecoderLayer", lambda: tokens(_decoder()))
ATTENTION.exact("a small GPT with tied output", lambda: _texts(_language_model()))


def _vision_transformer() -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        patches = m.patches(x).flatten(2).mT
        h = torch.cat([m.cls.expand(len(x), -1, -1), patches], 1) + m.places
        return m.head(m.body(h)[:, 0])

    return Net(
        run,
        patches=nn.Conv2d(1, 4, 2, 2),
        cls=nn.Parameter(torch.zeros(1, 1, 4)),
        places=nn.Parameter(0.1 * torch.randn(1, 5, 4)),
        body=nn.TransformerEncoderLayer(4, 2, 8, 0.1, batch_first=True, norm_first=True),
        head=nn.Linear(4, CLASSES),
    )


ATTENTION.exact("a vision transformer", lambda: classify(_vision_transformer(), 1, 4, 4))


class Recurrent(nn.Module):
    """A recurrent layer over words, and a head on its last output."""

    def __init__(self, kind: Any, lengths: bool = False, **given: Any) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 3)
        self.cell = kind(3, 4, batch_first=True, **given)
        width = given.get("proj_size", 4) * (2 if given.get("bidirectional") else 1)
        self.head = nn.Linear(width, CLASSES)
        self.lengths = lengths

    def forward(self, x: Tensor) -> Any:
        h: Any = self.words(x)
        if self.lengths:
            lengths = (x != 0).sum(1)
            h = nn.utils.rnn.pack_padded_sequence(h, lengths, True, enforce_sorted=False)
        out = self.cell(h)[0]
        if self.lengths:
            out = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)[0]
        return self.head(out.mean(1))


for name, kind, given in (
    ("RNN", nn.RNN, {}),
    ("RNN with ReLU", nn.RNN, {"nonlinearity": "relu"}),
    ("GRU", nn.GRU, {}),
    ("LSTM", nn.LSTM, {}),
    ("a bidirectional LSTM", nn.LSTM, {"bidirectional": True}),
    ("a GRU of two layers with dropout", nn.GRU, {"num_layers": 2, "dropout": 0.3}),
    ("LSTM with proj_size", nn.LSTM, {"proj_size": 2}),
    ("GRU without bias", nn.GRU, {"bias": False}),
    ("LSTM of packed sequences", nn.LSTM, {"lengths": True}),
    (
        "a bidirectional GRU of packed sequences",
        nn.GRU,
        {"lengths": True, "bidirectional": True},
    ),
):
    RECURRENCE.exact(name, lambda kind=kind, given=given: tokens(Recurrent(kind, **given)))


def _cells(kind: Any) -> nn.Module:
    def run(m: Any, x: Tensor) -> Any:
        state = None
        for t in range(x.shape[1]):
            state = m.cell(x[:, t], state)
        return m.head(state[0] if isinstance(state, tuple) else state)

    return Net(run, cell=kind(2, 4), head=nn.Linear(4, CLASSES))


RECURRENCE.exact("RNNCell in a loop", lambda: classify(_cells(nn.RNNCell), 3, 2))
RECURRENCE.exact("GRUCell in a loop", lambda: classify(_cells(nn.GRUCell), 3, 2))
RECURRENCE.exact("LSTMCell in a loop", lambda: classify(_cells(nn.LSTMCell), 3, 2))


def _teacher_forced() -> nn.Module:
    """Sequence to sequence, where a draw decides whether the true word is fed."""

    def run(m: Any, x: Tensor) -> Any:
        _, h = m.encoder(m.words(x))
        h, word, out = h[0], x[:, 0], []
        for t in range(x.shape[1]):
            h = m.decoder(m.words(word), h)
            out.append(m.head(h))
            forced = m.training and bool(torch.rand(()) < 0.5)
            word = x[:, t] if forced else out[-1].argmax(1)
        return torch.stack(out, 1)

    return Net(
        run,
        words=nn.Embedding(WORDS, 3),
        encoder=nn.GRU(3, 4, batch_first=True),
        decoder=nn.GRUCell(3, 4),
        head=nn.Linear(4, WORDS),
    )


def _copied(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def _translation() -> Case:
    x = integers(WORDS, TRAIN + HELD_OUT, 3)
    return case_of(_teacher_forced(), x, x.flip(1), loss=_copied)


RECURRENCE.exact("sequence to sequence with teacher forcing by chance", _translation)


def _stateful() -> nn.Module:
    """The hidden state of the last batch is where the next begins, kept on the module."""

    def run(m: Any, x: Tensor) -> Any:
        h = getattr(m, "kept", None)
        h = torch.zeros(1, 4, dtype=x.dtype) if h is None else h
        h = m.cell(x, h.expand(len(x), -1))
        if m.training:
            m.kept = h.detach().mean(0, keepdim=True)
        return m.head(h)

    return Net(run, cell=nn.GRUCell(4, 4), head=nn.Linear(4, CLASSES))


RECURRENCE.runs(
    "a hidden state kept on self between steps",
    lambda: classify(_stateful()),
    match="registered buffer",
    says="keep it in a registered buffer: a step must follow from the state of the run",
)


def _carried() -> nn.Module:
    """The same in a registered buffer."""

    def run(m: Any, x: Tensor) -> Any:
        h = m.cell(x, m.kept.repeat(len(x), 1))
        if m.training:
            with torch.no_grad():
                m.kept.copy_(h.mean(0, keepdim=True))
        return m.head(h)

    return Net(run, kept=torch.zeros(1, 4), cell=nn.GRUCell(4, 4), head=nn.Linear(4, CLASSES))


RECURRENCE.exact(
    "a hidden state in a registered buffer", lambda: classify(_carried()), unroll=False
)


def _bag(mode: str) -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(WORDS, 4, mode=mode), nn.Tanh(), nn.Linear(4, CLASSES))


def _mean_of(words: nn.Embedding) -> nn.Module:
    return Net(
        lambda m, x: m.head(torch.tanh(m.words(x)).mean(1)), words=words, head=nn.Linear(4, CLASSES)
    )


def _tied(**given: Any) -> nn.Module:
    words, out = nn.Embedding(WORDS, 4, **given), nn.Linear(4, WORDS, bias=False)
    out.weight = words.weight
    return Net(lambda m, x: m.out(torch.tanh(m.words(x))), words=words, out=out)


EMBEDDINGS.exact("Embedding", lambda: tokens(_mean_of(nn.Embedding(WORDS, 4))))
EMBEDDINGS.exact(
    "padding_idx", lambda: tokens(_mean_of(nn.Embedding(WORDS, 4, padding_idx=0))), unroll=False
)
EMBEDDINGS.exact("embedding tied to the output", lambda: _texts(_tied()))
EMBEDDINGS.exact(
    "embedding tied to the output, with padding_idx",
    lambda: _texts(_tied(padding_idx=0)),
    unroll=False,
)
EMBEDDINGS.exact(
    "scale_grad_by_freq",
    lambda: tokens(_mean_of(nn.Embedding(WORDS, 4, scale_grad_by_freq=True))),
    unroll=False,
)
EMBEDDINGS.exact(
    "sparse=True",
    lambda: tokens(_mean_of(nn.Embedding(WORDS, 4, sparse=True))),
    unroll=False,
)
EMBEDDINGS.runs(
    "max_norm",
    lambda: tokens(_mean_of(nn.Embedding(WORDS, 4, max_norm=1.0))),
    match="max_norm",
    says="it writes into the weight: normalise the output of the embedding instead",
)
EMBEDDINGS.exact(
    "a frozen embedding",
    lambda: tokens(_mean_of(nn.Embedding.from_pretrained(normal(WORDS, 4)))),  # type: ignore[no-untyped-call]
)
for mode in ("sum", "mean", "max"):
    EMBEDDINGS.runs(
        f"EmbeddingBag, {mode}",
        lambda mode=mode: tokens(_bag(mode)),
        match="embedding_bag.*no second derivative",
        says="use Embedding, and take the sum, mean or maximum of its output",
    )
EMBEDDINGS.exact(
    "one-hot vectors and a matrix",
    lambda: tokens(
        Net(
            lambda m, x: m.head(
                torch.tanh(F.one_hot(x, WORDS).to(m.table.dtype) @ m.table).mean(1)
            ),
            table=nn.Parameter(torch.randn(WORDS, 4)),
            head=nn.Linear(4, CLASSES),
        )
    ),
)
ROWS = [*ATTENTION.rows, *RECURRENCE.rows, *EMBEDDINGS.rows]
