-- Under what a prediction ran last: version, weights, program, device. The retention sweep leaves it.
CREATE TABLE runs (
    prediction INTEGER PRIMARY KEY,
    run        TEXT NOT NULL
) STRICT;
