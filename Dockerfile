# syntax=docker/dockerfile:1

# Two stages: a Rust toolchain that builds, and a small Debian that runs the one binary.
# Built with BuildKit (the default since Docker 23; `podman build` knows it too).

FROM rust:1-bookworm AS build
# What scripts/setup-build.sh would install: cmake and the C++ compiler for BoringSSL and AWS-LC,
# libclang for bindgen. The compiler, make, git and pkg-config are in the image already.
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake libclang-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# Registry and target directory live in build caches, so that a change of our own code does not
# build the dependencies again. They are not part of the image: the binary is copied out.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin perennial \
    && install -D -m 0755 target/release/perennial /out/perennial

FROM debian:bookworm-slim
# ca-certificates: the roots by which the ACME servers' own HTTPS is checked. libstdc++6: BoringSSL
# links it.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libstdc++6 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 10001 perennial \
    && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/perennial --no-create-home \
        --shell /usr/sbin/nologin perennial \
    && install -d -m 0700 -o 10001 -g 10001 /var/lib/perennial \
    && install -d -m 0755 /etc/perennial
COPY --from=build /out/perennial /usr/local/bin/perennial

USER 10001:10001
WORKDIR /var/lib/perennial
# Accounts, keys and certificates. Without a volume they are gone with the container, and the next
# one orders them all again.
VOLUME ["/var/lib/perennial"]
# Docker lets every user bind them (net.ipv4.ip_unprivileged_port_start=0 inside the container). No
# file capability is set on the binary: with no-new-privileges it could not be started then. Where
# the runtime does not do this, set that sysctl, or listen on 8080 and 8443 and publish those.
EXPOSE 80 443
# Reads /etc/perennial/perennial.toml: mount that directory, not the single file, whose changes a
# bind mount would hide.
ENTRYPOINT ["perennial"]
CMD ["run"]
