"""What a span of OpenTelemetry means here: names of attributes, and the tree of a run."""
