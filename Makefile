# Every target is one or two commands; what they need is installed by .ci/deps.
SHELL := /bin/bash
.DEFAULT_GOAL := build

SUDO      := $(if $(filter 0,$(shell id -u)),,sudo -E env PATH="$$PATH")
VERSION   := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS   := -s -w -X main.version=$(VERSION)
DEMO_ARGS ?=
RECIPE    ?= images/recipes/debian-12-lab.yaml
TEST_ARGS ?=
BUILD_ARGS ?=

.PHONY: build demo image-ci image-cuda test unit power-soak lint bench bench-store bench-images bench-netboot bench-power deps deps-demo clean

## build: the binaries, into bin/
build:
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/smelt ./cmd/smelt-agent
	CGO_ENABLED=1 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/smelt-gpu
	$(MAKE) --no-print-directory bin/sim/libnvidia-ml.so.1 bin/sim/libcuda.so.1

bin/sim/libnvidia-ml.so.1: burnin/gpu/simlib/nvml.c burnin/gpu/simlib/sim.h
	mkdir -p bin/sim && gcc -O2 -Wall -shared -fPIC -o $@ $< -lm
bin/sim/libcuda.so.1: burnin/gpu/simlib/cuda.c burnin/gpu/simlib/sim.h
	mkdir -p bin/sim && gcc -O2 -Wall -shared -fPIC -o $@ $< -lm

## demo: the whole conversion in the lab; DEMO_ARGS=--exit ends by itself
demo: deps-demo build
	$(SUDO) bin/smelt lab demo $(DEMO_ARGS)

## image-ci: builds the images of RECIPE and tries each in QEMU by the path that
## real machines go, without KVM; JUnit files and logs are left in image-ci/
image-ci: deps-demo build
	@mkdir -p image-ci; found=$$($(SUDO) bin/smelt image build $(RECIPE) --relock $(BUILD_ARGS) --state .cache/image-ci) && rc=0 && \
	for d in $$found; do \
		$(SUDO) bin/smelt image test $$d --state .cache/image-ci --junit image-ci/$${d:0:12}.xml --logs image-ci/$${d:0:12} $(TEST_ARGS) || rc=$$?; \
	done; exit $${rc:-1}

## image-cuda: the same for the image with Debian's NVIDIA driver, whose modules
## are compiled for it; some 20 minutes on two cores, and not part of the CI
image-cuda:
	@$(MAKE) --no-print-directory image-ci RECIPE=images/recipes/debian-12-cuda.yaml BUILD_ARGS="--variant r535"

## test: everything that CI runs: no test may skip, the slow ones run too
## (QEMU machines, the image build), and last the demo's conversion
test: deps lint build
	SMELT_TEST_NO_SKIP=1 SMELT_TEST_E2E=1 $(SUDO) go test -timeout 45m ./...
	$(SUDO) bin/smelt lab demo --exit

## unit: what go test ./... runs, in less than three minutes
unit:
	$(SUDO) go test ./...

## power-soak: the power budget against 100,000 random schedules of random halls
power-soak:
	go test ./power -run TestSchedules -count=1 -timeout 60m -v -rapid.checks=100000

lint:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt would change:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	go tool -modfile=tools.mod staticcheck ./...

## bench: every benchmark; each prints one line of JSON last
bench: bench-store bench-images bench-netboot bench-power

bench-store:
	@$(SUDO) go run ./internal/store/storebench

## bench-images: writing to disk against dd, bmaptool, qemu-img and fio's limit;
## 20 nodes that share an image; BENCH_ARGS="-only disk -- -mib 4096 -rounds 1"
bench-images: deps
	@$(SUDO) go run ./images/bench $(BENCH_ARGS)

## bench-netboot: DHCP, TFTP, HTTP and iPXE against Kea, dnsmasq, tftpd-hpa, nginx
bench-netboot: deps
	@$(SUDO) go run ./pxe/bench

## bench-power: one server's care for 2,000 BMCs, some of them slow or dead, beside
## bmclib's; what is left on them after killed processes; the power budget
bench-power:
	@go run ./power/bench $(BENCH_ARGS)

deps:
	@.ci/deps
deps-demo:
	@.ci/deps --demo

clean:
	rm -rf bin
