//! Input structs as schema, checks and documentation; cog.yaml. Refuses to know HTTP.
