//! Who runs next and where. Refuses to know HTTP and models.
