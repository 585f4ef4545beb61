# syntax=docker/dockerfile:1
# One image for every llmops process: the binary and the built-in embedding model, nothing else.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
# Test and bench targets are declared in Cargo.toml; their files must exist for the manifest to load.
COPY tests tests
COPY benches benches
RUN cargo build --release --locked --bin llmops

FROM python:3.12-slim-bookworm AS models
WORKDIR /src
COPY quickstart/models quickstart/models
ENV LLMOPS_MODELS_DIR=/models
RUN quickstart/models && chmod -R a+rX /models/all-minilm-l6-v2

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=models /models/all-minilm-l6-v2 /models/all-minilm-l6-v2
COPY --from=build /src/target/release/llmops /usr/local/bin/llmops
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/llmops"]
