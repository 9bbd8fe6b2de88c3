"""One way to ask a model: an engine, an endpoint, a reference, an embedder."""
