# syntax=docker/dockerfile:1
# The product's images, with the same contents as `cargo xtask image` makes without docker:
#   docker build --target collector --tag ebpf-scaler/collector:dev .
# and likewise operator and sample. Each holds one static program and the names of its users.

# The version is that of rust-toolchain.toml.
FROM rust:1.95.0-bookworm AS build
ENV EBPF_SCALER_CACHE=/cache RUSTUP_TOOLCHAIN=1.95.0 CARGO_TARGET_DIR=/target
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/cache \
    --mount=type=cache,target=/target \
    set -eu; \
    bash hack/setup/bpf.sh; \
    target="$(uname -m)-unknown-linux-gnu"; \
    # A target is named so that procedural macros, which are shared libraries, build without the flag.
    RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release --target "$target" \
      --package ebpf-scaler-collector --package ebpf-scaler-operator --package ebpf-scaler-sample; \
    mkdir -p /out/etc; \
    cp "/target/$target/release/collector" "/target/$target/release/operator" \
      "/target/$target/release/sample" /out/; \
    printf '%s\n' 'root:x:0:0:root:/:/none' 'nonroot:x:65532:65532:nonroot:/:/none' >/out/etc/passwd

# The agent's pod runs it as user 0 with three capabilities; everything else needs no more than this user.
FROM scratch AS collector
COPY --from=build /out/etc /etc
COPY --from=build /out/collector /collector
USER 65532:65532
WORKDIR /
ENTRYPOINT ["/collector"]

FROM scratch AS operator
COPY --from=build /out/etc /etc
COPY --from=build /out/operator /operator
USER 65532:65532
WORKDIR /
ENTRYPOINT ["/operator"]

FROM scratch AS sample
COPY --from=build /out/etc /etc
COPY --from=build /out/sample /sample
USER 65532:65532
WORKDIR /
ENTRYPOINT ["/sample"]
