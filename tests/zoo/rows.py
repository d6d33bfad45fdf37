"""All rows of the zoo, in the order of the documentation."""

from tests.zoo import (
    rows_activations,
    rows_architectures,
    rows_convolutions,
    rows_data,
    rows_loops,
    rows_losses,
    rows_mechanics,
    rows_norms,
    rows_rules,
    rows_sequences,
    rows_transformers,
    rows_watched,
)
from tests.zoo.row import Row

ROWS: tuple[Row, ...] = (
    *rows_norms.ROWS,
    *rows_convolutions.ROWS,
    *rows_activations.ROWS,
    *rows_sequences.ROWS,
    *rows_architectures.ROWS,
    *rows_losses.ROWS,
    *rows_data.ROWS,
    *rows_mechanics.ROWS,
    *rows_rules.ROWS,
    *rows_transformers.ROWS,
    *rows_loops.ROWS,
    *rows_watched.ROWS,
)
