# One image per service: docker build --target orders (or billing, oncebox for operators, demo for the page that breaks them).
FROM golang:1.26 AS build
WORKDIR /src
ENV CGO_ENABLED=0
# The caches stay on the builder, so that a changed line costs the build of its package only.
RUN --mount=type=bind,target=. \
    --mount=type=cache,target=/go/pkg/mod \
    --mount=type=cache,target=/root/.cache/go-build \
    go build -trimpath -ldflags='-s -w' -o /out/ ./cmd/orders ./cmd/billing ./cmd/oncebox ./cmd/demo

# Certificates, a user without rights, and nothing to run but the binary: it is its own health check.
FROM gcr.io/distroless/static-debian12:nonroot AS orders
COPY --from=build /out/orders /orders
EXPOSE 8080
ENTRYPOINT ["/orders"]

FROM gcr.io/distroless/static-debian12:nonroot AS billing
COPY --from=build /out/billing /billing
EXPOSE 8081
ENTRYPOINT ["/billing"]

FROM gcr.io/distroless/static-debian12:nonroot AS oncebox
COPY --from=build /out/oncebox /oncebox
ENTRYPOINT ["/oncebox"]

FROM gcr.io/distroless/static-debian12:nonroot AS demo
COPY --from=build /out/demo /demo
EXPOSE 8070
ENTRYPOINT ["/demo"]
