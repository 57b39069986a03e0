"""`POST /v1/traces`: spans by OTLP/HTTP, in JSON and in protobuf."""
