//! What every store decides alike, as pure functions of one row.
